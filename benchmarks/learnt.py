"""Whether images that fell teach the search anything for later ones: where to begin, and the order of targets.

As in A3 (Liu et al. 2022, arXiv 2203.05154), but for the short search of an evaluation with a certainty. The first half
of the training images teaches, and the second half is attacked. A pass is a forward with its backward.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comparison import Counted, show
from torch import Tensor
from torch.nn.functional import one_hot

from advsphere.attacks import apgd, pgd
from advsphere.classifier import fooled, frozen
from advsphere.cli.arguments import parse
from advsphere.evaluation.cascades import CLOSE, SHORT_STEPS
from advsphere.losses import dlr_targeted, margin
from advsphere.named import trust
from advsphere.runs.build import load_data
from advsphere.runs.folder import load_run


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What images that fell teach the search."""

    run: Path
    """A folder that `advsphere train` wrote."""
    n: int = 4000
    """How many training images, from the first on."""


def measured(options: Arguments) -> None:
    trust(["half_size:cifar10"])  # lies beside this script
    run = load_run(options.run)
    x, y = load_data(run.config).train.batch(torch.arange(options.n))
    threat = run.config.threat
    with frozen(run.model) as model, torch.no_grad():
        right = (~fooled(model(x), y)).nonzero().squeeze(1)
        (x, later_x), (y, later_y) = x[right].chunk(2), y[right].chunk(2)

        def look(x: Tensor, y: Tensor, start: Any = "uniform", steps: int = 10) -> tuple[Tensor, Tensor, int]:
            """The first look's images, which are fooled, and the passes."""
            counted, size = Counted(model), threat.eps / 4
            found = pgd(counted, x, y, threat=threat, steps=steps, step_size=size, loss=margin, start=start,
                        until_fooled=True, keep="best")  # fmt: skip
            return found, fooled(model(found), y), sum(counted.sizes)

        found, fell, _ = look(x, y)
        seen = (found - x).sign(), model(found) - model(x), one_hot(model(found).argmax(1)).float()
        change, drift, goals = (of_class(values[fell], y[fell], later_y) for values in seen)
        x, y = later_x, later_y
        along = partial(pgd, model, x, drift, threat=threat, steps=2, step_size=threat.eps)
        starts = {
            "a uniform point": ("uniform", 0),
            "the clean image": ("clean", 0),
            "signs that fooled images of the class": (x + threat.eps * change.sign(), 0),
            "2 steps along such images' logits": (along(loss=lambda logits, w: (logits * w).sum(1)), 2),
        }
        rows: list[list[Any]] = []
        for name, (start, more) in starts.items():
            looks = [look(x, y, start, steps) for steps in (2, 4, 10)]
            rows.append([name, *(c for _, hit, n in looks for c in (int(hit.sum()), f"{more + n / len(y):.2f}"))])
        print(f"{len(y)} images: how many fall in 2, 4 and 10 steps, and the passes for each image")
        show(["begin at", "2", "passes", "4", "passes", "10", "passes"], rows)

        found, fell, spent = look(x, y)
        left = (~fell & (margin(model(found), y) > CLOSE * margin(model(x), y))).nonzero().squeeze(1)
        likely, goals, y, hits = model(x[left]), goals[left], y[left], []
        for goal in range(likely.shape[1]):
            pair = torch.stack([y, torch.full_like(y, goal)], 1)
            short = partial(apgd, threat=threat, steps=SHORT_STEPS, loss=dlr_targeted, start=found[left])
            hits.append(fooled(model(short(model, x[left], pair)), y) & (y != goal))
        hit = torch.stack(hits, 1)
        both, rows = likely.softmax(1) * (goals + 1e-3), []
        scores = {"likeliest": likely, "classes of images that fell": goals, "both": both, "best possible": hit.float()}
        for name, score in scores.items():
            ranks = score.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
            ranked = hit.gather(1, ranks)[:, :-1]
            tried = torch.where(ranked.any(1), ranked.float().argmax(1) + 1, ranked.shape[1])
            passes = (spent + (SHORT_STEPS + 1) * int(tried.sum())) / len(fell)
            rows.append([name, *(int(ranked[:, :k].any(1).sum()) for k in (1, 2, 3, 5, 9)), f"{passes:.2f}"])
        print(f"{len(left)} close images: how many fall within so many targets, and the passes of both for each image")
        show(["targets", "1", "2", "3", "5", "9", "passes"], rows)


def of_class(values: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """The mean of the values (b, ...) with each label that is wanted (B,); each label has some."""
    return torch.stack([values[labels == c].mean(0) for c in wanted.unique()])[wanted.unique(return_inverse=True)[1]]


if __name__ == "__main__":
    measured(parse(Arguments, sys.argv[1:] or ["--help"], prog="learnt.py"))
