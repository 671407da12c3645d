"""An attack's recorded settings as a reader says them: "pgd, 20 steps of 2/255, loss log_odds, best iterate"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advsphere.evaluation.results import radius

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
