"""Rows of accuracy under corruption, and the table made from them."""

from __future__ import annotations

from pathlib import Path

from advsphere.corruption import CORRUPTIONS, SEVERITIES
from advsphere.corruption.result import CorruptionRecord
from advsphere.reproduce import results
from advsphere.reproduce.results import TITLES, corruption_markdown
from tests.evaluation.test_corruption import of_errors


def row(recipe: str, record: CorruptionRecord) -> results.Row:
    mca = record.mca
    return {
        **dict.fromkeys(("overrides", "seed", "checkpoint", "suite"), ""),
        **{"recipe": recipe, "data": "pets", "threat": "generated, CIFAR-10-C", "attack": "corruptions"},
        **{"n": record.clean.n, "clean": 1.0, "mCA": mca.value, "interval": [mca.low, mca.high]},
        "counted": list(record.counted),
        "accuracy": {name: [record.cell(name, s).accuracy for s in SEVERITIES] for name in record.names},
        "outcomes": {name: [record.cell(name, s).outcomes for s in SEVERITIES] for name in record.names},
    }


def test_the_columns_are_the_papers() -> None:
    assert (TITLES["defocus_blur"], TITLES["contrast"], TITLES["jpeg_compression"]) == ("Defocus", "Contra", "JPEG")
    assert list(TITLES) == list(CORRUPTIONS)


def test_a_pair_gets_its_paired_difference(tmp_path: Path) -> None:
    plain, he = of_errors({"fog": 0.4, "saturate": 0.2}, 50), of_errors({"fog": 0.3, "saturate": 0.2}, 50)
    file = tmp_path / "rows.jsonl"
    for _ in range(2):
        results.add(file, [row("mine", plain), row("mine-he", he)])
    rows = results.read(file)
    assert len(rows) == 2
    head, _, titles, _, first, second, difference = corruption_markdown(rows).splitlines()
    assert "pets, 50 test images" in head and "over 1 corruptions" in head
    assert titles == "| recipe | clean | mCA | Fog | saturate |"
    assert first.startswith("| `mine` | 100.0 | 60.00 (") and first.endswith("| 60.0 | 80.0 |")
    assert second.startswith("| `mine-he` | 100.0 | 70.00 (")
    assert difference.startswith("| *difference* | *+0.0* | *+10.00 (+1.") and difference.endswith("*+10.0* | *+0.0* |")


def test_other_images_and_corruptions_are_another_table() -> None:
    one, other = row("mine", of_errors({"fog": 0.4})), row("mine-he", of_errors({"frost": 0.1}))
    tables = corruption_markdown([one, other]).split("\n\n")
    assert ["| recipe" in part for part in tables] == [False, True, False, True]
    assert "| Fog |" in tables[1] and "| Frost |" in tables[3] and "difference" not in "".join(tables)
