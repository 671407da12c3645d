"""The order of a suite's attacks: all on all images, in a cascade, or the last ones on a sample of what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from advsphere.attacks import apgd, apgd_targeted, pgd
from advsphere.classifier import Classifier, fooled
from advsphere.errors import UserError
from advsphere.evaluation.specs import AttackSpec
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

FIRST_LOOK = "first look: margin PGD-10"
FIRST_TARGET = ", first target"
SHORT_STEPS = 5
FURTHER_STEPS = 50
CLOSE = 0.1
"""The share of the clean image's margin of which less must be left for `pursued` to go on. Nearly every image that
AutoAttack takes and a short APGD-T misses is as close; benchmarks/README.md has the figures."""


def arranged(
    specs: Sequence[AttackSpec], threat: ThreatModel, *, anytime: bool = False, certainty: float | None = None
) -> tuple[AttackSpec, ...]:
    """The attacks in the order of an evaluation: as a cascade for a time budget, or with a sample for a certainty."""
    if certainty is not None:
        return _sampled(specs, threat, anytime)
    specs = [replace(spec, proof=False) for spec in specs]
    if not anytime:
        return tuple(specs)
    # APGD-T tries the likeliest wrong class of every image before the others of any image, because nearly all its
    # successes come at the first.
    return cascade([first_look(threat), *(part for spec in specs for part in (*_first_target(spec), spec))])


def cascade(specs: Sequence[AttackSpec], after: Sequence[str] = ()) -> tuple[AttackSpec, ...]:
    """The same attacks, each only on the images that resisted all earlier ones."""
    names = [*after, *(spec.name for spec in specs)]
    return tuple(replace(spec, after=tuple(names[: len(after) + i])) for i, spec in enumerate(specs))


def first_look(threat: ThreatModel) -> AttackSpec:
    """Ten steps on the margin loss. They fool most of the images that can be fooled in a small part of the time."""
    ascent = partial(pgd, threat=threat, steps=10, step_size=threat.eps / 4, loss=margin)
    return AttackSpec(FIRST_LOOK, partial(ascent, until_fooled=True, keep="best"))


def _sampled(specs: Sequence[AttackSpec], threat: ThreatModel, anytime: bool) -> tuple[AttackSpec, ...]:
    """The attacks that search, on all images, and then those that prove an absence, on images that resisted them all.

    APGD-T as a proof is preceded by a search with the same settings but few steps, which goes on where it came close
    and fools nearly all images that AutoAttack fools. Every image of the sample meets all proofs whole, up to the one
    that fools it.
    """
    search, proofs = ([spec for spec in specs if spec.proof is proof] for proof in (False, True))
    if not proofs:
        raise UserError("no attack of this suite can run on a sample of images, so it has no certainty; leave it out")
    short = [_short(spec, threat) for spec in proofs if targeted(spec)]
    begin = [first_look(threat)] if short or anytime else []
    if anytime:
        return cascade([*begin, *short, *search, *proofs])
    return *search, *cascade([*begin, *short, *proofs], [spec.name for spec in search])


def _short(spec: AttackSpec, threat: ThreatModel) -> AttackSpec:
    begin = _with(spec, steps=SHORT_STEPS).attack
    search = partial(pursued, attack=begin, threat=threat, steps=FURTHER_STEPS, close=CLOSE)
    return replace(spec, name=f"first look: APGD-T, {SHORT_STEPS} steps", attack=search, proof=False, note="")


def pursued(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    /,
    *,
    attack: Callable[..., Tensor],
    threat: ThreatModel,
    steps: int,
    close: float,
    rng: Rng | None = None,
) -> Tensor:
    """Run an attack with this threat. Where less than a share `close` of the clean margin is left, go on from its
    result with AutoPGD on the margin.
    """
    found = attack(model, x, y, threat=threat, rng=rng)
    with torch.no_grad():
        logits, whole = model(found), margin(model(x), y)
    index = (~fooled(logits, y) & (margin(logits, y) > close * whole)).nonzero().squeeze(1)
    if len(index):
        further = partial(apgd, threat=threat, steps=steps, loss=margin, until_fooled=True)
        found[index] = further(model, x[index], y[index], start=found[index])
    return found


def targeted(spec: AttackSpec) -> bool:
    """Whether it is APGD-T with several targets."""
    attack = spec.attack
    return isinstance(attack, partial) and attack.func is apgd_targeted and attack.keywords.get("targets") != 1


def _first_target(spec: AttackSpec) -> list[AttackSpec]:
    return [replace(_with(spec, targets=1), name=spec.name + FIRST_TARGET)] if targeted(spec) else []


def _with(spec: AttackSpec, **settings: Any) -> AttackSpec:
    return replace(spec, attack=partial(spec.attack, **settings))
