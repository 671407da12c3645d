"""The conclusions of a report, in sentences derived from the intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from advsphere.comparison.gain import SHOWN, Gain, Gains, covers_the_method, in_percent, measure_gains
from advsphere.errors import UserError
from advsphere.evaluation.results import WORST
from advsphere.evaluation.unsampled import bound_of, compare, drawn
from advsphere.report.collect import ModelReport
from advsphere.report.rendering import limits, percent, points, probability, span
from advsphere.stats import ENOUGH_SEEDS, PairedDifference

_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


class KeyNumber(NamedTuple):
    """A number in large type with its 95 % interval and its unit; the value is "" if it is withheld."""

    label: str
    value: str
    interval: str
    unit: str


class Conclusion(NamedTuple):
    """A conclusion about one model, or about a model and the baseline.

    Attributes:
        headline: One sentence.
        detail: A sentence or two with the numbers behind it.
        numbers: The most important numbers, shown in large type.
    """

    headline: str
    detail: str
    numbers: tuple[KeyNumber, ...] = ()


def conclusions(models: Sequence[ModelReport]) -> list[Conclusion]:
    """A conclusion for each model after the first, the baseline; for a single model, one on its robust accuracy.

    The worst case over all attacks decides. Raises UserError if the images or the threat models differ.
    """
    if len(models) == 1:
        return [_alone(models[0])]
    return [_without_verdict(models[0], model) or _compared(models[0], model) for model in models[1:]]


def cautions(models: Sequence[ModelReport]) -> list[str]:
    """Sentences that limit every conclusion of a report."""
    every = [evaluation for model in models for evaluation in model.checkpoints.values()]
    fewest = min(len(model.seeds) for model in models)
    if len(models) > 1 and fewest >= ENOUGH_SEEDS:
        scope = f"Conclusions hold for these methods on these images, based on {_word(fewest)} seeds of each."
    elif len(every) > 1:
        why = f": {covers_the_method(max(fewest, 1))}" if len(models) > 1 else ""
        scope = (
            f"Conclusions hold for these {_word(len(every))} checkpoints on these images only. Conclusions about a "
            f"training method need {_word(ENOUGH_SEEDS)} seeds of each{why}."
        )
    else:
        scope = "Conclusions hold for this checkpoint on these images only."
    flags = sum(len(evaluation.flags) + len(evaluation.raised) for evaluation in every)
    raised = ["One flag was raised; read it first."] if flags == 1 else [f"{flags} flags were raised; read them first."]
    bound = "Robust accuracy is an upper bound: a stronger attack may lower it."
    return [*(raised if flags else []), bound, scope]


def survived(first: ModelReport, second: ModelReport) -> Gains | None:
    """How much of the second model's gain over the first survives; None if they share no PGD attack."""
    try:
        return measure_gains([*first.checkpoints.values()], [*second.checkpoints.values()])
    except UserError:
        return None


def _without_verdict(*models: ModelReport) -> Conclusion | None:
    """The conclusion if the attacks fail on one of the models, so that its numbers are no robust accuracy."""
    for model in models:
        for evaluation in model.checkpoints.values():
            if sign := evaluation.refuted(evaluation.worst):
                headline = f"There is no verdict on the robust accuracy of {model.name}."
                return Conclusion(headline, f"The attacks fail on it: {sign}.")
    return None


def _alone(model: ModelReport) -> Conclusion:
    if unknown := _without_verdict(model):
        return unknown
    row, clean = model.evaluation.worst, model.evaluation.clean
    detail = (
        f"In the worst case over {_attacks(model)}, {row.k} of {row.n} images are still classified correctly "
        f"({limits(row.interval, ' to ')} %, 95 % interval)."
    )
    numbers = (
        KeyNumber("clean accuracy", percent(clean.accuracy), limits(clean.interval, " to "), "%"),
        KeyNumber("robust accuracy (upper bound)", percent(row.accuracy), limits(row.interval, " to "), "%"),
    )
    return Conclusion(f"The robust accuracy of {model.name} is at most {percent(row.accuracy)} %.", detail, numbers)


def _compared(first: ModelReport, second: ModelReport) -> Conclusion:
    found = survived(first, second)
    noun = "checkpoint"
    if found is not None and max(found.seeds) > 1:
        noun = "" if found.of_the_method else "checkpoints"
        difference: Gain | PairedDifference = (gain := found.gain(WORST))
        new, old, tells = gain.method, gain.baseline, gain.clear
        sample = f"{found.n} images, averaged over {found.seeds[1]} and {found.seeds[0]} seeds"
        how = "images and seeds" if found.of_the_method else "images only"
        test = "p"
    else:
        difference = (pair := compare(second.evaluation, first.evaluation, WORST))
        new, old, tells = second.evaluation.worst.accuracy, first.evaluation.worst.accuracy, not pair.cannot_tell
        sample, how, test = f"{pair.n} images", "images (paired)", "McNemar's p"
    of_first, of_second = ([*map(bound_of, model.checkpoints.values())] for model in (first, second))
    if drawn((of_first, of_second)):
        how += ", and for all that attacks on a sample of the images left open"
    p = probability(difference.p_value)
    detail = (
        f"In the worst case over {_attacks(second)}, accuracy is at most {percent(new)} % for {second.name} and at "
        f"most {percent(old)} % for {first.name} on the same {sample}. The difference is "
        f"{points(difference.difference)} points, with a 95 % interval from {span(difference)} for the sampling of "
        f"{how}; {test} {p if p.startswith('<') else f'= {p}'}."
    )
    names = [f"the {model.name} {_kind(model, noun)}" if noun else model.name for model in (first, second)]
    return Conclusion(_headline(names, difference.difference, tells, found), detail, _numbers(found) if found else ())


def _kind(model: ModelReport, noun: str) -> str:
    """What a model is called: only that of a training run is one of several checkpoints."""
    return "model" if model.source is not None and not model.source.configs else noun


def _headline(names: Sequence[str], difference: float, tells: bool, found: Gains | None) -> str:
    """Whether the gain survives, if the sample tells; else which of the two models is more robust."""
    old, new = names
    if found is not None and found.verdict in SHOWN:
        return f"In the worst case {SHOWN[found.verdict].format(f'the gain of {new} over {old}')}."
    if not tells:
        return f"The sample cannot tell {new} from {old}."
    better, worse = (new, old) if difference > 0 else (old, new)
    return f"The robust accuracy of {better} is {100 * abs(difference):.1f} points higher than that of {worse}."


def _numbers(found: Gains) -> tuple[KeyNumber, ...]:
    """The gain under PGD, the gain in the worst case, and the share of the first that survives."""
    before, after = found.gain(found.pgd), found.gain(WORST)
    if found.share is None:
        why = "there is no gain" if found.verdict == "no gain" else "withheld: the gain itself may be 0"
        share = KeyNumber("share that survives", "", why, "")
    else:
        value, low, high = map(in_percent, found.share)
        share = KeyNumber("share that survives", value, f"{low} to {high}", "%")
    return (
        KeyNumber(f"gain under {found.pgd}", points(before.difference), span(before), "points"),
        KeyNumber("gain in the worst case", points(after.difference), span(after), "points"),
        share,
    )


def _attacks(model: ModelReport) -> str:
    count = sum(row.ran for row in model.evaluation.attacks)
    return "one attack" if count == 1 else f"{_word(count)} attacks"


def _word(count: int) -> str:
    return _WORDS.get(count, str(count))
