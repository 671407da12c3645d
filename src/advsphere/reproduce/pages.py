"""Write Markdown from stored results: a page for each table, an overview of every pair, and the README's table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from advsphere.comparison.gain import BARE, Gain, covers_the_method, in_percent
from advsphere.evaluation.ledger import CLEAN
from advsphere.evaluation.results import WORST
from advsphere.files import write_atomically
from advsphere.reproduce.cells import (
    Entry,
    Family,
    Pair,
    TwoDecays,
    entry,
    every_pair,
    families,
    largest,
    pairs,
    paper_gains,
    two_decays,
)
from advsphere.reproduce.figures import gains_figure, save, together_figure
from advsphere.reproduce.groups import Group, groups_of, mean_by_decay
from advsphere.reproduce.markdown import head, line, percent, points, provenance
from advsphere.reproduce.results import StoredResult, write_between
from advsphere.reproduce.sections import sections
from advsphere.reproduce.tables import TABLES, Table

PICTURE = "together.svg"
_SHOWS = "Gain of HE with each objective under PGD on bare cosines and in the worst case"


def overview(every: Sequence[Pair]) -> list[str]:
    """A line for each pair of each table with its gain under the headline attack and in the worst case, and the mean
    over the objectives of each network.
    """
    heads = ["table", "pair", "network, images", "weight decay", "seeds", "n", "gain under the headline attack",
             "gain in the worst case", "share that remains", "verdict"]  # fmt: skip
    lines = [
        "## Every pair",
        "",
        "Points, with 95 % intervals. A pair is listed under the first table that has it.",
        "",
    ]
    lines += [*head(heads), *(line(_told(one)) for one in every)]
    return [*lines, "", *_together(families(every)), *_two_decays(two_decays(every))]


def summary(family: Family, pages: Path, folder: Path) -> str:
    """A family as a table of both arms and their difference, for a page in `folder`. The picture is in `pages`."""
    heads = ["objective", "test images", "threat", "seeds", "clean", "bare cosines", "gain", "worst case", "gain"]
    lines = [
        f"{family.network}, weight decay {family.weight_decay}. Accuracy in % without HE → with HE, averaged over "
        "seeds, and the gain in points with its 95 % interval. With three seeds or more it covers images and seeds, "
        f"and in the last row pairs and images. With two seeds it is about these checkpoints: {covers_the_method(2)}.",
        "",
        *head(heads),
    ]
    for one in family.members:
        clean, before, after = (one.gains.gain(name) for name in (CLEAN, one.gains.pgd, WORST))
        attacks = len(one.gains.gains) - 2  # without clean and the worst case
        of = [one.baseline, f"{one.gains.n} of {one.group.data}", one.group.threat, str(min(one.gains.seeds))]
        seen = f"{one.gains.pgd.removesuffix(BARE)}: {_arms(before)}"
        kept = [_points(before), f"of {attacks} attacks: {_arms(after)}", _points(after)]
        lines.append(line([*of, _arms(clean), seen, *kept]))
    together = ["", f"**{_mean(family)}**", "", f"**{_mean(family, WORST)}**"]
    lines.append(line(["**together**", "", "", "", "", *together]))
    picture = Path(os.path.relpath(pages / PICTURE, folder)).as_posix()
    return "\n".join([*lines, "", f"![{_SHOWS}]({picture})"])


def _told(pair: Pair) -> list[str]:
    group, gains = pair.group, pair.gains
    decay = [] if group.weight_decay is None else [f"{group.weight_decay:g}"]
    decay += ["each at its best"] if pair.at_their_best else []
    share = "" if gains.share is None else "{} % ({} to {})".format(*map(in_percent, gains.share))
    images = f"{group.network}, {group.data}" + ", last checkpoint" * (group.checkpoint == "last")
    seeds = f"{gains.seeds[0]}" if gains.seeds[0] == gains.seeds[1] else f"{gains.seeds[0]}, {gains.seeds[1]}"
    kept = [f"{gains.pgd}: {_points(gains.gain(gains.pgd))}", _points(gains.gain(WORST))]
    link = f"[{pair.table.name}]({pair.table.name}.md)"
    who = f"{pair.method} minus {pair.baseline}"
    return [link, who, images, ", ".join(decay), seeds, str(gains.n), *kept, share, gains.verdict]


def _together(found: Sequence[Family]) -> list[str]:
    told = (
        "The mean over pairs. A pair is the difference between an objective with HE and the same objective without, on "
        "one set of images. Each pair counts once, averaged over its seeds, as in the first table above that has it. "
        "The intervals cover pairs and images (Student's t)."
    )
    lines = [
        line([
            f"{family.network}, {family.weight_decay}",
            ", ".join(f"{one.method} on {one.group.data}, {one.group.threat}" for one in family.members),
            _mean(family),
            _mean(family, WORST),
        ])
        for family in found
    ]  # fmt: skip
    heads = ["network, weight decay", "pairs", "gain at s = 1", "gain in the worst case"]
    return ["## Together", "", told, "", *head(heads), *lines, "", f"![{_SHOWS}]({PICTURE})"] if lines else []


def _two_decays(found: Sequence[TwoDecays]) -> list[str]:
    told = (
        "The gain at the second weight decay minus the gain at the first, over the seeds and images that both have. A "
        "difference of two gains is paired by image, so it is more precise than the intervals of the two gains suggest."
    )
    heads = ["table", "pair", "network, images", "weight decays", "seeds", "change under the headline attack",
             "change in the worst case"]  # fmt: skip
    lines = []
    for one in found:
        who = _told(one.first)[:3]
        decays = f"{one.second.group.weight_decay:g} minus {one.first.group.weight_decay:g}"
        changes = (one.change(attack) for attack in (one.first.gains.pgd, WORST))
        shown = [points(change.value, change.low, change.high) for change in changes]
        lines.append(line([*who, decays, ", ".join(map(str, one.seeds)), *shown]))
    return ["", "## Two weight decays", "", told, "", *head(heads), *lines] if lines else []


def _mean(family: Family, attack: str | None = None) -> str:
    found = family.mean(attack)
    return points(found.value, found.low, found.high)


def _arms(gain: Gain) -> str:
    return f"{100 * gain.baseline:.1f} → {100 * gain.method:.1f}"


def _points(gain: Gain) -> str:
    return points(gain.difference, gain.low, gain.high)


INTRODUCTION = (
    "Accuracy in %, averaged over seeds, with its 95 % interval; under attack it is an upper bound. Below it is the "
    "paper's number, for its own, larger networks, and our number minus the paper's. With one or two seeds an interval "
    "covers images only and holds for these checkpoints; with three or more it holds for the method. "
    '[Statistics](../statistics.md) says how well each covers. Attacks marked "(s = 1)" see bare cosines, as in the '
    "paper's official evaluators; the next column is the same attack on the network's own logits. \"Cannot tell\" "
    "means that the interval contains 0 or, for an attack that is neither the headline's nor the worst case, that the "
    "difference is not significant after Holm's correction. Minutes are wall-clock training time."
)


def write(
    files: Mapping[Path, Sequence[StoredResult]], folder: Path, into: Path | None = None, more: Sequence[Table] = ()
) -> list[Path]:
    """Write a page for each table with its figures, and README.md, which lists the pages and every pair.

    `files` holds the results by their file, `more` holds user-defined tables. `into` is a page that gets the table of
    all objectives, between the markers of `replace_between`. Returns the written pages.
    """
    written, index = [], ["# Results", "", "Generated from `results/` by `make pages`.", ""]
    for table in (*TABLES.values(), *more):
        path = folder / f"{table.name}.md"
        text, measured = page(table, files, folder)
        write_atomically(path, text.encode())
        index.append(f"- [{table.title}]({path.name}){'' if measured else ': not measured yet'}")
        written.append(path)
    every = every_pair(files)
    write_atomically(folder / "README.md", "\n".join([*index, "", *overview(every), ""]).encode())
    family = largest(families(every))
    if family is not None:
        save(together_figure(family), folder / PICTURE)
    if into is not None:
        told = summary(family, folder, into.parent) if family else "No network has three objectives measured yet."
        write_between(into, told)
    return [*written, folder / "README.md", *([into] if into else [])]


def page(table: Table, files: Mapping[Path, Sequence[StoredResult]], folder: Path | None = None) -> tuple[str, bool]:
    """The text of a table's page, and whether it has results. Figures are written into `folder`, if given."""
    parts = []
    for file, results in files.items():
        for number, group in enumerate(groups_of(table, results)):
            parts.append(_section(group, table, file, folder, f"{table.name}-{file.stem}-{number}.svg"))
        if table.measure != "attacks":
            parts += sections(table, results, file, folder)
    command = f"    advsphere reproduce {table.name} --budget cpu\n    advsphere results results --pages docs/results"
    commands = [command] if table.name in TABLES else []
    blocks = [f"# {table.title}", _introduction(table), *commands, *(parts or ["Not measured yet."])]
    return "\n\n".join(blocks) + "\n", bool(parts)


def _introduction(table: Table) -> str:
    """The page's introduction, with the paper's own gains."""
    if table.introduction:
        return table.introduction
    told = INTRODUCTION
    if table.network:
        told += f" The paper's numbers are for our network if the paper has it, else for its {table.network}."
    told += " m-HE is our reading of the paper." if any(arm.variant == "m-HE" for arm in table.methods) else ""
    worst = "; ".join(paper_gains(table))
    return told + (f"\n\nThe paper's gains: {worst}." if worst else "")


def _section(group: Group, table: Table, file: Path, folder: Path | None, figure: str) -> str:
    attacks, (found, refused) = group.attacks(), pairs(group, table)
    lines = [f"## {group.title}", "", *_grid(group, table, attacks, found), ""]
    for pair in found:
        of = "the method" if pair.gains.of_the_method else "these checkpoints"
        who = f"**{pair.method}** minus {pair.baseline}"
        lines.append(f"- {who}, {pair.gains.verdict}: {pair.gains.sentence} This holds for {of}.")
    lines += [f"- {sentence}" for sentence in refused]
    best = [name for name in group.arms if group.at_its_best(name)]
    lines += ["", _choice(group, best)] if best else []
    if folder is not None and found:
        save(gains_figure(found), folder / figure)
        lines += ["", f"![Gain of each method under each attack]({figure})"]
    results = [one for arm in group.arms.values() for one in arm]
    return "\n".join([*lines, "", provenance(results, file)])


def _choice(group: Group, best: Sequence[str]) -> str:
    """A sentence on the arms that have the weight decay preferred on held-out images."""
    told = []
    for name in best:
        means = mean_by_decay(group.tried[name])
        told.append(f"{name} ({', '.join(f'{100 * mean:.1f} % at {decay:g}' for decay, mean in means.items())})")
    return f"Arms at their best weight decay, by PGD-10 accuracy on held-out training images: {'; '.join(told)}."


def _grid(group: Group, table: Table, attacks: Sequence[str], found: Sequence[Pair]) -> list[str]:
    heads = ["method", "seeds", "epochs", "minutes", *attacks]
    lines = head(heads)
    for name, arm in group.arms.items():
        seeds = ", ".join(str(one.run["seed"]) for one in arm)
        minutes = f"{fmean(one.run['trained']['seconds'] for one in arm) / 60:.1f}"
        if "minutes" in (numbers := table.printed(name, group.network)):
            minutes += f"<br>paper {numbers['minutes']:.2f}"
        decay = f" (weight decay {arm[0].run['weight_decay']:g})" if group.weight_decay is None else ""
        cells = [shown(entry(group, name, attack, table)) for attack in attacks]
        lines.append(line([name + decay, seeds, str(arm[0].run["epochs"]), minutes, *cells]))
        for pair in found:
            if pair.method == name:
                alone = {len(pair.seeds)} != {len(arm), len(group.arms[pair.baseline])}
                shared = f"*shared: {', '.join(map(str, pair.seeds))}*" if alone else ""
                gains = [_gain(pair, attack) for attack in attacks]
                lines.append(line([f"*minus {pair.baseline}*", shared, "", "", *gains]))
    return lines


def shown(found: Entry | None) -> str:
    """An entry as text: the mean and its interval, each seed if there are several, and the paper's number."""
    if found is None:
        return ""
    parts = [percent(found.value, found.low, found.high)]
    if len(found.seeds) > 1:
        parts.append("seeds " + ", ".join(f"{100 * seed:.1f}" for seed in found.seeds))
    if found.paper is not None:
        parts.append(f"paper {100 * found.paper:.2f}: {100 * (found.value - found.paper):+.1f}")
    return "<br>".join(parts)


def _gain(pair: Pair, attack: str) -> str:
    gain = next((gain for gain in pair.gains.gains if gain.name == attack), None)
    if gain is None:
        return ""
    told = f"*{points(gain.difference, gain.low, gain.high)}*"
    told += "" if gain.clear else "<br>*cannot tell*"
    theirs = pair.paper_gain(attack)
    return told + ("" if theirs is None else f"<br>*paper {100 * theirs:+.2f}*")
