"""The order of a suite's attacks: all on all images, in a cascade, or the last ones on a sample of what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from advsphere.attacks import apgd, apgd_targeted, pgd
from advsphere.attacks.gradient import Start
from advsphere.classifier import Classifier, fooled
from advsphere.errors import UserError
from advsphere.evaluation.specs import AttackSpec
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

FIRST_LOOK = "first look: margin PGD-10"
SHORT_SEARCH = FIRST_LOOK + ", APGD-T where close"
FIRST_TARGET = ", first target"
CLOSE, CLOSEST = 0.7, 0.15
"""The search goes on with APGD-T where less than this share of the clean image's margin is left, and with AutoPGD on
the margin where less than the second is. benchmarks/README.md has the figures."""
SHORT_STEPS, FURTHER_STEPS = 3, 50
"""Steps of APGD-T for each target, and of AutoPGD."""


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

    APGD-T as a proof is preceded by a short search that fools nearly all images that AutoAttack fools. Every image of
    the sample meets all proofs whole, up to the one that fools it.
    """
    search, proofs = ([spec for spec in specs if spec.proof is proof] for proof in (False, True))
    if not proofs:
        raise UserError("no attack of this suite can run on a sample of images, so it has no certainty; leave it out")
    proven = next((spec for spec in proofs if targeted(spec)), None)
    begin = [_search(proven, threat)] if proven else [first_look(threat)] if anytime else []
    if anytime:
        return cascade([*begin, *search, *proofs])
    return *search, *cascade([*begin, *proofs], [spec.name for spec in search])


def _search(spec: AttackSpec, threat: ThreatModel) -> AttackSpec:
    """The first look, then this APGD-T with few steps and AutoPGD, each where the one before came close."""
    ascent = partial(apgd, threat=threat, steps=FURTHER_STEPS, loss=margin, until_fooled=True)
    short = _with(spec, steps=SHORT_STEPS).attack
    further = partial(pursued, attack=short, then=ascent, close=CLOSEST)
    attack = partial(pursued, attack=first_look(threat).attack, then=further, close=CLOSE)
    return AttackSpec(SHORT_SEARCH, attack)


def pursued(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    /,
    *,
    attack: Callable[..., Tensor],
    then: Callable[..., Tensor],
    close: float,
    start: Start = "uniform",
    rng: Rng | None = None,
) -> Tensor:
    """Run an attack. Where less than a share `close` of the clean margin is left, go on from its result with another.

    Most images resist by a wide margin. The result of a short attack shows which ones need more steps.
    """
    rng = rng or Rng.of(x)
    found = attack(model, x, y, start=start, rng=rng)
    with torch.no_grad():
        logits = model(found)
        index = (~fooled(logits, y)).nonzero().squeeze(1)
        if len(index):
            index = index[margin(logits[index], y[index]) > close * margin(model(x[index]), y[index])]
    if len(index):
        found[index] = then(model, x[index], y[index], start=found[index], rng=rng.take(index))
    return found


def targeted(spec: AttackSpec) -> bool:
    """Whether it is APGD-T with several targets."""
    attack = spec.attack
    return isinstance(attack, partial) and attack.func is apgd_targeted and attack.keywords.get("targets") != 1


def _first_target(spec: AttackSpec) -> list[AttackSpec]:
    return [replace(_with(spec, targets=1), name=spec.name + FIRST_TARGET)] if targeted(spec) else []


def _with(spec: AttackSpec, **settings: Any) -> AttackSpec:
    return replace(spec, attack=partial(spec.attack, **settings))
