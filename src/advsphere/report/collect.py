"""What a report shows of each model. Missing parts are computed and kept beside the evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import nn

from advsphere.analysis.angles import Spread, spread_of_angles
from advsphere.analysis.classwise import ClassAccuracy, by_class
from advsphere.analysis.curves import Curve, accuracy_against_eps
from advsphere.analysis.diagnosis import diagnosed_gradients
from advsphere.analysis.gradients import LayerGradients
from advsphere.analysis.perturbations import Picture, fooled_by, pictures, strongest
from advsphere.classifier import find_head
from advsphere.comparison.confounders import confounders, trained_elsewhere
from advsphere.comparison.find import Finished
from advsphere.corruption.result import RECORD, CorruptionRecord
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.ledger import Ledger
from advsphere.evaluation.results import Evaluation
from advsphere.recipes import method
from advsphere.runs.build import head_name
from advsphere.runs.config import Config, to_dict
from advsphere.runs.folder import read_config
from advsphere.threat import ThreatModel, radius
from advsphere.training import load_checkpoint, read_metrics

LEDGER = "ledger.sqlite"

SAMPLE = 250
"""Curves and angles use this many images by default: a minute or two, and an interval of +- 6 points."""

PICTURE_BYTES = 3_000_000
"""The pictures of a report take about this much space, with at most three examples of each class."""

Part = TypeVar("Part", Curve, Spread)


class Pictures(NamedTuple):
    """Examples that an attack fooled a model with; the models of a report have the same examples."""

    attack: str
    examples: Sequence[Picture]


class Source(NamedTuple):
    """What a model's report is made from, for sections that measure something themselves.

    Attributes:
        found: The finished evaluation of the model, then those of further seeds of the same training.
        network: The network that was evaluated.
        images: The images that it was evaluated on.
    """

    found: Sequence[Finished]
    network: nn.Module
    images: Images

    @property
    def configs(self) -> list[Config]:
        """The settings of each seed's training run; empty for a user-defined model."""
        runs = [one.subject.run for one in self.found]
        return [read_config(run) for run in runs if run is not None]


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """What a report shows of one model. Only name and evaluation are required.

    Attributes:
        name: The model's name on the page.
        evaluation: The evaluation that the page is about.
        data_name: The name of the images on the page; by default the name in the evaluation.
        curve: Accuracy against eps, of the same model and images.
        spread: Angles and angular margins, of the same model and images.
        classes: Accuracy of each class.
        gradients: Gradient-norm ratios of the layers.
        corruption: Accuracy under common corruptions.
        metrics: What the run logged after each epoch.
        training: The settings of the run.
        pictures: Examples that an attack fooled the model with.
        seeds: (seed, evaluation) for each of several trainings, this one first; empty where there is one.
        source: The network, its images and files; None for a report that was put together by hand.

    Raises:
        UserError: Curve or spread belong to another model or other images, or two seeds have the same checkpoint.
    """

    name: str
    evaluation: Evaluation
    data_name: str | None = None
    curve: Curve | None = None
    spread: Spread | None = None
    classes: Sequence[ClassAccuracy] = ()
    gradients: LayerGradients | None = None
    corruption: CorruptionRecord | None = None
    metrics: Sequence[Mapping[str, float]] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    pictures: Pictures | None = None
    seeds: Sequence[tuple[int, Evaluation]] = ()
    source: Source | None = None

    def __post_init__(self) -> None:
        if len({found.identity["model"]["checksum"] for _, found in self.seeds}) < len(self.seeds):
            raise UserError(f"two seeds of {self.name} have the same checkpoint; name each training run once")
        for what, part in (("curve is", self.curve), ("angles are", self.spread)):
            if part is not None and not _same(part, self.evaluation):
                raise UserError(f"the {what} of another model or other images than the evaluation of {self.name}")

    @property
    def data(self) -> str:
        """The name of the images on the page."""
        return self.data_name or str(self.evaluation.identity["data"]["name"])

    @property
    def threat(self) -> str:
        """The threat in words: "linf, eps = 8/255"."""
        threat = self.evaluation.identity["threat"]
        return f"{threat['norm']}, eps = {radius(threat['eps'])}"

    @property
    def checkpoints(self) -> dict[str, Evaluation]:
        """The evaluations of all seeds, each with its own name."""
        return {f"{self.name}, seed {seed}": found for seed, found in self.seeds} or {self.name: self.evaluation}


def collect(
    arms: Sequence[Sequence[Finished]],
    *,
    data: Path | None = None,
    data_name: str | None = None,
    most: int | None = SAMPLE,
    on_progress: Callable[[str, str, int, int], None] = lambda *_: None,
) -> list[ModelReport]:
    """Collect everything that a report shows of finished evaluations; of several seeds, details of the first.

    Args:
        arms: For each model its evaluation, or those of several seeds; all evaluated in the same way.
        data: The folder of the images, if they have been moved.
        data_name: The name of the images on the page.
        most: Curves and angles use a sample of this many images; None for all.
        on_progress: Called with (model, stage, done, total) while something is computed.

    Raises:
        UserError: A file is missing or damaged, the model or its images are not those that were evaluated, or one of
            several seeds is not a training run.
    """
    for one in (one for arm in arms if len(arm) > 1 for one in arm):
        if one.subject.run is None:
            raise UserError(f"{one.folder} belongs to no training run, so it has no seed; separate it by a space")
    names = unique_names([model_name(arm[0]) for arm in arms], [arm[0].subject.run or arm[0].folder for arm in arms])
    sources = [Source(arm, *arm[0].subject.at(data).load()) for arm in arms]
    shown = _shared_pictures(sources)
    return [
        _collect_model(name, source, shared, data_name, most, partial(on_progress, name))
        for name, source, shared in zip(names, sources, shown, strict=True)
    ]


def model_name(found: Finished) -> str:
    """The method of a run; of a user-defined model the file of its weights, or its module and function."""
    subject = found.subject
    if subject.run is not None:
        return method(read_config(subject.run))
    return str(subject.model) if subject.weights is None else subject.weights.stem


def unique_names(called: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Names with those that occur twice told apart by their folders, or by numbers where the folders are the same."""
    found = list(called)
    for name in {*called}:
        places = [i for i, other in enumerate(called) if other == name]
        marks = [folders[i].resolve().name for i in places]
        if len({*marks}) < len(marks):
            marks = [f"{number}" for number in range(1, len(places) + 1)]
        for i, mark in zip(places if len(places) > 1 else [], marks, strict=False):
            found[i] = f"{name} ({mark})"
    return found


def warnings_on(models: Sequence[ModelReport]) -> list[str]:
    """Sentences on settings that differ between each model and the first, and on other radii in training."""
    known = [(one, configs) for one in models if one.source and (configs := one.source.configs)]
    found = []
    for one, configs in known[1:]:
        first, baseline = known[0]
        for line in confounders(baseline, configs):
            within = line.startswith("within")
            found.append(line if within else f"besides the method, {first.name} and {one.name} differ in {line}")
    for one, configs in known:
        found += trained_elsewhere(f"{one.name} checkpoint", configs[0], one.evaluation.identity["threat"]["eps"])
    return [f"{line[0].upper()}{line[1:]}." for line in found]


def _collect_model(
    name: str,
    source: Source,
    shown: Pictures,
    data_name: str | None,
    most: int | None,
    on_progress: Callable[[str, int, int], None],
) -> ModelReport:
    (folder, evaluation, subject), images, configs = source.found[0], source.images, source.configs
    with Ledger.read(folder / LEDGER) as ledger:
        labels = ledger.labels
    if images.labels.tolist() != labels:
        raise UserError(f"{folder} was evaluated on other images than those that {images.name} holds now")
    head = evaluation.identity["suite"].get("head") or (head_name(configs[0]) if configs else None)
    threat, run = dict(evaluation.identity["threat"]), subject.run
    settings: dict[str, Any] = {
        "threat": ThreatModel(**threat | {"bounds": tuple(threat["bounds"])}),
        "most": most,
        "batch_size": evaluation.identity["batch_size"],
    }
    curve = partial(accuracy_against_eps, source.network, images, on_progress=partial(on_progress, "curve"), **settings)
    angles = partial(_spread, source, head, on_progress=partial(on_progress, "angles"), **settings)
    count = len(images) if most is None else min(most, len(images))
    several = zip(configs, source.found, strict=True) if len(source.found) > 1 else ()
    return ModelReport(
        name=name,
        evaluation=evaluation,
        data_name=data_name,
        curve=_cached(folder / f"curve-{count}.json", Curve, evaluation, curve),
        spread=_cached(folder / f"angles-{count}.json", Spread, evaluation, angles),
        classes=by_class(evaluation, labels, images.classes),
        gradients=None if run is None else _gradients(run, evaluation),
        corruption=None if run is None else _corruption(run, evaluation),
        metrics=[] if run is None else read_metrics(run),
        training={} if run is None else _training(run, subject.checkpoint),
        pictures=shown,
        seeds=[(config.training.seed, found.evaluation) for config, found in several],
        source=source,
    )


def _spread(source: Source, head: str | None, **settings: Any) -> Spread | None:
    """None for a network without a last linear layer, which has no angles."""
    try:
        return spread_of_angles(source.network, source.images, head=find_head(source.network, head), **settings)
    except UserError:
        return None


def _cached(path: Path, kind: type[Part], evaluation: Evaluation, compute: Callable[[], Part | None]) -> Part | None:
    """What was computed before if it belongs to this model and these images, else what is computed now."""
    try:
        found = kind.load(path) if path.is_file() else None
    except UserError:
        found = None
    if found is not None and _same(found, evaluation):
        return found
    computed = compute()
    if computed is not None:
        computed.save(path)
    return computed


def _same(part: Curve | Spread, evaluation: Evaluation) -> bool:
    return (part.model, part.data) == tuple(evaluation.identity[key]["checksum"] for key in ("model", "data"))


def _shared_pictures(sources: Sequence[Source]) -> list[Pictures]:
    """The same examples for all models, under the strongest attack."""
    attack = strongest([one.found[0].evaluation for one in sources])
    channels, height, width = sources[0].images.shape
    # Noise hardly compresses, base64 adds a third, and each example takes three pictures.
    room = PICTURE_BYTES // (4 * channels * height * width * len(sources))
    with ExitStack() as stack:
        ledgers = [stack.enter_context(Ledger.read(one.found[0].folder / LEDGER)) for one in sources]
        examples = fooled_by(ledgers, attack, each=3)[: max(2, room)]
        return [
            Pictures(attack, pictures(ledger, one.images, attack, examples))
            for one, ledger in zip(sources, ledgers, strict=True)
        ]


def _gradients(run: Path, evaluation: Evaluation) -> LayerGradients | None:
    path = run / "diagnosis" / "diagnosis.json"
    return diagnosed_gradients(path, evaluation.identity["model"]["checksum"]) if path.is_file() else None


def _corruption(run: Path, evaluation: Evaluation) -> CorruptionRecord | None:
    """Of the complete records of this checkpoint, the one of most images and corruptions."""
    checksum = evaluation.identity["model"]["checksum"]
    found = [CorruptionRecord.load(path) for path in sorted((run / "corruptions").glob(f"*/{RECORD}"))]
    own = [one for one in found if one.complete and one.counted and one.identity["model"]["checksum"] == checksum]
    return max(own, key=lambda one: (one.clean.n, len(one.names)), default=None)


def _training(run: Path, which: str) -> dict[str, Any]:
    """The settings of a run, which of its checkpoints was evaluated, and the machine that trained it."""
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
