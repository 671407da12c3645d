"""How many trainings on one step end collapsed, with the guard against catastrophic overfitting and without it.

    python benchmarks/overfitting.py --minutes 60
    python benchmarks/overfitting.py --report docs/overfitting.md

Every run trains on FGSM from the clean image, with steps of eps, which is known to collapse: the network resists FGSM
and falls to PGD. The runs are those of all seeds, radii and heads, each with the guard and without. A run is a line of
`--rows`, and runs that have one are skipped. The settings take turns within a seed, so that an interrupted benchmark is
complete for its first seeds. The end of a run is judged by FGSM and PGD-50 on test images.

Small networks on a few images do not collapse at 8/255. With `--pattern 8` every image gets a faint pattern of its
class, as strong as the attack, so that a network can only use it by bending its decision along one step
(Ortiz-Jimenez et al. 2022, arXiv 2206.08242):

    python benchmarks/overfitting.py --radii 8 --pattern 8 --epochs 25 --seeds 5 6 7 8

A run in which the guard saw no collapse has the bits of the run without it (tests/training/test_guard.py). It is not
run again, and stands for both.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from half_size import smaller
from torch import nn

from advsphere.analysis.canvas import canvas, quiet
from advsphere.attacks import fgsm, pgd
from advsphere.classifier import fooled, frozen
from advsphere.cli.arguments import parse
from advsphere.data import Dataset, Images, ImageSet, load
from advsphere.data.augmentation import Augment
from advsphere.errors import UserError
from advsphere.files import disk_errors
from advsphere.hypersphere import HypersphereConfig
from advsphere.objectives import FastAT
from advsphere.provenance import environment
from advsphere.recipes import recipe
from advsphere.reproduce.figures import save
from advsphere.reproduce.markdown import head, line
from advsphere.reproduce.results import write_between
from advsphere.rng import Rng
from advsphere.runs.config import Config
from advsphere.runs.folder import read_collapses
from advsphere.runs.train import train
from advsphere.threat import ThreatModel, radius
from advsphere.training import Stopped, read_metrics
from advsphere.training.guard import FALLEN, FGSM, IMAGES, PGD, collapsed

BEGIN, END = "<!-- overfitting -->", "<!-- /overfitting -->"
GUARDS = {"off": "without the guard", "remedy": "with the guard"}
LOOK = ("as they are", "with patterns")
"""Of the images, without patterns and with them."""
HEADS = {"plain": None, "HE": HypersphereConfig(scale=15.0, margin=0.2)}


class Case(NamedTuple):
    """A run: the radius in grey levels, the head, the guard, the seed, and the pattern's strength in grey levels."""

    eps: int
    head: str
    guard: str
    seed: int
    pattern: int = 0


def seen_before(case: Case) -> bool:
    """Whether the guard was adjusted on this run or its partner. The report counts the others separately."""
    return case.seed < (5 if case.eps == 16 else 1) or case._replace(guard="off") == Case(8, "HE", "off", 5, 8)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    rows: Path = Path("benchmarks/overfitting.jsonl")
    """Where each finished run is a line."""
    runs: Path = Path("runs/overfitting")
    """Folders of the runs."""
    minutes: float | None = None
    """Stop after so long, also within a run, which then goes on from its checkpoint; no limit by default."""
    seeds: tuple[int, ...] = tuple(range(10))
    radii: tuple[int, ...] = (16, 8)
    """In grey levels."""
    pattern: int = 0
    """Strength of the classes' patterns in grey levels; 0 for none."""
    data: str = "cifar10"
    size: int = 16
    """The side in pixels to which images are averaged."""
    network: str = "wrn-10-1"
    images: int = 1500
    """To train on."""
    validation: int = 100
    """Images for validation and the canary."""
    held_out: int = 500
    """Test images to judge the end of a run."""
    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.1
    threads: int = 1
    report: Path | None = None
    """Run nothing; write table and figure into this page, between its marks."""


def cases(options: Arguments) -> list[Case]:
    """All runs, in their order: with the guard first."""
    return [
        Case(eps, head, guard, seed, options.pattern)
        for seed in options.seeds
        for eps in options.radii
        for head in HEADS
        for guard in reversed(GUARDS)
    ]


def config_of(options: Arguments, case: Case) -> Config:
    """The config of one run."""
    base, threat = recipe("cifar10-small-fastat"), ThreatModel(norm="linf", eps=case.eps / 255)
    training = replace(
        base.training,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        augment=Augment(),
        seed=case.seed,
        guard=case.guard,  # type: ignore[arg-type]
    )
    return replace(
        base,
        recipe="overfitting",
        objective=FastAT(threat=threat, step_size=threat.eps, start="normal"),
        model=replace(base.model, name=options.network),
        data=replace(base.data, name=options.data, validation=options.validation),
        training=training,
        sphere=HEADS[case.head],
        threat=threat,
    )


def with_patterns(images: ImageSet, strength: int) -> ImageSet:
    """The images, each with the pattern of its class: the signs of one of the cosines of highest frequency."""
    side = images.shape[-1]
    waves = [(side - 1 - i, side - 1 - total + i) for total in range(side) for i in range(total + 1)]
    at = math.pi / side * (torch.arange(side) + 0.5)
    chosen = waves[: len(images.classes)]
    patterns = torch.stack([torch.outer(torch.cos(a * at), torch.cos(b * at)).sign() for a, b in chosen])
    pixels = images.pixels + strength * patterns[images.labels][:, None]
    return replace(images, pixels=pixels.clamp(0, 255).to(torch.uint8))


def parts(options: Arguments) -> Dataset:
    """The first images of the training set, and the first test images, in the size of the benchmark, with patterns."""
    whole = load(options.data)
    parts = whole.train.first(options.images + options.validation), whole.test.first(options.held_out)
    train_images, test_images = (
        with_patterns(smaller(part.in_memory(), options.size), options.pattern) for part in parts
    )
    return Dataset(train_images, test_images)


def judge(model: nn.Module, images: Images, threat: ThreatModel) -> dict[str, str]:
    """Which images are classified correctly, "1" or "0" for each: clean, under FGSM, and under PGD-50 too.

    As in the guard's canary, FGSM attacks every image: a network that has learnt to recognise its perturbation is right
    about images that it gets wrong when they are clean.
    """
    x, y = images.batch(torch.arange(len(images)))
    strong = partial(pgd, threat=threat, steps=50, step_size=threat.eps / 8, until_fooled=True)
    with frozen(model) as classify:
        fast = fgsm(classify, x, y, threat=threat)
        with torch.no_grad():
            clean, resists = (~fooled(classify(images), y) for images in (x, fast))
        found = strong(classify, x, y, rng=Rng(0, torch.arange(len(x))))
        with torch.no_grad():
            left = resists & ~fooled(classify(found), y)
    columns = {"clean": clean, "fgsm": resists, "pgd": left}
    return {name: "".join(map(str, column.int().tolist())) for name, column in columns.items()}


def run(options: Arguments, case: Case, dataset: Dataset, until: float) -> dict[str, Any]:
    """Train one run, or its rest, and return its line. Raises Stopped at the time `until`."""
    config, folder = config_of(options, case), options.runs / "-".join(map(str, case))
    model = train(config, folder, data=dataset, resume=True, stop=lambda: time.monotonic() > until, device="cpu")
    found = judge(model, dataset.test, config.threat)
    return {
        **case._asdict(),
        "settings": settings_of(options),
        "history": [{name: m.get(name) for name in ("epoch", "robust", FGSM, PGD)} for m in read_metrics(folder)],
        "collapses": [collapse._asdict() for collapse in read_collapses(folder)],
        **found,
        "collapsed": ended_collapsed(found, len(dataset.test.classes)),
        "environment": environment(torch.device("cpu")),
    }


def calm(row: Mapping[str, Any]) -> bool:
    """Whether this is a run in which the guard saw no collapse."""
    return row["guard"] == "remedy" and not row["collapses"]


def without_guard(row: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a run without the guard that trains as a calm one with it: the same but for the canary."""
    history = [{**epoch, FGSM: None, PGD: None} for epoch in row["history"]]
    return {**row, "guard": "off", "history": history, "run": False}


def ended_collapsed(found: Mapping[str, str], classes: int) -> bool:
    """The guard's own test, on more images and with a stronger attack."""
    seen = {IMAGES: len(found["fgsm"]), FGSM: accuracy(found["fgsm"]), PGD: accuracy(found["pgd"])}
    return collapsed(seen, classes)


def settings_of(options: Arguments) -> dict[str, Any]:
    """What all runs of a table have in common."""
    names = ("data", "size", "network", "images", "validation", "held_out", "epochs", "batch_size", "lr")
    return {name: getattr(options, name) for name in names}


def read(path: Path, settings: Mapping[str, Any] | None = None) -> dict[Case, dict[str, Any]]:
    """The finished runs of these settings, or of all. Rows without a pattern do not name it."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [row for row in map(json.loads, lines) if settings in (None, row["settings"])]
    found = {Case(*(row.get(name, 0) for name in Case._fields)): row for row in rows}
    if len(found) < len(rows):
        raise UserError(f"{path} has two rows of one run: keep those of one table in a file")
    return found


def paired(rows: Mapping[Case, Mapping[str, Any]]) -> dict[Case, Mapping[str, Any]]:
    """The runs that are finished both with the guard and without."""
    return {case: row for case, row in rows.items() if all(case._replace(guard=guard) in rows for guard in GUARDS)}


def panels(rows: Iterable[Case]) -> list[tuple[int, int]]:
    """Radii and patterns, in the order in which they are shown."""
    return sorted({(case.eps, case.pattern) for case in rows}, key=lambda one: (-one[0], one[1]))


def table(rows: Mapping[Case, Mapping[str, Any]]) -> str:
    """Ends and means of all runs in Markdown, and what they were made with. Raises UserError without a pair."""
    rows = paired(rows)
    if not rows:
        raise UserError("no run is finished with the guard and without: run the benchmark first")
    names = ["eps", "images", "head", "guard", "runs", "ended collapsed", "collapses undone"]
    out = head([*names, "clean, %", "FGSM, %", "PGD-50, %"])
    for eps, pattern in panels(rows):
        for sort, (guard, words) in product(HEADS, GUARDS.items()):
            mine = [row for case, row in rows.items() if case._replace(seed=0) == (eps, sort, guard, 0, pattern)]
            if not mine:
                continue
            means = [f"{100 * fmean(accuracy(row[name]) for row in mine):.1f}" for name in ("clean", "fgsm", "pgd")]
            undone = sum(len(row["collapses"]) for row in mine)
            ended = f"{sum(row['collapsed'] for row in mine)} of {len(mine)}"
            shown = [radius(eps / 255), LOOK[pattern > 0], sort, words.split()[0], f"{len(mine)}", ended, f"{undone}"]
            out.append(line([*shown, *means]))
    return "\n".join([*out, "", told_of(rows)])


def accuracy(outcomes: str) -> float:
    return outcomes.count("1") / len(outcomes)


def ends(rows: Mapping[Case, Mapping[str, Any]]) -> str:
    """How many runs end collapsed, without the guard and with it, for each look of the images."""
    told = []
    for patterns in sorted({case.pattern > 0 for case in rows}):
        found: dict[str, list[bool]] = {guard: [] for guard in GUARDS}
        for case, row in rows.items():
            if (case.pattern > 0) == patterns:
                found[case.guard].append(row["collapsed"])
        counts = " and ".join(f"{sum(found[g])} of {len(found[g])} {words}" for g, words in GUARDS.items())
        told.append(f"of the runs on images {LOOK[patterns]}, {counts} end collapsed")
    return "; ".join(told)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def setup(rows: Mapping[Case, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[int, int]]:
    """The settings of all rows, and the epochs for each pattern. Raises UserError if there are others too."""
    epochs = {
        case.pattern: row["settings"]["epochs"] for case, row in sorted(rows.items(), key=lambda one: one[0].pattern)
    }
    settings: dict[str, Any] = next(iter(rows.values()))["settings"]
    if any(row["settings"] != {**settings, "epochs": epochs[case.pattern]} for case, row in rows.items()):
        raise UserError("the rows were made with different settings: keep those of one table in a file")
    return settings, epochs


def told_of(rows: Mapping[Case, Mapping[str, Any]]) -> str:
    """The counts of all runs and of the new seeds, and how the numbers were made, in a few sentences."""
    new = {case: row for case, row in rows.items() if not seen_before(case)}
    collapses = [collapse for row in rows.values() for collapse in row["collapses"]]
    undone = sum(collapse["epoch"] - collapse["back_to"] for collapse in collapses)
    guarded = [row for case, row in rows.items() if case.guard == "remedy"]
    partners = [(row, rows[case._replace(guard="off")]) for case, row in rows.items() if calm(row)]
    twice = [row["pgd"] == partner["pgd"] for row, partner in partners if partner.get("run", True)]
    s, epochs = setup(rows)
    e = next(iter(rows.values()))["environment"]
    lengths = [f"{n} epochs{f' with patterns of {strength}/255' if strength else ''}" for strength, n in epochs.items()]
    commits = sorted({str(row["environment"]["commit"]) for row in rows.values()})
    return (
        f"{_sentence(ends(rows))}. The guard was adjusted on runs of seeds 0 to 4 at 16/255 and of seed 0 at 8/255, "
        f"and on seed 5 with HE and patterns. Without these: {ends(new)}. "
        f"In {len(partners)} pairs the guard saw no collapse. {len(twice)} of them were run twice, and {sum(twice)} of "
        f"these end with equal outcomes; the others were run once, because a guard that does not act changes no bit. "
        f"The guarded runs have {sum(len(row['history']) for row in guarded)} epochs, and {undone} more were undone. "
        f"{s['network']} on {s['images']:,} images of {s['data']} (JPEG), averaged to {s['size']} x {s['size']} "
        f"pixels, {', '.join(lengths)}, in batches of {s['batch_size']} at a learning rate of up to {s['lr']:g}. A run "
        f"trains on FGSM from the clean image with steps of eps. The networks after the last good epoch are judged on "
        f"the first {s['held_out']} test images, under FGSM of every image, and under PGD-50 and FGSM. "
        f"{e['processor']}, {e['threads']} thread(s), torch {e['torch']}, at {', '.join(commits)}."
    )


def picture(rows: Mapping[Case, Mapping[str, Any]], path: Path) -> None:
    """The end of every run, under FGSM and under PGD-50 too, with a line between the runs of a pair."""
    shown = panels(rows)
    figure, axes = canvas(3.6 * len(shown), 3.6, 1, len(shown))
    colours = {"off": "#c0392b", "remedy": "#1f5fa8"}
    for (eps, pattern), plot in zip(shown, axes, strict=True):
        found = {
            case: tuple(100 * accuracy(row[name]) for name in ("fgsm", "pgd"))
            for case, row in rows.items()
            if (case.eps, case.pattern) == (eps, pattern)
        }
        most = 1.1 * max(fgsm for fgsm, _ in found.values())
        for share, style, words in ((1, ":", "none of these fall to PGD-50"), (FALLEN, "--", "half of these fall")):
            plot.plot([0, most], [0, share * most], color="#999999", lw=0.8, ls=style, label=words)
        for case, end in found.items():
            partner = found[case._replace(guard="off")]
            plot.plot(*zip(partner, end, strict=True), color="#bbbbbb", lw=0.7, zorder=1)
            plot.scatter(end[0], end[1], s=22, color=colours[case.guard], alpha=0.75, lw=0, zorder=2)
        for guard, words in GUARDS.items():
            plot.scatter([], [], s=22, color=colours[guard], label=words)
        first = plot is axes[0]
        title = f"eps = {radius(eps / 255)}, images {LOOK[pattern > 0]}"
        quiet(plot, "accuracy under FGSM, %", "under PGD-50 too, %" if first else "", title=title)
    axes[-1].legend(frameon=False, fontsize=8, loc="upper left")
    save(figure, path)


def main(options: Arguments) -> None:
    torch.set_num_threads(options.threads)
    settings = settings_of(options)
    if options.report is not None:
        rows = paired(read(options.rows))
        text = table(rows)
        picture(rows, options.report.with_suffix(".svg"))
        shown = f"![The end of every run under FGSM and PGD-50.]({options.report.with_suffix('.svg').name})"
        write_between(options.report, f"{text}\n\n{shown}", begin=BEGIN, end=END)
        print(text)
        return
    until = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    dataset = parts(options)
    for case in cases(options):
        done = read(options.rows, settings)
        if case in done:
            continue
        guarded = done.get(case._replace(guard="remedy"))
        row = without_guard(guarded) if guarded and calm(guarded) else run(options, case, dataset, until)
        with disk_errors(options.rows), options.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        seen = (
            "collapsed" if row["collapsed"] else f"FGSM {accuracy(row['fgsm']):.1%}, PGD-50 {accuracy(row['pgd']):.1%}"
        )
        print(f"{case.eps}/255, {case.head}, seed {case.seed}, {GUARDS[case.guard]}: {seen}", flush=True)


if __name__ == "__main__":
    try:
        main(parse(Arguments, sys.argv[1:], prog="overfitting.py"))
    except (UserError, Stopped) as said:
        raise SystemExit(str(said)) from None
