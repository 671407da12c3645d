"""Add your own training objective: MART (Wang et al., ICLR 2020, arXiv 1906.04584).

An objective defines how examples are crafted and which loss is minimised. Its settings are the fields of a dataclass,
so they become flags and lines of the run's config without further work:

    advsphere train digits-pgd-at --objective examples.add_an_objective:MART --objective.beta 6
    advsphere evaluate runs/digits-pgd-at-mart
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor, nn

import advsphere as adv
from advsphere.losses import kl
from advsphere.objectives import PGDAT, Criterion, Losses


@dataclass(frozen=True, kw_only=True)
class MART(PGDAT):
    """Boosted cross-entropy on the adversarial image, and beta * KL(clean || adversarial) * (1 - p_clean(y)).

    Examples are crafted as in PGD-AT, whose settings it inherits. It works with and without hypersphere embedding.
    """

    beta: float = 5.0
    """Weight of the KL term."""

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        logits, logits_adv = model(x), model(x_adv)
        clean, robust = logits.softmax(1), logits_adv.softmax(1)
        runner_up = robust.scatter(1, y[:, None], 0.0).amax(1)
        boosted = criterion(logits_adv, y) - torch.log(1.0001 - runner_up)
        unsure = 1.0 - clean.gather(1, y[:, None]).squeeze(1)
        return Losses((boosted + self.beta * kl(logits_adv, clean) * unsure).mean(), robust=boosted.mean())


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else mkdtemp()) / "mart"
    threat = adv.ThreatModel(norm="linf", eps=0.2)
    objective = MART(threat=threat, steps=5, step_size=0.08, start="uniform")
    adv.train(folder=folder, data="digits", objective=objective, epochs=4, on_epoch=print)
    model, images = adv.load_run(folder)[1:]
    print(adv.evaluate(model, images.first(100), threat=threat).table())
