"""The diagnosis of one network, or of a network and a baseline: all measurements, figures and the four claims."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advsphere.analysis.angles import Angles, margin_figure, measure_angles, norm_figure
from advsphere.analysis.balance import Balance, balance_figure
from advsphere.analysis.claims import Claim, balanced, effective, hard, margins
from advsphere.analysis.crafting import OnProgress, craft
from advsphere.analysis.curves import (
    AccuracyCurve,
    Curve,
    accuracy_against_eps,
    accuracy_against_steps,
    curve_figure,
    steps_figure,
)
from advsphere.analysis.feature_normalization import PAPER, FewSteps, few_steps, few_steps_figure
from advsphere.analysis.gradients import LayerGradients, gradient_figure, layer_gradients
from advsphere.analysis.hard_examples import GROUPS, Hardness, check_count, hardness, hardness_figure
from advsphere.analysis.linear_head import HeadParts, split_head
from advsphere.analysis.perturbations import Picture, both_ways, first_right, picture_figure
from advsphere.analysis.surface import Surface, loss_surface, surface_figure
from advsphere.classifier import find_head
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation import preflight
from advsphere.files import content_checksum, read_json, write_atomically
from advsphere.hypersphere import AngularMargin, HypersphereHead
from advsphere.losses import Loss, cross_entropy
from advsphere.threat import ThreatModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "advsphere diagnosis 1"

GRADIENTS, HARD, CURVES, SURFACES = 256, 500, 250, 4
"""Numbers of images: for the layers' gradients, for per-example gradients, for the curves against eps and steps (which
take most of the time), and for slices of the loss surface.
"""

STAGES = ("craft", "gradients", "hardness", "few steps", "Table 7", "eps", "steps", "surface", "pictures")


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """A network to diagnose.

    Attributes:
        name: Its name in figures and sentences.
        model: Takes (B, C, H, W) pixels in [0, 1] and returns (B, K) logits.
        head: The name of the last linear layer, if it can't be found automatically.
        margin: The angular margin m it was trained with, for the gradients of its training loss.
        states: The same network at other stages of its training, by name, for the gradients over training.
        metrics: The logged metrics of each epoch of its run, with gradient-norm ratios if they were recorded.
    """

    name: str
    model: nn.Module
    head: str | None = None
    margin: float = 0.0
    states: Mapping[str, nn.Module] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Examination:
    """All measurements of one network. `first_steps` attacks with a few steps within the threat, `table7` with the
    settings of the paper's Table 7. `pictures` show attacks with and without FN.
    """

    network: Network
    parts: HeadParts
    clean: Angles
    adversarial: Angles
    gradients: Mapping[str, LayerGradients]
    hardness: Hardness
    first_steps: FewSteps
    table7: FewSteps
    eps: Curve
    steps: AccuracyCurve
    surface: Surface
    pictures: Mapping[str, tuple[Picture, ...]]

    @property
    def balance(self) -> Balance:
        """The predicted classes of its adversarial examples."""
        a = self.adversarial
        lengths = self.parts.weight.norm(dim=1).cpu()
        return Balance(classes=a.classes, labels=a.labels, predictions=a.predictions, lengths=lengths)


@dataclass(frozen=True, eq=False, kw_only=True)
class Diagnosis:
    """The examinations of one or two networks, and the answers to the four claims.

    Attributes:
        examinations: That of the network to diagnose, then that of its baseline if there is one.
        claims: The four claims with their answers.
        threat: The threat model of all attacks, except those of Table 7, which have their own radius.
        data: The name of the set of images.
        n: The number of images.
        seed: The seed of the random starts and of the bootstrap.
    """

    examinations: tuple[Examination, ...]
    claims: tuple[Claim, ...]
    threat: ThreatModel
    data: str
    n: int
    seed: int

    def figures(self) -> dict[str, Figure]:
        """All figures by file name."""

        def each(part: str) -> dict[str, Any]:
            return {e.network.name: getattr(e, part) for e in self.examinations}

        metrics = {e.network.name: e.network.metrics for e in self.examinations}
        found = {
            "claim-1-effective": few_steps_figure(each("first_steps")),
            "claim-2-hard": hardness_figure(each("hardness")),
            "claim-3-balance": balance_figure(each("balance")),
            "claim-4-margin": margin_figure(each("clean"), each("adversarial")),
            "gradients": gradient_figure(each("gradients"), metrics),
            "feature-norms": norm_figure(each("clean"), each("adversarial")),
            "table-7": few_steps_figure(each("table7")),
            "accuracy-eps": curve_figure(each("eps")),
            "accuracy-steps": steps_figure(each("steps"), self.threat),
            "loss-surface": surface_figure(each("surface")),
        }
        for name, e in zip(("pictures", "pictures-baseline"), self.examinations, strict=False):
            found[name] = picture_figure(e.pictures, 2 * self.threat.eps)
        return found

    def content(self) -> dict[str, Any]:
        """The numbers behind claims and figures, JSON-able; accuracies are shares, angles are degrees."""
        return {
            "format": FORMAT,
            "threat": asdict(self.threat),
            "data": {"name": self.data, "n": self.n, "checksum": self.examinations[0].eps.data},
            "seed": self.seed,
            "claims": [{"statement": claim.statement, **asdict(claim)} for claim in self.claims],
            "networks": [_content(e) for e in self.examinations],
        }

    def save(self, folder: Path | str) -> list[Path]:
        """Write diagnosis.json and a png of each figure.

        Args:
            folder: The destination folder.

        Returns:
            The written files.

        Raises:
            UserError: If a file can't be written.
        """
        folder, content = Path(folder), self.content()
        files = {"diagnosis.json": json.dumps(content | {"checksum": content_checksum(content)}, indent=1).encode()}
        for name, figure in self.figures().items():
            out = io.BytesIO()
            figure.savefig(out, format="png", dpi=160, facecolor="white", metadata={"Software": None})
            files[f"{name}.png"] = out.getvalue()
        for file, data in files.items():
            write_atomically(folder / file, data)
        return [folder / file for file in files]


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

    The models are restored to their previous state, and their gradients do not change.

    Args:
        network: The network to diagnose.
        images: The clean images.
        threat: The threat model of the attacks.
        baseline: A network to compare with, for claims 3 and 4.
        seed: The seed of the random starts and of the bootstrap.
        batch_size: Images in a batch.
        on_progress: Called with (network, stage, done, total); the stages are in STAGES.

    Returns:
        The measurements and the answers.

    Raises:
        UserError: If `preflight` fails, a network has no linear head, there are fewer than ten images, or both networks
            have the same name.
    """
    networks = [network] if baseline is None else [network, baseline]
    if len({one.name for one in networks}) < len(networks):
        raise UserError(f"both networks are called {network.name!r}; give the baseline another name")
    found = tuple(_examine(one, images, threat, seed, batch_size, partial(on_progress, one.name)) for one in networks)
    first, other = found[0], found[1] if len(found) > 1 else None
    claims = (
        effective(first.first_steps),
        hard(first.hardness, seed=seed),
        balanced(other.balance if other else None, first.balance, seed=seed),
        margins((other.clean, other.adversarial) if other else None, (first.clean, first.adversarial), seed=seed),
    )
    return Diagnosis(examinations=found, claims=claims, threat=threat, data=images.name, n=len(images), seed=seed)


def _examine(
    network: Network,
    images: Images,
    threat: ThreatModel,
    seed: int,
    batch_size: int,
    on_progress: Callable[[str, int, int], None],
) -> Examination:
    """All measurements of one network, on the same images."""
    model = network.model
    progress = {stage: partial(on_progress, stage) for stage in STAGES}
    check_count(len(images))
    preflight(model, images, batch_size=batch_size)
    parts = split_head(model, images, head=network.head, batch_size=batch_size)
    crafted = craft(model, images, threat=threat, seed=seed, batch_size=batch_size, on_progress=progress["craft"])
    clean, adversarial = (
        measure_angles(parts, x, crafted.y, images.classes, batch_size=batch_size) for x in (crafted.x, crafted.x_adv)
    )
    right = first_right(clean, SURFACES) or tuple(range(min(SURFACES, len(crafted.y))))
    found = Examination(
        network=network,
        parts=parts,
        clean=clean,
        adversarial=adversarial,
        gradients=_gradients(network, images.few(GRADIENTS), threat, seed, progress["gradients"]),
        hardness=hardness(parts, crafted.few(HARD), on_progress=progress["hardness"]),
        first_steps=few_steps(
            parts,
            images,
            threat=threat,
            step_size=threat.eps / 4,
            factors=(0.5, 1.0, 2.0),
            seed=seed,
            batch_size=batch_size,
            on_progress=progress["few steps"],
        ),
        table7=few_steps(parts, images, seed=seed, batch_size=batch_size, on_progress=progress["Table 7"]),
        eps=accuracy_against_eps(
            model, images, threat=threat, most=CURVES, seed=seed, batch_size=batch_size, on_progress=progress["eps"]
        ),
        steps=accuracy_against_steps(
            model, images, threat=threat, most=CURVES, seed=seed, batch_size=batch_size, on_progress=progress["steps"]
        ),
        surface=loss_surface(model, crafted, right, seed=seed, batch_size=batch_size),
        pictures=both_ways(parts, images, first_right(clean) or (0,), threat=threat, seed=seed),
    )
    for stage in ("surface", "pictures"):
        progress[stage](1, 1)
    return found


def _gradients(
    network: Network, images: Images, threat: ThreatModel, seed: int, on_progress: OnProgress
) -> dict[str, LayerGradients]:
    """The layers' gradients of the training loss in each state, and of the loss without margin, which differs."""

    def training_loss(model: nn.Module) -> Loss:
        head = model.get_submodule(find_head(model, network.head))
        if isinstance(head, HypersphereHead) and network.margin:
            return AngularMargin(head, network.margin)
        return cross_entropy

    views = [(state, model, training_loss(model)) for state, model in network.states.items()]
    if network.margin:
        views.append(("as judged, m = 0", network.model, cross_entropy))
    views.append(("as judged", network.model, training_loss(network.model)))
    found = {}
    for i, (state, model, criterion) in enumerate(views, 1):
        found[state] = layer_gradients(model, images, threat=threat, criterion=criterion, head=network.head, seed=seed)
        on_progress(i, len(views))
    return found


def diagnosed_gradients(path: Path, model: str) -> LayerGradients | None:
    """The gradients of the model with this checksum in a diagnosis.json; None if the file is about another model."""
    for network in read_json(path, FORMAT)["networks"]:
        if network["checksum"] == model:
            found = network["gradients"]["as judged"]
            return LayerGradients(**{key: tuple(found[key]) for key in LayerGradients.__dataclass_fields__})
    return None


def _content(e: Examination) -> dict[str, Any]:
    shares = {
        name: [e.hardness.share(q, fn=fn) for q in range(GROUPS)]
        for name, fn in (("with FN", True), ("without FN", False))
    }
    paper = [{"steps": k, "FN": fn, "accuracy": percent / 100} for (k, fn), percent in PAPER.items()]
    return {
        "name": e.network.name,
        "checksum": e.eps.model,
        "has FN": e.parts.normalized,
        "mean feature norm": e.parts.mean_norm,
        "gradients": {s: {**asdict(g), "ratio": _rounded(torch.tensor(g.ratio))} for s, g in e.gradients.items()},
        "clean": _angles(e.clean),
        "adversarial": _angles(e.adversarial),
        "angles between classes": _rounded(e.parts.class_angles()),
        "class weight lengths": _rounded(e.parts.weight.norm(dim=1)),
        "imbalance": e.balance.value,
        "gradient shares, easiest to hardest fifth": shares,
        "few steps": _few(e.first_steps),
        "table 7": {**_few(e.table7), "inferred": ["eps", "step size", "start", "s"], "paper": paper},
        "accuracy against eps": {"eps": e.eps.at, "n": e.eps.n, "robust": e.eps.robust, "steps": e.eps.steps},
        "accuracy against steps": {"steps": e.steps.at, "n": e.steps.n, "robust": e.steps.robust},
        "loss surface": {
            "examples": e.surface.examples, "along": _rounded(e.surface.along), "values": _rounded(e.surface.values),
        },
    }  # fmt: skip


def _angles(angles: Angles) -> dict[str, Any]:
    by_class = {"margin": angles.margin, "own angle": angles.own, "feature norm": angles.norms}
    return {
        "accuracy": float((angles.predictions == angles.labels).double().mean()),
        "mean angular margin": float(angles.margin.mean()),
        "by class": {name: _rounded(angles.by_class(values)) for name, values in by_class.items()},
        "classes": list(angles.classes),
    }


def _few(found: FewSteps) -> dict[str, Any]:
    cells = []
    for a in found.attacks:
        counts = {"k": sum(a.resisted), "n": len(a.resisted), "interval": a.interval}
        cells.append({"steps": a.steps, "FN": a.fn, "factor": a.factor, **counts})
    threat = {"eps": found.threat.eps, "norm": found.threat.norm}
    return {**threat, "step size": found.step_size, "start": found.start, "cells": cells}


def _rounded(values: Tensor) -> list[Any]:
    """Nested lists of numbers with five digits, more than a figure shows; None for NaN."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(v) for v in value]
        return float(f"{value:.5g}") if value == value else None

    return short(values.tolist())
