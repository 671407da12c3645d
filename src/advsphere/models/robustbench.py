"""RobustBench's models on CIFAR-10 and CIFAR-100 by their published names: network, input statistics and head.

Source: https://github.com/RobustBench/robustbench, `model_zoo/cifar10.py` and `cifar100.py`. Left out are ensembles and
architectures of a single paper.
"""

from __future__ import annotations

from typing import NamedTuple


class Statistics(NamedTuple):
    """The mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Published(NamedTuple):
    """A published model: our name of its network, its input statistics, and the scale of a hyperspherical head."""

    network: str
    statistics: Statistics
    scale: float | None = None


PIXELS = Statistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CIFAR10 = Statistics((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
CIFAR100 = Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_CENTRED = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_ENGSTROM = Statistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_AUGUSTIN = Statistics(
    (0.4913997551666284, 0.48215855929893703, 0.4465309133731618),
    (0.24703225141799082, 0.24348516474564, 0.26158783926049628),
)
_RONY = Statistics((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
_WU100 = Statistics(
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)
_CHEN100 = Statistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))

_MODELS: tuple[tuple[str, str, Statistics, str], ...] = (
    ("cifar10/Linf", "wrn-28-10", PIXELS, "Carmon2019Unlabeled Sehwag2020Hydra Wang2020Improving Standard"),
    ("cifar10/Linf", "wrn-28-10", PIXELS, "Wu2020Adversarial_extra Zhang2020Geometry Sridhar2021Robust"),
    ("cifar10/Linf", "wrn-28-10", _CENTRED, "Hendrycks2019Using"),
    ("cifar10/Linf", "wrn-34-10", PIXELS, "Zhang2019Theoretically Huang2020Self Zhang2019You Zhang2020Attacks"),
    ("cifar10/Linf", "wrn-34-10", PIXELS, "Wu2020Adversarial Sehwag2021Proxy Sitawarin2020Improving"),
    ("cifar10/Linf", "wrn-34-10", PIXELS, "Cui2020Learnable_34_10 Addepalli2021Towards_WRN34 Chen2021LTD_WRN34_10"),
    ("cifar10/Linf", "wrn-34-10", PIXELS, "Jia2022LAS-AT_34_10 Addepalli2022Efficient_WRN_34_10"),
    ("cifar10/Linf", "wrn-34-10", CIFAR10, "Chen2020Efficient"),
    ("cifar10/Linf", "wrn-34-15", PIXELS, "Sridhar2021Robust_34_15"),
    ("cifar10/Linf", "wrn-34-20", PIXELS, "Cui2020Learnable_34_20 Chen2021LTD_WRN34_20"),
    ("cifar10/Linf", "wrn-34-20", CIFAR10, "Rice2020Overfitting Pang2020Boosting"),
    ("cifar10/Linf", "wrn-70-16", PIXELS, "Jia2022LAS-AT_70_16"),
    ("cifar10/Linf", "preactresnet-18-nobn", PIXELS, "Andriushchenko2020Understanding"),
    ("cifar10/Linf", "preactresnet-18-nobn", CIFAR10, "Wong2020Fast"),
    ("cifar10/Linf", "cifar-resnet-18", PIXELS, "Sehwag2021Proxy_R18 Addepalli2021Towards_RN18"),
    ("cifar10/Linf", "cifar-resnet-18", PIXELS, "Addepalli2022Efficient_RN18"),
    ("cifar10/Linf", "cifar-resnet-50", _ENGSTROM, "Engstrom2019Robustness"),
    ("cifar10/Linf", "dm-wrn-28-10", CIFAR10, "Gowal2020Uncovering_28_10_extra Rebuffi2021Fixing_28_10_cutmix_ddpm"),
    ("cifar10/Linf", "dm-wrn-28-10", CIFAR10, "Rade2021Helper_ddpm Gowal2021Improving_28_10_ddpm_100m"),
    ("cifar10/Linf", "dm-wrn-28-10", CIFAR10, "Pang2022Robustness_WRN28_10 Wang2023Better_WRN-28-10"),
    ("cifar10/Linf", "dm-wrn-28-10", CIFAR10, "Xu2023Exploring_WRN-28-10"),
    ("cifar10/Linf", "dm-wrn-34-10", CIFAR10, "Rade2021Helper_extra"),
    ("cifar10/Linf", "dm-wrn-34-20", CIFAR10, "Gowal2020Uncovering_34_20"),
    ("cifar10/Linf", "dm-wrn-70-16", CIFAR10, "Gowal2020Uncovering_70_16 Gowal2020Uncovering_70_16_extra"),
    ("cifar10/Linf", "dm-wrn-70-16", CIFAR10, "Rebuffi2021Fixing_70_16_cutmix_ddpm"),
    ("cifar10/Linf", "dm-wrn-70-16", CIFAR10, "Rebuffi2021Fixing_70_16_cutmix_extra"),
    ("cifar10/Linf", "dm-wrn-70-16", CIFAR10, "Gowal2021Improving_70_16_ddpm_100m Pang2022Robustness_WRN70_16"),
    ("cifar10/Linf", "dm-wrn-70-16", CIFAR10, "Wang2023Better_WRN-70-16"),
    ("cifar10/Linf", "dm-wrn-106-16", CIFAR10, "Rebuffi2021Fixing_106_16_cutmix_ddpm"),
    ("cifar10/Linf", "dm-preactresnet-18", CIFAR10, "Rebuffi2021Fixing_R18_ddpm Rade2021Helper_R18_extra"),
    ("cifar10/Linf", "dm-preactresnet-18", CIFAR10, "Rade2021Helper_R18_ddpm Gowal2021Improving_R18_ddpm_100m"),
    ("cifar10/L2", "wrn-28-10", PIXELS, "Standard"),
    ("cifar10/L2", "wrn-28-10", _RONY, "Rony2019Decoupling"),
    ("cifar10/L2", "wrn-34-10", PIXELS, "Wu2020Adversarial Sehwag2021Proxy"),
    ("cifar10/L2", "wrn-34-10", _AUGUSTIN, "Augustin2020Adversarial_34_10 Augustin2020Adversarial_34_10_extra"),
    ("cifar10/L2", "cifar-resnet-18", PIXELS, "Sehwag2021Proxy_R18"),
    ("cifar10/L2", "cifar-resnet-50", _ENGSTROM, "Engstrom2019Robustness"),
    ("cifar10/L2", "cifar-resnet-50", _AUGUSTIN, "Augustin2020Adversarial"),
    ("cifar10/L2", "preactresnet-18-v2", CIFAR10, "Rice2020Overfitting"),
    ("cifar10/L2", "dm-wrn-28-10", CIFAR10, "Rebuffi2021Fixing_28_10_cutmix_ddpm Wang2023Better_WRN-28-10"),
    ("cifar10/L2", "dm-wrn-70-16", CIFAR10, "Gowal2020Uncovering Gowal2020Uncovering_extra"),
    ("cifar10/L2", "dm-wrn-70-16", CIFAR10, "Rebuffi2021Fixing_70_16_cutmix_ddpm Wang2023Better_WRN-70-16"),
    ("cifar10/L2", "dm-wrn-70-16", CIFAR10, "Rebuffi2021Fixing_70_16_cutmix_extra"),
    ("cifar10/L2", "dm-preactresnet-18", CIFAR10, "Rebuffi2021Fixing_R18_cutmix_ddpm Rade2021Helper_R18_ddpm"),
    ("cifar100/Linf", "wrn-28-10", _CENTRED, "Hendrycks2019Using"),
    ("cifar100/Linf", "wrn-34-10", PIXELS, "Cui2020Learnable_34_10_LBGAT0 Cui2020Learnable_34_10_LBGAT6"),
    ("cifar100/Linf", "wrn-34-10", PIXELS, "Sitawarin2020Improving Addepalli2021Towards_WRN34 Chen2021LTD_WRN34_10"),
    ("cifar100/Linf", "wrn-34-10", _WU100, "Wu2020Adversarial"),
    ("cifar100/Linf", "wrn-34-10", _CHEN100, "Chen2020Efficient"),
    ("cifar100/Linf", "wrn-34-20", PIXELS, "Cui2020Learnable_34_20_LBGAT6"),
    ("cifar100/Linf", "preactresnet-18-v2", PIXELS, "Addepalli2021Towards_PARN18"),
    ("cifar100/Linf", "dm-wrn-28-10", CIFAR100, "Rebuffi2021Fixing_28_10_cutmix_ddpm"),
    ("cifar100/Linf", "dm-wrn-70-16", CIFAR100, "Gowal2020Uncovering Gowal2020Uncovering_extra"),
    ("cifar100/Linf", "dm-wrn-70-16", CIFAR100, "Rebuffi2021Fixing_70_16_cutmix_ddpm"),
    ("cifar100/Linf", "dm-preactresnet-18", CIFAR100, "Rebuffi2021Fixing_R18_ddpm Rade2021Helper_R18_ddpm"),
)
"""Data set and threat model, our network, the statistics of the input, and the names of the models."""

_COSINES = ("Pang2020Boosting",)
"""Models whose published logits are cosines, with s = 1."""

MODELS: dict[str, Published] = {
    f"{place}/{name}": Published(network, statistics, 1.0 if name in _COSINES else None)
    for place, network, statistics, names in _MODELS
    for name in names.split()
}
"""The models by DATASET/THREAT/NAME, as in RobustBench's folder of models."""


def published(name: str) -> Published | None:
    """The model of that name: NAME is CIFAR-10 under Linf, L2/NAME is CIFAR-10, cifar100/NAME is under Linf."""
    places = (name, f"cifar10/Linf/{name}", f"cifar10/{name}", name.replace("cifar100/", "cifar100/Linf/", 1))
    return next((MODELS[place] for place in places if place in MODELS), None)
