"""A training objective of one's own, beside the six that come along: MART (Wang et al., ICLR 2020), in a dozen lines.

An objective says how examples are crafted and what is minimised. This one crafts as PGD-AT does, and weighs the KL term
by how unsure the network is of the clean image. It works with and without the sphere, like every other.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor, nn

from advsphere.data import load
from advsphere.losses import kl
from advsphere.objectives import PGDAT, Criterion, Losses
from advsphere.recipes import recipe
from advsphere.runs.build import assemble
from advsphere.runs.train import Validation
from advsphere.training import Hooks, Trainer


@dataclass(frozen=True, kw_only=True)
class MART(PGDAT):
    """Boosted cross-entropy on the adversarial image, and beta * KL(clean || adversarial) * (1 - p_clean(y))."""

    beta: float = 5.0

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        logits, logits_adv = model(x), model(x_adv)
        clean, robust = logits.softmax(1), logits_adv.softmax(1)
        runner_up = robust.scatter(1, y[:, None], 0.0).amax(1)
        boosted = criterion(logits_adv, y) - torch.log(1.0001 - runner_up)
        unsure = 1.0 - clean.gather(1, y[:, None]).squeeze(1)
        return Losses((boosted + self.beta * kl(logits_adv, clean) * unsure).mean(), robust=boosted.mean())


config = recipe("digits-pgd-at")
images, held_out = load("digits").train.split(200, seed=0)
model, criterion, *_ = assemble(config, images)
objective = MART(threat=config.threat, steps=5, step_size=0.08, start="uniform")
trainer = Trainer(
    model,
    objective,
    criterion,
    images,
    settings=replace(config.training, epochs=4),
    folder=Path(mkdtemp()),
    hooks=Hooks(validate=Validation(held_out, config.threat, None), on_epoch=print),
)
trainer.fit()
