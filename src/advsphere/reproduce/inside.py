"""The pages of what is not attacked by a suite: corruptions, FN in the attack, gradient norms, perturbations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from advsphere.reproduce.figures import gradients_figure, save
from advsphere.reproduce.groups import method, on_imagenet
from advsphere.reproduce.results import TITLES, Row, means_by_image
from advsphere.reproduce.tables import Table
from advsphere.stats import reach

# FOLDED markdown: What every page is written with.


def line(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


def rule(heads: Sequence[str]) -> list[str]:
    """The head of a table."""
    return [line(heads), "|---" * len(heads) + "|"]


def points(value: float, low: float, high: float) -> str:
    """A difference in [-1, 1] and its interval, in points."""
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def provenance(rows: Sequence[Row], file: Path) -> str:
    """Where numbers come from, in a sentence or two."""
    trained = [row["trained"] for row in rows]
    machines = sorted(
        {f"{t['processor']}, {t['device']}, {t['threads']} thread{'s' * (t['threads'] > 1)}" for t in trained}
    )
    commits = sorted({str(t["commit"]) for t in trained})
    judged = sorted({str(row["evaluated"]["commit"]) for row in rows if "commit" in row["evaluated"]})
    told = f"Trained on {'; '.join(machines)}, torch {', '.join(sorted({t['torch'] for t in trained}))}, "
    told += f"at commit{'s' * (len(commits) > 1)} {', '.join(commits)}"
    told += f"; measured at {', '.join(judged)}" if judged else ""
    return f"{told}. Each outcome, setting and checksum: [`results/{file.name}`](../../results/{file.name})."


INTRODUCTIONS = {
    "table5": "Accuracy in %, averaged over five severities; mCA is the mean over corruptions, with its 95 % interval. "
    "Below it the paper's, for its own, larger networks. Corruptions are generated, not the published files. A "
    "difference is the mean over seeds; the interval of one or two seeds is over images alone, and speaks of these "
    "checkpoints; from three on, of the method.",
    "table7": "Accuracy in % under one and two steps of PGD, with FN on the attack's path and without, judged by the "
    "untouched network; the radius and the step are inferred (docs/fidelity.md). The paper's network is a WRN-34-10.",
    "gradients": "The norm of the loss's gradient in each layer on adversarial images over that on clean ones; the "
    "paper draws it for its claim that FN learns better from hard adversarial examples.",
    "perturbations": "Clean images, and what is added to them when FN is on the attack's path and when it is not.",
}


def sections(table: Table, rows: Sequence[Row], file: Path, folder: Path | None) -> list[str]:
    """The sections of a table's page from one file of rows."""
    wanted = {(arm.name, arm.data == "imagenet") for arm in (*table.arms, *table.also)}
    own = [row for row in rows if (method(row), on_imagenet(row)) in wanted]
    if table.name == "table5":
        return _corruptions(table, [row for row in own if row["suite"] == "corruptions"], file)
    seen = [row for row in own if row["suite"] == "inside"]
    if table.name == "table7":
        return _table7(table, [row for row in seen if row["attack"].startswith("PGD-")], file)
    if table.name == "gradients":
        return _gradients([row for row in seen if row["attack"] == "gradient norms"], file, folder)
    return _pictures([row for row in seen if row["attack"] == "pictures"], file)


def _together(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """By what a section's rows have in common, as its title says it."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        title = f"{row['network']} on {row['data']}, {row['n']:,} test images, {row['threat']}, weight decay "
        found.setdefault(f"{title}{row['weight_decay']:g}", []).append(row)
    return found


def _corruptions(table: Table, rows: Sequence[Row], file: Path) -> list[str]:
    parts = []
    for title, group in _together(rows).items():
        names = [name for name in TITLES if all(name in row["accuracy"] for row in group)]
        heads = ["method", "seed", "epochs", "clean", "mCA", *(TITLES[name] for name in names)]
        lines = [f"## {title}", "", *rule(heads)]
        arms: dict[str, dict[int, Row]] = {}
        for row in group:
            arms.setdefault(method(row), {})[row["seed"]] = row
        for name, arm in arms.items():
            theirs = table.paper.get(name, {}) if (name == "FreeAT") <= on_imagenet(group[0]) else {}
            for seed, row in sorted(arm.items()):
                cells = [f"{100 * row['clean']:.1f}", _with_paper(row["mCA"], theirs.get("mCA"), row["interval"])]
                cells += [_with_paper(fmean(row["accuracy"][key]), theirs.get(key)) for key in names]
                lines.append(line([name, str(seed), str(row["epochs"]), *cells]))
            base = arms.get(name.removesuffix("+HE"), {})
            shared = sorted(arm.keys() & base.keys()) if name.endswith("+HE") else []
            if shared:
                plain = table.paper.get(name.removesuffix("+HE"), {}) if theirs else {}
                cells = _difference([(arm[seed], base[seed]) for seed in shared], names)
                cells[1] += f"<br>*paper {theirs['mCA'] - plain['mCA']:+.2f}*" if plain else ""
                lines.append(line([f"*less {name.removesuffix('+HE')}*", ", ".join(map(str, shared)), "", *cells]))
        parts.append("\n".join([*lines, "", provenance(group, file)]))
    return parts


def _difference(pairs: Sequence[tuple[Row, Row]], names: Sequence[str]) -> list[str]:
    """Cells of a method less its baseline: the mean over pairs of equal seed."""
    each_image = np.array([np.subtract(means_by_image(row), means_by_image(base)) for row, base in pairs])
    value, half = float(each_image.mean()), reach(each_image)
    change = f"*{100 * value:+.2f} ({100 * (value - half):+.2f} to {100 * (value + half):+.2f})*"
    change += "<br>*cannot tell*" * (abs(value) <= half)
    clean = fmean(row["clean"] - base["clean"] for row, base in pairs)
    each = [fmean(fmean(row["accuracy"][key]) - fmean(base["accuracy"][key]) for row, base in pairs) for key in names]
    return [f"*{100 * clean:+.1f}*", change, *(f"*{100 * value:+.1f}*" for value in each)]


def _with_paper(value: float, paper: float | None, interval: Sequence[float] | None = None) -> str:
    told = f"{100 * value:.1f}" + (f" ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})" if interval else "")
    return told if paper is None else f"{told}<br>paper {paper:.2f}"


def _table7(table: Table, rows: Sequence[Row], file: Path) -> list[str]:
    parts = []
    for title, group in _together(rows).items():
        lines = [f"## {title}", "", *rule(["network", "seed", "FN in the attack", "PGD-1", "PGD-2"])]
        runs: dict[tuple[str, int], dict[str, Row]] = {}
        for row in group:
            runs.setdefault((method(row), row["seed"]), {})[row["attack"]] = row
        for (name, seed), attacks in runs.items():
            for fn in ("", ", FN in the attack"):
                theirs = table.paper.get(name + fn, {})
                cells = [
                    _with_paper(attacks[k + fn]["accuracy"], theirs.get(k), attacks[k + fn]["interval"])
                    for k in ("PGD-1", "PGD-2")
                ]
                lines.append(line([name, str(seed), "yes" if fn else "no", *cells]))
        parts.append("\n".join([*lines, "", provenance(group, file)]))
    return parts


def _gradients(rows: Sequence[Row], file: Path, folder: Path | None) -> list[str]:
    parts = []
    for number, (title, group) in enumerate(_together(rows).items()):
        ratios: Mapping[str, Mapping[str, object]] = {
            f"{method(row)}, seed {row['seed']}": row["gradients"] for row in group
        }
        figure = f"gradients-{file.stem}-{number}.svg"
        if folder is not None:
            save(gradients_figure(ratios), folder / figure)
        lines = [f"## {title}", "", f"![Gradient-norm ratios by layer]({figure})", ""]
        lines += rule(["network", "seed", "median ratio of the layers"])
        for row in group:
            middle = sorted(row["gradients"]["ratio"])[len(row["gradients"]["ratio"]) // 2]
            lines.append(line([method(row), str(row["seed"]), f"{middle:.2f}"]))
        parts.append("\n".join([*lines, "", provenance(group, file)]))
    return parts


def _pictures(rows: Sequence[Row], file: Path) -> list[str]:
    parts = []
    for title, group in _together(rows).items():
        lines = [f"## {title}"]
        for row in group:
            lines += [
                "",
                f"### {method(row)}, seed {row['seed']}",
                "",
                f"![{method(row)}](../../results/{row['picture']})",
            ]
        parts.append("\n".join([*lines, "", provenance(group, file)]))
    return parts
