"""Adversarial training in an Accelerate loop, measured with torchmetrics."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import advsphere as adv
from advsphere.data import load
from advsphere.losses import cross_entropy
from advsphere.objectives import PGDAT, Crafting

digits = load("digits")
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
objective = PGDAT(threat=adv.ThreatModel(norm="linf", eps=0.1), steps=3, step_size=0.04)
train, test = (
    DataLoader(TensorDataset(*part.batch(torch.arange(len(part)))), batch_size=64, shuffle=part is digits.train)
    for part in (digits.train, digits.test.first(256))
)

accelerator = Accelerator(cpu=True)
model, optimizer, train, test = accelerator.prepare(
    network, torch.optim.Adam(network.parameters(), lr=3e-3), train, test
)
for epoch in range(3):
    for step, (x, y) in enumerate(train):
        # Craft on the bare network, so that nothing is synchronised; the loss goes through the prepared model.
        crafting = Crafting(adv.Rng.of(x, seed=epoch * len(train) + step))
        x_adv = objective.craft(accelerator.unwrap_model(model), x, y, crafting)
        optimizer.zero_grad()
        accelerator.backward(objective.loss(model, x, x_adv, y, criterion=cross_entropy).total)
        optimizer.step()

clean, robust = (MulticlassAccuracy(10, average="micro").to(accelerator.device) for _ in range(2))
model.eval()
for x, y in test:
    x_adv = adv.pgd(model, x, y, threat=objective.threat, steps=20, step_size=0.02)
    with torch.no_grad():
        clean.update(*accelerator.gather_for_metrics((model(x), y)))
        robust.update(*accelerator.gather_for_metrics((model(x_adv), y)))
print(f"clean accuracy {clean.compute():.1%}, under PGD-20 {robust.compute():.1%}")
