"""Whether a network looks as after catastrophic overfitting: it resists one large step, and almost nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from advsphere.evaluation.rows import Row
from advsphere.evaluation.specs import kind_of
from advsphere.stats import more_than

RESISTED = 0.5
"""Of the images that are right when clean, the share that resists one step. Undefended networks show less, except at a
small radius, where they fall to many steps less often than `FALLEN`.
"""

FALLEN = 0.8
"""Of the images that resist one step, the share that falls to many."""


def overfitted(clean: Row, attacks: Sequence[Row]) -> str | None:
    """A sentence if the attacks with one step leave most images, and those with many steps hardly any of these.

    Both shares are tested at 97.5 % (Wong et al. 2020, arXiv 2001.03994).
    """
    one, many = ([row for row in attacks if row.ran and kind_of(row.settings) == kind] for kind in _KINDS)
    if not one or not many:
        return None
    fast = min(one, key=lambda row: row.k)
    resist = [i for i, outcome in enumerate(fast.outcomes) if outcome == "1"]
    strong = min(many, key=lambda row: row.k)
    fallen = sum(strong.outcomes[i] == "0" for i in resist)
    if not (more_than(len(resist), clean.k, RESISTED) and more_than(fallen, len(resist), FALLEN)):
        return None
    return (
        f"collapsed: {fast.name} leaves {fast.accuracy:.1%} and {strong.name} {strong.accuracy:.1%}, so the network "
        "resists one large step and little else, as after catastrophic overfitting; train with the guard, or with "
        "N-FGSM or PGD-AT"
    )


_KINDS = ("one-step", "iterative")
