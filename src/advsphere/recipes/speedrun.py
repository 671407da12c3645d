"""The shortest trainings on CIFAR-10 to 47.8 % and to 50 % under AutoAttack, as far as we can tell without a GPU.

Their time on a GPU has not been measured, and neither has the accuracy that they reach: both numbers are aims. The
published times are 1,941 s (N-FGSM) and 2,605 s (LIET) on one GPU. `benchmarks/on_gpu.py --only speedrun` measures
ours.

What they combine is what trains networks on CIFAR-10 in seconds (K. Jordan, arXiv 2404.00498), as far as
`benchmarks/speedrun.py` found no harm in it under attack: a short warm-up and a straight line down, Nesterov momentum,
label smoothing, alternating flips, averaged weights and bfloat16 autocast. The ablation is small, so it can't tell most
of these tricks from no effect (`benchmarks/README.md`).
"""

from __future__ import annotations

from advsphere.data import Augment
from advsphere.objectives import PGDAT, TRADES, Objective
from advsphere.runs.config import Config, DataSettings, ModelSettings
from advsphere.schedule import Linear
from advsphere.threat import ThreatModel
from advsphere.training import TrainSettings

EPS = ThreatModel(norm="linf", eps=8 / 255)
WARM_UP = Linear(((0.0, 0.2), (0.23, 1.0), (1.0, 0.0)))
NOTES = (
    "ours: the aim is {aim} under AutoAttack in the least time on one GPU; neither time nor accuracy has been measured",
    "uncertain: all settings; benchmarks/speedrun.py tried them on a CPU with a small network and few images",
)


def speedrun(name: str, aim: str, objective: Objective, epochs: int) -> Config:
    """PreActResNet-18 with the tricks of fast training."""
    return Config(
        recipe=f"cifar10-{name}",
        data=DataSettings(name="cifar10", validation=1000),
        model=ModelSettings(name="preactresnet-18"),
        objective=objective,
        training=TrainSettings(
            epochs=epochs,
            lr=0.2,
            lr_schedule=WARM_UP,
            optimizer="torch.optim:SGD",
            optimizer_arguments={"nesterov": True},
            augment=Augment(padding=4, flip=True, alternate=True),
            label_smoothing=0.1,
            ema=0.999,
        ),
        threat=EPS,
        notes=tuple(note.format(aim=aim) for note in NOTES),
    )


RECIPES = [
    speedrun("speedrun", "47.8 %", PGDAT(threat=EPS, steps=3, step_size=4 / 255, start="uniform"), 30),
    speedrun("speedrun-50", "50 %", TRADES(threat=EPS, steps=4, step_size=3 / 255), 30),
]
