"""Named suites of attacks. A suite is a function from the threat, the head's scale and the number of restarts to specs;
to add one, write the function and put it into SUITES.

Steps are eps / 4 long: 2/255 at 8/255, the field's usual step for 10 to 100 steps (Madry et al. 2018; Wong et al. 2020
for PGD-50). It is a proportion of eps so that a suite means the same at any radius; on adversarially trained digits
networks it fooled more than eps / 10 and 2.5 eps / steps did. All attacks keep their best iterate and stop at the first
success, and all ascend losses that never saturate.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from advsphere.attacks import fgsm, pgd
from advsphere.errors import UserError
from advsphere.evaluation.specs import AttackSpec
from advsphere.losses import Loss, at_scale, log_odds, margin
from advsphere.threat import ThreatModel

Suite = Callable[[ThreatModel, float, int], tuple[AttackSpec, ...]]


def suite(name: str, threat: ThreatModel, *, scale: float = 1.0, restarts: int = 1) -> tuple[AttackSpec, ...]:
    """The attacks of a named suite under a threat. scale: the head's s, 1.0 for a plain one. restarts: of every attack
    with a random start. Raises UserError for an unknown name, with the nearest known one.
    """
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(SUITES)}"
        raise UserError(f"there is no suite called {name!r}; {hint}")
    return SUITES[name](threat, scale, restarts)


def quick(threat: ThreatModel, scale: float, restarts: int) -> tuple[AttackSpec, ...]:
    """FGSM, PGD-20, PGD-100 and PGD-100 on the margin loss: enough to see whether a gain is there at all."""
    return (
        AttackSpec("FGSM", partial(fgsm, threat=threat)),
        _pgd("PGD-20", threat, 20, log_odds, restarts),
        _pgd("PGD-100", threat, 100, log_odds, restarts),
        _pgd("margin PGD-100", threat, 100, margin, restarts),
    )


def paper(threat: ThreatModel, scale: float, restarts: int) -> tuple[AttackSpec, ...]:
    """PGD-50 on bare cosines (s = 1), as the paper's official evaluators attack, PGD-50 on the logits as they are, and
    on the margin loss.

    Step and number of steps are those of the FastAT code, whose 10 restarts are `restarts=10`. With a plain head the
    first two are one.
    """
    bare = () if scale == 1.0 else (_pgd("PGD-50 (s = 1)", threat, 50, at_scale(log_odds, 1 / scale), restarts),)
    return (
        *bare,
        _pgd("PGD-50", threat, 50, log_odds, restarts),
        _pgd("margin PGD-50", threat, 50, margin, restarts),
    )


SUITES: dict[str, Suite] = {"quick": quick, "paper": paper}


def _pgd(name: str, threat: ThreatModel, steps: int, loss: Loss, restarts: int) -> AttackSpec:
    attack = partial(
        pgd, threat=threat, steps=steps, step_size=threat.eps / 4, loss=loss, until_fooled=True, keep="best"
    )
    return AttackSpec(name, attack, restarts)
