"""The shortest trainings on CIFAR-10 to 47.8 % and to 50 % under AutoAttack, as far as we can tell without a GPU.

Their time on a GPU has not been measured, and neither has the accuracy that they reach: both numbers are aims. The
published times are 1,941 s (N-FGSM) and 2,605 s (LIET) on one GPU. `benchmarks/on_gpu.py --only speedrun` measures
ours.

They combine tricks that `benchmarks/speedrun.py` found about equal to its base under attack, on a CPU, with a small
network and few images: label smoothing, cutout, Nesterov momentum and alternating flips, in the base's schedule and
batches of 128. The partners with -he add hypersphere embedding, which was ahead there. The recipes were chosen after
the first of three seeds; with all three no trick can be told from no effect (`benchmarks/README.md`). Averaged weights,
a short warm-up and batches of 512 were behind and are left out. Weights stay in float32, under bfloat16 autocast.
"""

from __future__ import annotations

from advsphere.data import Augment
from advsphere.objectives import PGDAT, TRADES, Objective
from advsphere.recipes.small import CYCLIC, with_he
from advsphere.runs.config import Config, DataSettings, ModelSettings
from advsphere.threat import ThreatModel
from advsphere.training import TrainSettings

EPS = ThreatModel(norm="linf", eps=8 / 255)
NOTES = (
    "ours: the aim is {aim} under AutoAttack in the least time on one GPU; neither time nor accuracy has been measured",
    "uncertain: all settings; benchmarks/speedrun.py tried them on a CPU with a small network and few images",
)


def speedrun(name: str, aim: str, objective: Objective) -> Config:
    """PreActResNet-18 with the tricks of fast training."""
    return Config(
        recipe=f"cifar10-{name}",
        data=DataSettings(name="cifar10", validation=1000),
        model=ModelSettings(name="preactresnet-18"),
        objective=objective,
        training=TrainSettings(
            epochs=30,
            lr=0.2,
            lr_schedule=CYCLIC,
            optimizer="torch.optim:SGD",
            optimizer_arguments={"nesterov": True},
            augment=Augment(padding=4, flip=True, alternate=True, cutout=8),
            label_smoothing=0.1,
        ),
        threat=EPS,
        notes=tuple(note.format(aim=aim) for note in NOTES),
    )


PLAIN = [
    speedrun("speedrun", "47.8 %", PGDAT(threat=EPS, steps=3, step_size=4 / 255, start="uniform")),
    speedrun("speedrun-50", "50 %", TRADES(threat=EPS, steps=4, step_size=3 / 255)),
]
RECIPES = [variant for plain in PLAIN for variant in (plain, with_he(plain))]
