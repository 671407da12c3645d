"""Signs of gradient masking, which makes attacks fail on a model that is not robust.

The checklists are those of Athalye et al. 2018 (arXiv 1802.00420, section 3.1), Carlini et al. 2019 (arXiv 1902.06705),
Tramer et al. 2020 (arXiv 2002.08347), Pintor et al. 2021 (arXiv 2106.09947) and AutoAttack's flags (flags_doc.md of the
official code). Each tolerance below is a share that a model without masking may show. A sign is raised if the observed
share exceeds it with 97.5 % confidence, so neither chance nor a small sample raises one.

Signs are computed from the attacks' rows and from `probes`, measurements on a few images, which the ledger stores. Some
signs refute numbers: they show that the attacks fail on this model, so what they left is no robust accuracy.
`overfitted` reads another failure from the rows: a network that learnt to resist one step and little else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advsphere.attacks import AttackKind
from advsphere.evaluation.rows import Refuted, Row, Sign, apart_from, found_alone
from advsphere.evaluation.specs import alike, bare, core, kind_of, loss_of
from advsphere.stats import PairedDifference, more_than, paired, wilson

OUTDONE = 0.002
"""Share of examples that only the weaker attack may fool: 0.2 points, as AutoAttack tolerates for Square."""

LONE_IMAGES = 0.01
"""Share of a probe's images on which a model without masking may have no gradient, or resist for another reason."""

FALSE_SLOPES = 0.25
"""Share of points at which a gradient may promise a rise of the loss that does not come. Honest networks show 0 to 0.1,
most of them those with activations that jump.
"""

MISSED = 0.1
"""Share of planted examples that an attack may miss. Attacks on honest networks miss none."""

SEARCHED = 0.1
"""Share of the images that resisted every attack which a few dozen random queries may fool. PGD leaves a few such
images on honest networks too.
"""

STILL_FALLING = 0.01
"""Loss of accuracy that more steps, or the trained scale, may cause: one point."""

ONE_LOSS = 0.05
"""Share of examples that only one loss may fool. Adversarially trained networks lose 2 to 4 points from APGD-CE to
APGD-T. Networks whose published robustness did not hold lost 6 and more (logit pairing, TRADES with HE).
"""

_DIRECT = ("cross-entropy", "margin", "DLR", "targeted DLR")
"""Losses of the logits, which are about equally strong on a model without masking."""

RESISTED = 0.5
"""Of the images that are right when clean, the share that resists one step. Undefended networks show less, except at a
small radius, where they fall to many steps less often than `FALLEN`.
"""

FALLEN = 0.8
"""Of the images that resist one step, the share that falls to many."""


def signs(rows: Sequence[Row], probes: Mapping[str, Any], scale: float) -> tuple[Sign, ...]:
    """Every sign, raised or not, from the attacks' rows, the ledger's probes and the head's scale."""
    return (
        _vanishing(probes.get("gradients")),
        _large_radius(probes.get("large radius")),
        _false_gradients(probes.get("slopes")),
        _planted(probes.get("planted")),
        _random_search(probes.get("random search"), rows),
        *signs_of_rows(rows, scale),
    )


def signs_of_rows(rows: Sequence[Row], scale: float) -> tuple[Sign, ...]:
    """The signs that need no probe."""
    return _black_box(rows), _one_step(rows), _plateau(rows), _bare_cosines(rows, scale), _one_loss(rows)


def _vanishing(probe: Mapping[str, Any] | None) -> Sign:
    """Zero gradients (Athalye et al.; AutoAttack's flag; "unavailable gradients" of Pintor et al.)."""
    name = "vanishing gradients"
    if not probe or not probe["n"]:
        return Sign(name, "unjudged", _NO_IMAGES)
    n, theirs, ours = probe["n"], probe["cross_entropy"], probe["log_odds"]
    detail = (
        f"on {_share(theirs, n)} drawn images the float32 gradient of softmax cross-entropy is zero, denormal or NaN, "
        f"and that of the log-odds, which the attacks here ascend, on {ours}"
    )
    if more_than(ours, n, LONE_IMAGES):
        advice = (
            f"gradient attacks fail there: {_NO_GRADIENT}; then attack with a smooth replacement of the part without "
            "gradient (BPDA, Athalye et al. 2018)"
        )
        return Sign(name, "raised", detail, advice, refutes="gradient attacks")
    advice = "the attacks here are not affected, but accuracies by other libraries with cross-entropy are too high"
    return _sign(name, more_than(theirs, n, LONE_IMAGES), detail, advice)


def _large_radius(probe: Mapping[str, Any] | None) -> Sign:
    """Unbounded attacks that do not reach 100 % (Athalye et al.; Carlini et al.; "unconstrained attack failure" of
    Pintor et al.).
    """
    name = "no fall at a large radius"
    if not probe or not probe["n"]:
        return Sign(name, "unjudged", _NO_IMAGES)
    n, left = probe["n"], probe["left"]
    if left is None:
        return Sign(name, "unjudged", "no gradient reaches the images")
    detail = f"PGD-{probe['steps']} at eps = {probe['eps']:.4g} leaves {_share(left, n)} images that plain grey fools"
    advice = f"the search fails although the model is not robust: {_NO_GRADIENT}"
    return _sign(name, more_than(left, n, LONE_IMAGES), detail, advice)


def _false_gradients(probe: Mapping[str, Any] | None) -> Sign:
    """Gradients that finite differences contradict (Athalye et al., on shattered gradients)."""
    name = "false gradients"
    if not probe or not probe["n"]:
        return Sign(name, "unjudged", _NO_IMAGES)
    n, false = probe["n"], probe["false"]
    detail = f"at {_share(false, n)} points in the ball the loss does not rise along the gradient as it promises"
    advice = f"attacks that follow this gradient are led astray: {_NO_GRADIENT}"
    return _sign(name, more_than(false, n, FALSE_SLOPES), detail, advice, refutes="gradient attacks")


def _planted(probe: Mapping[str, Any] | None) -> Sign:
    """Attacks that miss an adversarial example which is known to exist (Zimmermann et al. 2022)."""
    name = "planted examples missed"
    if not probe or not probe["missed"]:
        return Sign(
            name, "unjudged", "no iterative attack was run that works without the head" if probe else _NO_IMAGES
        )
    if not probe["n"]:
        return Sign(name, "unjudged", "no example could be planted, because the features hardly move within the ball")
    n, missed = probe["n"], probe["missed"]
    best = min(missed, key=lambda attack: missed[attack])
    others = [f"{attack} {k}" for attack, k in missed.items() if attack != best]
    detail = f"{best} misses {_share(missed[best], n)} examples that were planted in the ball" + (
        f" ({', '.join(others)})" if others else ""
    )
    advice = f"these attacks do not find what is there: {_NO_GRADIENT}"
    return _sign(name, more_than(missed[best], n, MISSED), detail, advice, refutes="gradient attacks")


def _random_search(probe: Mapping[str, Any] | None, rows: Sequence[Row]) -> Sign:
    """A short random search that fools what resisted everything else (Croce et al. 2022)."""
    name = "random search finds more"
    if not probe:
        return Sign(name, "unjudged", _NO_IMAGES)
    if any(row.unreached for row in rows):
        return Sign(name, "unjudged", _NO_TIME)
    n, found = probe["n"], probe["fooled"]
    if not n:
        return Sign(name, "absent", "no image resisted every attack")
    detail = f"{probe['queries']} random queries fool {_share(found, n)} images that resisted every attack"
    least, whole = wilson(found, n)[0], rows[0].n if rows else n
    many = more_than(found, n, SEARCHED) and least * probe["resisted"] > STILL_FALLING * whole
    advice = "these attacks leave images that are easily fooled: --suite black-box searches longer without gradients"
    return _sign(name, many, detail, advice, refutes="every attack")


def refuted(row: Row | None, rows: Sequence[Row], signs: Sequence[Sign]) -> Sign | None:
    """The sign that shows that what is left by a row's attack is no robust accuracy; of all attacks if `row` is None.

    Where only gradients fail, the number of an attack that needs none stands, and so does a suite of such attacks. What
    was fooled is fooled, so an accuracy of zero always stands.
    """
    judged = [row] if row else rows
    if any(one.k == 0 for one in judged):
        return None
    gradient_free = len(_of(judged, "black-box")) == len(judged)
    for sign in signs:
        if sign.refutes == "every attack" or (sign.refutes == "gradient attacks" and not gradient_free):
            return sign
    return None


def _black_box(rows: Sequence[Row]) -> Sign:
    """Black-box beats white-box (Athalye et al.; Carlini et al.; AutoAttack's flag for Square)."""
    name = "black box beats white box"
    black = _of(rows, "black-box")
    white = apart_from(_of(rows, "one-step", "iterative", "minimal-norm"), black)
    if not black or not _of(white, "iterative"):
        kind = "white-box iterative" if black else "black-box"
        return Sign(name, "unjudged", f"no {kind} attack was run on the same images")
    advice = (
        "gradients mislead here: --suite adaptive uses other paths and losses; "
        "--suite table6 and --restarts 5 search longer without gradients"
    )
    return _outdone(name, black, white, advice)


def _one_step(rows: Sequence[Row]) -> Sign:
    """One-step beats iterative (Athalye et al.; Carlini et al.)."""
    name = "one step beats many"
    one = _of(rows, "one-step")
    many = apart_from(_of(rows, "iterative"), one)
    if not {loss_of(row.settings) for row in one} & {loss_of(row.settings) for row in many}:
        return Sign(name, "unjudged", "no loss was ascended on the same images with one step and with many")
    return _outdone(
        name, one, many, "many small steps are led astray: --steps 500 --restarts 10, and --suite autoattack"
    )


def _outdone(name: str, worse: Sequence[Row], better: Sequence[Row], advice: str) -> Sign:
    """Raised if the weaker kind of attack fooled examples that no stronger attack fooled."""
    if any(row.unreached for row in better):
        return Sign(name, "unjudged", _NO_TIME)
    n, k = better[0].n, found_alone(worse, better)
    names = ", ".join(row.name for row in worse)
    detail = f"{names} fooled {_share(k, n)} images that none of {', '.join(row.name for row in better)} fooled"
    return _sign(name, more_than(k, n, OUTDONE), detail, advice)


def _plateau(rows: Sequence[Row]) -> Sign:
    """No plateau in steps (Carlini et al.; "incomplete optimization" of Pintor et al.)."""
    name = "no plateau in steps"
    groups: dict[str, dict[int, Row]] = {}
    for row in _of(rows, "iterative"):
        attack = core(row.settings)
        steps = attack.pop("steps", None)
        if isinstance(steps, int):
            groups.setdefault(str(sorted(attack.items(), key=str)), {})[steps] = row
    last = [sorted(group.items())[-2:] for group in groups.values() if len(group) > 1]
    pairs = [(a, b) for a, b in last if {*b[1].after} - {a[1].name} == {*a[1].after}]
    if not pairs:
        return Sign(name, "unjudged", "no attack was run on the same images with two numbers of steps")
    if any(row.unreached for pair in pairs for _, row in pair):
        return Sign(name, "unjudged", _NO_TIME)
    found = [(_difference(a, b), a.name, b.name, longest) for (_, a), (longest, b) in pairs]
    most = max(found, key=lambda one: one[0].low)
    detail = f"from {most[1]} to {most[2]} accuracy falls by {_points(most[0])}"
    advice = f"it may fall further: --steps {5 * most[3]}"
    return _sign(name, most[0].low > STILL_FALLING, detail, advice)


def _bare_cosines(rows: Sequence[Row], scale: float) -> Sign:
    """Cross-entropy is weaker on bare cosines (s = 1) than at the trained scale, because the loss is too flat (Tramer
    et al., on losses that do not fit the attack; Wu et al. 2021, arXiv 2104.02703).
    """
    name = "weak at s = 1"
    if scale == 1.0:
        return Sign(name, "unjudged", "the head has no scale")
    pairs = [
        (a, b)
        for a in rows
        if (same := bare(a.settings, scale)) is not None
        for b in rows
        if alike(core(b.settings), same) and a.after == b.after
    ]
    if not pairs:
        return Sign(name, "unjudged", "no attack was run on the same images both at s = 1 and at the trained scale")
    if any(row.unreached for pair in pairs for row in pair):
        return Sign(name, "unjudged", _NO_TIME)
    difference, at_one, trained = max(((_difference(a, b), a, b) for a, b in pairs), key=lambda one: one[0].low)
    detail = f"{at_one.name} leaves more than {trained.name} at s = {scale:g}, by {_points(difference)}"
    advice = (
        f"do not rely on {at_one.name}; --suite adaptive sweeps the scale, --suite autoattack has losses without one"
    )
    return _sign(name, difference.low > STILL_FALLING, detail, advice)


def _one_loss(rows: Sequence[Row]) -> Sign:
    """Only attacks on one loss succeed (Carlini et al.; Tramer et al.; Croce & Hein 2020 on CE and DLR)."""
    name = "one loss decides"
    families: dict[str, list[Row]] = {}
    for row in _of(rows, "iterative"):
        if (loss := loss_of(row.settings)) is not None:
            families.setdefault(loss, []).append(row)
    alone: dict[str, int] = {}
    judged = [row for family in families.values() for row in family]
    for loss, family in families.items():
        others = [row for row in apart_from(judged, family) if row not in family]
        if any(loss_of(row.settings) in _DIRECT for row in others):
            alone[loss] = found_alone(family, others)
    if not alone:
        return Sign(name, "unjudged", "no iterative attacks on two losses were run on the same images")
    if any(row.unreached for row in judged):
        return Sign(name, "unjudged", _NO_TIME)
    loss, n = max(alone, key=lambda one: alone[one]), judged[0].n
    others_named = ", ".join(other for other in families if other != loss)
    detail = f"{_share(alone[loss], n)} images are fooled through {loss} and not through {others_named}"
    advice = "do not rely on the others; a further loss may find more: --suite adaptive, --suite autoattack"
    return _sign(name, more_than(alone[loss], n, ONE_LOSS), detail, advice)


_NO_GRADIENT = "--suite black-box needs no gradient"
_NO_IMAGES = "not measured, because there are no suitable images"
_NO_TIME = "the time budget ended before every image was attacked"


def _sign(name: str, raised: bool, detail: str, advice: str, refutes: Refuted = "") -> Sign:
    return Sign(name, "raised", detail, advice, refutes) if raised else Sign(name, "absent", detail)


def _of(rows: Sequence[Row], *kinds: AttackKind) -> list[Row]:
    return [row for row in rows if kind_of(row.settings) in kinds]


def _difference(weak: Row, strong: Row) -> PairedDifference:
    return paired(weak.right, strong.right)


def _share(k: int, n: int) -> str:
    low, high = wilson(k, n)
    return f"{k} of {n} ({100 * low:.1f} - {100 * high:.1f} %)"


def _points(d: PairedDifference) -> str:
    return f"{100 * d.difference:.1f} points ({100 * d.low:.1f} to {100 * d.high:.1f}) on {d.n} images"


def overfitted(clean: Row, attacks: Sequence[Row]) -> str | None:
    """A sentence if the attacks with one step leave most images, and those with many steps hardly any of these.

    Both shares are tested at 97.5 % (Wong et al. 2020, arXiv 2001.03994).
    """
    kinds = [(kind_of(row.settings), row) for row in attacks if row.ran]
    one, many = ([row for kind, row in kinds if kind == wanted] for wanted in ("one-step", "iterative"))
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
