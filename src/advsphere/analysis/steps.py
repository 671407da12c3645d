"""Accuracy against the number of steps: an attack that still finds more with more steps has not converged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from advsphere.analysis.broken import drawn, first_to_break
from advsphere.analysis.canvas import canvas, legend, quiet
from advsphere.analysis.falling import Falling, falling_line
from advsphere.attacks import pgd
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec, radius
from advsphere.evaluation.preflight import images_of
from advsphere.losses import Loss, log_odds
from advsphere.threat import ThreatModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class StepsCurve(Falling):
    """Accuracy under PGD with rising numbers of steps. at: these numbers."""

    threat: ThreatModel
    at: tuple[int, ...]


def accuracy_against_steps(
    model: nn.Module,
    images: Images | Tensor,
    labels: Tensor | None = None,
    *,
    threat: ThreatModel,
    steps: Sequence[int] = STEPS,
    loss: Loss = log_odds,
    most: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> StepsCurve:
    """PGD with steps of eps / 4 from the same uniform start, with each number of steps in turn, on what still resists.

    A shorter attack is thus the beginning of a longer one, and an image counts as fooled from its first success on.
    images, labels, seed, batch_size: as in `evaluate`. most: as in `accuracy_against_eps`. on_progress: told (attacks
    done, in all), over all batches. Raises UserError for steps that are not positive, or none.
    """
    images, numbers = images_of(images, labels), tuple(sorted({*map(int, steps)}))
    if not numbers or numbers[0] < 1:
        raise UserError(f"numbers of steps are positive, not {', '.join(map(str, numbers)) or 'none'}")
    attacks = [(threat, AttackSpec(f"PGD-{k}", _pgd(threat, k, loss))) for k in numbers]
    examples = drawn(len(images), most, seed=seed)
    broken = first_to_break(model, images, examples, attacks, seed=seed, batch_size=batch_size, on_progress=on_progress)
    return StepsCurve(threat=threat, at=(0, *numbers), broken=broken, of=len(images), seed=seed)


def steps_figure(curves: Mapping[str, StepsCurve]) -> Figure:
    """Curves with their 95 % bands, by the models' names; the steps on a logarithmic axis, beginning with 1."""
    figure, (axes,) = canvas(4.6, 3.2)
    for i, (name, curve) in enumerate(curves.items()):
        falling_line(axes, curve, i, name, first=1)
    one = next(iter(curves.values()))
    axes.set_xscale("log")
    axes.set_xticks(one.at[1:], [str(k) for k in one.at[1:]])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    quiet(axes, f"steps of PGD at {one.threat.norm} eps = {radius(one.threat.eps)}", "accuracy, %")
    legend(axes)
    return figure


def _pgd(threat: ThreatModel, steps: int, loss: Loss) -> partial[Tensor]:
    return partial(pgd, threat=threat, steps=steps, step_size=threat.eps / 4, loss=loss, until_fooled=True, keep="best")
