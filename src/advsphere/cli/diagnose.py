"""`advsphere diagnose`: examine a network, and test the paper's claims on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich import box
from rich.table import Table
from torch import nn

from advsphere.analysis.diagnosis import Diagnosis, Network, diagnose
from advsphere.analysis.feature_normalization import PAPER
from advsphere.bars import stage_bars
from advsphere.cli.arguments import parse
from advsphere.cli.printing import terminal
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.checks import usual_batch_size
from advsphere.files import require_writable
from advsphere.report import rendering as numbers
from advsphere.runs.build import build_model, chosen_device, from_scratch, head_name
from advsphere.runs.config import Config, differences
from advsphere.runs.folder import load_run, read_config
from advsphere.runs.target import EvaluationTarget
from advsphere.threat import Norm, ThreatModel, radius
from advsphere.training import read_metrics


@dataclass(frozen=True, kw_only=True)
class Options:
    """Examine a network, and test on it the four claims of the paper's poster about hypersphere embedding.

    A run and its baseline:  advsphere diagnose runs/cifar10-fastat-he --baseline runs/cifar10-fastat

    A run alone:  advsphere diagnose runs/cifar10-fastat-he

    Your own model:  advsphere diagnose --model mypackage.nets:build --weights net.pt --data photos --image-size 224

    The claims are: 1. FN makes perturbations more effective; 2. FN learns better from hard adversarial examples;
    3. WN alleviates the class imbalance of untargeted AT; 4. AM increases the inter-class margin. Each is answered
    "seen" (the whole 95 % interval supports it) or "not seen". Claims 1 and 2 switch FN on and off within one network,
    so any network will do. Claims 3 and 4 need a baseline, and are about WN or AM alone only if the networks differ in
    nothing else.

    The figures also show: gradient-norm ratios of adversarial and clean images by layer, and over training for a run
    trained with --diagnose; the paper's Table 7 (PGD-1 and PGD-2 with FN on the attack's path); angles and margins by
    class; feature norms; accuracy against eps and against steps; slices of the loss surface; perturbations.

    By default it uses 500 images of 32 pixels a side, and fewer larger ones (125 of 64 pixels, 60 of 224). On one core,
    a ResNet-18 takes about five minutes at 64 pixels and half an hour at 224. --n sets the number.

    Writes a png of each figure, and diagnosis.json with the numbers behind them.
    """

    subject: Annotated[EvaluationTarget, tyro.conf.arg(name="")] = EvaluationTarget()
    baseline: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """The folder of another run to compare with, trained on the same kind of images."""
    norm: Norm | None = None
    """Norm of the attacks; by default the run's own, or linf for your own model."""
    eps: float | None = None
    """Radius of the attacks in pixel units, e.g. 8/255; by default the run's own, or 8/255 for your own model."""
    head: str | None = None
    """Name of the last linear layer of your own model, if it can't be found automatically."""
    seed: int = 0
    """Seed of the attacks' random starts and of the bootstrap."""
    batch_size: int | None = None
    """Images per batch; by default 250, fewer above 74 pixels a side."""
    out: Path | None = None
    """The output folder; by default `diagnosis` in the run's folder, or runs/own/diagnosis for your own model."""


def main(arguments: list[str]) -> int:
    """Diagnose, and print the answers and the folder of the figures."""
    options = parse(Options, arguments, prog="advsphere diagnose")
    target = options.subject
    folder = options.out or (target.run or Path("runs/own")) / "diagnosis"
    model, images = _loaded(target)
    require_writable(folder)
    if target.run is None:
        network = Network(name=target.label, model=model, head=options.head)
        threat = ThreatModel(norm="linf", eps=8 / 255)
    else:
        network, threat = _network(target.run, model, images, target), read_config(target.run).threat
    eps = threat.eps if options.eps is None else options.eps
    baseline = None if options.baseline is None else _baseline(options.baseline, target, images)
    console = terminal()
    with stage_bars(console) as show:
        found = diagnose(
            network,
            images,
            threat=replace(threat, norm=options.norm or threat.norm, eps=eps),
            baseline=baseline,
            seed=options.seed,
            batch_size=options.batch_size or usual_batch_size(images.shape),
            on_progress=show,
        )
    written = found.save(folder)
    lines = [_numbers(found), _table7(found), *_answers(found)]
    if options.baseline is not None and target.run is not None:
        differ = _differences(read_config(options.baseline), read_config(target.run))
        lines.append(f"Baseline and run differ in: {differ}. Claims 3 and 4 concern all of these settings together.")
    for line in lines:
        console.print(line, soft_wrap=True)
    console.print(f"\n{len(written) - 1} figures and diagnosis.json: {folder}", soft_wrap=True)
    return 0


def enough(shape: tuple[int, int, int]) -> int:
    """The default number of images of a shape (C, H, W): 500 of 32 pixels a side, fewer larger images, at least 60."""
    _, height, width = shape
    return max(60, min(500, 500 * 32 * 32 // (height * width)))


def _loaded(target: EvaluationTarget) -> tuple[nn.Module, Images]:
    model, images = target.load()
    return model, images if target.n is not None else images.few(enough(images.shape))


def _network(folder: Path, model: nn.Module, images: Images, target: EvaluationTarget) -> Network:
    """A run's network with its other checkpoint and its initial weights, which are rebuilt from the config."""
    config, states = read_config(folder), {}
    if config == from_scratch(config):
        states["initial"] = build_model(config, images).to(chosen_device()).eval()
    other: Literal["best", "last"] = "last" if target.checkpoint == "best" else "best"
    if (folder / f"{other}.safetensors").exists():
        states[other] = load_run(folder, other, data_root=target.data).model
    sphere = config.sphere
    return Network(
        name=folder.resolve().name,
        model=model,
        head=head_name(config),
        margin=sphere.margin * sphere.margin_schedule(1.0) if sphere else 0.0,
        states=states,
        metrics=read_metrics(folder),
    )


def _baseline(folder: Path, target: EvaluationTarget, images: Images) -> Network:
    """The network of the baseline's run. Raises UserError if it can't be compared with the target."""
    if target.run is not None and target.run.resolve() == folder.resolve():
        raise UserError(f"{folder} is the run itself; give another run as its baseline")
    own = replace(target, run=folder, model=None, weights=None, mean=None, std=None)
    model, theirs = _loaded(own)
    if theirs.classes != images.classes or theirs.shape != images.shape:
        raise UserError(f"{folder} was trained on other images ({theirs.name}); give a baseline on {images.name}")
    network = _network(folder, model, images, own)
    same_name = target.run is not None and target.run.resolve().name == network.name
    return replace(network, name=f"{network.name} (baseline)") if same_name else network


def _differences(baseline: Config, run: Config) -> str:
    """The settings that differ between two runs and affect a result."""
    lines = [str(change) for change in differences(baseline, run) if change.path != "sphere"]
    sphere = run.sphere or baseline.sphere
    if sphere is not None and None in (run.sphere, baseline.sphere):
        parts = {"FN": sphere.normalize_features, "WN": sphere.normalize_weights}
        settings = [f"s = {sphere.scale:g}", f"m = {sphere.margin:g}", *(name for name, used in parts.items() if used)]
        owner = "the run" if run.sphere else "the baseline"
        lines.insert(0, f"the hypersphere ({', '.join(settings)}; only {owner} has it)")
    return "; ".join(lines) or "nothing, they have the same settings"


def _numbers(found: Diagnosis) -> Table:
    """A table with the main numbers of each network."""
    threat, every = found.threat, found.examinations
    table = _table(f"{found.n} images of {found.data}, {threat.norm}, eps = {radius(threat.eps)}", found)
    table.add_row("accuracy, clean, %", *(numbers.percent(e.eps.accuracy[0]) for e in every))
    table.add_row(f"accuracy, PGD-{every[0].steps.at[-1]}, %", *(numbers.percent(e.steps.accuracy[-1]) for e in every))
    table.add_row("angular margin, clean, degrees", *(f"{float(e.clean.margin.mean()):.1f}" for e in every))
    table.add_row("angular margin, adversarial", *(f"{float(e.adversarial.margin.mean()):.1f}" for e in every))
    table.add_row("mean ||z||, clean", *(f"{e.parts.mean_norm:.3g}" for e in every))
    table.add_row("gradient-norm ratio, median", *(f"{e.gradients['as judged'].middle:.2f}" for e in every))
    return table


def _table7(found: Diagnosis) -> Table:
    """The paper's Table 7 for these networks."""
    one = found.examinations[0].table7
    title = (
        f"Table 7's attack: linf {one.threat.eps:g}, step {one.step_size:g} (both inferred), {one.start} start; "
        "accuracy in %, with 95 % intervals"
    )
    table = _table(title, found, "paper: WRN-34-10, standard training")
    for k in one.steps:
        for fn in (False, True):
            attacks = [e.table7.attack(k, fn=fn) for e in found.examinations]
            values = [f"{numbers.percent(a.accuracy)} ({numbers.limits(a.interval)})" for a in attacks]
            table.add_row(f"PGD-{k} {'with' if fn else 'without'} FN", *values, f"{PAPER[k, fn]:.2f}")
    return table


def _table(title: str, found: Diagnosis, *more: str) -> Table:
    """An empty table with a column for each network."""
    table = Table("", title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in (*(e.network.name for e in found.examinations), *more):
        table.add_column(column, justify="right", overflow="fold")
    return table


def _answers(found: Diagnosis) -> list[str]:
    """Each claim with its answer and its evidence."""
    lines = []
    for number, claim in enumerate(found.claims, 1):
        lines.append(f"{number}. {claim.statement}: {claim.answer.upper()}")
        lines += [f"   {line}" for line in (*claim.evidence, claim.detail)]
    which = "this checkpoint" if len(found.examinations) == 1 else "these two checkpoints"
    return [*lines, f"These answers hold for {which}, on these images."]
