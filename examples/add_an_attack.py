"""Add an attack, and a suite that runs it beside two others: PGD that halves the step of an image if it did not help.

    advsphere evaluate runs/mine --suite add_an_attack:with_halving

An attack is a function (model, x, y) -> x_adv. The kind that it declares decides which signs of gradient masking use
it. A suite declares its rank: reports show the evaluation by the suite with the highest rank.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from advsphere.attacks import attack_kind, pgd
from advsphere.classifier import Classifier, input_gradient
from advsphere.evaluation import AttackSpec, SuiteContext, suite
from advsphere.losses import Loss, margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel


@attack_kind("iterative")
def halving(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    /,
    *,
    rng: Rng | None = None,
    threat: ThreatModel,
    steps: int = 20,
    loss: Loss = margin,
) -> Tensor:
    """Ascend a loss from a random point of the ball. If a step does not raise it, undo the step and halve its size."""
    at = threat.sample(x, rng or Rng.of(x))
    size = torch.full((len(x), 1, 1, 1), threat.eps / 2, device=x.device)
    _, best, grad = input_gradient(model, at, y, loss)
    for _ in range(steps):
        tried = threat.project(at + size * threat.ascent(grad, at), x)
        _, value, slope = input_gradient(model, tried, y, loss)
        better = (value > best).view(-1, 1, 1, 1)
        at, grad = torch.where(better, tried, at), torch.where(better, slope, grad)
        size, best = torch.where(better, size, size / 2), torch.maximum(value, best)
    return at


@suite(rank=15)
def with_halving(context: SuiteContext) -> list[AttackSpec]:
    """PGD-20 on two losses, and the new attack with the same number of steps."""
    steps, threat = context.steps(20), context.threat
    ascent = partial(pgd, threat=threat, steps=steps, step_size=threat.eps / 4, until_fooled=True)
    return [
        AttackSpec(f"PGD-{steps}", ascent, context.effort.restarts),
        AttackSpec(f"margin PGD-{steps}", partial(ascent, loss=margin), context.effort.restarts),
        AttackSpec("halving", partial(halving, threat=threat, steps=steps), context.effort.restarts),
    ]


if __name__ == "__main__":
    from advsphere.cli import main

    run = "runs/digits-fastat"
    main(["train", "digits-fastat", "--epochs", "2", "--out", run])
    main(["evaluate", run, "--n", "100", "--suite", "add_an_attack:with_halving"])
    main(["verify", run])
    main(["report", run, "--suite", "add_an_attack:with_halving"])
