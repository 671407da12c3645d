"""`advsphere diagnose`: what goes on inside a network, and which of the paper's claims are seen in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from advsphere.analysis.diagnosis import Diagnosis, Network, diagnose
from advsphere.analysis.feature_normalization import PAPER
from advsphere.cli.arguments import parse
from advsphere.cli.progress import stage_bars
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.checks import usual_batch_size
from advsphere.report import rendering as numbers
from advsphere.runs.build import build_model, device, from_scratch, head_name
from advsphere.runs.config import Config, differences
from advsphere.runs.folder import load_run, read_config
from advsphere.runs.target import EvaluationTarget
from advsphere.threat import Norm, ThreatModel, radius
from advsphere.training import read_metrics


@dataclass(frozen=True, kw_only=True)
class Options:
    """Look inside a network, and test on it what the paper's poster claims of the hypersphere.

    A run beside its baseline:  advsphere diagnose runs/cifar10-fastat-he --baseline runs/cifar10-fastat

    A run alone:  advsphere diagnose runs/cifar10-fastat-he

    Yours:  advsphere diagnose --model mypackage.nets:build --weights net.safetensors --data photos --image-size 224

    Four claims, each answered "seen" (the whole 95 % interval is on its side) or "not seen": 1. FN makes perturbations
    more effective; 2. FN learns better from hard adversarial examples; 3. WN alleviates the class imbalance of
    untargeted AT; 4. AM increases the inter-class margin. 1 and 2 switch FN on and off within the one network, so any
    network will do; 3 and 4 need a baseline, and speak of WN or AM alone only if nothing else differs from it.

    Besides: gradient-norm ratios of adversarial and clean images layer by layer, over training if the run was trained
    with --diagnose; the paper's Table 7 (PGD-1 and PGD-2 with FN on the attack's path); angles and margins by class;
    feature norms; accuracy against eps and against steps; slices of the loss surface; pictures of perturbations.

    By default it looks at 500 images of 32 pixels a side, and at fewer of larger ones (125 of 64 pixels, 60 of 224): on
    one core a ResNet-18 takes about five minutes at 64 pixels and half an hour at 224. --n says how many.

    Written: a png of each figure, and diagnosis.json with the numbers behind them.
    """

    subject: Annotated[EvaluationTarget, tyro.conf.arg(name="")] = EvaluationTarget()
    baseline: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """The folder of another run, trained on the same kind of images, to compare with."""
    norm: Norm | None = None
    """The run's own by default; linf for a model of yours."""
    eps: float | None = None
    """Radius in pixel units, e.g. 8/255; the run's own by default, 8/255 for a model of yours."""
    head: str | None = None
    """The last linear layer's name in a model of yours, where it can't be told."""
    seed: int = 0
    """Of the attacks' random starts, and of the bootstrap."""
    batch_size: int | None = None
    """By default 250, fewer of more than 74 pixels a side."""
    out: Path | None = None
    """Where to write; by default `diagnosis` in the run's folder, or runs/own/diagnosis for a model of yours."""


def main(arguments: list[str]) -> int:
    """Parse, diagnose, print the answers and where the figures lie."""
    options = parse(Options, arguments or ["--help"], prog="advsphere diagnose")
    subject = options.subject
    network, images, own = _subject(subject, options.head)
    threat = ThreatModel(
        norm=options.norm or own.norm, eps=own.eps if options.eps is None else options.eps, bounds=own.bounds
    )
    baseline, differ = _baseline(options.baseline, subject, images)
    console = Console(highlight=False, markup=False)
    with stage_bars(console) as show:
        found = diagnose(
            network,
            images,
            threat=threat,
            baseline=baseline,
            seed=options.seed,
            batch_size=options.batch_size or usual_batch_size(images.shape),
            on_progress=show,
        )
    folder = options.out or (subject.run or Path("runs/own")) / "diagnosis"
    written = found.save(folder)
    for line in (_numbers(found), _table7(found), *_answers(found), *differ):
        console.print(line, soft_wrap=True)
    console.print(f"\n{len(written) - 1} figures and diagnosis.json: {folder}", soft_wrap=True)
    return 0


def enough(shape: tuple[int, int, int]) -> int:
    """How many images of that (C, H, W) are looked at: 500 of 32 pixels a side, of larger ones as many pixels."""
    _, height, width = shape
    return max(60, min(500, 500 * 32 * 32 // (height * width)))


def _loaded(subject: EvaluationTarget) -> tuple[nn.Module, Images]:
    model, images = subject.load()
    return model, images if subject.n is not None else images.few(enough(images.shape))


def _subject(subject: EvaluationTarget, head: str | None) -> tuple[Network, Images, ThreatModel]:
    """What is diagnosed, on which images, and under which threat unless told otherwise."""
    model, images = _loaded(subject)
    if subject.run is None:
        name = str(subject.model).rpartition(":")[2]
        return Network(name=name, model=model, head=head), images, ThreatModel(norm="linf", eps=8 / 255)
    return _run(subject.run, model, images, subject), images, read_config(subject.run).threat


def _run(folder: Path, model: nn.Module, images: Images, subject: EvaluationTarget) -> Network:
    """A run's network, with its other states: the initial weights are a function of the config, and made again."""
    config = read_config(folder)
    states: dict[str, nn.Module] = {}
    if config == from_scratch(config):
        states["initial"] = build_model(config, images).to(device()).eval()
    other: Literal["best", "last"] = "last" if subject.checkpoint == "best" else "best"
    if (folder / f"{other}.safetensors").exists():
        states[other] = load_run(folder, other, data_root=subject.data).model
    sphere = config.sphere
    return Network(
        name=folder.resolve().name,
        model=model,
        head=head_name(config),
        margin=sphere.margin * sphere.margin_schedule(1.0) if sphere else 0.0,
        states=states,
        metrics=read_metrics(folder),
    )


def _baseline(folder: Path | None, subject: EvaluationTarget, images: Images) -> tuple[Network | None, list[str]]:
    """The baseline, and what is to be known about the pair."""
    if folder is None:
        return None, []
    own = replace(subject, run=folder, model=None, weights=None, mean=None, std=None)
    model, theirs = _loaded(own)
    if theirs.classes != images.classes or theirs.shape != images.shape:
        raise UserError(f"{folder} was trained on other images ({theirs.name}); give a baseline on {images.name}")
    network = _run(folder, model, images, own)
    if subject.run is not None and subject.run.resolve().name == network.name:
        if subject.run.resolve() == folder.resolve():
            raise UserError(f"{folder} is the run itself; give another run as its baseline")
        network = replace(network, name=f"{network.name} (baseline)")
    if subject.run is None:
        return network, []
    told = _changes(read_config(folder), read_config(subject.run))
    return network, [f"Between baseline and run differ: {told}. Claims 3 and 4 are about all of that together."]


def _changes(old: Config, new: Config) -> str:
    """What differs between two configs, as far as it may matter."""
    lines = [str(change) for change in differences(old, new)]
    if (old.sphere is None) != (new.sphere is None):  # then every setting of it differs
        sphere = new.sphere or old.sphere
        assert sphere is not None
        parts = [
            f"s = {sphere.scale:g}",
            f"m = {sphere.margin:g}",
            *(["FN"] if sphere.normalize_features else []),
            *(["WN"] if sphere.normalize_weights else []),
        ]
        which = "the run has it" if new.sphere else "the baseline has it"
        lines = [
            f"the sphere ({', '.join(parts)}; {which})",
            *(line for line in lines if not line.startswith("sphere")),
        ]
    return "; ".join(lines) or "nothing, they have the same settings"


def _numbers(found: Diagnosis) -> Table:
    """The networks in a few numbers."""
    threat = found.threat
    title = f"{found.n} images of {found.data}, {threat.norm}, eps = {radius(threat.eps)}"
    table = _table(title, ["", *(e.network.name for e in found.examinations)])
    rows = {
        "accuracy, clean, %": [numbers.percent(e.eps.accuracy[0]) for e in found.examinations],
        f"accuracy, PGD-{found.examinations[0].steps.at[-1]}, %": [
            numbers.percent(e.steps.accuracy[-1]) for e in found.examinations
        ],
        "angular margin, clean, degrees": [f"{float(e.clean.margin.mean()):.1f}" for e in found.examinations],
        "angular margin, adversarial": [f"{float(e.adversarial.margin.mean()):.1f}" for e in found.examinations],
        "mean ||z||, clean": [f"{e.parts.mean_norm:.3g}" for e in found.examinations],
        "gradient ratio, median of layers": [f"{e.gradients['as judged'].middle:.2f}" for e in found.examinations],
    }
    for label, values in rows.items():
        table.add_row(label, *values)
    return table


def _table7(found: Diagnosis) -> Table:
    """The paper's Table 7, of these networks."""
    one = found.examinations[0].table7
    title = (
        f"Table 7's attack: linf {one.threat.eps:g}, step {one.step_size:g} (both inferred), {one.start} start; "
        "accuracy in %, with 95 % intervals"
    )
    table = _table(title, ["", *(e.network.name for e in found.examinations), "paper: WRN-34-10, standard training"])
    for k in one.steps:
        for fn in (False, True):
            cells = [e.table7.attack(k, fn=fn) for e in found.examinations]
            values = [f"{numbers.percent(c.accuracy)} ({numbers.limits(c.interval)})" for c in cells]
            table.add_row(f"PGD-{k} {'with' if fn else 'without'} FN", *values, f"{PAPER[k, fn]:.2f}")
    return table


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    return table


def _answers(found: Diagnosis) -> list[str]:
    """Each claim with its answer and what it rests on."""
    lines = []
    for number, claim in enumerate(found.claims, 1):
        lines.append(f"{number}. {claim.statement}: {claim.answer.upper()}")
        lines += [f"   {evidence}" for evidence in claim.evidence]
        lines.append(f"   {claim.detail}")
    return [*lines, f"This is about {'this checkpoint' if len(found.examinations) == 1 else 'these two checkpoints'}, "
            "on these images."]  # fmt: skip
