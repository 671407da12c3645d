"""Table 5 of the paper, measured: a row for each run, with its accuracy under each corruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from advsphere.data.corruptions import CORRUPTIONS, EXTRA, SEVERITIES
from advsphere.evaluation.corruption_record import CorruptionRecord, Mean
from advsphere.results import Row, row_of_run

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
    return "\n\n".join(map(_table, groups.values()))


def _table(rows: Sequence[Row]) -> str:
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
