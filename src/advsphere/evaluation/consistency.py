"""What the numbers of a stored evaluation must have in common, whoever wrote them and made the checksum fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from advsphere.evaluation.rows import Finding, Row, Sign

if TYPE_CHECKING:
    from advsphere.evaluation.results import Evaluation


def require_consistent(found: Evaluation, written: Mapping[str, Any]) -> None:
    """Raise ValueError, with all reasons, if an evaluation contradicts itself or the data that it was read from."""
    of_rows = zip(found.rows, (written["clean"], *written["attacks"], written["worst"]), strict=True)
    wrong = [reason for row, data in of_rows for reason in _of_outcomes(row, data)]
    if {row.n for row in found.rows} != {found.identity["data"]["n"]}:
        wrong.append("the rows are of different numbers of images")
    else:
        wrong += [*_of_attacks(found), *_of_worst(found)]
    if written["strongest"] != found.to_dict()["strongest"]:
        wrong.append("the strongest attack is another one")
    wrong += _of_sentences(found)
    if wrong:
        raise ValueError("; ".join(wrong))


def _of_outcomes(row: Row, written: Mapping[str, Any]) -> Iterator[str]:
    if other := [key for key, value in row.to_dict().items() if written.get(key) != value]:
        yield f"the outcomes of {row.name!r} contradict its {', '.join(other)}"
    if (row.invalid or 0) + (row.unreached or 0) > row.k:
        yield f"{row.name}: more images are invalid or not reached than resisted"


def _of_attacks(found: Evaluation) -> Iterator[str]:
    listed = found.identity["attacks"]
    if {row.name: row.settings for row in found.attacks} != listed or len(found.attacks) != len(listed):
        yield "the attacks are not those of its settings"
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
        total = getattr(found.worst, name)  # None in results of earlier versions
        if total is not None and total != sum(getattr(row, name) or 0 for row in rows):
            yield f"the worst case has other {name} than its attacks"


def _of_sentences(found: Evaluation) -> Iterator[str]:
    for kind, ones in {Finding: found.findings or (), Sign: found.signs or ()}.items():
        for field, hint in get_type_hints(kind).items():
            known = get_args(hint)
            if known and any(getattr(one, field) not in known for one in ones):
                yield f"a {kind.__name__.lower()} has a {field} that is none of {', '.join(map(repr, known))}"
