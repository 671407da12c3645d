"""Collect a report's data on each model. Missing parts are computed and stored beside the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
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
from advsphere.comparison.confounders import confounders, trained_elsewhere, within
from advsphere.comparison.find import Finished
from advsphere.corruption.result import RECORD, CorruptionRecord
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.ledger import Ledger
from advsphere.evaluation.recorded import trained_on
from advsphere.evaluation.results import LEDGER, Evaluation
from advsphere.recipes import method
from advsphere.runs.build import head_name
from advsphere.runs.config import Config, to_dict
from advsphere.runs.folder import read_config, read_provenance
from advsphere.runs.outcome import warnings_of
from advsphere.threat import ThreatModel, radius
from advsphere.training import load_checkpoint, read_metrics

SAMPLE = 250
"""Curves and angles use this many images by default: a minute or two, and an interval of +- 6 points."""

PICTURE_BYTES = 3_000_000
"""Upper bound, roughly, of the size of a report's pictures."""

Part = TypeVar("Part", Curve, Spread)


class OutdatedError(UserError):
    """Raised for an evaluation whose ledger can't be read, or whose network or images have changed since.

    Args:
        folder: The evaluation's folder.
        reason: The message.
    """

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(reason)
        self.folder = folder


class Pictures(NamedTuple):
    """Examples on which an attack fooled a model. All models of a report show the same examples."""

    attack: str
    examples: Sequence[Picture]


class Source(NamedTuple):
    """The sources of a model's report, for sections that measure something themselves.

    Attributes:
        found: The finished evaluation of the model, then the evaluations of further seeds of the same training.
        network: The evaluated network.
        images: The images on which it was evaluated.
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
    """A report's data on one model. Only name and evaluation are required.

    Attributes:
        name: The model's name on the page.
        evaluation: The evaluation to report.
        data_name: The name of the images on the page; by default the name in the evaluation.
        curve: Accuracy against eps, measured on the same model and images.
        spread: Angles and angular margins, measured on the same model and images.
        classes: Accuracy of each class.
        gradients: Gradient-norm ratios of the layers.
        corruption: Accuracy under common corruptions.
        metrics: The metrics that the run logged after each epoch.
        training: The settings of the run.
        pictures: Examples on which an attack fooled the model.
        seeds: (seed, evaluation) for each of several training runs, this one first; empty for a single run.
        source: The network, its images and files; None for a report that was put together by hand.

    Raises:
        UserError: If curve or spread belong to another model or other images, or two seeds have the same checkpoint.
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
        """The threat model as text: "linf, eps = 8/255"."""
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
    """Collect a report's data from finished evaluations. Details are those of the first of several seeds.

    Args:
        arms: For each model its evaluation, or its evaluations of several seeds, all evaluated in the same way.
        data: The folder of the images, if they have been moved.
        data_name: The name of the images on the page.
        most: Curves and angles use a sample of at most this many images; None for all.
        on_progress: Called with (model, stage, done, total) during computations.

    Returns:
        The data on each model.

    Raises:
        OutdatedError: If a ledger can't be read, or the model or its images have changed since the evaluation.
        UserError: If another file is missing or damaged, or one of several seeds is not a training run.
    """
    for one in (one for arm in arms if len(arm) > 1 for one in arm):
        if one.subject.run is None:
            raise UserError(f"{one.folder} belongs to no training run, so it has no seed; separate it by a space")
    names = unique_names([model_name(arm[0]) for arm in arms], [arm[0].subject.run or arm[0].folder for arm in arms])
    sources = [Source(arm, *arm[0].subject.at(data).load()) for arm in arms]
    for source in sources:
        _require_current(source)
    shown = _shared_pictures(sources)
    return [
        _collect_model(name, source, shared, data_name, most, partial(on_progress, name))
        for name, source, shared in zip(names, sources, shown, strict=True)
    ]


def _require_current(source: Source) -> None:
    folder, images = source.found[0].folder, source.images
    try:
        with Ledger.read(folder / LEDGER) as ledger:
            reason = trained_on(ledger, source.network, folder)
            if not reason and images.labels.tolist() != ledger.labels:
                reason = f"the images of {images.name} have changed since the evaluation in {folder}; restore them"
    except UserError as error:
        reason = str(error)
    if reason:
        raise OutdatedError(folder, reason)


def model_name(found: Finished) -> str:
    """The method of a run; for a user-defined model, its label."""
    subject = found.subject
    return subject.label if subject.run is None else method(read_config(subject.run))


def unique_names(called: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The names, with the folder's name, or a number if folders are equal, added to names that occur twice."""
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
    """Sentences on settings that differ between a model and the first, on training with another radius, and on
    collapses and overfitting in training.
    """
    known = [(one, configs) for one in models if one.source and (configs := one.source.configs)]
    found = [line for one, configs in known for line in within(one.name, configs)]
    for one, configs in known[1:]:
        first, baseline = known[0]
        lines = [line for line in confounders(baseline, configs) if not line.startswith("within")]
        found += [f"besides the method, {first.name} and {one.name} differ in {line}" for line in lines]
    for one, configs in known:
        found += trained_elsewhere(f"{one.name} checkpoint", configs[0], one.evaluation.identity["threat"]["eps"])
        runs = [source.subject.run for source in one.source.found] if one.source else []
        found += [f"{one.name}: {line}" for run in runs if run is not None for line in warnings_of(run)]
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
        classes=by_class(evaluation, images.labels.tolist(), images.classes),
        gradients=None if run is None else _gradients(run, evaluation),
        corruption=None if run is None else _corruption(run, evaluation),
        metrics=[] if run is None else read_metrics(run),
        training={} if run is None else _training(run, subject.checkpoint),
        pictures=shown,
        seeds=[(config.training.seed, found.evaluation) for config, found in several],
        source=source,
    )


def _spread(source: Source, head: str | None, **settings: Any) -> Spread | None:
    """The angles; None for a network without a last linear layer."""
    try:
        return spread_of_angles(source.network, source.images, head=find_head(source.network, head), **settings)
    except UserError:
        return None


def _cached(path: Path, kind: type[Part], evaluation: Evaluation, compute: Callable[[], Part | None]) -> Part | None:
    """Read the stored part if it belongs to this model and these images, else compute and store it."""
    try:
        found = kind.load(path) if path.is_file() else None
    except UserError:
        found = None
    if found is not None and _same(found, evaluation):
        return found
    computed = compute()
    if computed is not None:
        with suppress(UserError):  # the disk is read-only
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
    """The complete record of this checkpoint with the most images and corruptions."""
    checksum = evaluation.identity["model"]["checksum"]
    found = [CorruptionRecord.load(path) for path in sorted((run / "corruptions").glob(f"*/{RECORD}"))]
    own = [one for one in found if one.complete and one.counted and one.identity["model"]["checksum"] == checksum]
    return max(own, key=lambda one: (one.clean.n, len(one.names)), default=None)


def _training(run: Path, which: str) -> dict[str, Any]:
    """The settings of a run, the evaluated checkpoint, and the environment that trained it."""
    config = read_config(run)
    by, epochs, last = config.objective.chosen_by, config.training.epochs, read_metrics(run)[-1]
    chosen = f"last of {epochs} epochs"
    if which == "best":
        best = load_checkpoint(run / "best.safetensors")[1]["metrics"]
        chosen = (
            f"best of {epochs} epochs by {by} accuracy on held-out training images: "
            f"epoch {best['epoch']:.0f} with {100 * best[by]:.1f} %"
            + (f" (the last epoch has {100 * last[by]:.1f} %)" if by in last else "")
        )
    made_by = read_provenance(run)
    return to_dict(config) | {"checkpoint": chosen, "trained with": made_by}
