"""Kernels and waits of one step of training and of each attack, counted on the stand-in device.

    python -m tests.device.counts                 # all rows
    python -m tests.device.counts FastAT PGD      # the rows that begin with these names
    python -m tests.device.counts --lines FastAT  # and the source lines that they come from

PreActResNet-18 with few channels on small images: counts depend on neither. Search and training compute in bfloat16, as
they do by default on a GPU. A row of training is the mean over the optimizer steps of some batches within an epoch, and
a row of an attack the mean over steps within a batch, so the work around the steps is not in it. Attacks run as
`evaluate` runs them. In a row "all resist" no image is ever fooled; in "one falls" one image is fooled in each step.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn

from advsphere import attacks
from advsphere.attacks import Guides
from advsphere.attacks.ensemble import stages
from advsphere.classifier import PixelClassifier, split
from advsphere.data import Augment, ImageSet
from advsphere.evaluation import AttackSpec
from advsphere.evaluation.judge import exact_float32, judge_attack
from advsphere.hypersphere import AngularMargin, HypersphereConfig, attach_head
from advsphere.losses import cross_entropy
from advsphere.models.networks import PreActBlock, PreActResNet18
from advsphere.objectives import Objective, Standard
from advsphere.recipes import cifar10
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from advsphere.training import Hooks, Stopped, Trainer, TrainSettings
from tests.device import stand_in
from tests.device.stand_in import Counts

THREAT = ThreatModel(norm="linf", eps=1e-3)
FEW, MANY = 8, 24
"""Steps of the two runs of an attack whose difference counts."""
Attack = Callable[[int], AttackSpec]
"""The attack with this number of steps."""


class Row(NamedTuple):
    """One step's kernels and waits, and the source lines that they come from."""

    name: str
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


def training_row(name: str, objective: Objective, *, hypersphere: bool) -> Row:
    """The mean of the optimizer steps of the third and fourth batch of an epoch."""
    model = network(hypersphere=hypersphere)
    pixels = torch.randint(0, 256, (48, 3, 8, 8), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(48) % 10, tuple("abcdefghij")).to(stand_in.DEVICE)
    criterion: Any = cross_entropy
    hooks = Hooks()
    if hypersphere:
        sphere = HypersphereConfig(scale=15.0, margin=0.2)
        criterion = AngularMargin(split(model).head, sphere.margin)
        hooks.before_step = partial(sphere.set_progress, criterion)
    begin, end = 2 * objective.replays, 4 * objective.replays
    steps = 0
    with stand_in.counting() as counts, tempfile.TemporaryDirectory() as folder:
        before = Counts()

        def stop() -> bool:
            nonlocal steps, before
            steps += 1
            if steps == begin:
                before = counts.copy()
            if steps == end:
                after.append(counts.copy())
            return steps == end

        after: list[Counts] = []
        hooks.stop = stop
        settings = TrainSettings(epochs=1, batch_size=8, precision="bfloat16", augment=Augment(padding=4, flip=True))
        trainer = Trainer(model, objective, criterion, images, settings=settings, folder=folder, hooks=hooks)
        try:
            with patch("time.monotonic", lambda: 0.0):  # no progress is shown, which would wait for the loss
                trainer.fit()
        except Stopped:
            pass
    return _row(name + (" + HE" if hypersphere else ""), before, after[0], end - begin)


_clock = 0


@fx.wrap
def _decided(logits: Tensor, x: Tensor, falling: bool) -> Tensor:
    """Raise the true logit, 0, beyond reach. With `falling`, lower it for each image from its own forward on, which its
    first pixel tells in steps of 1/32. The device does not count this.
    """
    global _clock
    _clock += 1
    with stand_in.counting():
        change = torch.zeros_like(logits)
        change[:, 0] = 1000.0
        if falling:
            change[:, 0] -= 2000.0 * ((x.detach()[:, 0, 0, 0] * 32).round() <= _clock - 4)
        return logits + change


class Decided(nn.Module):
    """A network whose images are fooled at given forwards, whatever an attack does."""

    def __init__(self, network: PixelClassifier, *, falling: bool) -> None:
        super().__init__()
        self.network, self.falling = network, falling

    def forward(self, x: Tensor) -> Tensor:
        return _decided(self.network(x), x, self.falling)


def specs(model: nn.Module) -> dict[str, Attack]:
    """The attacks as suites set them, with tiny steps in a tiny ball."""
    guides = Guides(torch.rand(8, 3, 8, 8).to(stand_in.DEVICE), torch.arange(8).to(stand_in.DEVICE))
    ball: dict[str, Any] = {"threat": THREAT}
    step: dict[str, Any] = {"step_size": 1e-5, "until_fooled": True, "keep": "best"}
    reach: dict[str, Any] = {"norm": "linf", "bounds": (0.0, 1.0)}
    parts: dict[str, Any] = dict(stages(THREAT))
    steps: dict[str, tuple[Callable[..., Tensor], str, bool]] = {
        "PGD": (partial(attacks.pgd, **ball, **step), "steps", False),
        "MIM": (partial(attacks.mim, **ball, **step), "steps", False),
        "APGD": (parts["APGD-CE"], "steps", False),
        "APGD-T": (partial(parts["APGD-T"], targets=1), "steps", False),
        "FAB-T": (partial(parts["FAB-T"], targets=1), "steps", False),
        "Square": (parts["Square"], "queries", False),
        "C&W": (partial(attacks.cw, norm="l2"), "steps", True),
        "DeepFool": (partial(attacks.deepfool, **reach), "steps", True),
        "RayS": (partial(attacks.rays, bounds=(0.0, 1.0), eps=THREAT.eps), "queries", True),
        "feature": (
            partial(attacks.feature_attack, **ball, head=split(model).head, guides=guides, tries=1, step_size=1e-5),
            "steps",
            False,
        ),
    }

    def of(name: str, n: int) -> AttackSpec:
        attack, number, minimal = steps[name]
        return AttackSpec(name, partial(attack, **{number: n}), minimal=minimal)

    return {name: partial(of, name) for name in steps}


def attack_row(name: str, *, falling: bool) -> Row:
    """The mean of the steps FEW to MANY."""
    global _clock
    model = Decided(network(hypersphere=False), falling=falling).eval()
    attack = specs(model)[name]
    x = torch.rand(MANY + 4, 3, 8, 8)
    x[:, 0, 0, 0] = torch.arange(len(x)) / 32 + 0.01
    x = x.to(stand_in.DEVICE)
    y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    rng = Rng(0, torch.arange(len(x)).to(x.device))
    found = []
    for n in (FEW, MANY):
        _clock = 0
        with stand_in.counting() as counts, exact_float32():
            judge_attack(model, attack(n), THREAT, x, y, rng, dtype=torch.bfloat16)
        found.append(counts)
    few, many = found
    return _row(f"{name}, {'one falls' if falling else 'all resist'}", few, many, MANY - FEW)


def _row(name: str, before: Counts, after: Counts, steps: int) -> Row:
    kernels, waits = ((getattr(after, key) - getattr(before, key)) / steps for key in ("kernels", "waits"))
    lines = (
        Counter({at: n / steps for at, n in (getattr(after, key) - getattr(before, key)).items()})
        for key in ("kernel_lines", "wait_lines")
    )
    return Row(name, kernels, waits, *lines)


def rows() -> dict[str, Callable[[], Row]]:
    """All rows by name."""
    found: dict[str, Callable[[], Row]] = {}
    for name, objective in OBJECTIVES.items():
        for hypersphere in (False, True):
            row = partial(training_row, name, objective, hypersphere=hypersphere)
            found[name + (" + HE" if hypersphere else "")] = row
    for name in specs(network(hypersphere=False)):
        for falling in (False, True):
            found[f"{name}, {'one falls' if falling else 'all resist'}"] = partial(attack_row, name, falling=falling)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of the names of rows, in any case; all by default")
    parser.add_argument("--lines", action="store_true", help="list the source lines, those with most kernels first")
    wanted = parser.parse_args()
    print(f"{'one step of':24} {'kernels':>9} {'waits':>7}")
    for name, count in rows().items():
        if wanted.names and not any(name.lower().startswith(one.lower()) for one in wanted.names):
            continue
        row = count()
        print(f"{row.name:24} {row.kernels:9.1f} {row.waits:7.2f}", flush=True)
        if wanted.lines:
            for kind, lines in ("waits", row.wait_lines), ("kernels", row.kernel_lines):
                for (at, operator), n in lines.most_common():
                    print(f"    {n:7.2f} {kind:7} {at:40} {operator}")


if __name__ == "__main__":
    main()
