"""Attacks: pure functions (model, x, target) -> x_adv, one file per family, and the combinators that make attacks of
attacks.
"""

from advsphere.attacks.combine import Attack, restarts, worst_case
from advsphere.attacks.gradient import Keep, Start, fgsm, mim, pgd

__all__ = ["Attack", "Keep", "Start", "fgsm", "mim", "pgd", "restarts", "worst_case"]
