"""The sections on the evidence for the numbers: flags, counts, settings, checks and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from advsphere.evaluation.rows import Row
from advsphere.report.accuracy import differences, rows_of
from advsphere.report.collect import ModelReport
from advsphere.report.rendering import key, probability, render, table
from advsphere.report.sections import section
from advsphere.stats import PairedDifference

WIDTH = 2
"""So many models, with three columns each, fit the page."""


class Fact(NamedTuple):
    """A label with its values. Each value comes with the names of its models, "" for all models."""

    label: str
    values: list[tuple[str, str]]


@section("Flags", order=30)
def flags(models: Sequence[ModelReport]) -> Markup:
    """The flags of every evaluation, and the signs of gradient masking."""
    every = {name: evaluation for model in models for name, evaluation in model.checkpoints.items()}
    found = [(name, evaluation.collapsed, "") for name, evaluation in every.items() if evaluation.collapsed]
    found += [(name, flag, "") for name, evaluation in every.items() for flag in evaluation.flags]
    found += [
        (name, f"sign of gradient masking, {sign.check}: {sign.detail}", sign.advice)
        for name, evaluation in every.items()
        for sign in evaluation.raised
    ]
    looked = _fact("", list(every), {name: evaluation.looked_for for name, evaluation in every.items()})
    return render("flags", flags=found, looked=looked)


@section("Counts and cost", order=110)
def counts(models: Sequence[ModelReport]) -> Markup:
    """The counts behind each accuracy, and the cost of each attack."""

    def counted(row: Row | None) -> list[str]:
        return [f"{row.k}", f"{row.forwards or 0:,}", f"{row.seconds:.1f}"] if row else [""] * 3

    def discordant(d: PairedDifference | None) -> list[str]:
        return [f"{d.only_first}", f"{d.only_second}", probability(d.p_value)] if d else [""] * 3

    names = [model.name for model in models]
    groups = [(name, 3) for name in key(names)]
    parts = [slice(i, i + WIDTH) for i in range(0, len(models), WIDTH)]
    costs = [
        table(
            f"Correct images out of {models[0].evaluation.worst.n}, images passed through the model, and seconds.",
            ["attack", *["correct", "forwards", "seconds"] * len(groups[part])],
            [[name, *(text for row in row_s[part] for text in counted(row))] for name, row_s in rows_of(models)],
            groups=groups[part],
        )
        for part in parts
    ]
    sampled = any(model.evaluation.bound for model in models)
    widest = ", in the worst case the largest that the images outside a sample allow" if sampled else ""
    pairs = [
        table(
            f"Images that only {name} or only {names[0]} classifies correctly, and McNemar's exact p-value{widest}.",
            ["attack", f"only {name}", f"only {names[0]}", "p"],
            [[attack, *discordant(row[i])] for attack, row in differences(models)],
        )
        for i, name in enumerate(names[1:])
    ]
    return Markup("").join([*costs, *pairs])


@section("Training", order=120)
def training(models: Sequence[ModelReport]) -> Markup | None:
    """The settings that differ between the training runs, then the settings that all share."""
    known = [model.training for model in models]
    if not any(known):
        return None
    names = [model.name for model in models]
    differ = [_fact(label, names, dict(zip(names, values, strict=True))) for label, values in _differing(known)]
    same = [Fact(label, [("", text_of(value))]) for label, value in _same(known).items()]
    return render("training", differ=differ, same=same, several=len(models) > 1)


@section("Attacks", order=130)
def attacks(models: Sequence[ModelReport]) -> Markup:
    """Every setting of every attack."""
    found = [{row.name: row.settings for row in model.evaluation.attacks} for model in models]
    return _facts("Every setting of every attack. The attacker maximises the loss.", models, found)


@section("Checks", order=140)
def checks(models: Sequence[ModelReport]) -> Markup:
    """The checks before the first attack."""
    found = [
        {f.check: f.detail if f.status == "ok" else f"{f.status}: {f.detail}" for f in model.evaluation.findings or ()}
        for model in models
    ]
    return _facts("The checks before the first attack. A model that fails one is not evaluated.", models, found)


@section("Provenance", order=150)
def provenance(models: Sequence[ModelReport]) -> Markup:
    """Seeds, versions, hardware and checksums."""

    def facts(model: ModelReport) -> dict[str, Any]:
        evaluation = model.evaluation
        parts = {k: v for k, v in evaluation.identity.items() if isinstance(v, Mapping) and k != "attacks"}
        settings = {k: v for k, v in evaluation.identity.items() if not isinstance(v, Mapping)}
        environments = {f"environment {i}": e for i, e in enumerate(evaluation.environments, 1)}
        ledgers = {f"ledger of seed {seed}": {"checksum": found.ledger} for seed, found in model.seeds}
        ledgers = ledgers or {"ledger": {"checksum": evaluation.ledger}}
        return {**parts, "evaluation": settings, **environments, **ledgers}

    lead = "Checksums are SHA-256. The same evaluation with the same outcomes has the same ledger checksum."
    return _facts(lead, models, [facts(model) for model in models])


def _facts(lead: str, models: Sequence[ModelReport], known: Sequence[Mapping[str, Any]]) -> Markup:
    """A list of facts under a leading sentence."""
    names = [model.name for model in models]
    labels = dict.fromkeys(label for facts in known for label in facts)
    found = [
        _fact(label, names, {n: facts[label] for n, facts in zip(names, known, strict=True) if label in facts})
        for label in labels
    ]
    return render("facts", lead=lead, facts=found)


def _fact(label: str, names: Sequence[str], values: Mapping[str, Any]) -> Fact:
    """A fact from each model's value; models with equal values share one entry."""
    holders: dict[str, list[str]] = {}
    for name, value in values.items():
        holders.setdefault(text_of(value), []).append(name)
    shared = list(holders.values()) == [names]
    return Fact(label, [("" if shared else ", ".join(those), text) for text, those in holders.items()])


def text_of(value: Any) -> str:
    """A setting as text; among nested settings the name comes first."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(text_of, value))})" if value else "none"
    if isinstance(value, Mapping):
        named = sorted(value.items(), key=lambda item: item[0] != "name")
        return ", ".join(f"{k} ({text_of(v)})" if isinstance(v, Mapping) else f"{k} {text_of(v)}" for k, v in named)
    return str(value)


def _differing(values: Sequence[Any], path: str = "") -> list[tuple[str, list[Any]]]:
    """The innermost settings that differ, with each model's value: ("training.seed", [0, 1])."""
    if all(value == values[0] for value in values):
        return []
    if not all(isinstance(value, Mapping) for value in values):
        return [(path, list(values))]
    keys = dict.fromkeys(key for value in values for key in value)
    return [d for k in keys for d in _differing([v.get(k) for v in values], f"{path}.{k}" if path else k)]


def _same(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that all have in common, with their nesting."""
    found: dict[str, Any] = {}
    for key_, value in values[0].items():
        others: list[Any] = [other.get(key_) for other in values]
        if all(other == value for other in others):
            found[key_] = value
        elif all(isinstance(other, Mapping) for other in others) and (inner := _same(others)):
            found[key_] = inner
    return found
