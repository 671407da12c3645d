"""The paper's networks on ImageNet: FreeAT, plain and with HE, for the four networks of Table 4.

The data is a folder of images with train/ and val/. The short names without a network are ResNet-50's.
"""

from __future__ import annotations

from dataclasses import replace

from advsphere.config import Config, DataSettings, ModelSettings
from advsphere.data import Augment
from advsphere.hypersphere import Sphere
from advsphere.objectives import FreeAT
from advsphere.schedule import Steps
from advsphere.threat import ThreatModel
from advsphere.training import TrainSettings

EPS_4_255 = ThreatModel(norm="linf", eps=4 / 255)
S10 = Sphere(scale=10.0, margin=0.2)

NOTES = (
    "source: the AT_HE code, ImageNet/configs.yml, main_free.py and lib/utils.py, as of 2020-12; its README's step of "
    "1/255 is the evaluation's",
    "uncertain: 23 epochs, which is 90 / 4 rounded up, as in Python 3; its run_command.sh names a Python 2.7 "
    "environment, where it is 22",
    "differs: images are resized and cropped at the centre to 224 pixels, then moved by up to 28 (CIFAR's 4 of 32) and "
    "flipped; that code takes random resized crops",
    "differs: 1,000 training images are held out to choose the best checkpoint; that code keeps the epoch with the "
    "highest clean accuracy on the images that are reported",
)
HE_NOTE = "source: the AT_HE README for s = 10 and m = 0.2"
OTHER_HE_NOTE = "uncertain: s and m; the README's command is for ResNet-50, and its 10 and 0.2 are kept"
WIDE_NOTE = "uncertain: batch size; 256, as in configs.yml; old lines of run_command.sh list 256 and 512"


def freeat(network: str, library_name: str, sphere: Sphere | None, *notes: str) -> Config:
    """Epochs count from 0 here, and the rate falls as the epochs 8 and 16 of 23 begin: 30 / 4 rounded up, and twice
    that.
    """
    return Config(
        recipe=f"imagenet-freeat{'-he' if sphere else ''}-{network}",
        data=DataSettings(name="imagefolder", image_size=224, validation=1000),
        model=ModelSettings(name=f"torchvision:{library_name}"),
        objective=FreeAT(threat=EPS_4_255, step_size=4 / 255, repeats=4),
        sphere=sphere,
        training=TrainSettings(
            epochs=23,
            batch_size=256,
            lr=0.1,
            momentum=0.9,
            weight_decay=1e-4,
            lr_schedule=Steps(at=(8 / 23, 16 / 23), gamma=0.1),
            augment=Augment(padding=28, flip=True),
        ),
        threat=EPS_4_255,
        notes=(*NOTES, *notes),
    )


RESNET_50 = [
    freeat("resnet50", "resnet50", None),
    freeat("resnet50", "resnet50", S10, HE_NOTE),
]
SHORT = [replace(config, recipe=config.recipe.removesuffix("-resnet50")) for config in RESNET_50]

TABLES = {
    "Table 4": [
        *SHORT,
        *RESNET_50,
        freeat("resnet152", "resnet152", None),
        freeat("resnet152", "resnet152", S10, OTHER_HE_NOTE),
        freeat("wrn50-2", "wide_resnet50_2", None, WIDE_NOTE),
        freeat("wrn50-2", "wide_resnet50_2", S10, WIDE_NOTE, OTHER_HE_NOTE),
        freeat("wrn101-2", "wide_resnet101_2", None),
        freeat("wrn101-2", "wide_resnet101_2", S10, OTHER_HE_NOTE),
    ],
}
