"""The demo: two networks learn the digits under attack, one of them on the hypersphere; both are attacked, compared,
and reported on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from advsphere import experiment
from advsphere.config import Config, to_dict
from advsphere.dossier import Evidence, judged, shared_pictures
from advsphere.errors import UserError
from advsphere.evaluation import CLEAN, Case, evaluate, suite
from advsphere.evaluation import Progress as AttackProgress
from advsphere.files import write_atomically
from advsphere.recipes import method, recipe
from advsphere.report import Command, Judged, report
from advsphere.training import Metrics, Tick, Trainer

RECIPES = ("digits-pgd-at", "digits-pgd-at-he")
SUITE = "quick"

_MARK, _FORMAT = "demo.json", "advsphere demo 1"


class Progress(NamedTuple):
    """How far a stage of one model has come: done of total, and what to say of it."""

    model: str
    stage: Literal["train", "attack", "curve", "angles"]
    done: int
    total: int
    note: str = ""


class Arm(NamedTuple):
    """One of the networks. run: its folder. evidence: that lies in it."""

    judged: Judged
    run: Path
    evidence: Evidence


@dataclass(frozen=True)
class Demo:
    """What the demo made, the baseline first."""

    arms: tuple[Arm, ...]
    report: Path

    @property
    def judged(self) -> list[Judged]:
        return [arm.judged for arm in self.arms]


def demo(
    out: Path, *, configs: Sequence[Config] | None = None, on_progress: Callable[[Progress], None] = lambda _: None
) -> Demo:
    """Train, attack, compare, report: all of it under `out`.

    A demo that was interrupted goes on; one that is finished, or of other settings, begins afresh in the same folder.
    configs: what to train, the baseline first; the digits recipes by default, plain and on the hypersphere. Runs on one
    thread of the processor. Raises UserError where `out` holds something else.
    """
    configs = [recipe(name) for name in RECIPES] if configs is None else configs
    _claim(out, configs)
    with _one_thread():
        arms = [_arm(config, out / config.recipe, on_progress) for config in configs]
    page = out / "report.html"
    pictures = shared_pictures([arm.evidence for arm in arms])
    report([arm.judged for arm in arms], page, pictures=pictures, commands=_commands(out, arms))
    _mark(out, configs, finished=True)
    return Demo(tuple(arms), page)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small leave several threads waiting for each other, many times over on a busy machine; and one
    thread gives the same numbers on any number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _arm(config: Config, run: Path, on_progress: Callable[[Progress], None]) -> Arm:
    """Train one network, attack it, and find out the rest that a report shows."""
    name, threat = method(config), config.threat
    _train(config, run, name, on_progress)
    _, model, images = experiment.load_run(run)
    folder = run / "evaluations" / f"{SUITE}-best-{threat.norm}-{threat.eps:.4g}"
    folder.mkdir(parents=True, exist_ok=True)
    attacks = [CLEAN, *(spec.name for spec in suite(SUITE, Case(threat=threat)))]
    cells = len(attacks) * len(images)

    def attacked(p: AttackProgress) -> None:
        done = attacks.index(p.attack) * p.total + p.done
        on_progress(Progress(name, "attack", done, cells + 1, f"{p.attack}: {100 * p.robust / p.done:.1f} %"))

    def looked(stage: Literal["curve", "angles"], done: int, total: int) -> None:
        notes = {"curve": f"up to eps = {2 * threat.eps:g}", "angles": "clean and under PGD-10"}
        on_progress(Progress(name, stage, done, total, notes[stage]))

    evaluation = evaluate(
        model,
        images,
        threat=threat,
        suite=SUITE,
        ledger=folder / "ledger.sqlite",
        head=experiment.head_name(config),
        on_progress=attacked,
    )
    evaluation.save(folder / "evaluation.json")
    left = 100 * evaluation.worst.accuracy
    on_progress(Progress(name, "attack", cells + 1, cells + 1, f"worst case: {left:.1f} %"))
    evidence = Evidence(name=name, folder=folder, evaluation=evaluation, model=model, images=images, run=run)
    return Arm(judged(evidence, looked, most=None), run, evidence)


def _train(config: Config, run: Path, name: str, on_progress: Callable[[Progress], None]) -> None:
    epochs, images, note = config.training.epochs, 0, ""

    def show(done: int) -> None:
        on_progress(Progress(name, "train", done, epochs * images, note))

    def started(trainer: Trainer, _: list[str]) -> None:
        nonlocal images
        images = len(trainer.images)
        show(trainer.cursor.epoch * images)

    def ticked(tick: Tick) -> None:
        show(tick.epoch * images + tick.images)

    def finished(metrics: Metrics) -> None:
        nonlocal note
        note = f"PGD-10, held out: {100 * metrics['robust']:.1f} %"
        show(int(metrics["epoch"]) * images)

    experiment.train(config, run, resume=True, on_start=started, on_tick=ticked, on_epoch=finished)


def _commands(out: Path, arms: Sequence[Arm]) -> list[Command]:
    checks = [Command(f"Check every number of {a.judged.name} from its evidence", _verify(a)) for a in arms]
    return [Command("Train, attack and report again", f"advsphere demo --out {out}"), *checks]


def _verify(arm: Arm) -> str:
    return f"advsphere verify {arm.run}"


def _claim(out: Path, configs: Sequence[Config]) -> None:
    """Make the folder this demo's, with what an interrupted one left there."""
    mark = out / _MARK
    if mark.is_file():
        if json.loads(mark.read_text()) == _content(configs, finished=False):
            return
        # The mark says that a demo made this folder, so its runs may go: they are made again in a minute.
        for page in ("report.html", "report.json"):
            (out / page).unlink(missing_ok=True)
        for config in configs:
            shutil.rmtree(out / config.recipe, ignore_errors=True)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something else than a demo; name a new or an empty folder with --out")
    _mark(out, configs, finished=False)


def _mark(out: Path, configs: Sequence[Config], *, finished: bool) -> None:
    write_atomically(out / _MARK, json.dumps(_content(configs, finished=finished), indent=1).encode())


def _content(configs: Sequence[Config], *, finished: bool) -> dict[str, Any]:
    content = {
        "format": _FORMAT,
        "advsphere": version("advsphere"),
        "configs": [to_dict(config) for config in configs],
        "finished": finished,
    }
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain
