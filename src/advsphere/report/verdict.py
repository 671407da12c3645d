"""What may be said of two models, in plain sentences, always from the interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from advsphere.comparison.gain import Gain, Survival, survival
from advsphere.errors import UserError
from advsphere.evaluation import WORST, compare
from advsphere.report.collect import ModelReport
from advsphere.report.rendering import limits, percent, points, probability, share, shares, span
from advsphere.stats import ENOUGH_SEEDS

CAUTION = (
    "This is about these {count} checkpoints, on these images. What a method of training does would take several "
    "seeds of each."
)
ALONE = "This is about this checkpoint, on these images."
METHODS = "This is about these methods on these images, as far as {count} seeds of each can tell."
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


def verdicts(models: Sequence[ModelReport]) -> list[Verdict]:
    """One for each model after the first, which is the baseline: how much of its gain over that one survives, if it has
    one, and whether the two can be told apart. For a single model, how it did.

    The worst case over all attacks decides. Raises UserError where the models were not judged on the same images under
    the same threat.
    """
    if len(models) == 1:
        return [_alone(models[0])]
    return [_compared(models[0], model) for model in models[1:]]


def cautions(models: Sequence[ModelReport]) -> list[str]:
    """What is to be kept in mind with any verdict."""
    every = [evaluation for model in models for evaluation in model.checkpoints.values()]
    caution = CAUTION.format(count=_word(len(every))) if len(every) > 1 else ALONE
    fewest = min(len(model.seeds) for model in models)
    if len(models) > 1 and fewest >= ENOUGH_SEEDS:
        caution = METHODS.format(count=_word(fewest))
    flags = sum(len(evaluation.flags) + len(evaluation.raised) for evaluation in every)
    raised = ["One flag was raised; read it first."] if flags == 1 else [f"{flags} flags were raised; read them first."]
    return [*(raised if flags else []), UPPER_BOUND, caution]


def undecided(models: Sequence[ModelReport]) -> str:
    """For two models: the rows, except the worst case, in which the sample cannot tell; "" if there are none."""
    first, second = models
    rows = [row.name for row in second.evaluation.rows if row.name != WORST]
    shared = [name for name in rows if any(row.name == name for row in first.evaluation.rows)]
    open_ = [name for name in shared if compare(second.evaluation, first.evaluation, name).cannot_tell]
    return f"In these rows the sample cannot tell the two apart: {', '.join(open_)}." if open_ else ""


def survived(first: ModelReport, second: ModelReport) -> Survival | None:
    """How much of the second model's gain over the first survives; None where they share no PGD attack."""
    try:
        return survival([*first.checkpoints.values()], [*second.checkpoints.values()])
    except UserError:
        return None


def _alone(model: ModelReport) -> Verdict:
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


def _compared(first: ModelReport, second: ModelReport) -> Verdict:
    found = survived(first, second)
    if found is not None and max(found.seeds) > 1:
        return _over_seeds(first, second, found)
    difference = compare(second.evaluation, first.evaluation, WORST)
    a, b = first.evaluation.worst, second.evaluation.worst
    detail = (
        f"In the worst case over {_attacks(second)}, {second.name} keeps at most {percent(b.accuracy)} % and "
        f"{first.name} at most {percent(a.accuracy)} % of the same {difference.n} images. The difference is "
        f"{points(difference.difference)} points, with a 95 % interval from {span(difference)} (paired; McNemar's "
        f"p {_equals(difference.p_value)})."
    )
    told = not difference.cannot_tell
    headline = _headline(first, second, "checkpoint", difference.difference, told, found)
    return Verdict(headline, detail, told, _numbers(found) if found else ())


def _over_seeds(first: ModelReport, second: ModelReport, found: Survival) -> Verdict:
    """Of arms of several checkpoints; of the methods themselves where the seeds are enough."""
    gain = found.gain(WORST)
    new, old = map(_word, (found.seeds[1], found.seeds[0]))
    counts = f"{new} seeds of each" if new == old else f"{new} and {old} checkpoints"
    sample = "images and seeds (Welch)" if found.of_the_method else "images alone, for there are fewer than three seeds"
    detail = (
        f"In the worst case over {_attacks(second)}, {second.name} keeps at most {percent(gain.method)} % and "
        f"{first.name} at most {percent(gain.baseline)} % of the same {found.n} images, on average over {counts}. "
        f"The difference is {points(gain.difference)} points, with a 95 % interval from {span(gain)} over {sample}; "
        f"p {_equals(gain.p_value)}."
    )
    kind = "" if found.of_the_method else "checkpoints"
    return Verdict(
        _headline(first, second, kind, gain.difference, gain.clear, found), detail, gain.clear, _numbers(found)
    )


_OTHER = {"checkpoint": "one", "checkpoints": "ones"}


def _headline(
    first: ModelReport, second: ModelReport, kind: str, difference: float, told: bool, found: Survival | None
) -> str:
    """The survival of a gain where the sample tells it, else which of the two withstands more. kind: what is spoken of,
    a key of _OTHER, or "" for the methods themselves.
    """

    def this(model: ModelReport) -> str:
        return f"the {model.name} {kind}" if kind else model.name

    def that(model: ModelReport) -> str:
        return f"the {model.name} {_OTHER[kind]}" if kind else model.name

    plural = kind.endswith("s")
    gain = f"{this(second)}'{'' if plural else 's'} gain over {that(first)}"
    survives = {
        "survives": f"In the worst case {gain} survives.",
        "partly": f"In the worst case a part of {gain} survives.",
        "does not survive": f"In the worst case {gain} does not survive.",
    }
    if found is not None and found.verdict in survives:
        return survives[found.verdict]
    if not told:
        return f"The sample cannot tell {this(second)} from {that(first)}."
    better, worse = (second, first) if difference > 0 else (first, second)
    more = f"{this(better)} {'withstand' if plural else 'withstands'} more than {that(worse)}"
    return f"{more[0].upper()}{more[1:]}, by {100 * abs(difference):.1f} points."


def _numbers(found: Survival) -> tuple[Number, ...]:
    """The gain, what is left of it, and the share that this is."""

    def number(label: str, gain: Gain) -> Number:
        return Number(label, points(gain.difference), span(gain), "points")

    gained, left = (
        number(f"gain under {found.pgd}", found.gain(found.pgd)),
        number("gain in the worst case", found.gain(WORST)),
    )
    if found.share is None:
        many = " among so many attacks" if found.gain(found.pgd).apart else ""
        return gained, left, Number("share that survives", "", f"withheld: the gain itself is not clear of 0{many}", "")
    value, low, high = found.share
    return gained, left, Number("share that survives", share(value), shares(low, high), "%")


def _attacks(model: ModelReport) -> str:
    count = len(model.evaluation.attacks)
    return "one attack" if count == 1 else f"{_word(count)} attacks"


def _word(count: int) -> str:
    return _WORDS.get(count, str(count))


def _equals(p_value: float) -> str:
    text = probability(p_value)
    return text if text.startswith("<") else f"= {text}"
