"""What may be said of two models, in plain sentences, always from the interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from advsphere.errors import UserError
from advsphere.evaluation import WORST, Gain, PairedDifference, Survival, compare, survival
from advsphere.report.judged import Judged
from advsphere.report.numbers import limits, percent, points, probability, share, shares, span

CAUTION = (
    "This is about these {count} checkpoints, on these images. What a method of training does would take several "
    "seeds of each."
)
UPPER_BOUND = "Robust accuracy is an upper bound: a stronger attack may leave less."

_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


class Number(NamedTuple):
    """A number to be seen at a glance, with its 95 % interval and its unit; "" for a number that is withheld."""

    label: str
    value: str
    interval: str
    unit: str


@dataclass(frozen=True)
class Verdict:
    """headline: one sentence. detail: what is behind it. tells: in the worst case the models could be told apart.
    numbers: the few that it rests on.
    """

    headline: str
    detail: str
    tells: bool
    numbers: tuple[Number, ...] = ()


def verdicts(models: Sequence[Judged]) -> list[Verdict]:
    """One for each model after the first, which is the baseline: how much of its gain over that one survives, if it has
    one, and whether the two can be told apart. For a single model, how it did.

    The worst case over all attacks decides. Raises UserError where the models were not judged on the same images under
    the same threat.
    """
    if len(models) == 1:
        return [_alone(models[0])]
    return [_compared(models[0], model) for model in models[1:]]


def cautions(models: Sequence[Judged]) -> list[str]:
    """What is to be kept in mind with any verdict."""
    count = _WORDS.get(len(models), str(len(models)))
    caution = CAUTION.format(count=count) if len(models) > 1 else "This is about this checkpoint, on these images."
    flags = sum(len(model.evaluation.flags) + len(model.evaluation.raised) for model in models)
    raised = ["One flag was raised; read it first."] if flags == 1 else [f"{flags} flags were raised; read them first."]
    return [*(raised if flags else []), UPPER_BOUND, caution]


def undecided(models: Sequence[Judged]) -> str:
    """For two models: the rows, except the worst case, in which the sample cannot tell; "" if there are none."""
    first, second = models
    rows = [row.name for row in second.evaluation.rows if row.name != WORST]
    shared = [name for name in rows if any(row.name == name for row in first.evaluation.rows)]
    open_ = [name for name in shared if compare(second.evaluation, first.evaluation, name).cannot_tell]
    return f"In these rows the sample cannot tell the two apart: {', '.join(open_)}." if open_ else ""


def survived(first: Judged, second: Judged) -> Survival | None:
    """How much of the second model's gain over the first survives; None where they share no PGD attack."""
    try:
        return survival([first.evaluation], [second.evaluation])
    except UserError:
        return None


def _alone(model: Judged) -> Verdict:
    row, clean = model.evaluation.worst, model.evaluation.clean
    headline = f"Under attack, the {model.name} checkpoint keeps at most {percent(row.accuracy)} % of these images."
    detail = (
        f"In the worst case over {_attacks(model)}, {row.k} of {row.n} images are still classified as labelled "
        f"({limits(row.interval, ' to ')} %, 95 % interval)."
    )
    numbers = (
        Number("clean accuracy", percent(clean.accuracy), limits(clean.interval, " to "), "%"),
        Number("in the worst case, at most", percent(row.accuracy), limits(row.interval, " to "), "%"),
    )
    return Verdict(headline, detail, True, numbers)


def _compared(first: Judged, second: Judged) -> Verdict:
    difference = compare(second.evaluation, first.evaluation, WORST)
    found = survived(first, second)
    a, b = first.evaluation.worst, second.evaluation.worst
    detail = (
        f"In the worst case over {_attacks(second)}, {second.name} keeps at most {percent(b.accuracy)} % and "
        f"{first.name} at most {percent(a.accuracy)} % of the same {difference.n} images. The difference is "
        f"{points(difference.difference)} points, with a 95 % interval from {span(difference)} (paired; McNemar's "
        f"p {_equals(difference)})."
    )
    told = not difference.cannot_tell
    return Verdict(_headline(first, second, difference, found), detail, told, _numbers(found) if found else ())


def _headline(first: Judged, second: Judged, difference: PairedDifference, found: Survival | None) -> str:
    """The survival of a gain where the sample tells it, else which of the two withstands more."""
    gain = f"the {second.name} checkpoint's gain over the {first.name} one"
    told = {
        "survives": f"In the worst case {gain} survives.",
        "partly": f"In the worst case a part of {gain} survives.",
        "does not survive": f"In the worst case {gain} does not survive.",
    }
    if found is not None and found.verdict in told:
        return told[found.verdict]
    if difference.cannot_tell:
        return f"The sample cannot tell the {second.name} checkpoint from the {first.name} one."
    better, worse = (second, first) if difference.difference > 0 else (first, second)
    by = f"{100 * abs(difference.difference):.1f} points"
    return f"The {better.name} checkpoint withstands more than the {worse.name} one, by {by}."


def _numbers(found: Survival) -> tuple[Number, ...]:
    """The gain, what is left of it, and the share that this is."""

    def number(label: str, gain: Gain) -> Number:
        return Number(label, points(gain.difference), f"{points(gain.low)} to {points(gain.high)}", "points")

    gained, left = (
        number(f"gain under {found.pgd}", found.gain(found.pgd)),
        number("gain in the worst case", found.gain(WORST)),
    )
    if found.share is None:
        return gained, left, Number("share that survives", "", "withheld: the gain itself is not clear of 0", "")
    value, low, high = found.share
    return gained, left, Number("share that survives", share(value), shares(low, high), "%")


def _attacks(model: Judged) -> str:
    count = len(model.evaluation.attacks)
    return "one attack" if count == 1 else f"{_WORDS.get(count, str(count))} attacks"


def _equals(difference: PairedDifference) -> str:
    text = probability(difference.p_value)
    return text if text.startswith("<") else f"= {text}"
