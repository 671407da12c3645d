"""Networks by name, each with its input normalisation inside."""

from advsphere.models.by_name import STATISTICS, Statistics, build, synchronised
from advsphere.models.preact_resnet import PreActResNet18
from advsphere.models.small_cnn import SmallCNN
from advsphere.models.weights import load_weights
from advsphere.models.wide_resnet import WideResNet

__all__ = [
    "STATISTICS",
    "PreActResNet18",
    "SmallCNN",
    "Statistics",
    "WideResNet",
    "build",
    "load_weights",
    "synchronised",
]
