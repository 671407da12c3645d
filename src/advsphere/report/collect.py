"""From finished evaluations to what a report is made of. What is missing is computed, and kept beside the evaluation,
so that the next report has it at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from torch import nn

from advsphere.analysis.angles import Spread, spread_of_angles
from advsphere.analysis.classwise import ClassAccuracy, by_class
from advsphere.analysis.curves import Curve, accuracy_against_eps
from advsphere.analysis.diagnosis import diagnosed_gradients
from advsphere.analysis.gradients import LayerGradients
from advsphere.analysis.perturbations import Picture, fooled_by, pictures, strongest
from advsphere.classifier import find_head
from advsphere.comparison.confounders import confounders, trained_elsewhere
from advsphere.corruption.result import RECORD, CorruptionRecord
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation, Ledger
from advsphere.runs.config import Config, to_dict
from advsphere.runs.folder import read_config
from advsphere.threat import ThreatModel
from advsphere.training import load_checkpoint, read_metrics

# FOLDED judged: What a report is made of.


class Seed(NamedTuple):
    """One of several trainings that differ in their seed alone."""

    number: int
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """A model with what was found out about it; only the evaluation has to be known.

    name: what the page calls it. evaluation, curve, spread: of the same model and images. classes: accuracy class by
    class. gradients: of its layers, as a diagnosis measured them. corruption: under common corruptions. metrics: what
    its run logged after each epoch. training: how it was trained, as JSON-able settings. seeds: where the same was
    trained several times, all of these, this one first. Raises UserError where curve or spread are of something else,
    and for one seed twice.
    """

    name: str
    evaluation: Evaluation
    curve: Curve | None = None
    spread: Spread | None = None
    classes: Sequence[ClassAccuracy] = ()
    gradients: LayerGradients | None = None
    corruption: CorruptionRecord | None = None
    metrics: Sequence[Mapping[str, float]] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[Seed] = ()

    def __post_init__(self) -> None:
        if len({seed.evaluation.identity["model"]["checksum"] for seed in self.seeds}) < len(self.seeds):
            raise UserError(
                f"a checkpoint is twice among the seeds of {self.name}; the same one again is no other seed"
            )
        identity = self.evaluation.identity
        found = (identity["model"]["checksum"], identity["data"]["checksum"])
        for what, part in (("curve is", self.curve), ("angles are", self.spread)):
            if part is not None and (part.model, part.data) != found:
                raise UserError(f"the {what} of another model or other images than the evaluation of {self.name}")

    @property
    def checkpoints(self) -> dict[str, Evaluation]:
        """The evaluations of all seeds, each under a name of its own."""
        every = {f"{self.name}, seed {seed.number}": seed.evaluation for seed in self.seeds}
        return every or {self.name: self.evaluation}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The same examples under one attack on each model. of: by the models' names. scale: the pixel difference that is
    drawn as black or white.
    """

    attack: str
    scale: float
    of: Mapping[str, Sequence[Picture]]


class Command(NamedTuple):
    """A line to type, and what it does."""

    what: str
    line: str


Stage = Literal["curve", "angles"]

Part = TypeVar("Part", Curve, Spread)

LEDGER = "ledger.sqlite"

SAMPLE = 250
"""Of more images, curve and angles are of a sample of so many: a minute or two, and an interval of +- 6 points."""

PICTURES = 3_000_000
"""About so many bytes of pictures, and no more than three examples of each class."""


class Another(NamedTuple):
    """The same training from another seed: its run, and the evaluation that asked the same of it."""

    run: Path
    evaluation: Evaluation


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """A finished evaluation and what it is of.

    name: what the model is called. folder: where the evaluation lies, with its ledger. model, images: those that were
    evaluated. run: the folder of the training run whose checkpoint it is; None for any other model. head: the last
    linear layer's name, where it can't be told. others: further seeds.
    """

    name: str
    folder: Path
    evaluation: Evaluation
    model: nn.Module
    images: Images
    run: Path | None = None
    checkpoint: Literal["best", "last"] = "best"
    head: str | None = None
    others: tuple[Another, ...] = ()

    @property
    def configs(self) -> list[Config]:
        """How it was trained, and its further seeds; none for a model of somebody's own."""
        return [read_config(run) for run in (self.run, *(o.run for o in self.others)) if run is not None]


def names(called: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """What the models are called; those of one name also by their folders where these differ, else by a number."""
    found = list(called)
    for name in {*called}:
        places = [i for i, other in enumerate(called) if other == name]
        marks = [folders[i].resolve().name for i in places]
        if len({*marks}) < len(marks):
            marks = [f"{number}" for number in range(1, len(places) + 1)]
        for i, mark in zip(places if len(places) > 1 else [], marks, strict=False):
            found[i] = f"{name} ({mark})"
    return found


def judged(
    evidence: Evidence,
    on_progress: Callable[[Stage, int, int], None] = lambda *_: None,
    *,
    most: int | None = SAMPLE,
) -> ModelReport:
    """All that a report shows of one model. on_progress: told (stage, done, of how many) while something is computed.
    most: curve and angles are of a sample of so many images where there are more; None: of all.

    Raises UserError where files are broken, and where model or images are not those that were evaluated.
    """
    evaluation, run = evidence.evaluation, evidence.run
    with Ledger.read(evidence.folder / LEDGER) as book:
        labels = book.labels
    if evidence.images.labels.tolist() != labels:
        raise UserError(f"{evidence.folder} is of other images than those of {evidence.images.name} now")
    return ModelReport(
        name=evidence.name,
        evaluation=evaluation,
        curve=_curve(evidence, most, lambda done, total: on_progress("curve", done, total)),
        spread=_spread(evidence, most, lambda done, total: on_progress("angles", done, total)),
        classes=by_class(evaluation, labels, evidence.images.classes),
        gradients=_gradients(evidence),
        corruption=_corruption(evidence),
        metrics=[] if run is None else read_metrics(run),
        training={} if run is None else _training(run, evidence.checkpoint),
        seeds=_seeds(evidence),
    )


def shared_pictures(evidence: Sequence[Evidence]) -> Pictures:
    """The same examples for all models, under the attack that left the fewest."""
    attack = strongest([one.evaluation for one in evidence])
    channels, height, width = evidence[0].images.shape
    room = PICTURES // (4 * channels * height * width * len(evidence))  # noise hardly compresses, and base64 adds
    with ExitStack() as stack:
        ledgers = [stack.enter_context(Ledger.read(one.folder / LEDGER)) for one in evidence]
        examples = fooled_by(ledgers, attack, each=3)[: max(2, room)]
        of = {
            one.name: pictures(ledger, one.images, attack, examples)
            for one, ledger in zip(evidence, ledgers, strict=True)
        }
    return Pictures(attack=attack, scale=_threat(evidence[0]).eps, of=of)


def confounded(evidence: Sequence[Evidence]) -> list[str]:
    """Sentences on what else differs between each model and the first, and on radii of training that were others."""
    known = [(one, configs) for one in evidence if (configs := one.configs)]
    found = []
    for one, configs in known[1:]:
        first, baseline = known[0]
        for line in confounders(baseline, configs):
            within = line.startswith("within")
            found.append(line if within else f"besides the method, {first.name} and {one.name} differ in {line}")
    for one, configs in known:
        found += trained_elsewhere(f"{one.name} checkpoint", configs[0], _threat(one).eps)
    return [f"{line[0].upper()}{line[1:]}." for line in found]


def _seeds(evidence: Evidence) -> list[Seed]:
    """All seeds, its own first; none where there is no other."""
    if not evidence.others:
        return []
    every = (evidence.evaluation, *(other.evaluation for other in evidence.others))
    return [Seed(config.training.seed, evaluation) for config, evaluation in zip(evidence.configs, every, strict=True)]


def _curve(evidence: Evidence, most: int | None, on_progress: Callable[[int, int], None]) -> Curve:
    path = _place(evidence, "curve", most)
    kept = _kept(path, Curve, evidence.evaluation)
    if kept is None:
        identity = evidence.evaluation.identity
        kept = accuracy_against_eps(
            evidence.model,
            evidence.images,
            threat=_threat(evidence),
            most=most,
            batch_size=identity["batch_size"],
            on_progress=on_progress,
        )
        kept.save(path)
    return kept


def _spread(evidence: Evidence, most: int | None, on_progress: Callable[[int, int], None]) -> Spread | None:
    """None for a network that has no angles to measure."""
    path = _place(evidence, "angles", most)
    kept = _kept(path, Spread, evidence.evaluation)
    if kept is None:
        try:
            head = find_head(evidence.model, evidence.head)
            kept = spread_of_angles(
                evidence.model,
                evidence.images,
                threat=_threat(evidence),
                head=head,
                most=most,
                batch_size=evidence.evaluation.identity["batch_size"],
                on_progress=on_progress,
            )
        except UserError:
            return None
        kept.save(path)
    return kept


def _place(evidence: Evidence, part: Stage, most: int | None) -> Path:
    """Where it is kept: beside the evaluation, and beside what was computed of more or fewer images."""
    n = len(evidence.images)
    return evidence.folder / f"{part}-{n if most is None else min(most, n)}.json"


def _kept(path: Path, kind: type[Part], evaluation: Evaluation) -> Part | None:
    """What was computed before, if it is still of this model and these images."""
    if not path.is_file():
        return None
    try:
        found = kind.load(path)
    except UserError:
        return None
    same = (found.model, found.data) == tuple(evaluation.identity[key]["checksum"] for key in ("model", "data"))
    return found if same else None


def _gradients(evidence: Evidence) -> LayerGradients | None:
    path = None if evidence.run is None else evidence.run / "diagnosis" / "diagnosis.json"
    if path is None or not path.is_file():
        return None
    return diagnosed_gradients(path, evidence.evaluation.identity["model"]["checksum"])


def _corruption(evidence: Evidence) -> CorruptionRecord | None:
    """Of this checkpoint's complete records in its run, that of the most images and corruptions."""
    if evidence.run is None:
        return None
    found = [CorruptionRecord.load(path) for path in sorted((evidence.run / "corruptions").glob(f"*/{RECORD}"))]
    checksum = evidence.evaluation.identity["model"]["checksum"]
    own = [one for one in found if one.complete and one.counted and one.identity["model"]["checksum"] == checksum]
    return max(own, key=lambda one: (one.clean.n, len(one.names)), default=None)


def _training(run: Path, which: Literal["best", "last"]) -> dict[str, Any]:
    """The settings of a run, which of its checkpoints was judged, and what trained it."""
    config = read_config(run)
    by, epochs, last = config.objective.chosen_by, config.training.epochs, read_metrics(run)[-1]
    chosen = f"last of {epochs} epochs"
    if which == "best":
        best = load_checkpoint(run / "best.safetensors")[1]["metrics"]
        chosen = (
            f"best of {epochs} epochs by {by} accuracy on {config.data.validation} held-out training images: "
            f"epoch {best['epoch']:.0f} with {100 * best[by]:.1f} % (the last epoch has {100 * last[by]:.1f} %)"
        )
    made_by = json.loads((run / "provenance.json").read_text())
    return to_dict(config) | {"checkpoint": chosen, "trained with": made_by}


def _threat(evidence: Evidence) -> ThreatModel:
    threat = evidence.evaluation.identity["threat"]
    low, high = threat["bounds"]
    return ThreatModel(norm=threat["norm"], eps=threat["eps"], bounds=(low, high))
