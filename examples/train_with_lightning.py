"""Adversarial training with hypersphere embedding in a Lightning module: craft, then the objective's loss."""

from tempfile import mkdtemp

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import advsphere as adv
from advsphere.data import load
from advsphere.objectives import PGDAT, Crafting


class Robust(lightning.LightningModule):  # type: ignore[misc]
    """A network with a cosine head, trained by PGD-AT with an angular margin."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = adv.attach_head(network, scale=10.0)
        head = next(m for m in network.modules() if isinstance(m, adv.HypersphereHead))
        self.criterion = adv.AngularMargin(head, margin=0.1)
        self.objective = PGDAT(threat=adv.ThreatModel(norm="linf", eps=0.1), steps=3, step_size=0.04)

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        """Labels (B,), or soft labels (B, K) from mixup or cutmix in the loader."""
        x, y = batch
        crafting = Crafting(adv.Rng.of(x, seed=self.global_step))
        x_adv = self.objective.craft(self.network, x, y, crafting)
        return self.objective.loss(self.network, x, x_adv, y, criterion=self.criterion).total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


digits = load("digits")
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
loader = DataLoader(TensorDataset(*digits.train.batch(torch.arange(len(digits.train)))), batch_size=64, shuffle=True)
module = Robust(network)
trainer = lightning.Trainer(
    max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=mkdtemp()
)
trainer.fit(module, loader)
print(adv.evaluate(module.network, digits.test.first(100), threat=module.objective.threat).table())
