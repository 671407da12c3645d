"""The simulation of `benchmarks/interval_coverage.py`: what its committed tables say, and that they still hold."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest

from advsphere.comparison.gain import COVERS_THE_METHOD

ROOT = Path(__file__).parents[1]
SIMULATION = "interval_coverage"
PAGE = (ROOT / "docs" / "statistics.md").read_text()


def committed(heads: tuple[str, ...]) -> list[list[float]]:
    """The lines of the table with these heads."""
    (table,) = (part for part in PAGE.split("\n\n") if part.startswith("| " + " | ".join(heads) + " |"))
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:] if line.startswith("| ")]
    return [[float(cell.replace(",", "")) for cell in line] for line in lines]


def test_every_interval_contains_what_it_is_for(simulation: ModuleType) -> None:
    few, many, verdicts, pairs = (committed(table.heads) for table in simulation.TABLES)
    for line in [*few, *many, *pairs]:
        settings = 2 if line in pairs else 3
        assert 92.5 <= line[settings] <= 100, line
    assert all(line[-1] <= 6 for line in verdicts), "false verdicts"
    assert all(line[4] <= line[7] for line in many), "no wider than in version 0.2"


def test_what_is_printed_of_one_and_two_seeds_is_what_the_table_says(simulation: ModuleType) -> None:
    lines = committed(simulation.TABLES[0].heads)
    for seeds, ends in COVERS_THE_METHOD.items():
        found = [line[-1] for line in lines if line[0] == seeds]
        assert ends == (round(min(found)), round(max(found)))


QUICK = {
    0: [(1, 250, 1.0), (2, 1000, 2.0)],
    1: [(3, 250, 0.5), (3, 1000, 1.0), (5, 250, 2.0)],
    2: [(1, 1000, 0.3), (3, 1000, 0.0)],
    3: [(250, 1.0)],
}


def simulated(simulation: ModuleType, number: int, settings: tuple[float, ...], trials: int) -> None:
    """Shares are within four standard errors of those of the page, and widths within a tenth."""
    table = simulation.TABLES[number]
    (said,) = (line for line in committed(table.heads) if tuple(line[: len(settings)]) == settings)
    found = [float(cell) for cell in table.line(settings, trials, seed=1)]
    for head, one, other in zip(table.heads[len(settings) :], found, said[len(settings) :], strict=True):
        if head == "width":
            assert one == pytest.approx(other, rel=0.1), (settings, head)
        else:
            share = max(0.02, min(0.98, other / 100))
            fewer = min(trials, 200) if "bootstrap" in head else trials / 2 if max(settings) > 5000 else trials
            assert abs(one - other) < 400 * math.sqrt(share * (1 - share) / fewer) + 0.1, (settings, head)


@pytest.mark.parametrize("number", QUICK)
def test_a_few_lines_are_simulated_again(simulation: ModuleType, number: int) -> None:
    for settings in QUICK[number]:
        simulated(simulation, number, settings, trials=100)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_all_lines_are_simulated_again(simulation: ModuleType, number: int) -> None:
    for settings in simulation.TABLES[number].settings:
        simulated(simulation, number, settings, trials=400)
