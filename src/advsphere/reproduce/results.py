"""Measured rows: one JSON line for each run and attack, with all that is needed to believe it, and tables made from
them.

A row keeps its outcomes, a character for each test image, so that intervals and paired differences can be computed from
the file alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from advsphere.corruption.result import CorruptionRecord
from advsphere.corruption.severity import CORRUPTIONS, EXTRA, SEVERITIES
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation
from advsphere.files import write_atomically
from advsphere.recipes import plain, recipe
from advsphere.runs.config import differences
from advsphere.runs.folder import read_config
from advsphere.stats import Mean, PairedDifference, paired, wilson
from advsphere.threat import radius
from advsphere.training import load_checkpoint, read_metrics

Row = dict[str, Any]

_CHECKPOINTS = {"best": "the checkpoint that was best on held-out training images", "last": "the last checkpoint"}


def rows_of(run: Path, evaluation: Path, *, data_name: str | None = None) -> list[Row]:
    """The rows of an evaluation of a run; the arguments are their folders. data_name: what the images are to be called.

    paper and source are None: these networks and images are in no table of the paper. Raises UserError where a file is
    missing or broken.
    """
    result = Evaluation.load(evaluation / "evaluation.json")
    shared = row_of_run(run, evaluation, data_name=data_name) | {
        "suite": result.identity["suite"]["name"],
        "threat": f"{result.identity['threat']['norm']} {radius(result.identity['threat']['eps'])}",
        "evaluated": result.provenance,
    }
    return [
        shared
        | {
            "attack": row.name,
            "n": row.n,
            "k": row.k,
            "accuracy": row.accuracy,
            "interval": list(row.interval),
            "attack_seconds": round(row.seconds, 2),
            "settings": dict(row.settings),
            "median": row.median,
            "outcomes": row.outcomes,
        }
        for row in result.rows
    ]


def row_of_run(run: Path, measured: Path, *, data_name: str | None = None) -> Row:
    """What all rows of a run say of it; measured: the folder of a measurement, with its subject.json. Raises UserError
    where a file is missing or broken.
    """
    checkpoint = json.loads((measured / "subject.json").read_text())["checkpoint"]
    return row_of_checkpoint(run, checkpoint, data_name=data_name)


def row_of_checkpoint(run: Path, checkpoint: str, *, data_name: str | None = None) -> Row:
    """The same for a checkpoint whose name is known."""
    config = read_config(run)
    trained = json.loads((run / "provenance.json").read_text())
    epochs = read_metrics(run)
    chosen = epochs[-1] if checkpoint == "last" else load_checkpoint(run / "best.safetensors")[1]["metrics"]
    return {
        "recipe": config.recipe,
        "overrides": [str(change) for change in differences(_origin(config.recipe, config), config)],
        "network": config.model.name,
        "objective": type(config.objective).__name__,
        "scale": config.sphere.scale if config.sphere else None,
        "margin": config.sphere.margin if config.sphere else None,
        "weight_decay": config.training.weight_decay,
        "epochs": config.training.epochs,
        "seed": config.training.seed,
        "checkpoint": checkpoint,
        "data": data_name or config.data.name,
        "trained": trained | {"seconds": round(epochs[-1]["seconds"], 1)},
        "validated": {name: chosen[name] for name in ("epoch", "clean", "robust")},
        "paper": None,
        "source": None,
    }


def _origin(name: str, fallback: Any) -> Any:
    """The recipe as it stands now; a run of a recipe that is no longer listed has no overrides to show."""
    try:
        return recipe(name)
    except UserError:
        return fallback


def measurement(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What was measured: a run under a suite, whose rows belong together."""
    return tuple(str(row[k]) for k in ("recipe", "overrides", "seed", "checkpoint", "data", "threat", "suite", "n"))


def identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes two rows the same, to be replaced and not repeated."""
    return (*measurement(row), str(row["attack"]))


def read(path: Path) -> list[Row]:
    """The rows of a file, none where there is no file. Raises UserError for a line that is no row."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
            identity(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is no row of results ({error}); take the line out") from error
        rows.append(row)
    return rows


def add(path: Path, rows: Sequence[Row]) -> None:
    """Put rows into a file; those that it has already are replaced. So are all of a measurement that has other evidence
    now: a worst case must not stand beside attacks that it is not of.
    """
    evidence = {measurement(row): row.get("evaluated") for row in rows}
    valid = (row for row in read(path) if evidence.get(measurement(row), row.get("evaluated")) == row.get("evaluated"))
    kept = {identity(row): row for row in (*valid, *rows)}
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept.values()).encode())


def difference(rows: Sequence[Row], base: str, method: str, attack: str) -> PairedDifference:
    """How much better one recipe's checkpoint is than another's under an attack, on the same images."""
    found = [_row(rows, name, attack) for name in (method, base)]
    if None in found:
        raise UserError(f"{base} and {method} do not both have a row under {attack}")
    a, b = ([c == "1" for c in row["outcomes"]] for row in found if row is not None)
    return paired(a, b)


def markdown(rows: Sequence[Row]) -> str:
    """A table for each data set, threat, n, choice of checkpoint and suite: a line for each recipe, a column for each
    attack.

    Below a recipe on the sphere whose plain partner is there too, a line of their paired differences, with 95 %
    intervals.
    """
    groups: dict[tuple[str, str, int, str, str], list[Row]] = {}
    for row in rows:
        key = (row["data"], row["threat"], row["n"], row["checkpoint"], row["suite"])
        groups.setdefault(key, []).append(row)
    return "\n\n".join(_table(*key, group) for key, group in groups.items())


def _table(data: str, threat: str, n: int, checkpoint: str, suite: str, rows: Sequence[Row]) -> str:
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    longest = max(recipes, key=lambda name: sum(row["recipe"] == name for row in rows))  # its order is the suite's
    attacks = list(dict.fromkeys(row["attack"] for row in sorted(rows, key=lambda row: row["recipe"] != longest)))
    lines = [
        f"{data}, {n:,} test images, {threat}, {_CHECKPOINTS[checkpoint]}, suite `{suite}`. Accuracy in % with "
        "its 95 % interval; under attack it is an upper bound. Differences are in points, paired, and of these two "
        "checkpoints.",
        "",
        "| recipe | epochs | " + " | ".join(attacks) + " |",
        "|---" * (2 + len(attacks)) + "|",
    ]
    for name in recipes:
        epochs = next(row["epochs"] for row in rows if row["recipe"] == name)
        lines.append(_line(f"`{name}`", epochs, [_cell(_row(rows, name, attack)) for attack in attacks]))
        base = plain(name)
        if base != name and base in recipes:
            lines.append(_line("*difference*", "", [_difference(rows, base, name, attack) for attack in attacks]))
    return "\n".join(lines)


def _line(name: str, epochs: Any, numbers: Sequence[str]) -> str:
    return f"| {name} | {epochs} | " + " | ".join(numbers) + " |"


def _difference(rows: Sequence[Row], base: str, method: str, attack: str) -> str:
    if not (_row(rows, base, attack) and _row(rows, method, attack)):
        return ""
    d = difference(rows, base, method, attack)
    return f"*{100 * d.difference:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f}){', cannot tell' * d.cannot_tell}*"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    low, high = wilson(row["k"], row["n"])
    return f"{100 * row['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _row(rows: Sequence[Row], name: str, attack: str) -> Row | None:
    """A recipe's row under an attack; a plain head has s = 1, so "PGD-50 (s = 1)" is its PGD-50."""
    own = {row["attack"]: row for row in rows if row["recipe"] == name}
    bare = own.get(attack.removesuffix(" (s = 1)"))
    return own.get(attack) or (bare if bare is not None and bare["scale"] is None else None)


def replace_between(text: str, content: str, *, begin: str = "<!-- results -->", end: str = "<!-- /results -->") -> str:
    """A page with what stands between two markers replaced. Raises UserError where it lacks them."""
    before, found, rest = text.partition(begin)
    _, also, after = rest.partition(end)
    if not (found and also):
        raise UserError(f"the page has no place for a table; put the lines {begin} and {end} where it should go")
    return f"{before}{begin}\n{content}\n{end}{after}"


# FOLDED corruption_table: Table 5 of the paper, measured: a row for each run, with its accuracy under each corruption.

_NOISE, _BLUR = ("Gauss", "Shot", "Impulse"), ("Defocus", "Glass", "Motion", "Zoom")
_WEATHER, _DIGITAL = ("Snow", "Frost", "Fog", "Bright"), ("Contra", "Elastic", "Pixel", "JPEG")
TITLES = dict(zip(CORRUPTIONS, _NOISE + _BLUR + _WEATHER + _DIGITAL, strict=True))
"""The paper's names of the columns."""


def corruption_row(run: Path, folder: Path, record: CorruptionRecord, *, data_name: str | None = None) -> Row:
    """A row of results: the run, the record's numbers, and every outcome. folder: that of the record.

    Raises UserError where a file of the run is missing, and for a record that is not complete.
    """
    mca = record.mca
    source = record.identity["corruptions"]
    return row_of_run(run, folder, data_name=data_name) | {
        "attack": "corruptions",
        "suite": "corruptions",
        "threat": f"{source['kind']}, {source.get('table') or source.get('folder')}",
        "corruptions": source,
        "n": record.clean.n,
        "clean": record.clean.accuracy,
        "mCA": mca.value,
        "interval": [mca.low, mca.high],
        "counted": list(record.counted),
        "accuracy": {name: [record.cell(name, s).accuracy for s in SEVERITIES] for name in record.names},
        "outcomes": {name: [record.cell(name, s).outcomes for s in SEVERITIES] for name in record.names},
        "evaluated": {
            "model": record.identity["model"]["checksum"],
            "data": record.identity["data"]["checksum"],
            "record": record.to_dict()["checksum"],
            "seconds": round(sum(cell.seconds for cell in (record.clean, *record.cells)), 1),
            **record.environments[0],
            "commits": [environment["commit"] for environment in record.environments],
        },
    }


def corruption_markdown(rows: Sequence[Row]) -> str:
    """A table for each set of images and corruptions, in %, averaged over severities: the paper's columns, the noise
    before and the four extra ones after them.

    Below a recipe X-he whose plain X is there too, their paired difference in mCA with its 95 % interval.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["threat"], row["n"], *row["counted"]), []).append(row)
    return "\n\n".join(map(_table_corruption_table, groups.values()))


def _table_corruption_table(rows: Sequence[Row]) -> str:
    extra = [name for name in EXTRA if all(name in row["accuracy"] for row in rows)]
    names = [name for name in CORRUPTIONS if name in rows[0]["counted"]]
    heads = [*(TITLES[name] for name in names), *(name.replace("_", " ") for name in extra)]
    first = rows[0]
    lines = [
        f"{first['data']}, {first['n']:,} test images, corruptions {first['threat']}; accuracy in %, averaged "
        f"over the severities. mCA is over {len(names)} corruptions, with its 95 % interval.",
        "",
        "| recipe | clean | mCA | " + " | ".join(heads) + " |",
        "|---" * (3 + len(heads)) + "|",
    ]
    for row in rows:
        low, high = row["interval"]
        cells = [f"{100 * fmean(row['accuracy'][name]):.1f}" for name in (*names, *extra)]
        mca = f"{100 * row['mCA']:.2f} ({100 * low:.1f}-{100 * high:.1f})"
        lines.append(f"| `{row['recipe']}` | {100 * row['clean']:.1f} | {mca} | " + " | ".join(cells) + " |")
        base = next((r for r in rows if f"{r['recipe']}-he" == row["recipe"]), None)
        if base is not None:
            d = Mean.of([a - b for a, b in zip(means_by_image(row), means_by_image(base), strict=True)])
            told = ", cannot tell" * d.cannot_tell
            change = f"*{100 * d.value:+.2f} ({100 * d.low:+.2f} to {100 * d.high:+.2f}){told}*"
            apart = [
                f"*{100 * (fmean(row['accuracy'][n]) - fmean(base['accuracy'][n])):+.1f}*" for n in (*names, *extra)
            ]
            clean = f"*{100 * (row['clean'] - base['clean']):+.1f}*"
            lines.append(f"| *difference* | {clean} | {change} | " + " | ".join(apart) + " |")
    return "\n".join(lines)


def means_by_image(row: Row) -> list[float]:
    """For each image, the share of the counted corruptions and severities under which it is classified as labelled."""
    columns = [outcomes for name in row["counted"] for outcomes in row["outcomes"][name]]
    return [image.count("1") / len(image) for image in zip(*columns, strict=True)]
