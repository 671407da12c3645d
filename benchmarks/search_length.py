"""How long the search of an evaluation with a certainty has to be: what shorter and longer ones miss and cost.

    python benchmarks/search_length.py --run runs/wrn-10-1-16px --eps 8/255 --n 3000
    python benchmarks/search_length.py --readme benchmarks/README.md

On training images, which no row of certainty.py uses. Every search begins with the first look, margin PGD-10. An image
is missed if another search of the same network and radius fools it. Passes are forwards and backwards for each image
that the first look leaves, with judgement and those of the first look. A row that is there is not computed again.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from certainty import Passes, Row, read
from comparison import Options, Target, misclassified, table
from torch import Tensor

from advsphere.attacks import apgd, apgd_targeted
from advsphere.classifier import frozen
from advsphere.cli.arguments import parse
from advsphere.evaluation import AttackSpec
from advsphere.evaluation.cascades import CLOSE, first_look, pursued
from advsphere.evaluation.judge import exact_float32, judge_attack
from advsphere.losses import margin
from advsphere.named import trust
from advsphere.reproduce.results import write_between
from advsphere.rng import Rng
from advsphere.runs.build import load_data
from advsphere.runs.folder import read_config
from advsphere.threat import ThreatModel, radius

ROWS = Path(__file__).with_name("search_length.jsonl")
LOOK = "the first look alone"
Search = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What searches of several lengths miss."""

    run: Path | None = None
    """A folder that `advsphere train` wrote; without it, the table of the rows is printed."""
    eps: float | None = None
    """Radius in pixel units, e.g. 4/255; the run's own by default."""
    n: int = 3000
    """How many training images, from the first on."""
    out: Path = ROWS
    """The file of the rows."""
    readme: Path | None = None
    """A page with the marks of the table, which is written anew."""
    batch_size: int = 250


def searches(threat: ThreatModel) -> dict[str, Search]:
    """The searches by what they do after the first look."""
    look = first_look(threat).attack
    ascent = partial(apgd, threat=threat, steps=50, loss=margin, until_fooled=True)

    def from_there(then: Search, close: float) -> Search:
        return partial(pursued, attack=look, then=then, close=close)

    def targeted(steps: int, targets: int = 9, further: float = 0.0) -> Search:
        short = partial(apgd_targeted, threat=threat, steps=steps, targets=targets)
        return short if not further else partial(pursued, attack=short, then=ascent, close=further)

    every = math.inf
    return {
        LOOK: look,
        "APGD-T, 5 steps, from a random start": from_there(afresh(targeted(5)), every),
        "the same, then margin APGD-50 where < 0.1": from_there(afresh(targeted(5, further=0.1)), every),
        "APGD-T, 5 steps": from_there(targeted(5), every),
        "2 steps where < 0.7, then margin APGD-50 where < 0.2": from_there(targeted(2, further=0.2), 0.7),
        "3 steps where < 0.5, then margin APGD-50 where < 0.15": from_there(targeted(3, further=0.15), 0.5),
        "**3 steps where < 0.7, then margin APGD-50 where < 0.15**": from_there(targeted(3, further=0.15), 0.7),
        "5 steps where < 0.7, then margin APGD-50 where < 0.1": from_there(targeted(5, further=0.1), 0.7),
        "10 steps, 3 targets, where < 0.7, then the same": from_there(targeted(10, 3, further=0.1), 0.7),
        "APGD-T, 20 steps, from a random start": from_there(afresh(targeted(20)), every),
    }


def afresh(attack: Search) -> Search:
    """The attack from its own start, whatever start it is given."""

    def run(*given: Tensor, start: Tensor, rng: Rng) -> Tensor:
        return attack(*given, rng=rng)

    return run


def measured(options: Arguments, folder: Path) -> None:
    """Compute the rows that are missing, and append each as soon as it is there."""
    trust(["half_size:cifar10"])  # lies beside this script
    target, train = Target.of(Options(run=folder, n=1, eps=options.eps)), load_data(read_config(folder)).train
    x, y = train.batch(torch.arange(options.n))
    asked = {"network": folder.name, "radius": target.threat.eps, "n": options.n}
    known = [row["search"] for row in read(options.out) if all(row[key] == value for key, value in asked.items())]
    with frozen(target.model) as exact:
        ids = (~misclassified(exact, x, y)).nonzero().squeeze(1)
    for name, search in searches(target.threat).items():
        if name not in known:
            row = {**asked, "search": name, "right": len(ids), **outcome(target, search, x, y, ids, options.batch_size)}
            if name != LOOK:
                del row["left"]
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{folder.name}: {name}: {len(row['fell'])} fell", flush=True)


def outcome(target: Target, search: Search, x: Tensor, y: Tensor, ids: Tensor, batch_size: int) -> Row:
    """The images that a search fools among those with these numbers, the passes that it takes, and the share of the
    clean margin that it leaves of each other image.
    """
    verdicts = []
    with Passes().of(target.model) as passes, exact_float32():
        for part in ids.split(batch_size):
            given = AttackSpec("search", search), target.threat, x[part], y[part], Rng(0, part)
            verdicts.append(judge_attack(target.model, *given, dtype=target.dtype))
    fell, end = (torch.cat([getattr(one, name) for one in verdicts]) for name in ("fooled", "x_adv"))
    left = ids[~fell]
    with frozen(target.model) as exact, torch.no_grad():
        shares = margin(exact(end[~fell]), y[left]) / margin(exact(x[left]), y[left])
    kept = dict(zip(left.tolist(), [round(one, 3) for one in shares.tolist()], strict=True))
    return {"passes": passes.forwards + passes.backwards, "fell": ids[fell].tolist(), "left": kept}


def page(rows: list[Row]) -> str:
    """The table, with a line for each search, and under it what each network's first look left."""
    cells = {row["search"]: [row["search"]] for row in rows}
    head, facts = ["search, after the first look"], list[str]()
    asked = dict.fromkeys((row["network"], row["radius"], row["n"]) for row in rows)
    for network, size, n in asked:
        part = {row["search"]: row for row in rows if (row["network"], row["radius"], row["n"]) == (network, size, n)}
        look, found = part[LOOK], {i for row in part.values() for i in row["fell"]}
        shares = list(look["left"].values())
        for name, line in cells.items():
            row = part.get(name)
            line += (
                ["", ""] if row is None else [f"{row['passes'] / len(shares):.0f}", str(len(found - {*row["fell"]}))]
            )
        where = f"{network}, {radius(size)}"
        head += [f"{where}: passes", "missed"]
        kept = [share for i, share in look["left"].items() if int(i) in found]
        near = sum(share < CLOSE for share in shares) / len(shares)
        facts.append(
            f"- {where}: of {look['right']:,} images the first look leaves {len(shares):,}, and longer searches fool "
            f"{len(kept)} of these, which had kept at most {max(kept, default=0.0):.2f} of their margin. Of all that "
            f"are left, {near:.0%} have less than {CLOSE:g}."
        )
    return "\n".join([table(head, list(cells.values())), "", *facts])


def main(options: Arguments) -> None:
    if options.run is not None:
        measured(options, options.run)
        return
    found = page(read(options.out))
    print(found)
    if options.readme is not None:
        write_between(options.readme, found, begin="<!-- search -->", end="<!-- /search -->")


if __name__ == "__main__":
    main(parse(Arguments, sys.argv[1:], prog="search_length.py"))
