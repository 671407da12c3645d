"""advsphere: adversarial training on the hypersphere, and an honest measure of what it buys.

The names below are loaded when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advsphere.attacks import fgsm, mim, pgd, restarts, worst_case
    from advsphere.classifier import PixelClassifier
    from advsphere.errors import UserError
    from advsphere.evaluation import evaluate, verify
    from advsphere.hypersphere import AngularMargin, HypersphereConfig, HypersphereHead, attach_head
    from advsphere.rng import Rng
    from advsphere.threat import ThreatModel

_HOMES = {
    "advsphere.attacks": ("fgsm", "mim", "pgd", "restarts", "worst_case"),
    "advsphere.classifier": ("PixelClassifier",),
    "advsphere.rng": ("Rng",),
    "advsphere.errors": ("UserError",),
    "advsphere.evaluation": ("evaluate", "verify"),
    "advsphere.hypersphere": ("AngularMargin", "HypersphereHead", "HypersphereConfig", "attach_head"),
    "advsphere.threat": ("ThreatModel",),
}

__all__ = [
    "AngularMargin",
    "HypersphereConfig",
    "HypersphereHead",
    "PixelClassifier",
    "Rng",
    "ThreatModel",
    "UserError",
    "attach_head",
    "evaluate",
    "fgsm",
    "mim",
    "pgd",
    "restarts",
    "verify",
    "worst_case",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"advsphere has no {name!r}")
