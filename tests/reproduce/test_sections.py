"""Sections of pages about what no suite attacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from advsphere.corruption import SEVERITIES
from advsphere.corruption.result import CorruptionCell, CorruptionRecord
from advsphere.reproduce.results import StoredResult
from advsphere.reproduce.sections import sections
from advsphere.reproduce.tables import TABLES
from tests.reproduce.made import run_block


def corrupted(recipe: str, outcomes: str, *, seed: int) -> StoredResult:
    names = ("fog", "snow")
    cells = [CorruptionCell(corruption=name, severity=s, outcomes=outcomes) for name in names for s in SEVERITIES]
    source = {"kind": "generated", "table": "CIFAR-10-C", "names": names}
    record = CorruptionRecord(
        identity={"corruptions": source},
        clean=CorruptionCell(corruption="clean", severity=0, outcomes=outcomes),
        cells=tuple(cells),
        environments=({"commit": "def"},),
    )
    return StoredResult(kind="corruptions", run=run_block(recipe, seed=seed), evidence="", document=record.to_dict())


@pytest.mark.parametrize(
    ("seeds", "change"),
    [
        ((0,), "+50.00 (-27.26 to +90.55)"),
        ((0, 1), "+25.00 (-292.66 to +342.66)"),
        ((0, 1, 2), "+16.67 (-63.94 to +97.27)"),
    ],
)
def test_a_difference_in_corruptions_is_the_mean_over_seeds_paired_by_image(
    seeds: tuple[int, ...], change: str
) -> None:
    """Two images, of which the second gains in seed 0 (mean and standard error 1/2), and in no other.
    One seed has the paired interval. Two have Student's with 1 degree of freedom, 12.706 standard errors to each side.
    With three, their variance is as large as that over images, 1/36, and has 2 degrees of freedom: together 2.667.
    """
    made = [corrupted("small-pgd-at", "10", seed=seed) for seed in seeds]
    made += [corrupted("small-pgd-at-he", "11" if seed == 0 else "10", seed=seed) for seed in seeds]
    (section,) = sections(TABLES["table5"], made, Path("rows.jsonl"), None)
    (line,) = (line for line in section.splitlines() if line.startswith("| *minus PGD-AT*"))
    assert f"| {', '.join(map(str, seeds))} |" in line and change in line and "+0.06" in line
    assert section.count("| PGD-AT |") == section.count("| PGD-AT+HE |") == len(seeds)
