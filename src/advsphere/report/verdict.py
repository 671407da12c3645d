"""What may be said of two models, in plain sentences, always from the interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advsphere.evaluation import WORST, PairedDifference, compare
from advsphere.report.judged import Judged
from advsphere.report.numbers import limits, percent, points, probability, span

CAUTION = (
    "This is about these {count} checkpoints, on these images. What a method of training does would take several "
    "seeds of each."
)
UPPER_BOUND = "Robust accuracy is an upper bound: a stronger attack may leave less."

_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


@dataclass(frozen=True)
class Verdict:
    """headline: one sentence. detail: the numbers behind it. tells: the models could be told apart."""

    headline: str
    detail: str
    tells: bool


def verdicts(models: Sequence[Judged]) -> list[Verdict]:
    """One for each model after the first, which is what they are compared with; for a single model, how it did.

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


def _alone(model: Judged) -> Verdict:
    row = model.evaluation.worst
    headline = f"Under attack, the {model.name} checkpoint keeps at most {percent(row.accuracy)} % of these images."
    detail = (
        f"In the worst case over {_attacks(model)}, {row.k} of {row.n} images are still classified as labelled "
        f"({limits(row.interval, ' to ')} %, 95 % interval)."
    )
    return Verdict(headline, detail, True)


def _compared(first: Judged, second: Judged) -> Verdict:
    difference = compare(second.evaluation, first.evaluation, WORST)
    a, b = first.evaluation.worst, second.evaluation.worst
    detail = (
        f"In the worst case over {_attacks(second)}, {second.name} keeps at most {percent(b.accuracy)} % and "
        f"{first.name} at most {percent(a.accuracy)} % of the same {difference.n} images. The difference is "
        f"{points(difference.difference)} points, with a 95 % interval from {span(difference)} (paired; McNemar's "
        f"p {_equals(difference)})."
    )
    if difference.cannot_tell:
        return Verdict(f"The sample cannot tell the {second.name} checkpoint from the {first.name} one.", detail, False)
    better, worse = (second, first) if difference.difference > 0 else (first, second)
    by = f"{100 * abs(difference.difference):.1f} points"
    return Verdict(f"The {better.name} checkpoint withstands more than the {worse.name} one, by {by}.", detail, True)


def _attacks(model: Judged) -> str:
    count = len(model.evaluation.attacks)
    return "one attack" if count == 1 else f"{_WORDS.get(count, str(count))} attacks"


def _equals(difference: PairedDifference) -> str:
    text = probability(difference.p_value)
    return text if text.startswith("<") else f"= {text}"
