"""An evaluation as its ledger records it: its threat, its attacks and its model, to run an attack again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

from torch import Tensor, nn

import advsphere
from advsphere.calling import NetworkError
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.cascades import FIRST_LOOK, FIRST_TARGET, arranged, cascade
from advsphere.evaluation.checks import loaded
from advsphere.evaluation.consistency import require_identity
from advsphere.evaluation.engine import PRECISIONS, context_of
from advsphere.evaluation.judge import Verdict, exact_float32, judge_attack
from advsphere.evaluation.ledger import Ledger
from advsphere.evaluation.majority import as_judged
from advsphere.evaluation.specs import AttackSpec
from advsphere.evaluation.suites import SUITES, Effort, attacks_of
from advsphere.files import MOST_IN_AN_IMAGE, content_errors, differences, some
from advsphere.identity import answer_alike, model_answers, model_record
from advsphere.named import require_trust
from advsphere.rng import Rng
from advsphere.threat import ThreatModel


class OtherAttacksError(UserError):
    """Raised if attacks or their settings are not the recorded ones."""


def require_whole(book: Ledger) -> None:
    """Raise UserError unless a ledger says all of its evaluation that is needed to run an attack again."""
    with content_errors(book.path or "the ledger"):
        identity = book.identity
        require_identity(identity)
        shape, size, draws = identity["data"]["shape"], identity["batch_size"], identity["suite"].get("draws", 0)
        if not all(type(value) is int for value in (*shape, size, draws)) or min(*shape, size, draws + 1) < 1:
            raise TypeError(f"its images are {shape}, its batches {size}, its draws {draws}")
        if math.prod(shape) > MOST_IN_AN_IMAGE or identity["search"] not in PRECISIONS:
            raise ValueError(f"its images are {shape}, searched in {identity['search']}")
        if not all(isinstance(one, dict) for one in (*book.environments, *book.attacks.values())):
            raise TypeError("an environment or the settings of an attack are no table")
        threat_of(book), effort_of(book)


def threat_of(book: Ledger) -> ThreatModel:
    threat = book.identity["threat"]
    low, high = threat["bounds"]
    return ThreatModel(norm=threat["norm"], eps=threat["eps"], bounds=(low, high))


def effort_of(book: Ledger) -> Effort:
    """The effort of a named suite; the default for a list of attacks."""
    suite = book.identity["suite"]
    return Effort(**{field.name: suite[field.name] for field in fields(Effort) if field.name in suite})


def may_be_cut(book: Ledger) -> bool:
    """Whether it had a budget, or could have had one, so that images may be left out at its end."""
    cascaded: bool = book.identity["suite"].get("cascade", FIRST_LOOK in book.attacks)
    return cascaded


def specs_of(
    book: Ledger, model: nn.Module, images: Images, suite: Sequence[AttackSpec] | None = None
) -> tuple[AttackSpec, ...]:
    """The attacks of the evaluation of this model and these images, with the recorded settings.

    `suite` holds the attacks if the evaluation was given a list. Raises OtherAttacksError if their settings are not the
    recorded ones, and UserError if there is no such suite.
    """
    identity = book.identity
    if suite is None:
        if identity["suite"]["name"] == "own":
            raise UserError("this evaluation ran a list of attacks; give them as suite=")
        context, _ = context_of(model, images, threat_of(book), effort_of(book), identity["suite"]["head"])
        if (name := identity["suite"]["name"]) not in SUITES:
            require_trust([name], "the evaluation")
        suite = attacks_of(name, context)
    certainty = identity["suite"].get("certainty")
    if FIRST_LOOK not in [spec.name for spec in suite]:
        suite = arranged(suite, threat_of(book), anytime=may_be_cut(book), certainty=certainty)
    if may_be_cut(book) and certainty is None:  # evaluations of earlier versions have no parts of attacks
        suite = cascade([s for s in suite if s.name in book.attacks or not s.name.endswith(FIRST_TARGET)])
    found = {spec.name: spec.settings for spec in suite}
    gone = [f"{name} is none of them now" for name in book.attacks if name not in found]
    if changed := gone or differences(book.attacks, found):
        raise OtherAttacksError(f"the attacks are not those of the evaluation: {some(changed)}; {_versions(book)}")
    return tuple(suite)


def _versions(book: Ledger) -> str:
    """What to do if the attacks differ, by the version that made the evaluation and the one that runs."""
    now = advsphere.__version__
    made = some([*dict.fromkeys(one["advsphere"] for one in book.environments if one.get("advsphere"))])
    if not made:
        return f"this is advsphere {now}; use the version that made it"
    if made == now:
        return f"this version, {now}, made it: give the attacks that it ran, or use the same commit"
    return f"advsphere {made} made it, and this is {now}; use the same version"


def another_model(book: Ledger, model: nn.Module) -> list[str]:
    """The differences between this model and the evaluated one, one line each."""
    claimed = {key: value for key, value in book.identity["model"].items() if key not in ("scale", "type")}
    found = model_record(model)
    changed = [
        "other weights" if change.path == "checksum" else str(change)
        for change in differences(claimed, {key: found.get(key) for key in claimed})
    ]
    shape = book.identity["data"]["shape"]
    try:
        with exact_float32():
            answers = model_answers(model, shape)
    except NetworkError:
        return [*changed, f"it takes no images of shape {shape}"]
    with content_errors(book.path or "the ledger"):
        if book.answers is not None and not answer_alike(book.answers, answers):
            changed.append("it answers differently on the same images")
    return changed


def trained_on(book: Ledger, model: nn.Module, folder: object) -> str:
    """A line for the user if a run's network is no longer the evaluated one; empty if it is."""
    require_whole(book)
    if not another_model(book, as_judged(model, book.identity["suite"].get("draws", 0))):
        return ""
    return (
        f"the network has changed since the evaluation in {folder}, as after more training; delete that folder and "
        "evaluate again"
    )


def judge_again(
    book: Ledger, model: nn.Module, images: Images, spec: AttackSpec, examples: Tensor, precision: str | None = None
) -> Verdict:
    """Run an attack on these examples, (B,) int64, with the recorded random numbers, and in the recorded precision
    unless another one is given.
    """
    x, y = loaded(model, images, examples)
    rng = Rng(book.identity["seed"], examples.to(x.device))
    dtype = PRECISIONS[precision or book.identity["search"]]
    return judge_attack(model, spec, threat_of(book), x, y, rng, dtype=dtype)
