"""Agreement of attacks, on outcomes that are written down."""

from __future__ import annotations

from advsphere.analysis.agreement import Agreement, agreement_figure
from advsphere.evaluation import WORST
from tests.report import made

CLEAN = "1111110"
COLUMNS = {"a": "0011110", "b": "0101110", "c": "0111110"}


def evaluation(after: dict[str, list[str]] | None = None):  # type: ignore[no-untyped-def]
    after = after or {}
    rows = [made.row(name, column, {"after": after.get(name, [])}) for name, column in COLUMNS.items()]
    return made.evaluation(clean=made.row("clean", CLEAN), attacks=tuple(rows), worst=made.row(WORST, "0001110"))


def test_it_counts_what_both_fool_and_what_one_alone_does() -> None:
    found = Agreement.of(evaluation())
    assert found.names == ("a", "b", "c") and found.right == 6 and found.left_out == ()
    assert found.fooled == (frozenset({0, 1}), frozenset({0, 2}), frozenset({0}))
    assert [found.both(0, 1), found.only(0, 1), found.only(1, 0)] == [1, 1, 1]
    assert [found.alone(i) for i in range(3)] == [1, 1, 0]
    assert found.only(2, 0) == 0 and found.only(0, 2) == 1


def test_a_misclassified_image_counts_for_nobody() -> None:
    assert all(6 not in fooled for fooled in Agreement.of(evaluation()).fooled)


def test_an_attack_on_what_others_left_is_left_out() -> None:
    found = Agreement.of(evaluation({"c": ["a", "b"]}))
    assert found.names == ("a", "b") and found.left_out == ("c",)


def test_the_figure_has_every_number() -> None:
    found = Agreement.of(evaluation())
    (axes,) = agreement_figure(found).axes
    texts = {(round(t.get_position()[0], 2), round(t.get_position()[1])): t.get_text() for t in axes.texts}
    for i in range(3):
        for j in range(3):
            assert texts[j, i] == str(len(found.fooled[i]) if i == j else found.only(i, j))
        assert texts[3.35, i] == str(found.alone(i))
