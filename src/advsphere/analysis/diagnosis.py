"""The whole diagnosis: one network, or one beside its baseline, with the four claims answered; as data and figures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advsphere.analysis.angles import Angles, directions, margin_figure, norm_figure
from advsphere.analysis.balance import Balance, balance_figure
from advsphere.analysis.canvas import MARKERS, SERIES, SOFT, canvas, legend, quiet
from advsphere.analysis.claims import Claim, balanced, effective, hard, margins
from advsphere.analysis.curves import curve_figure, steps_figure
from advsphere.analysis.examination import Examination, Network, examine
from advsphere.analysis.feature_normalization import PAPER, FewSteps, few_steps_figure
from advsphere.analysis.gradients import LayerGradients, gradient_figure, recorded
from advsphere.analysis.hard_examples import GROUPS, hardness_figure
from advsphere.analysis.perturbations import picture_figure
from advsphere.analysis.surface import surface_figure
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.files import content_checksum, read_json, write_atomically
from advsphere.threat import ThreatModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "advsphere diagnosis 1"


@dataclass(frozen=True, eq=False, kw_only=True)
class Diagnosis:
    """examinations: of the network that the claims are about, then of its baseline if there is one. data: what the set
    of images is called. threat, n, seed: of all attacks, but for Table 7's own radius.
    """

    examinations: tuple[Examination, ...]
    claims: tuple[Claim, ...]
    threat: ThreatModel
    data: str
    n: int
    seed: int

    def figures(self) -> dict[str, Figure]:
        """Every figure by the name of its file; those of the claims are called "claim-1-effective" and so on."""
        by = {e.network.name: e for e in self.examinations}
        clean, adversarial = ({name: getattr(e, part) for name, e in by.items()} for part in ("clean", "adversarial"))
        found = {
            "claim-1-effective": few_steps_figure({name: e.first_steps for name, e in by.items()}),
            "claim-2-hard": hardness_figure({name: e.hardness for name, e in by.items()}),
            "claim-3-balance": balance_figure({name: balance_of(e) for name, e in by.items()}),
            "claim-4-margin": margin_figure(clean, adversarial),
            "gradients": gradient_figure(
                {name: e.gradients for name, e in by.items()}, {name: e.network.metrics for name, e in by.items()}
            ),
            "feature-norms": norm_figure(clean, adversarial),
            "table-7": few_steps_figure({name: e.table7 for name, e in by.items()}),
            "accuracy-eps": curve_figure({name: e.eps for name, e in by.items()}),
            "accuracy-steps": steps_figure({name: e.steps for name, e in by.items()}),
            "loss-surface": surface_figure({name: e.surface for name, e in by.items()}),
        }
        for number, e in enumerate(self.examinations):
            found["pictures" if number == 0 else "pictures-baseline"] = picture_figure(e.pictures, 2 * self.threat.eps)
        return found

    def content(self) -> dict[str, Any]:
        """The numbers behind claims and figures, JSON-able; accuracies are shares, angles degrees."""
        return {
            "format": FORMAT,
            "threat": asdict(self.threat),
            "data": {"name": self.data, "n": self.n, "checksum": self.examinations[0].eps.data},
            "seed": self.seed,
            "claims": [{"statement": claim.statement, **asdict(claim)} for claim in self.claims],
            "networks": [_content(e) for e in self.examinations],
        }

    def save(self, folder: Path) -> list[Path]:
        """Write diagnosis.json and a png of each figure into the folder; returns what was written. Raises UserError
        where that can't be done.
        """
        content = self.content()
        text = json.dumps(content | {"checksum": content_checksum(content)}, indent=1)
        write_atomically(folder / "diagnosis.json", text.encode())
        written = [folder / "diagnosis.json"]
        for name, figure in self.figures().items():
            out = io.BytesIO()
            figure.savefig(out, format="png", dpi=160, facecolor="white", metadata={"Software": None})
            write_atomically(folder / f"{name}.png", out.getvalue())
            written.append(folder / f"{name}.png")
        return written


def diagnose(
    network: Network,
    images: Images,
    *,
    threat: ThreatModel,
    baseline: Network | None = None,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: Callable[[str, str, int, int], None] = lambda name, stage, done, total: None,
) -> Diagnosis:
    """Examine a network, and a baseline if given, on the same images; then answer the paper's four claims.

    on_progress: told (network, stage, done, total). Raises UserError as `examine`, and for two networks of one name.
    """
    networks = [network] if baseline is None else [network, baseline]
    if len({one.name for one in networks}) < len(networks):
        raise UserError(f"both networks are called {network.name!r}; give the baseline another name")
    found = tuple(
        examine(
            one,
            images,
            threat=threat,
            seed=seed,
            batch_size=batch_size,
            on_progress=lambda stage, done, total, name=one.name: on_progress(name, stage, done, total),  # type: ignore[misc]
        )
        for one in networks
    )
    first, other = found[0], found[1] if len(found) > 1 else None
    claims = (
        effective(first.first_steps),
        hard(first.hardness, seed=seed),
        balanced(balance_of(other) if other else None, balance_of(first), seed=seed),
        margins((other.clean, other.adversarial) if other else None, (first.clean, first.adversarial), seed=seed),
    )
    return Diagnosis(examinations=found, claims=claims, threat=threat, data=images.name, n=len(images), seed=seed)


def balance_of(examination: Examination) -> Balance:
    """What the examined network's adversarial examples are taken for."""
    return Balance.of(examination.adversarial, examination.anatomy.weight)


def _content(e: Examination) -> dict[str, Any]:
    return {
        "name": e.network.name,
        "checksum": e.eps.model,
        "has FN": e.anatomy.normalized,
        "mean feature norm": e.anatomy.radius,
        "gradients": {s: {**asdict(g), "ratio": _rounded(torch.tensor(g.ratio))} for s, g in e.gradients.items()},
        "clean": _angles(e.clean),
        "adversarial": _angles(e.adversarial),
        "angles between classes": _rounded(directions(e.anatomy)),
        "class weight lengths": _rounded(e.anatomy.weight.norm(dim=1)),
        "imbalance": balance_of(e).value,
        "gradient shares, easiest to hardest fifth": {
            name: [e.hardness.share(q, fn=fn) for q in range(GROUPS)]
            for name, fn in (("with FN", True), ("without FN", False))
        },
        "few steps": _few(e.first_steps),
        "table 7": {**_few(e.table7), "inferred": ["eps", "step size", "start", "s"], "paper": _paper()},
        "accuracy against eps": {"eps": e.eps.at, "n": e.eps.n, "robust": e.eps.robust, "steps": e.eps.steps},
        "accuracy against steps": {"steps": e.steps.at, "n": e.steps.n, "robust": e.steps.robust},
        "loss surface": {
            "examples": e.surface.examples, "along": _rounded(e.surface.along), "values": _rounded(e.surface.values),
        },
    }  # fmt: skip


def _angles(angles: Angles) -> dict[str, Any]:
    return {
        "accuracy": float((angles.predictions == angles.labels).double().mean()),
        "mean angular margin": float(angles.margin.mean()),
        "by class": {
            name: _rounded(angles.by_class(values))
            for name, values in (("margin", angles.margin), ("own angle", angles.own), ("feature norm", angles.norms))
        },
        "classes": list(angles.classes),
    }


def _few(found: FewSteps) -> dict[str, Any]:
    return {
        "eps": found.threat.eps,
        "norm": found.threat.norm,
        "step size": found.step_size,
        "start": found.start,
        "cells": [
            {
                "steps": cell.steps,
                "FN": cell.fn,
                "factor": cell.factor,
                "k": sum(cell.resisted),
                "n": len(cell.resisted),
                "interval": cell.interval,
            }
            for cell in found.cells
        ],
    }


def _paper() -> list[Mapping[str, Any]]:
    return [{"steps": k, "FN": fn, "accuracy": percent / 100} for (k, fn), percent in PAPER.items()]


def _rounded(values: Tensor) -> list[Any]:
    """Five digits are more than a figure shows; a class without images has no number."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(v) for v in value]
        return float(f"{value:.5g}") if value == value else None

    return short(values.tolist())


# FOLDED ratios: Gradient-norm ratios as a page shows them: several models in one small figure, by layer and
# FOLDED ratios: over training.

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def diagnosed(path: Path, model: str) -> LayerGradients | None:
    """The gradients of a model, by its checksum, out of a diagnosis.json; None where it is not about that one. Raises
    UserError for a file that is missing or of another kind.
    """
    for network in read_json(path, FORMAT)["networks"]:
        if network["checksum"] == model:
            found = network["gradients"]["as judged"]
            return LayerGradients(**{key: tuple(found[key]) for key in LayerGradients.__dataclass_fields__})
    return None


def ratio_figure(gradients: Mapping[str, LayerGradients]) -> Figure:
    """By the models' names: adversarial over clean, layer by layer from the input to the head."""
    figure, (axes,) = canvas(3.6, 2.5)
    for i, (name, found) in enumerate(gradients.items()):
        _line(axes, range(1, len(found.ratio) + 1), found.ratio, i, name)
    _one(axes)
    quiet(axes, "layer, from the input to the head", "adversarial / clean")
    legend(axes)
    return figure


def ratio_history_figure(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """By the models' names: the median over the layers after each epoch of training, as the runs recorded it."""
    figure, (axes,) = canvas(3.6, 2.5)
    for i, (name, lines) in enumerate(metrics.items()):
        epochs, ratios = recorded(lines)
        known = [[v for v in values if v == v] for values in zip(*ratios.values(), strict=True)]
        _line(axes, epochs, [median(values) if values else float("nan") for values in known], i, name)
    _one(axes)
    quiet(axes, "epoch", "median of the layers")
    legend(axes)
    return figure


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], series: int, name: str) -> None:
    colour, marker = SERIES[series % len(SERIES)], MARKERS[series % len(MARKERS)]
    axes.plot(x, y, color=colour, marker=marker, markersize=3.6, linewidth=1.4, label=name, clip_on=False)


def _one(axes: Axes) -> None:
    """Where both speak equally loud."""
    axes.axhline(1, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
