"""An evaluation that several ranks share, and one of which the last rank does not live to see the end."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from advsphere.attacks import deepfool, square
from advsphere.cli import evaluate as command
from advsphere.data import load_test
from advsphere.distributed import World, joined
from advsphere.evaluation import AttackSpec, Effort, Evaluation, SuiteContext, evaluate
from advsphere.evaluation.suites import attacks_of
from advsphere.threat import ThreatModel
from tests.evaluation.cases import Known

THREAT = ThreatModel(norm="linf", eps=0.15)
QUICK = attacks_of("quick", SuiteContext(threat=THREAT, effort=Effort(steps=20)))
NEAREST = AttackSpec("DeepFool", partial(deepfool, norm="linf", steps=10), minimal=True)
SEARCH = AttackSpec("Square", partial(square, threat=THREAT, queries=40), proof=True)
SPECS = (*QUICK, NEAREST, SEARCH)
CERTAINTY = 6.0
HALF_WAY = 60
"""Forwards of the last of three ranks, after which some attacks are over and one is under way."""


def digits(n: int = 80) -> Known:
    """The first test digits, and a linear classifier whose weights are the means of the classes in them."""
    x, y = load_test("digits").batch(torch.arange(n))
    model = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 64, 10))
    with torch.no_grad():
        for k in range(10):
            mean = x[y == k].flatten(1).mean(0)
            model[1].weight[k], model[1].bias[k] = mean, -mean.square().sum() / 2
    return Known(model.eval(), x, y)


def shared(known: Known, ledger: Path, world: World = World()) -> Evaluation:
    """80 images in batches of 12, the last one of 8; Square on a sample of those that resisted the other attacks."""
    given = {"threat": THREAT, "suite": SPECS, "certainty": CERTAINTY, "batch_size": 12, "precision": "float32"}
    return evaluate(*known, ledger=ledger, world=world, **given)


def main(arguments: list[str]) -> None:
    """Print the checksums of the ledgers that are named; the last rank is killed in the middle of one after "kill".
    After "evaluate" comes the rest of that command.
    """
    torch.set_num_threads(1)
    known, calls = digits(), itertools.count(1)

    def end(*_: object) -> None:
        if next(calls) == HALF_WAY:
            os.kill(os.getpid(), signal.SIGKILL)

    with joined() as world:
        for i, argument in enumerate(arguments):
            if argument == "evaluate":
                with mock.patch("advsphere.cli.evaluate.joined", lambda: nullcontext(world)):
                    command.main(arguments[i + 1 :])
                break
            if argument != "kill":
                print(shared(known, Path(argument), world).ledger)
            elif world.rank == world.size - 1:
                known.model.register_forward_pre_hook(end)


if __name__ == "__main__":
    main(sys.argv[1:])
