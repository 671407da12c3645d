"""How the angles of all images spread: to their own class, and by how much less than to the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from torch import nn

from advsphere.analysis.anatomy import dissect
from advsphere.analysis.angles import measure
from advsphere.analysis.broken import drawn
from advsphere.analysis.canvas import canvas, outside_legend, quiet
from advsphere.analysis.kept import read_kept, write_kept
from advsphere.analysis.palette import SERIES, SOFT
from advsphere.attacks import pgd
from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.draws import Draws
from advsphere.evaluation import data_checksum, model_checksum
from advsphere.evaluation.judge import exact_float32
from advsphere.threat import ThreatModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "advsphere spread 2"
BINS = 36


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Of each image, in degrees: the angle between its features and the direction of its class, and the margin, by
    which the nearest other class is farther (below 0 where it is nearer).
    """

    angle: tuple[float, ...]
    margin: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Images clean, and under PGD at the threat's eps (all steps, last iterate). of: how many images these are drawn
    from. model, data: checksums of the model and of all images.
    """

    clean: Sample
    adversarial: Sample
    of: int
    steps: int
    seed: int
    model: str
    data: str

    @property
    def n(self) -> int:
        return len(self.clean.angle)

    def save(self, path: Path) -> None:
        """Write a JSON file, whole or not at all. Raises UserError where that can't be done."""
        write_kept(path, FORMAT, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """A saved one. Raises UserError for a file that is missing, of another kind, or changed since."""
        values = read_kept(path, FORMAT)
        samples = {
            part: Sample(**{key: tuple(found) for key, found in values[part].items()})
            for part in ("clean", "adversarial")
        }
        return cls(**values | samples)


def spread_of_angles(
    model: nn.Module,
    images: Images,
    *,
    threat: ThreatModel,
    head: str | None = None,
    steps: int = 10,
    most: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Spread:
    """Measure every image, clean and after PGD with steps of eps / 4 from a uniform start.

    head: the last linear layer's name, where it can't be told. most: of more images a sample of so many, the one of
    `accuracy_against_eps`. on_progress: told (images done, images in all). Raises UserError as `dissect`, where a
    network has no angles to measure.
    """
    anatomy = dissect(model, images, head=head, batch_size=batch_size)
    attack = partial(pgd, threat=threat, steps=steps, step_size=threat.eps / 4)
    found: dict[str, dict[str, list[float]]] = {part: {"angle": [], "margin": []} for part in ("clean", "adversarial")}
    examples, done = drawn(len(images), most, seed=seed), 0
    with exact_float32():
        for index in examples.split(batch_size):
            x, y = images.batch(index)
            with frozen(model) as classify:
                x_adv = attack(classify, x, y, draws=Draws(seed, index.to(x.device)))
            for part, pixels in (("clean", x), ("adversarial", x_adv)):
                angles = measure(anatomy, pixels, y, images.classes, batch_size=batch_size)
                found[part]["angle"] += [round(v, 3) for v in angles.own.tolist()]
                found[part]["margin"] += [round(v, 3) for v in angles.margin.tolist()]
            done += len(index)
            on_progress(done, len(examples))
    clean, adversarial = (Sample(**{k: tuple(v) for k, v in found[part].items()}) for part in found)
    return Spread(
        clean=clean,
        adversarial=adversarial,
        of=len(images),
        steps=steps,
        seed=seed,
        model=model_checksum(model),
        data=data_checksum(images, batch_size),
    )


_LABELS = {
    "angle": "angle to the own class, degrees",
    "margin": "angular margin, degrees",
}


def spread_figure(spreads: Mapping[str, Spread], what: Literal["angle", "margin"]) -> Figure:
    """A panel for each model, by its name: clean images as a filled histogram, adversarial ones as an outline."""
    figure, axes = canvas(3.6, 0.75 + 1.1 * len(spreads), rows=len(spreads), sharex=True, sharey=True)
    pairs = {name: [getattr(part, what) for part in (s.clean, s.adversarial)] for name, s in spreads.items()}
    every = [v for pair in pairs.values() for values in pair for v in values]
    low, high = min(every), max(every) + 1e-6
    bins = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    for i, ((name, (clean, adversarial)), ax) in enumerate(zip(pairs.items(), axes, strict=True)):
        colour, share = SERIES[i % len(SERIES)], 100 / len(clean)
        ax.hist(clean, bins=bins, weights=[share] * len(clean), color=colour, alpha=0.3, linewidth=0, label="clean")
        ax.hist(
            adversarial,
            bins=bins,
            weights=[share] * len(adversarial),
            histtype="step",
            color=colour,
            linewidth=1.5,
            label="under attack",
        )
        if what == "margin":
            ax.axvline(0, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
        quiet(ax, _LABELS[what] if i == len(spreads) - 1 else "", "images, %", title=name)
    outside_legend(figure, axes[0])
    return figure
