"""Evaluate your own network: wrap it, attack it, read the table, check the evidence."""

from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn

import advsphere as adv
from advsphere.data import load

# Any network works. This one expects standardised images; PixelClassifier lets it take pixels in [0, 1].
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
model = adv.PixelClassifier(network, mean=(0.3,), std=(0.38,))

digits = load("digits")
x, y = digits.train.batch(torch.arange(len(digits.train)))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(60):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()

folder = Path(mkdtemp())
threat = adv.ThreatModel(norm="linf", eps=0.1)
result = adv.evaluate(model, digits.test.first(200), threat=threat, ledger=folder / "ledger.sqlite")
result.save(folder / "evaluation.json")
print(result.table())

print(adv.verify(folder / "evaluation.json", folder / "ledger.sqlite", model, digits.test.first(200)))
