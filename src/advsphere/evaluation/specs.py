"""An attack with a name and a record: what an evaluation runs, and exactly with which settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from advsphere.attacks import Attack, restarts
from advsphere.errors import UserError
from advsphere.files import tensor_checksum
from advsphere.threat import radius


@dataclass(frozen=True)
class AttackSpec:
    """One column of an evaluation.

    name: unique in its suite. attack: a `functools.partial` with all settings bound. restarts: how often it is run,
    each time with draws of its own; the worst case counts. after: attacks before it whose finds it does not look for
    again; what is left after it is what is left after all of them. minimal: it looks for the nearest adversarial
    example, however far that is, and is judged by the norm. note: what a reader has to know of its settings.
    """

    name: str
    attack: Attack
    restarts: int = 1
    after: tuple[str, ...] = ()
    minimal: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise UserError(
                f"{self.name} is to run {self.restarts} times; restarts counts the runs, so it is 1 or more"
            )

    @property
    def run(self) -> Attack:
        """The attack with its restarts."""
        return self.attack if self.restarts == 1 else restarts(self.attack, self.restarts)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as JSON-able data, defaults included: equal settings are the same attack."""
        described = describe(self.attack)
        settings = dict(described) if isinstance(described, Mapping) else {"name": described}
        own = {"after": list(self.after), "minimal": self.minimal, "note": self.note}
        return settings | {"restarts": self.restarts} | {key: value for key, value in own.items() if value}


def describe(value: object) -> Any:
    """JSON-able data that says what a setting is.

    A partial becomes its function's name and every parameter, defaults included. A function that another one made
    becomes its maker's name and what it was made from: `at_scale(margin, 0.1)` is {"name": "at_scale", "factor": 0.1,
    "loss": "margin"}. A tensor becomes its shape and checksum, a module its type and the checksum of its state. Raises
    UserError for what no record could tell apart, such as a lambda.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "checksum": tensor_checksum({"": value})}
    if isinstance(value, nn.Module):
        return {"module": type(value).__name__, "checksum": tensor_checksum(value.state_dict())}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: describe(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, partial):
        bound = inspect.signature(value.func).bind_partial(*value.args, **value.keywords)
        bound.apply_defaults()
        given = {k: describe(v) for k, v in bound.arguments.items() if k != "rng"}  # the evaluation gives these
        return {"name": describe(value.func), **given}
    name = getattr(value, "__qualname__", "")
    if not inspect.isroutine(value) or "<lambda>" in name:
        raise UserError(
            f"an attack's settings must be recorded exactly, and {value!r} can't be; "
            "use numbers, strings, named functions and functools.partial"
        )
    if "<locals>" not in name:
        return name
    maker = name.split(".<locals>")[0]
    made_from = inspect.getclosurevars(value).nonlocals
    return {"name": maker, **{k: describe(v) for k, v in sorted(made_from.items())}}


# FOLDED kinds: What kind of attack a row is of, told from its settings in the ledger alone.

Kind = Literal["one-step", "iterative", "minimal-norm", "black-box"]
"""one-step and iterative ascend a loss along its gradient inside the ball; minimal-norm attacks use gradients too."""

_KINDS: dict[str, Kind] = {
    "fgsm": "one-step",
    "pgd": "iterative",
    "mim": "iterative",
    "apgd": "iterative",
    "apgd_targeted": "iterative",
    "surrogate": "iterative",
    "feature_attack": "iterative",
    "deepfool": "minimal-norm",
    "fab": "minimal-norm",
    "fab_targeted": "minimal-norm",
    "cw": "minimal-norm",
    "square": "black-box",
    "rays": "black-box",
}
_LOSSES = {"log_odds": "cross-entropy", "cross_entropy": "cross-entropy", "dlr": "DLR", "dlr_or_margin": "DLR"}
_LOSS_OF = {"apgd_targeted": "targeted DLR", "feature_attack": "features"}

_AROUND = ("restarts", "after", "minimal", "note")
"""How an attack is run and judged, which makes it no other attack."""


def core(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the attack itself, without restarts and whatever else is wrapped around it; an ensemble of
    different attacks is none of them.
    """
    several = [core(one) for one in settings.get("attacks", ()) if isinstance(one, Mapping)]
    if several and all(one == several[0] for one in several):
        return several[0]
    inner = settings.get("attack")
    if isinstance(inner, Mapping):
        given = {"loss": settings["loss"]} if "loss" in settings else {}
        return core(inner) | given
    return {key: value for key, value in settings.items() if key not in _AROUND}


def kind_of(settings: Mapping[str, Any]) -> Kind | None:
    """The kind of attack; None for one of somebody's own."""
    attack = core(settings)
    kind = _KINDS.get(str(attack.get("name")))
    return "one-step" if kind == "iterative" and attack.get("steps") == 1 else kind


def loss_of(settings: Mapping[str, Any]) -> str | None:
    """What an iterative attack ascends, whatever the scale: "cross-entropy", "margin", ...; None if that is unknown."""
    attack = core(settings)
    name = _LOSS_OF.get(str(attack.get("name"))) or _loss(attack.get("loss"))
    return f"{name} of cosines" if name and attack["name"] == "surrogate" else name


def bare(settings: Mapping[str, Any], scale: float) -> dict[str, Any] | None:
    """For an attack on a head of this scale as if its scale were 1, the settings of the same attack on the head as it
    is; None for any other attack.
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
    """Whether two attacks differ in no more than log-odds for cross-entropy, which share their direction."""
    first, second = ({**attack, "loss": _loss(attack.get("loss"))} for attack in (a, b))
    return first == second


def _loss(setting: Any) -> str | None:
    if isinstance(setting, Mapping):
        return _loss(setting.get("loss"))
    return None if setting is None else _LOSSES.get(str(setting), str(setting))


# FOLDED wording: An attack's recorded settings as a reader says them: "pgd, 20 steps of 2/255, loss log_odds,
# FOLDED wording: best iterate".

_ELSEWHERE = ("name", "restarts", "threat", "norm", "bounds", "eps", "head", "after", "note")
"""Said in another place, the same for the whole evaluation, or nothing to be read (a checksum)."""

_FLAGS = {
    "until_fooled": "until fooled",
    "multi_eps": "from larger balls down",
    "constant_norm": "constant norm",
    "targeted": "targeted",
    "minimal": "for the smallest norm",
    "exact": "always in float32",
}
_COUNTS = ("steps", "queries", "targets", "tries", "starts", "passes")
_CHOICES = {"keep": "{} iterate", "start": "{} start"}


def in_words(settings: Mapping[str, Any], norm: str) -> str:
    """The settings of an `AttackSpec`, as a ledger holds them, in one line. norm: of the threat; another is said."""
    parts = [_attack(settings, norm)]
    if settings.get("restarts", 1) > 1:
        parts.append(f"{settings['restarts']} restarts")
    if settings.get("after"):
        parts.append("on what was left")
    return ", ".join(parts) + (f" ({settings['note']})" if settings.get("note") else "")


def _attack(settings: Mapping[str, Any], norm: str) -> str:
    if "attacks" in settings:  # restarts are a worst case of runs that differ in their number alone
        runs: dict[str, int] = {}
        for run in settings["attacks"]:
            again = run.get("name") == "restarts"
            runs[_attack(run["attack"] if again else run, norm)] = run["n"] if again else 1
        return ", then ".join(f"{run}, {n} restarts" if n > 1 else run for run, n in runs.items())
    parts = [str(settings["name"])] if "name" in settings else []
    if settings.get("norm", norm) != norm:
        parts.append(f"in {settings['norm']}")
    first = [key for key in (*_COUNTS, "loss", "start") if key in settings]
    keys = [*first, *(key for key in settings if key not in first)]  # a ledger keeps them by the alphabet
    return ", ".join(parts + [word for key in keys if (word := _word(key, settings[key], settings, norm))])


def _word(key: str, value: Any, settings: Mapping[str, Any], norm: str) -> str:
    """Nothing for a setting that is off."""
    if key in _ELSEWHERE or value is None or value is False:
        return ""
    if value is True:
        return _FLAGS.get(key, key)
    if key in _CHOICES:
        return _CHOICES[key].format(value)
    if key == "step_size":
        return "" if "steps" in settings else f"steps of {radius(value)}"
    if key in _COUNTS:
        size = settings.get("step_size") if key == "steps" else None
        return f"{value} {key if value != 1 else key[:-1]}" + ("" if size is None else f" of {radius(size)}")
    if key == "guides" and isinstance(value, Mapping):
        return f"guides out of {value['labels']['shape'][0]} images"
    if isinstance(value, Mapping):
        if "factor" in value:
            return f"{key} {value['loss']} of logits / {1 / value['factor']:g}"
        inner = _attack(value, norm)
        return f"{key} ({inner})" if inner else ""
    return f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
