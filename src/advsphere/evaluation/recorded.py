"""What a ledger says was run, made runnable again: the threat, the attacks, one attack on a few of its examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from advsphere.data import Images
from advsphere.draws import Draws
from advsphere.errors import UserError
from advsphere.evaluation.engine import case_of
from advsphere.evaluation.judge import Verdict, strike
from advsphere.evaluation.ledger import Ledger
from advsphere.evaluation.preflight import device_of
from advsphere.evaluation.records import differences, some
from advsphere.evaluation.specs import AttackSpec
from advsphere.evaluation.suites import FIRST_LOOK, Effort, anytime
from advsphere.evaluation.suites import suite as suite_of
from advsphere.threat import ThreatModel

_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def threat_of(book: Ledger) -> ThreatModel:
    """The threat that was evaluated."""
    threat = book.identity["threat"]
    low, high = threat["bounds"]
    return ThreatModel(norm=threat["norm"], eps=threat["eps"], bounds=(low, high))


def specs_of(
    book: Ledger, model: nn.Module, images: Images, suite: Sequence[AttackSpec] | None = None
) -> tuple[AttackSpec, ...]:
    """The attacks that were run, each with exactly the settings on record.

    model, images: those that were evaluated. suite: the attacks, if they were of one's own. Raises UserError where they
    can't be had.
    """
    identity = book.identity
    if suite is None:
        if identity["suite"]["name"] == "own":
            raise UserError("this evaluation ran attacks of its own; give them as suite=")
        options = {k: v for k, v in identity["suite"].items() if k not in ("name", "head")}
        case, _ = case_of(model, images, threat_of(book), Effort(**options), identity["suite"]["head"])
        suite = suite_of(identity["suite"]["name"], case)
    elif FIRST_LOOK in book.attacks and FIRST_LOOK not in [spec.name for spec in suite]:
        suite = anytime(suite, threat_of(book))  # as `evaluate` did with a budget
    if changed := differences(book.attacks, {spec.name: spec.settings for spec in suite}):
        raise UserError(f"the attacks are not those of the evaluation: {some(changed)}; use the same version")
    return tuple(suite)


def strike_again(book: Ledger, model: nn.Module, images: Images, spec: AttackSpec, examples: Tensor) -> Verdict:
    """One of the attacks on these examples, (B,) int64, with the draws and the precision on record.

    Draws are addressed by the example's number, so that in another batch than the recorded one the outcome is the same
    up to rounding.
    """
    identity, device = book.identity, device_of(model)
    x, y = (part.to(device) for part in images.batch(examples))
    draws = Draws(identity["seed"], examples.to(device))
    return strike(model, spec, threat_of(book), x, y, draws, dtype=_PRECISIONS[identity["search"]])
