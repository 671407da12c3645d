"""What kind of attack a row is of, told from its settings in the ledger alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

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
