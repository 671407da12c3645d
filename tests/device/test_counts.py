"""No change adds kernels or waits to a step on a GPU without saying so in the table of `benchmarks/README.md`."""

from __future__ import annotations

import pytest

from tests.device import counts

TABLE = counts.table()


@pytest.fixture(scope="module")
def rows(device):
    return counts.rows()


def test_the_table_has_every_row(rows):
    assert list(TABLE) == list(rows), "write the table again: python -m tests.device.counts --write"


@pytest.mark.parametrize("name", TABLE)
def test_a_step_takes_no_more_than_the_table_says(name, rows):
    row, written = rows[name](), TABLE[name]
    # A search may take another branch where the last bits of a processor differ.
    more = row.kernels > 1.02 * written.kernels or row.waits > written.waits + 0.15
    fewer = row.kernels < 0.9 * written.kernels or row.waits < written.waits - 0.5
    assert not (more or fewer), (
        f"a step takes {row.kernels:.0f} kernels and {row.waits:.2f} waits, where the table says {written.kernels:.0f} "
        f"and {written.waits:.2f}; if that is meant, write it again: python -m tests.device.counts --write"
    )


def test_training_never_waits():
    assert {name: TABLE[name].waits for name in counts.OBJECTIVES if TABLE[name].waits > 0} == {}
