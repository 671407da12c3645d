"""Tables of any stored results with one line for each run, as `advsphere results FILE` prints them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from advsphere.comparison.gain import row_for
from advsphere.evaluation.results import WORST
from advsphere.evaluation.rows import Row
from advsphere.evaluation.unsampled import NOTHING, bound_of, paired_rows
from advsphere.reproduce.groups import SEED, confounders
from advsphere.reproduce.markdown import head, line, percent, points
from advsphere.reproduce.results import StoredResult
from advsphere.reproduce.sections import ALL_TITLES, corruption_table

_CHECKPOINTS = {"best": "the checkpoint that was best on held-out training images", "last": "the last checkpoint"}


def listing(results: Sequence[StoredResult]) -> str:
    """A table for each set of results that were measured in the same way.

    Below a run with HE stands the paired difference from its plain partner, if that is present, with its 95 % interval.
    """
    attacked = [one for one in results if one.kind == "evaluation"]
    corrupted = [one for one in results if one.kind == "corruptions"]
    alike = (lambda one: (one.run["data"], one.threat, one.n, one.run["checkpoint"], one.suite),
             lambda one: (one.run["data"], one.threat, one.n, one.corruptions.counted))  # fmt: skip
    tables = [_attacks(group) for group in _groups(attacked, alike[0])]
    tables += [_corruptions(group) for group in _groups(corrupted, alike[1])]
    return "\n\n".join("\n".join(table) for table in tables)


def _groups(results: Sequence[StoredResult], key: Callable[[StoredResult], Hashable]) -> list[list[StoredResult]]:
    found: dict[Hashable, list[StoredResult]] = {}
    for one in results:
        found.setdefault(key(one), []).append(one)
    return list(found.values())


def _attacks(group: Sequence[StoredResult]) -> list[str]:
    first = group[0]
    longest = max((one.evaluation.rows for one in group), key=len)
    attacks = dict.fromkeys(row.name for rows in (longest, *(one.evaluation.rows for one in group)) for row in rows)
    lines = [
        f"{first.run['data']}, {first.n:,} test images, {first.threat}, {_CHECKPOINTS[first.run['checkpoint']]}, suite "
        f"`{first.suite}`. Accuracy in % with its 95 % interval; under attack it is an upper bound. Differences are in "
        "points, are paired, and hold for these two checkpoints.",
        "",
        *head(["recipe", "epochs", *attacks]),
    ]
    for one in group:
        rows = {name: row_for(one.evaluation, name) for name in attacks}
        cells = ["" if row is None else _accuracy(row) for row in rows.values()]
        lines.append(line([_label(one.run), str(one.run["epochs"]), *cells]))
        base = _partner(one, group)
        if base is not None:
            lines.append(line(["*difference*", "", *(_difference(one, base, name) for name in attacks)]))
    return lines


def _accuracy(row: Row) -> str:
    return "on a sample" if row.sampled else percent(row.accuracy, *row.interval)


def _difference(one: StoredResult, base: StoredResult, attack: str) -> str:
    own, plain = (row_for(each.evaluation, attack) for each in (one, base))
    if own is None or plain is None or own.sampled or plain.sampled:
        return ""
    bounds = [bound_of(one.evaluation)], [bound_of(base.evaluation)]
    found = paired_rows(own, plain, bounds if attack == WORST else NOTHING)
    return f"*{points(found.difference, found.low, found.high)}{', cannot tell' * found.cannot_tell}*"


def _corruptions(group: Sequence[StoredResult]) -> list[str]:
    first = group[0]
    return [
        f"{first.run['data']}, {first.n:,} test images, corruptions {first.threat}; accuracy in %, averaged over the "
        f"severities. mCA is the mean over {len(first.corruptions.counted)} corruptions, with its 95 % interval.",
        "",
        *corruption_table(group, lambda run: _label(run, without=(SEED,)), ALL_TITLES),
    ]


def _label(run: Mapping[str, Any], *, without: Sequence[str] = ()) -> str:
    changes = (change for change in run["overrides"] if change["path"] not in without)
    return f"`{run['recipe']}`" + "".join(f", {change['path']} = {change['new']}" for change in changes)


def _partner(one: StoredResult, group: Sequence[StoredResult]) -> StoredResult | None:
    """The run that differs from this one only in its plain objective."""
    of_run = confounders(one.run, without=())
    plain = (base for base in group if base.run["scale"] is None and confounders(base.run, without=()) == of_run)
    return None if one.run["scale"] is None else next(plain, None)
