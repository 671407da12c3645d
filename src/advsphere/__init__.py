"""advsphere: adversarial training with hypersphere embedding, and an honest evaluation of its robustness.

The names below and the documented modules are loaded on first use, so that importing the package is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advsphere.attacks import apgd, auto_attack, fgsm, mim, pgd, restarts, worst_case
    from advsphere.classifier import PixelClassifier
    from advsphere.deployment import load
    from advsphere.errors import UserError
    from advsphere.evaluation import evaluate, verify
    from advsphere.hypersphere import AngularMargin, HypersphereConfig, HypersphereHead, attach_head
    from advsphere.recipes import recipe
    from advsphere.rng import Rng
    from advsphere.runs.folder import load_run
    from advsphere.runs.train import train
    from advsphere.threat import ThreatModel

    __version__: str

_HOMES = {
    "advsphere.attacks": ("apgd", "auto_attack", "fgsm", "mim", "pgd", "restarts", "worst_case"),
    "advsphere.classifier": ("PixelClassifier",),
    "advsphere.deployment": ("load",),
    "advsphere.errors": ("UserError",),
    "advsphere.evaluation": ("evaluate", "verify"),
    "advsphere.hypersphere": ("AngularMargin", "HypersphereConfig", "HypersphereHead", "attach_head"),
    "advsphere.recipes": ("recipe",),
    "advsphere.rng": ("Rng",),
    "advsphere.runs.folder": ("load_run",),
    "advsphere.runs.train": ("train",),
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
    "apgd",
    "attach_head",
    "auto_attack",
    "evaluate",
    "fgsm",
    "load",
    "load_run",
    "mim",
    "pgd",
    "recipe",
    "restarts",
    "train",
    "verify",
    "worst_case",
]


_PARTS = (
    "attacks",
    "classifier",
    "comparison",
    "corruption",
    "data",
    "deployment",
    "errors",
    "evaluation",
    "hypersphere",
    "losses",
    "models",
    "objectives",
    "recipes",
    "report",
    "runs",
    "schedule",
    "stats",
    "threat",
    "training",
)
"""The documented modules."""


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"advsphere.{name}")
    if name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        try:
            version = metadata.version("advsphere")
        except metadata.PackageNotFoundError:  # imported from a checkout that is not installed
            version = "unknown"
        return globals().setdefault(name, version)
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"advsphere has no {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PARTS, "__version__"])
