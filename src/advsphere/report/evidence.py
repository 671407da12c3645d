"""The sections for whoever wants to know what the numbers rest on: flags, counts, settings, provenance, commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from advsphere.evaluation import WORST, Row
from advsphere.report import rendering as numbers
from advsphere.report.collect import Command, ModelReport
from advsphere.report.rendering import render
from advsphere.report.sections import Section, differences, rows_of
from advsphere.stats import PairedDifference


class Entry(NamedTuple):
    """A line of a list of facts. values: (names of the models it holds for, "" for all of them; text)."""

    label: str
    values: list[tuple[str, str]]


def flags(models: Sequence[ModelReport]) -> Section:
    """What a reader must know before believing the numbers."""
    every = {name: evaluation for model in models for name, evaluation in model.checkpoints.items()}
    found = [(name, flag, "") for name, evaluation in every.items() for flag in evaluation.flags]
    found += [
        (name, f"sign of gradient masking, {sign.check}: {sign.detail}", sign.advice)
        for name, evaluation in every.items()
        for sign in evaluation.raised
    ]
    looked = [(name, evaluation.looked_for) for name, evaluation in every.items()]
    return Section("flags", "Flags", render("flags", flags=found, looked=looked))


def counts(models: Sequence[ModelReport]) -> Section:
    """How many examples each number is of, and what it cost to get."""

    def counted(row: Row | None) -> tuple[str, ...]:
        return (f"{row.k}", f"{row.forwards:,}", f"{row.seconds:.1f}") if row else ("", "", "")

    def discordant(d: PairedDifference | None) -> tuple[str, ...]:
        return (f"{d.only_first}", f"{d.only_second}", numbers.probability(d.p_value)) if d else ("", "", "")

    rows = [
        (name, [counted(row) for row in row_s], [discordant(d) for d in pairs])
        for (name, row_s), (_, pairs) in zip(rows_of(models), differences(models), strict=True)
    ]
    return Section(
        "counts",
        "Counts and cost",
        render("counts", models=models, rows=rows, n=models[0].evaluation.worst.n, worst=WORST),
    )


def training(models: Sequence[ModelReport]) -> Section | None:
    """What differs between the trainings, then what is the same."""
    known = [model.training for model in models]
    if not any(known):
        return None
    names = [model.name for model in models]
    differ = [_entry(label, models, dict(zip(names, values, strict=True))) for label, values in _differing(known)]
    same = [Entry(label, [("", text_of(value))]) for label, value in _same(known).items()]
    return Section("training", "Training", render("training", differ=differ, same=same, several=len(models) > 1))


def attacks(models: Sequence[ModelReport]) -> Section:
    """Every setting of every attack."""
    found = [{row.name: row.settings for row in model.evaluation.attacks} for model in models]
    lead = "Every setting of every attack, as it ran. Losses are those of the attacker, who raises them."
    return Section("attacks", "Attacks", render("facts", lead=lead, entries=_entries(models, found)))


def preflight(models: Sequence[ModelReport]) -> Section:
    """What was checked before the first attack."""
    found = [
        {f.check: f.detail if f.status == "ok" else f"{f.status}: {f.detail}" for f in model.evaluation.findings}
        for model in models
    ]
    lead = "Checked before the first attack. A model that fails one of these is not evaluated at all."
    return Section("checks", "Checks", render("facts", lead=lead, entries=_entries(models, found)))


def provenance(models: Sequence[ModelReport]) -> Section:
    """Seeds, versions, hardware and checksums."""

    def facts(model: ModelReport) -> dict[str, Any]:
        evaluation = model.evaluation
        parts = {k: v for k, v in evaluation.identity.items() if isinstance(v, Mapping) and k != "attacks"}
        settings = {k: v for k, v in evaluation.identity.items() if not isinstance(v, Mapping)}
        environments = {f"environment {i}": e for i, e in enumerate(evaluation.environments, 1)}
        ledgers = {f"ledger of seed {seed.number}": {"checksum": seed.evaluation.ledger} for seed in model.seeds}
        ledgers = ledgers or {"ledger": {"checksum": evaluation.ledger}}
        return {**parts, "evaluation": settings, **environments, **ledgers}

    lead = "Checksums are SHA-256. The same evaluation with the same outcomes has the same ledger checksum."
    entries = _entries(models, [facts(model) for model in models])
    return Section("provenance", "Provenance", render("facts", lead=lead, entries=entries))


def reproduce(commands: Sequence[Command]) -> Section | None:
    """What to type to get these numbers again, and to have them checked."""
    if not commands:
        return None
    return Section("reproduce", "Reproduce and verify", render("reproduce", commands=commands))


def text_of(value: Any) -> str:
    """A setting as a reader may take it; of nested ones the name comes first."""
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


def _entries(models: Sequence[ModelReport], facts: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """The facts about each model under each label; a model without that label is left out."""
    labels = list(dict.fromkeys(label for known in facts for label in known))
    return [
        _entry(label, models, {m.name: known[label] for m, known in zip(models, facts, strict=True) if label in known})
        for label in labels
    ]


def _entry(label: str, models: Sequence[ModelReport], values: Mapping[str, Any]) -> Entry:
    """A value for each model by name; models that agree are put together."""
    holders: dict[str, list[str]] = {}
    for name, value in values.items():
        holders.setdefault(text_of(value), []).append(name)
    shared = list(holders.values()) == [[model.name for model in models]]
    return Entry(label, [("" if shared else ", ".join(names), text) for text, names in holders.items()])


def _differing(values: Sequence[Any], path: str = "") -> list[tuple[str, list[Any]]]:
    """The innermost settings that are not the same for all: ("training.seed", [0, 1])."""
    if all(value == values[0] for value in values):
        return []
    if not all(isinstance(value, Mapping) for value in values):
        return [(path, list(values))]
    keys = dict.fromkeys(key for value in values for key in value)
    return [d for k in keys for d in _differing([v.get(k) for v in values], f"{path}.{k}" if path else k)]


def _same(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that all have in common, nested as they are."""
    found: dict[str, Any] = {}
    for key, value in values[0].items():
        others: list[Any] = [other.get(key) for other in values]
        if all(other == value for other in others):
            found[key] = value
        elif all(isinstance(other, Mapping) for other in others) and (inner := _same(others)):
            found[key] = inner
    return found
