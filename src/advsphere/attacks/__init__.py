"""Attacks: pure functions (model, x, target) -> x_adv, one file per family, and the combinators that make attacks of
attacks.
"""

from advsphere.attacks.apgd import apgd, apgd_targeted
from advsphere.attacks.carlini_wagner import cw
from advsphere.attacks.combine import Attack, restarts, worst_case
from advsphere.attacks.deepfool import deepfool
from advsphere.attacks.ensemble import auto_attack, expected, stages
from advsphere.attacks.fab import fab, fab_targeted
from advsphere.attacks.feature import Guides, feature_attack
from advsphere.attacks.gradient import Keep, Start, fgsm, mim, pgd
from advsphere.attacks.rays import rays
from advsphere.attacks.square import square
from advsphere.attacks.surrogate import Cosines, surrogate

__all__ = [
    "Attack",
    "Cosines",
    "Guides",
    "Keep",
    "Start",
    "apgd",
    "apgd_targeted",
    "auto_attack",
    "cw",
    "deepfool",
    "expected",
    "fab",
    "fab_targeted",
    "feature_attack",
    "fgsm",
    "mim",
    "pgd",
    "rays",
    "restarts",
    "square",
    "stages",
    "surrogate",
    "worst_case",
]
