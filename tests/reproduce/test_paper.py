"""The paper's numbers, against what is known of them from elsewhere."""

from __future__ import annotations

import pytest

from advsphere.reproduce import tables as paper
from advsphere.reproduce.tables import TABLES

ATTACKS = [column for column in paper.TABLE_2["PGD-AT"] if column != "clean"]


@pytest.mark.parametrize(("method", "gain"), [("PGD-AT", 1.65), ("ALP", -0.91), ("TRADES", -0.08)])
def test_the_papers_own_worst_columns_of_table_2(method: str, gain: float) -> None:
    plain, sphere = (min(paper.TABLE_2[name][a] for a in ATTACKS) for name in (method, f"{method}+HE"))
    assert sphere - plain == pytest.approx(gain, abs=0.005)


@pytest.mark.parametrize("name", [name for name in paper.TABLE_5 if "Free" not in name])
def test_mca_of_cifar_is_the_mean_of_more_than_the_twelve_columns_that_are_shown(name: str) -> None:
    row = paper.TABLE_5[name]
    shown = [value for column, value in row.items() if column != "mCA"]
    assert len(shown) == 12 and abs(sum(shown) / 12 - row["mCA"]) < 3


def test_every_number_is_a_percentage_of_a_row_as_long_as_the_others() -> None:
    for numbers in (paper.TABLE_2, paper.TABLE_3, paper.TABLE_4, paper.TABLE_5, paper.TABLE_6, paper.TABLE_7):
        assert len({tuple(row) for row in numbers.values()}) == 1
        assert all(0 < value < 100 for row in numbers.values() for value in row.values())


def test_every_column_that_stands_beside_one_of_ours_is_in_the_paper() -> None:
    for table in TABLES.values():
        for column in table.columns.values():
            assert all(column in row for row in table.paper.values()), (table.name, column)
    for name in ("table2", "table3", "table4", "table6"):
        table = TABLES[name]
        rows = {f"{table.network} {arm.name}".strip() for arm in table.methods if name != "table6" or arm.variant}
        assert rows <= table.paper.keys()
