"""`advsphere evaluate`: attack a run or a user's model, and print its accuracy under each attack."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from advsphere.cli.arguments import DURATION, parse
from advsphere.cli.printing import program, terminal
from advsphere.distributed import World, joined, leave
from advsphere.errors import UserError
from advsphere.evaluation import Effort, Evaluation
from advsphere.evaluation.checks import device_of, usual_batch_size
from advsphere.evaluation.engine import Certainty, Precision, prepare
from advsphere.evaluation.progress import progress_bar
from advsphere.evaluation.results import LEDGER
from advsphere.files import canonical
from advsphere.identity import AnotherModelError
from advsphere.machine import advice
from advsphere.runs.build import head_name
from advsphere.runs.config import Config
from advsphere.runs.folder import read_config
from advsphere.runs.target import EvaluationTarget
from advsphere.threat import Norm, ThreatModel, radius


@dataclass(frozen=True, kw_only=True)
class Options:
    """Attack a network and print an upper bound of its robust accuracy, with intervals.

    A run:  advsphere evaluate runs/digits-pgd-at-he --suite paper

    Your own model:  advsphere evaluate --model mypackage.nets:build --weights net.pt --data photos --image-size 64

    Somebody's:  advsphere evaluate --weights trades.pt --data cifar-10-batches-py, or with --model hf:FOLDER

    A ledger stores every outcome and every adversarial image; evaluation.json holds the numbers. Interrupt the command
    at any time; the same command continues. `advsphere verify` checks the result.

    Several processes can share the images and write one ledger:

    torchrun --nproc-per-node 4 -m advsphere evaluate runs/digits-pgd-at-he
    """

    subject: Annotated[EvaluationTarget, tyro.conf.arg(name="")] = EvaluationTarget()
    suite: str = "quick"
    """The attacks to run.
    - quick: FGSM, PGD-20, PGD-100, margin PGD-100.
    - paper: PGD-50 at s = 1 and at s, margin PGD-50.
    - autoattack: APGD-CE, APGD-T, FAB-T, Square.
    - table2, table4, table6: the columns of the paper's tables.
    - survival: the attacks of `advsphere compare`.
    - adaptive: for bounded cosine heads: several scales, angles, features.
    - black-box: Square, RayS: for models without usable gradients.
    - rand: for models with random numbers inside.
    - package.module:name: your own suite, see docs/extending.md.
    """
    effort: Annotated[Effort, tyro.conf.arg(name="")] = Effort()
    budget: Annotated[float | None, DURATION] = None
    """Time limit for the attacks, e.g. 10m, 90s or 2h; the result is the tightest upper bound found in that time.
    The same command run again continues for as long."""
    certainty: Annotated[Certainty | None, tyro.conf.arg(metavar="POINTS|usual|paired")] = None
    """Run AutoAttack, and other attacks that hardly find more, on a random sample of the images that resisted a short
    search, until they would take at most so many points more (95 %); e.g. 0.5. 0 runs them on all of these. "usual",
    the default with a budget, is a fifth of half the 95 % interval at this number of images, and "paired" a tenth, as
    in `advsphere compare`. Else every attack tries all."""
    norm: Norm | None = None
    """Norm of the attacks; by default the run's own, or linf for your own model."""
    eps: float | None = None
    """Radius in pixel units, e.g. 8/255; by default the run's own, or 8/255 for your own model."""
    seed: int = 0
    """Seed of the attacks' random starts."""
    batch_size: int | None = None
    """Images per batch of each attack, and the unit of work; by default 250, fewer above 74 pixels a side,
    up to 8 times as many on a GPU. An evaluation that continues keeps its own."""
    precision: Precision = "auto"
    """Precision of the attacks' search; auto is bfloat16 where the machine supports it. Every adversarial image is
    checked in float32."""
    head: str | None = None
    """Name of the last linear layer, if it can't be found automatically; not needed for a run that names its head."""
    out: Path | None = None
    """The output folder; by default one in the run's folder, or in runs/own for your own model."""


def main(arguments: list[str]) -> int:
    """Evaluate, and print the table and the folder of the evidence."""
    with joined() as world:
        options = parse(Options, arguments, prog="advsphere evaluate")
        console = terminal()
        if world.size > 1:
            console.print(f"{world.size} processes share the images; the bars show the first one", soft_wrap=True)
        evaluation, folder = evaluated(options, world)
        console.print(evaluation.table(width=console.width), soft_wrap=True)
        if options.subject.run is not None:
            trained = read_config(options.subject.run).threat
            if (judged := _threat(options, trained)) != trained:
                console.print(f"trained against {_said(trained)}; judged against {_said(judged)}", soft_wrap=True)
        console.print(f"evidence: {folder}; check it with: {program('verify', folder)}", soft_wrap=True)
    leave(0)
    return 0


def evaluated(options: Options, world: World = World(), *, prefer_all: bool = False) -> tuple[Evaluation, Path]:
    """Evaluate, continuing from the folder's ledger; returns the evaluation and its folder. All checks come before the
    first write. With `prefer_all`, a finished evaluation of all attacks on all images takes the place of one with a
    certainty.
    """
    subject = options.subject
    config = None if subject.run is None else read_config(subject.run)
    head = None if config is None else head_name(config)
    if head is not None and options.head not in (None, head):
        raise UserError(f"the head of {subject.run} is {head}, not {options.head}; leave out --head")
    threat = _threat(options, ThreatModel(norm="linf", eps=8 / 255) if config is None else config.threat)
    model, images = subject.load(_note if world.first else lambda line: None)
    planned = partial(
        prepare,
        model,
        images,
        threat=threat,
        suite=options.suite,
        seed=options.seed,
        batch_size=options.batch_size,
        effort=options.effort,
        budget=options.budget,
        head=options.head or head,
        precision=options.precision,
        world=world,
    )
    plan = planned(certainty="usual" if options.certainty is None and options.budget is not None else options.certainty)
    folder = options.out or folder_of(options, config, plan.identity)
    if prefer_all and "certainty" in plan.identity["suite"]:
        whole = folder_of(options, config, _without_certainty(plan.identity))
        if _finished(whole, plan.identity):
            _note(f"every attack has run on all images in {whole}, so no sample is drawn")
            plan, folder = planned(), whole
    if world.first and (slow := advice(plan.dtype, device_of(model))):
        _note(slow)
    if world.first:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        plan = plan.claim(folder / LEDGER, beside=False)
    except AnotherModelError as error:
        raise UserError(
            f"{folder} holds an evaluation of another network, or of this one before more training; delete that "
            "folder, or name another one with --out"
        ) from error
    if world.first:
        subject.save(folder)
    with progress_bar(console=terminal(), transient=False, disable=False) as on_progress:
        evaluation = plan.run(on_progress)
    if world.first:
        evaluation.save(folder / "evaluation.json")
    return evaluation, folder


def folder_of(options: Options, config: Config | None, identity: Mapping[str, Any]) -> Path:
    """The default folder. Its name gives the common options, and a hash if any other option differs from its default,
    so that different evaluations never share a ledger.
    """
    subject, suite, threat = options.subject, identity["suite"], identity["threat"]
    name = f"{_plain(options.suite)}-{subject.checkpoint}-{threat['norm']}-{threat['eps']:.4g}"
    name += "" if subject.n is None else f"-n{subject.n}"
    for field in ("restarts", "steps", "guides"):
        name += "" if suite[field] == getattr(Effort(), field) else f"-{field}{suite[field]}"
    name += "-cascade" if suite["cascade"] else ""
    name += f"-certainty{suite['certainty']:g}" if "certainty" in suite else ""
    if subject.run is None or config is None:
        size = options.batch_size or usual_batch_size(identity["data"]["shape"])  # a GPU chooses by its free memory
        return (
            Path("runs/own")
            / f"{_plain(subject.model or subject.label)}-{name}-{_hash({**identity, 'batch_size': size})}"
        )
    unusual = {
        "eps": threat["eps"] if not _usual(threat["eps"], config.threat.eps) else None,
        "attacks": identity["attacks"] if "rank" in suite else None,
        "seed": options.seed or None,
        "batch size": None
        if identity["batch_size"] == usual_batch_size(identity["data"]["shape"])
        else options.batch_size,
        "precision": None if options.precision == "auto" else options.precision,
        "head": options.head,
        "data": None if _same_place(subject.data, config.data.root) else identity["data"]["checksum"],
        "anew": identity.get("anew"),
    }
    given = {key: value for key, value in unusual.items() if value is not None}
    return subject.run / "evaluations" / (f"{name}-{_hash(given)}" if given else name)


def _without_certainty(identity: Mapping[str, Any]) -> dict[str, Any]:
    suite = {key: value for key, value in identity["suite"].items() if key != "certainty"}
    return {**identity, "suite": suite}


def _finished(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the folder holds an evaluation of this network that has tried every image."""
    try:
        found = Evaluation.load(folder / "evaluation.json")
    except UserError:
        return False
    return found.identity["model"] == identity["model"] and not found.worst.unreached


def _note(line: str) -> None:
    terminal().print(f"note: {line}", style="dim", soft_wrap=True)


def _usual(eps: float, trained: float) -> bool:
    """Whether four digits identify this radius: it is the run's own, or a whole number of grey levels."""
    levels = round(255 * eps) / 255
    return eps == trained or (eps == levels and f"{eps:.4g}" != f"{trained:.4g}")


def _same_place(given: Path | None, own: Path | None) -> bool:
    return given is None or (own is not None and given.resolve() == own.resolve())


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]", ".", name)


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:8]


def _threat(options: Options, usual: ThreatModel) -> ThreatModel:
    eps = usual.eps if options.eps is None else options.eps
    return replace(usual, norm=options.norm or usual.norm, eps=eps)


def _said(threat: ThreatModel) -> str:
    return f"{threat.norm}, eps = {radius(threat.eps)}"
