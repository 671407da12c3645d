"""Attacks: functions (model, x, target) -> x_adv, one module per family, and combinators of attacks.

Which attack finds the smallest perturbation depends on the norm. For linf, l2 and l1 run both `fab_targeted` and `fmn`
with `starts=4`, and keep the smaller result of each image; for l0 take `sigma_zero` with `starts=8` and `steps=125`.
These come within 3 % of what a pool of attacks finds (benchmarks/README.md, "Optimality of the minimal norms").
"""

from advsphere.attacks.auto_pgd import apgd, apgd_targeted
from advsphere.attacks.carlini_wagner import cw
from advsphere.attacks.combine import Attack, AttackKind, attack_kind, restarts, worst_case
from advsphere.attacks.deep_fool import deepfool
from advsphere.attacks.ensemble import auto_attack, expected
from advsphere.attacks.fast_adaptive_boundary import fab, fab_targeted
from advsphere.attacks.fast_minimum_norm import fmn
from advsphere.attacks.feature import Guides, feature_attack
from advsphere.attacks.gradient import Keep, Start, fgsm, mim, pgd
from advsphere.attacks.ray_search import rays
from advsphere.attacks.sparse import sigma_zero
from advsphere.attacks.square_attack import square
from advsphere.attacks.surrogates import Cosines, surrogate

__all__ = [
    "Attack",
    "AttackKind",
    "Cosines",
    "Guides",
    "Keep",
    "Start",
    "apgd",
    "apgd_targeted",
    "attack_kind",
    "auto_attack",
    "cw",
    "deepfool",
    "expected",
    "fab",
    "fab_targeted",
    "feature_attack",
    "fgsm",
    "fmn",
    "mim",
    "pgd",
    "rays",
    "restarts",
    "sigma_zero",
    "square",
    "surrogate",
    "worst_case",
]
