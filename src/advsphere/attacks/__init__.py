"""Attacks: pure functions (model, x, target) -> x_adv, one file per family, and the combinators that make attacks of
attacks.
"""

from advsphere.attacks.combine import Attack, restarts, worst_case
from advsphere.attacks.gradient import fgsm, mim, pgd

__all__ = ["Attack", "fgsm", "mim", "pgd", "restarts", "worst_case"]
