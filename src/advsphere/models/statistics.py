"""Mean and standard deviation of the pixels of known image sets, which a network's input is normalised with."""

from __future__ import annotations

from typing import NamedTuple


class Statistics(NamedTuple):
    """One number a channel, in pixel units of [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


STATISTICS: dict[str, Statistics] = {
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "digits": Statistics((0.3053,), (0.3760,)),
}
