"""Attacks as an evaluation runs them: with a name and a record of all settings."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advsphere import attacks
from advsphere.attacks import Attack, AttackKind, restarts
from advsphere.errors import UserError
from advsphere.identity import describe
from advsphere.threat import radius


@dataclass(frozen=True)
class AttackSpec:
    """One column of an evaluation.

    Attributes:
        name: Unique in its suite.
        attack: A `functools.partial` with all settings bound.
        restarts: Number of runs, each with different random numbers; the worst case counts.
        after: Earlier attacks. Examples that they fooled are skipped, so accuracy is cumulative.
        minimal: The attack searches for the nearest adversarial example, which may lie outside the ball.
        note: A remark on the settings for the reader.
        proof: The attack hardly ever finds what the others miss. An evaluation with a certainty runs it only on a
            random sample of the images that resisted them; see docs/statistics.md.

    Raises:
        UserError: If the attack can't be called as (model, x, y, rng=...), or there are no restarts.
    """

    name: str
    attack: Attack
    restarts: int = 1
    after: tuple[str, ...] = ()
    minimal: bool = False
    note: str = ""
    proof: bool = False

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise UserError(f"{self.name} has {self.restarts} restarts; restarts is the number of runs, at least 1")
        try:
            inspect.signature(self.attack).bind("model", "x", "y", rng="rng")
        except TypeError as error:
            raise UserError(
                f"{self.name} can't be called as attack(model, x, y, rng=rng): {error}; bind its other settings, "
                "functools.partial(attack, threat=threat, ...)"
            ) from error

    @property
    def run(self) -> Attack:
        """The attack with its restarts."""
        return self.attack if self.restarts == 1 else restarts(self.attack, self.restarts)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as JSON-able data, defaults included. Equal settings mean the same attack."""
        described = describe(self.attack)
        settings = dict(described) if isinstance(described, Mapping) else {"name": described}
        own = {"after": list(self.after), "minimal": self.minimal, "note": self.note, "proof": self.proof}
        return settings | {"restarts": self.restarts} | {key: value for key, value in own.items() if value}


_LOSSES = {"log_odds": "cross-entropy", "cross_entropy": "cross-entropy", "dlr": "DLR", "dlr_or_margin": "DLR"}
_LOSS_OF = {"apgd_targeted": "targeted DLR", "feature_attack": "features"}

_AROUND = ("restarts", "after", "minimal", "note", "proof")
"""Settings of how an attack is run and judged. They do not change the attack itself."""


def core(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the attack itself, without restarts and other wrappers. Ensembles of different attacks stay
    unchanged.
    """
    several = [core(one) for one in settings.get("attacks", ()) if isinstance(one, Mapping)]
    if several and all(one == several[0] for one in several):
        return several[0]
    inner = settings.get("attack")
    if isinstance(inner, Mapping):
        given = {"loss": settings["loss"]} if "loss" in settings else {}
        return core(inner) | given
    return {key: value for key, value in settings.items() if key not in _AROUND}


def kind_of(settings: Mapping[str, Any]) -> AttackKind | None:
    """The kind that the attack declares by `attack_kind`; None if it declares none."""
    attack = settings if "kind" in settings else core(settings)
    own = None if "defined_in" in attack else getattr(attacks, str(attack.get("name")), None)
    kind: AttackKind | None = attack.get("kind") or getattr(own, "kind", None)
    return "one-step" if kind == "iterative" and attack.get("steps") == 1 else kind


def loss_of(settings: Mapping[str, Any]) -> str | None:
    """The loss that an iterative attack ascends, at any scale: "cross-entropy", "margin", ...; None if unknown."""
    attack = core(settings)
    own = "" if "defined_in" in attack else str(attack.get("name"))
    name = _LOSS_OF.get(own) or _loss(attack.get("loss"))
    return f"{name} of cosines" if name and own == "surrogate" else name


def bare(settings: Mapping[str, Any], scale: float) -> dict[str, Any] | None:
    """For an attack at s = 1 on a head of this scale, the settings of the same attack at the head's own scale; None for
    other attacks.
    """
    attack = core(settings)
    loss = attack.get("loss")
    if attack.get("name") == "surrogate":
        view = attack["view"]
        as_if = view["scale"] == 1.0 and not view["constant_norm"]
        return {**attack["ascent"], "loss": loss} if as_if else None
    if isinstance(loss, Mapping) and loss.get("name") == "at_scale" and abs(loss["factor"] * scale - 1) < 1e-6:
        return {**attack, "loss": loss["loss"]}
    return None


def alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two attacks are equal, or differ only in log-odds and cross-entropy, which share their direction."""
    first, second = ({**attack, "loss": _loss(attack.get("loss"))} for attack in (a, b))
    return first == second


def _loss(setting: Any) -> str | None:
    if isinstance(setting, Mapping):
        return str(setting.get("name")) if "defined_in" in setting else _loss(setting.get("loss"))
    return None if setting is None else _LOSSES.get(str(setting), str(setting))


_HIDDEN = ("name", "restarts", "threat", "norm", "bounds", "eps", "head", "guides", "after", "note", "proof")
"""Settings that are shown elsewhere, are the same for the whole evaluation, or are unreadable (a checksum)."""
_ORIGIN = ("defined_in", "source", "kind", "unknown")


def in_words(settings: Mapping[str, Any], norm: str) -> str:
    """The recorded settings of an attack in one line; its norm is named if it is not the threat's `norm`."""
    if "attacks" in settings:  # restarts are a worst case of runs that differ only in their number
        several = [run["attack"] if run.get("name") == "restarts" else run for run in settings["attacks"]]
        runs = Counter(in_words(run, norm) for run in several)
        parts = [", then ".join(f"{run}, {n} restarts" if n > 1 else run for run, n in runs.items())]
    else:
        parts = [str(settings["name"])] if "name" in settings else []
        parts += [f"in {settings['norm']}"] if settings.get("norm", norm) != norm else []
        shown = sorted(settings.keys() - {*_HIDDEN, *_ORIGIN}, key=lambda key: (key != "steps", key))
        parts += [_word(key, settings[key], norm) for key in shown if settings[key] not in (None, False)]
    parts += [f"{settings['restarts']} restarts"] if settings.get("restarts", 1) > 1 else []
    if settings.get("after") or settings.get("proof"):
        drawn = "a sample of the " if settings.get("proof") else ""
        parts.append(f"only on {drawn}images that resisted earlier attacks")
    return ", ".join(parts) + (f" ({settings['note']})" if settings.get("note") else "")


def _word(key: str, value: Any, norm: str) -> str:
    name = key.replace("_", " ")
    if value is True:
        return name
    if isinstance(value, Mapping):
        return f"{name} ({in_words(value, norm)})"
    if isinstance(value, float):
        return f"{name} {radius(value) if key == 'step_size' else f'{value:g}'}"
    return f"{name} {value}"
