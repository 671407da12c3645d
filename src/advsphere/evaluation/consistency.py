"""Whether a stored evaluation contradicts itself: anybody can edit the file and make its checksum fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from advsphere.evaluation.ledger import CLEAN
from advsphere.evaluation.masking import signs, signs_of_rows
from advsphere.evaluation.rows import Finding, Row, Sign

if TYPE_CHECKING:
    from advsphere.evaluation.results import Evaluation


_KINDS: dict[str, type | tuple[type, ...]] = {
    "model.checksum": str,
    "model.scale": (int, float),
    "data.n": int,
    "data.checksum": str,
    "suite.name": str,
    "seed": int,
}
"""What every identity holds."""

_NAMES = (CLEAN, "worst case")


def require_identity(identity: Mapping[str, Any]) -> None:
    """Raise an error unless an evaluation's identity has its parts, and each has its type."""
    for path, kind in _KINDS.items():
        value: Any = reduce(getitem, path.split("."), identity)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"its {path} is {value!r}")


def require_consistent(found: Evaluation, written: Mapping[str, Any]) -> None:
    """Raise ValueError, with all reasons, if an evaluation contradicts itself or the data that it was read from."""
    require_identity(found.identity)
    of_rows = zip(found.rows, (written["clean"], *written["attacks"], written["worst"]), strict=True)
    wrong = [reason for row, data in of_rows for reason in _of_outcomes(row, data)]
    if {row.n for row in found.rows} != {found.identity["data"]["n"]}:
        wrong.append("the rows are of different numbers of images")
    else:
        wrong += [*_of_attacks(found), *_of_worst(found), *_of_bound(found, written)]
    if written["strongest"] != found.to_dict()["strongest"]:
        wrong.append("the strongest attack is another one")
    wrong += [*_of_sentences(found), *_of_signs(found)]
    if wrong:
        raise ValueError("; ".join(wrong))


def _of_outcomes(row: Row, written: Mapping[str, Any]) -> Iterator[str]:
    if other := [key for key, value in row.to_dict().items() if written.get(key) != value]:
        yield f"the outcomes of {row.name!r} contradict its {', '.join(other)}"
    if (row.invalid or 0) + (row.unreached or 0) > row.k:
        yield f"{row.name}: more images are invalid or not reached than resisted"
    if row.median is not None and not row.settings.get("minimal"):
        yield f"{row.name} has a median norm, and is no attack for a minimal norm"


def _of_attacks(found: Evaluation) -> Iterator[str]:
    listed = found.identity["attacks"]
    if {row.name: row.settings for row in found.attacks} != listed or len(found.attacks) != len(listed):
        yield "the attacks are not those of its settings"
    threat = found.identity["threat"]
    if any(row.settings.get("threat", threat) != threat for row in found.attacks):
        yield "an attack was run under another threat model"
    for name in ("invalid", "unreached", "forwards"):  # None in results of earlier versions
        if len({getattr(row, name) is None for row in found.rows}) > 1:
            yield f"some rows have no {name}"
    if (found.clean.name, found.worst.name) != _NAMES or found.clean.settings or found.worst.settings:
        yield "the clean images or the worst case have settings or another name"
    if found.clean.unreached:
        yield "clean images were not reached"
    for row in found.attacks:
        earlier = [found.clean, *(other for other in found.attacks if other.name in row.after)]
        if any("0" in before and after == "1" for *before, after in
               zip(*(one.outcomes for one in (*earlier, row)), strict=True)):  # fmt: skip
            yield f"{row.name} counts images that were misclassified before it"


def _of_worst(found: Evaluation) -> Iterator[str]:
    columns = zip(*(row.outcomes for row in (found.clean, *found.attacks)), strict=True)
    if found.worst.outcomes != "".join("0" if "0" in column else "1" for column in columns):
        yield "the worst case is not that of its attacks"
    for name, rows in {"invalid": found.attacks, "forwards": found.rows[:-1]}.items():
        total = getattr(found.worst, name)
        if total is not None and total != sum(getattr(row, name) or 0 for row in rows):
            yield f"the worst case has other {name} than its attacks"
    if (found.worst.unreached or 0) > sum(row.unreached or 0 for row in found.attacks):
        yield "the worst case has more images that were not reached than its attacks"
    seconds = sum(row.seconds for row in found.rows[:-1])  # rounded in results of earlier versions
    if not math.isclose(seconds, found.worst.seconds, abs_tol=0.01 * len(found.rows)):
        yield "the worst case has other seconds than its attacks"


def _of_bound(found: Evaluation, written: Mapping[str, Any]) -> Iterator[str]:
    if (bound := found.bound) is None:
        return
    search = [found.clean, *(row for row in found.attacks if not row.settings.get("proof"))]
    survivors = sum("0" not in column for column in zip(*(row.outcomes for row in search), strict=True))
    fits = (bound.n, bound.survivors, bound.fell) == (found.clean.n, survivors, survivors - found.worst.k)
    fits = fits and written["bound"] == bound.to_dict()
    fits = fits and 0 <= bound.fell <= bound.sampled <= survivors and 0 < bound.confidence < 1
    if not (fits and bound.most == bound.limit(1 - bound.confidence)):
        yield "the bound is not that of its outcomes"


def _of_sentences(found: Evaluation) -> Iterator[str]:
    for kind, ones in {Finding: found.findings or (), Sign: found.signs or ()}.items():
        for field, hint in get_type_hints(kind).items():
            known = get_args(hint)
            if known and any(getattr(one, field) not in known for one in ones):
                yield f"a {kind.__name__.lower()} has a {field} that is none of {', '.join(map(repr, known))}"


def _of_signs(found: Evaluation) -> Iterator[str]:
    """Those that need no probe are judged again. Earlier versions had fewer probes."""
    if found.signs is None:
        return
    scale = found.identity["model"]["scale"]
    again = {sign.check: sign.status for sign in signs_of_rows(found.attacks, scale)}
    known = [sign.check for sign in signs(found.attacks, {}, scale)]
    said = {sign.check: sign.status for sign in found.signs}
    if [sign.check for sign in found.signs] != [name for name in known if name in said] or again.keys() - said:
        yield "the signs of gradient masking are others than were looked for"
    elif again != {name: said[name] for name in again}:
        yield "a sign of gradient masking contradicts the outcomes"
    if any((sign.status == "raised") != bool(sign.advice) for sign in found.signs):
        yield "a raised sign has no advice, or one that is not raised has one"
