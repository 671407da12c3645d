"""A page of Markdown for each table, written from rows of results alone: nothing on it is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from advsphere.files import write_atomically
from advsphere.reproduce import inside
from advsphere.reproduce.cells import Cell, Pair, cell, pairs, paper_gain, paper_survival
from advsphere.reproduce.figures import gains_figure, save, together_figure
from advsphere.reproduce.grid import means
from advsphere.reproduce.groups import Group, groups_of
from advsphere.reproduce.markdown import line, points, provenance, rule
from advsphere.reproduce.overview import PICTURE, overview, summary
from advsphere.reproduce.tables import TABLES, Table
from advsphere.reproduce.together import compared, families, largest
from advsphere.results import Row, replace_between

INTRODUCTION = (
    "Accuracy in %, the mean over seeds, with its 95 % interval; under attack it is an upper bound. Below it, the "
    "paper's number for its own, larger networks, and what ours is less that. An interval of one or two seeds is over "
    'images alone, and speaks of these checkpoints; from three on, of the method. Attacks "(s = 1)" see bare cosines, '
    "as the paper's official evaluators do; what follows them is the same attack on the logits as they are. "
    '"Cannot tell" stands where the interval holds 0, or would after Holm\'s correction for so many attacks. '
    "Minutes are of training, by the clock."
)


def write(files: Mapping[Path, Sequence[Row]], folder: Path, into: Path | None = None) -> list[Path]:
    """Write a page for each table with its figures, and README.md, which lists them and every pair. files: rows by the
    file that they are in. into: a page that gets what all say together, between the markers of `replace_between`.
    """
    written, index = [], ["# Results", "", "Generated from the rows in `results/` by `make pages`.", ""]
    for table in TABLES.values():
        path = folder / f"{table.name}.md"
        text, measured = page(table, files, folder)
        write_atomically(path, text.encode())
        index.append(f"- [{table.title}]({path.name}){'' if measured else ': not measured yet'}")
        written.append(path)
    every = compared(files)
    write_atomically(folder / "README.md", "\n".join([*index, "", *overview(every), ""]).encode())
    family = largest(families(every))
    if family is not None:
        save(together_figure(family), folder / PICTURE)
    if into is not None:
        told = summary(family, folder, into.parent) if family else "No network has three objectives measured yet."
        write_atomically(into, replace_between(into.read_text(), told).encode())
    return [*written, folder / "README.md", *([into] if into else [])]


def page(table: Table, files: Mapping[Path, Sequence[Row]], folder: Path | None = None) -> tuple[str, bool]:
    """The text of a table's page, and whether anything is measured. folder: where its figures are written; none are
    made without it.
    """
    parts = []
    for file, rows in files.items():
        for number, group in enumerate(groups_of(table, rows)):
            parts.append(_section(group, table, file, folder, f"{table.name}-{file.stem}-{number}.svg"))
        if table.measure != "attacks":
            parts += inside.sections(table, rows, file, folder)
    command = f"    advsphere reproduce {table.name} --budget cpu\n    advsphere results --pages docs/results"
    told = _introduction(table) if table.measure == "attacks" else inside.INTRODUCTIONS[table.name]
    body = "\n\n".join(parts) or "Not measured yet."
    return f"# {table.title}\n\n{told}\n\n{command}\n\n{body}\n", bool(parts)


def _introduction(table: Table) -> str:
    """What the cells are, and what the paper's own numbers say of the worst case."""
    told = INTRODUCTION
    if table.network:
        told += f" The paper's numbers are those of its {table.network}, or of our own network where the paper has it."
    told += " m-HE is our reading of it." if any(arm.variant == "m-HE" for arm in table.arms) else ""
    worst = "; ".join(paper_survival(table))
    return told + (f"\n\nThe paper's own gains: {worst}." if worst else "")


def _section(group: Group, table: Table, file: Path, folder: Path | None, figure: str) -> str:
    attacks, found = group.attacks(), pairs(group, table)
    lines = [f"## {group.title}", "", *_grid(group, table, attacks, found), ""]
    for pair in found:
        if pair.gains is None:
            lines.append(f"- {pair.method} and {pair.baseline} are not compared: {pair.refused}.")
        else:
            of = "the method" if pair.gains.of_the_method else "these checkpoints"
            who = f"**{pair.method}** less {pair.baseline}"
            lines.append(f"- {who}, {pair.gains.verdict}: {pair.gains.sentence} This is about {of}.")
    best = [name for name in group.arms if group.at_its_best(name)]
    lines += ["", _choice(group, best)] if best else []
    if folder is not None and any(pair.gains for pair in found):
        save(gains_figure(found, table), folder / figure)
        lines += ["", f"![What each method gains under each attack]({figure})"]
    rows = [row for arm in group.arms.values() for m in arm for row in m.rows.values()]
    return "\n".join([*lines, "", provenance(rows, file)])


def _choice(group: Group, best: Sequence[str]) -> str:
    """Which arms have the weight decay that was chosen, and by what."""
    told = [
        f"{name} ({', '.join(f'{100 * mean:.1f} % at {decay:g}' for decay, mean in means(group.tried[name]).items())})"
        for name in best
    ]
    return f"At its best weight decay, by PGD-10 on held-out training images: {'; '.join(told)}."


def _grid(group: Group, table: Table, attacks: Sequence[str], found: Sequence[Pair]) -> list[str]:
    heads = ["method", "seeds", "epochs", "minutes", *attacks]
    lines = rule(heads)
    for name, arm in group.arms.items():
        seeds = ", ".join(str(m.any["seed"]) for m in arm)
        minutes = f"{fmean(m.any['trained']['seconds'] for m in arm) / 60:.1f}"
        if "minutes" in (numbers := table.printed(name, group.network)):
            minutes += f"<br>paper {numbers['minutes']:.2f}"
        decay = f" (weight decay {arm[0].any['weight_decay']:g})" if group.weight_decay is None else ""
        cells = [shown(cell(group, name, attack, table)) for attack in attacks]
        lines.append(line([name + decay, seeds, str(arm[0].any["epochs"]), minutes, *cells]))
        for pair in found:
            if pair.method == name and pair.gains is not None:
                alone = {len(pair.seeds)} != {len(arm), len(group.arms[pair.baseline])}
                shared = f"*{', '.join(map(str, pair.seeds))} of both*" if alone else ""
                gains = [_gain(pair, attack, table) for attack in attacks]
                lines.append(line([f"*less {pair.baseline}*", shared, "", "", *gains]))
    return lines


def shown(found: Cell | None) -> str:
    """A cell: the mean and its interval, each seed where there are several, and the paper's."""
    if found is None:
        return ""
    parts = [f"{100 * found.value:.1f} ({100 * found.low:.1f}-{100 * found.high:.1f})"]
    if len(found.seeds) > 1:
        parts.append("seeds " + ", ".join(f"{100 * seed:.1f}" for seed in found.seeds))
    if found.paper is not None:
        parts.append(f"paper {100 * found.paper:.2f}: {100 * (found.value - found.paper):+.1f}")
    return "<br>".join(parts)


def _gain(pair: Pair, attack: str, table: Table) -> str:
    assert pair.gains is not None
    gain = next((gain for gain in pair.gains.gains if gain.name == attack), None)
    if gain is None:
        return ""
    told = f"*{points(gain.difference, gain.low, gain.high)}*"
    told += "" if gain.clear else "<br>*cannot tell*"
    theirs = paper_gain(table, pair.baseline, pair.method, attack, pair.network)
    return told + ("" if theirs is None else f"<br>*paper {100 * theirs:+.2f}*")
