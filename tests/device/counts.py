"""Kernels and waits of one step of training and of each attack, counted on the stand-in device.

    python -m tests.device.counts                 # all rows
    python -m tests.device.counts FastAT PGD      # the rows that begin with these names
    python -m tests.device.counts --lines FastAT  # and the source lines that they come from
    python -m tests.device.counts --write         # write the table in benchmarks/README.md, which a test checks

PreActResNet-18 with few channels on small images: counts depend on neither. Search and training compute in bfloat16, as
they do by default on a GPU. A row of training is the mean over the optimizer steps of one batch within an epoch, and a
row of an attack the mean over 16 steps within a batch, so the work around the steps is not in it. Attacks run as
`evaluate` runs them. In a row "all resist" no image is ever fooled; in all others one image is fooled in each step.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn

from advsphere import attacks
from advsphere.attacks import Guides
from advsphere.attacks.ensemble import stages
from advsphere.classifier import PixelClassifier, frozen, split
from advsphere.data import Augment, ImageSet
from advsphere.evaluation import AttackSpec
from advsphere.evaluation.judge import exact_float32, judge_attack
from advsphere.hypersphere import AngularMargin, HypersphereConfig, attach_head
from advsphere.losses import cross_entropy
from advsphere.models.networks import PreActBlock, PreActResNet18
from advsphere.objectives import Objective, Standard
from advsphere.recipes import cifar10
from advsphere.reproduce.results import write_between
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from advsphere.training import Hooks, Stopped, Trainer, TrainSettings
from tests.device import stand_in
from tests.device.stand_in import Counts

THREAT = ThreatModel(norm="linf", eps=1e-3)
BEGIN, END = 8, 24
"""The forwards of a search between which its steps count. Every attack makes one forward in a step."""


PAGE = Path(__file__).parents[2] / "benchmarks" / "README.md"
MARKS = {"begin": "<!-- counts -->", "end": "<!-- /counts -->"}
LEAVING_OUT = ("PGD", "MIM", "APGD-CE", "APGD-T", "Square")
"""Attacks that do less where no image is fooled."""


class Row(NamedTuple):
    """One step's kernels and waits, and the source lines that they come from."""

    kernels: float
    waits: float
    kernel_lines: Counter[tuple[str, str]]
    wait_lines: Counter[tuple[str, str]]


def network(*, hypersphere: bool) -> PixelClassifier:
    """A thin PreActResNet-18."""
    torch.manual_seed(0)
    net = PreActResNet18(10)
    net.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    widths = [4, 4, 8, 12, 16]
    for i, stride in enumerate([1, 2, 2, 2]):
        blocks = PreActBlock(widths[i], widths[i + 1], stride), PreActBlock(widths[i + 1], widths[i + 1], 1)
        setattr(net, f"layer{i + 1}", nn.Sequential(*blocks))
    net.bn, net.fc = nn.BatchNorm2d(16), type(net.fc)(16, 10)
    model = PixelClassifier(net, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    if hypersphere:
        attach_head(model, scale=15.0)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(stand_in.install())


OBJECTIVES: dict[str, Objective] = {
    "Standard": Standard(),
    "FastAT": cifar10.FAST_AT,
    "FreeAT": cifar10.FREE_AT,
    "PGD-AT": cifar10.PGD_AT,
    "ALP": cifar10.PLAIN_ALP,
    "TRADES": cifar10.PLAIN_TRADES,
}


def training_row(objective: Objective, *, hypersphere: bool) -> Row:
    """The mean of the optimizer steps of the second batch of an epoch."""
    model = network(hypersphere=hypersphere)
    pixels = torch.randint(0, 256, (48, 3, 8, 8), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(48) % 10, tuple("abcdefghij")).to(stand_in.DEVICE)
    criterion: Any = cross_entropy
    hooks = Hooks()
    if hypersphere:
        sphere = HypersphereConfig(scale=15.0, margin=0.2)
        criterion = AngularMargin(split(model).head, sphere.margin)
        hooks.before_step = partial(sphere.set_progress, criterion)
    begin, end = objective.replays, 2 * objective.replays
    seen: list[Counts] = []
    steps = itertools.count(1)

    def stop() -> bool:
        step = next(steps)
        if step in (begin, end):
            seen.append(stand_in.counts().copy())
        return step == end

    hooks.stop = stop
    settings = TrainSettings(epochs=1, batch_size=8, precision="bfloat16", augment=Augment(padding=4, flip=True))
    with (
        stand_in.counting(),
        tempfile.TemporaryDirectory() as folder,
        patch("time.monotonic", lambda: 0.0),  # no progress is shown, which would wait for the loss
        suppress(Stopped),
    ):
        Trainer(model, objective, criterion, images, settings=settings, folder=folder, hooks=hooks).fit()
    before, after = seen
    return _row(before, after, end - begin)


class Search(BaseException):
    """Counts the forwards of a search, and ends it after the last one that counts. No attack catches it."""

    def __init__(self) -> None:
        self.forwards = 0
        self.seen: list[Counts] = []

    def step(self, counts: Counts) -> None:
        self.forwards += 1
        if self.forwards in (BEGIN, END):
            self.seen.append(counts.copy())
        if self.forwards == END:
            raise self


@fx.wrap
def _decided(logits: Tensor, x: Tensor, search: Search, falling: bool) -> Tensor:
    """Raise the true logit, 0, beyond reach. With `falling`, lower it for each image from its own forward on, which its
    first pixel tells in steps of 1/32. The device does not count this.
    """
    search.step(stand_in.counts())
    with stand_in.counting():
        change = torch.zeros_like(logits)
        change[:, 0] = 1000.0
        if falling:
            change[:, 0] -= 2000.0 * ((x.detach()[:, 0, 0, 0] * 32).round() <= search.forwards - 4)
        return logits + change


class Decided(nn.Module):
    """A network whose images are fooled at given forwards, whatever an attack does."""

    def __init__(self, network: PixelClassifier, search: Search, *, falling: bool) -> None:
        super().__init__()
        self.network, self.search, self.falling = network, search, falling

    def forward(self, x: Tensor) -> Tensor:
        return _decided(self.network(x), x, self.search, self.falling)


def specs(model: nn.Module) -> list[AttackSpec]:
    """The attacks as suites set them, with tiny steps in a tiny ball so that no image returns to where it was."""
    guides = Guides(torch.rand(8, 3, 8, 8).to(stand_in.DEVICE), torch.arange(8).to(stand_in.DEVICE))
    step: dict[str, Any] = {"threat": THREAT, "steps": 100, "step_size": 1e-5}
    search = step | {"until_fooled": True, "keep": "best"}
    reach: dict[str, Any] = {"norm": "linf", "bounds": (0.0, 1.0)}
    return [
        AttackSpec("PGD", partial(attacks.pgd, **search)),
        AttackSpec("MIM", partial(attacks.mim, **search)),
        *(AttackSpec(name, attack) for name, attack in stages(THREAT).items()),
        AttackSpec("C&W", partial(attacks.cw, norm="l2", steps=100), minimal=True),
        AttackSpec("DeepFool", partial(attacks.deepfool, **reach), minimal=True),
        AttackSpec("RayS", partial(attacks.rays, bounds=THREAT.bounds, eps=THREAT.eps)),
        AttackSpec("feature", partial(attacks.feature_attack, **step, head=split(model).head, guides=guides)),
    ]


def attack_row(spec: AttackSpec, model: PixelClassifier, *, falling: bool) -> Row:
    """The mean of the steps BEGIN to END."""
    search = Search()
    x = torch.rand(END + 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, 0, 0, 0] = torch.arange(len(x)) / 32 + 0.01
    x = x.to(stand_in.DEVICE)
    y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    rng = Rng(0, torch.arange(len(x)).to(x.device))
    decided = Decided(model, search, falling=falling).eval()
    with frozen(decided) as classify, torch.no_grad():
        classify(x)  # the first forward tries memory layouts
    search.forwards = 0
    with stand_in.counting(), exact_float32(), suppress(Search):
        judge_attack(decided, spec, THREAT, x, y, rng, dtype=torch.bfloat16)
    before, after = search.seen
    return _row(before, after, END - BEGIN)


def _row(before: Counts, after: Counts, steps: int) -> Row:
    kernels, waits = ((getattr(after, key) - getattr(before, key)) / steps for key in ("kernels", "waits"))
    lines = (
        Counter({at: n / steps for at, n in (getattr(after, key) - getattr(before, key)).items()})
        for key in ("kernel_lines", "wait_lines")
    )
    return Row(kernels, waits, *lines)


def rows() -> dict[str, Callable[[], Row]]:
    """All rows by name."""
    found: dict[str, Callable[[], Row]] = {}
    for name, objective in OBJECTIVES.items():
        for hypersphere in (False, True):
            found[name + " + HE" * hypersphere] = partial(training_row, objective, hypersphere=hypersphere)
    model = network(hypersphere=False)
    for spec in specs(model):
        found[spec.name] = partial(attack_row, spec, model, falling=True)
        if spec.name in LEAVING_OUT:
            found[f"{spec.name}, all resist"] = partial(attack_row, spec, model, falling=False)
    return found


class Line(NamedTuple):
    """A line of the table: kernels and waits in version 0.2.0, and now."""

    kernels_before: float
    kernels: float
    waits_before: float
    waits: float


def table() -> dict[str, Line]:
    """The table in the README of the benchmarks, by row."""
    lines = PAGE.read_text().partition(MARKS["begin"])[2].partition(MARKS["end"])[0].strip().splitlines()[2:]
    cells = (line.strip("| ").split("|") for line in lines)
    return {name.strip(): Line(*map(float, numbers)) for name, *numbers in cells}


def write(measured: dict[str, Row]) -> None:
    """Write the table again. Its columns on version 0.2.0 stay."""
    known = table()
    lines = ["| one step of | kernels in 0.2.0 | kernels | waits in 0.2.0 | waits |", "|---|---:|---:|---:|---:|"]
    for name, row in measured.items():
        then = known[name]
        numbers = f"{then.kernels_before:.0f} | {row.kernels:.0f} | {then.waits_before:.2f} | {row.waits:.2f}"
        lines.append(f"| {name} | {numbers} |")
    write_between(PAGE, "\n".join(lines), **MARKS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of the names of rows, in any case; all by default")
    parser.add_argument("--lines", action="store_true", help="list the source lines, those with most kernels first")
    parser.add_argument("--write", action="store_true", help="write the table in benchmarks/README.md; takes all rows")
    wanted = parser.parse_args()
    if wanted.write and wanted.names:
        parser.error("--write needs all rows: give no names")
    print(f"{'one step of':24} {'kernels':>9} {'waits':>7}")
    measured: dict[str, Row] = {}
    for name, count in rows().items():
        if wanted.names and not any(name.lower().startswith(one.lower()) for one in wanted.names):
            continue
        row = measured[name] = count()
        print(f"{name:24} {row.kernels:9.1f} {row.waits:7.2f}", flush=True)
        if wanted.lines:
            for kind, lines in ("waits", row.wait_lines), ("kernels", row.kernel_lines):
                for (at, operator), n in lines.most_common():
                    print(f"    {n:7.2f} {kind:7} {at:40} {operator}")
    if wanted.write:
        write(measured)


if __name__ == "__main__":
    main()
