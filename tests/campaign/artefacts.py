"""The files of runs, evaluations and results."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import deserialize
from torch import nn

from advsphere.corruption.evaluate import corruption_accuracy
from advsphere.corruption.generate import generated
from advsphere.corruption.result import RECORD, CorruptionRecord
from advsphere.data import ImageSet, load
from advsphere.evaluation import Evaluation, Ledger, evaluate, verify
from advsphere.files import canonical, tensor_checksum
from advsphere.reproduce import results
from advsphere.runs.config import to_dict
from advsphere.runs.config_yaml import from_yaml, to_yaml
from advsphere.runs.folder import load_network, read_classes, read_config, read_provenance
from advsphere.runs.target import EvaluationTarget
from advsphere.runs.train import train
from advsphere.training import load_checkpoint, read_metrics
from tests.campaign.artefact import BINARY, DATABASE, FORGED, JSON, TEXT, Artefact
from tests.campaign.artefacts_of_images import OF_IMAGES
from tests.campaign.command_lines import COMMAND_LINES
from tests.corruption.pictures import pictures
from tests.evaluation.cases import FEW, THREAT, linear
from tests.training.tiny import tiny_config

# Configs.


def _config_text(folder: Path) -> None:
    (folder / "mine.yaml").write_text(to_yaml(tiny_config("trades-he", ema=0.7)))


def _read_config(folder: Path) -> Any:
    return to_dict(from_yaml((folder / "mine.yaml").read_bytes(), "mine.yaml"))


def _as_written(path: Path, found: Any, valid: Any) -> bool:
    """Each value of the YAML is in the config, and all else is the default."""

    def same(written: Any, value: Any) -> bool:
        if isinstance(written, dict) and isinstance(value, dict):
            return all(key in value and same(one, value[key]) for key, one in written.items())
        if isinstance(written, list) and isinstance(value, list | tuple):
            return len(written) == len(value) and all(map(same, written, value))
        if isinstance(value, float) and not isinstance(written, bool):
            return repr(float(written)) == repr(value)
        return type(written) is type(value) and written == value

    return same(yaml.safe_load(path.read_bytes()), found)


# A run.


def _run(folder: Path) -> None:
    train(tiny_config("freeat-he", ema=0.7), folder)


def _checkpoint(folder: Path) -> Any:
    tensors, meta = load_checkpoint(folder / "last.safetensors")
    return tensor_checksum(tensors, json.dumps(meta, sort_keys=True))


def _network(folder: Path) -> Any:
    return tensor_checksum(load_network(folder, "best", load("digits").test).state_dict())


def _metrics(folder: Path) -> Any:
    return [repr(sorted(line.items())) for line in read_metrics(folder)]


def _metrics_as_written(path: Path, found: Any, valid: Any) -> bool:
    return found == [repr(sorted(json.loads(line).items())) for line in path.read_bytes().splitlines()]


# Evaluations.


def _evaluation(folder: Path) -> None:
    known = linear(24, classes=3, wrong=4)
    result = evaluate(*known, threat=THREAT, suite=FEW, batch_size=12, ledger=folder / "ledger.sqlite")
    result.save(folder / "evaluation.json")
    EvaluationTarget(model="tests.evaluation.cases:tiny", data=Path("photos"), n=3).save(folder)


def _numbers_of_the_ledger(folder: Path) -> Any:
    """The rows, or a refusal by `verify` if they are others than those in the file."""
    printed = Evaluation.load(folder / "evaluation.json")
    with Ledger.read(folder / "ledger.sqlite") as book:
        found = Evaluation.of(book)
        pairs = [book.cells(name) for name in ("clean", *book.attacks)]
    found.table()
    refuse(found.to_dict()["ledger"] != printed.ledger or found.rows != printed.rows, "the rows are others")
    return [row.to_dict() for row in found.rows], [[cell[:3] for cell in cells] for cells in pairs]


def _verified(folder: Path) -> Any:
    known = linear(24, classes=3, wrong=4)
    files = folder / "evaluation.json", folder / "ledger.sqlite"
    found = verify(*files, known.model, known.images, known.labels, suite=FEW, seed=0, at_least=4)
    refuse(not found.passed, str(found))
    return [row.to_dict() for row in Evaluation.load(files[0]).rows]


class Mismatch(Exception):
    """A check found that the files do not fit together, as `verify` prints it."""


def refuse(wrong: bool, why: str) -> None:
    if wrong:
        raise Mismatch(why)


def _parses_as_database(content: bytes) -> object:
    db = sqlite3.connect(":memory:")
    try:
        db.deserialize(content)
        db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        return db.execute("SELECT COUNT(*) FROM cells").fetchone()
    finally:
        db.close()


def _printed(folder: Path) -> Any:
    found = Evaluation.load(folder / "evaluation.json")
    return found.table(), [row.to_dict() for row in found.rows]


def _printed_as_written(path: Path, found: Any, valid: Any) -> bool:
    """The rows are those of the file, and its numbers agree with each other."""
    written = json.loads(path.read_bytes())
    rows = [written["clean"], *written["attacks"], written["worst"]]
    return repr(found[1]) == repr(rows) and _agrees(written, rows)


def _agrees(written: Any, rows: list[Any]) -> bool:
    """Whether counts, intervals, the worst case and the strongest attack are those of the outcomes."""
    attacks, n = rows[1:-1], written["identity"]["data"]["n"]
    robust = [{i for i, one in enumerate(row["outcomes"]) if one == "1"} for row in rows]
    best = written["strongest"]
    return all((
        {(row["n"], len(row["outcomes"])) for row in rows} == {(n, n)},
        all((row["k"], row["accuracy"]) == (len(own), len(own) / n) for row, own in zip(rows, robust, strict=True)),
        all(np.allclose((row["low"], row["high"]), _wilson(row["k"], n)) for row in rows),
        all(row["seconds"] >= 0 and row["unreached"] + row["invalid"] <= row["k"] for row in rows),  # no row lacks one
        robust[-1] == set.intersection(*robust[:-1]),
        (rows[0]["name"], rows[-1]["name"]) == ("clean", "worst case"),
        abs(sum(row["seconds"] for row in rows[:-1]) - rows[-1]["seconds"]) < 0.1,
        all((sign["status"] == "raised") == bool(sign.get("advice")) for sign in written["signs"]),
        len({sign["check"] for sign in written["signs"]}) == 10,
        {row["name"]: row["settings"] for row in attacks} == written["identity"]["attacks"],
        len(attacks) == len(written["identity"]["attacks"]),
        [best["k"], best["n"]] == [min(row["k"] for row in attacks), n],
        {row["name"] for row in attacks if row["k"] == best["k"]} == {*best["names"]},
    ))  # fmt: skip


def _wilson(k: int, n: int) -> tuple[float, float]:
    """The bounds p at which (k / n - p)^2 = z^2 p (1 - p) / n."""
    z = NormalDist().inv_cdf(0.975) ** 2 / n
    high, low = np.roots([1 + z, -2 * k / n - z, (k / n) ** 2]).real
    return min(low, high), max(low, high)


def _subject(folder: Path) -> Any:
    return str(EvaluationTarget.read(folder))


def _without_checksum(path: Path, found: Any, valid: Any) -> bool:
    """Without the checksum, as version 0.2 wrote it."""
    return "checksum" not in json.loads(path.read_bytes())


# Rows and records.


def _stored(folder: Path) -> None:
    known = results.read(Path(__file__).parents[2] / "results" / "cpu.jsonl")
    training = next(one for one in known if one.kind == "training")
    shortest = min((one for one in known if one.kind == "evaluation"), key=lambda one: len(str(one.document)))
    results.add(folder / "rows.jsonl", [training, shortest])


def _rows(folder: Path) -> Any:
    found = []
    for one in results.read(folder / "rows.jsonl"):
        more = [row.to_dict() for row in one.evaluation.rows] if one.kind == "evaluation" else one.document
        found.append((one.label, one.key, canonical(more)))
    return found


def _rows_as_written(path: Path, found: Any, valid: Any) -> bool:
    """Whole lines are missing, repeated or moved, or their checksum is missing, as version 0.2 wrote them."""
    without = any("checksum" not in json.loads(line) for line in path.read_bytes().splitlines())
    return without or all(one in valid for one in found)


def _corruptions(folder: Path) -> None:
    images = ImageSet(pictures(3, 24), torch.arange(3), ("a", "b", "c"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(108, 3)).eval()
    corruption_accuracy(model, images, generated(images), record=folder / RECORD)


def _corruption_record(folder: Path) -> Any:
    record = CorruptionRecord.load(folder / RECORD)
    return record.clean.outcomes, [(c.corruption, c.severity, c.outcomes) for c in record.cells], repr(record.mca)


_JSON = {"parses": json.loads}
_LINES = {"parses": lambda content: [json.loads(line) for line in content.splitlines()]}
ARTEFACTS: dict[str, Artefact] = {
    "config": Artefact(_config_text, ("mine.yaml",), _read_config, yaml.safe_load, TEXT, _as_written, 1.5),
    "a run's config": Artefact(
        _run, ("config.yaml",), lambda f: to_dict(read_config(f)), yaml.safe_load, TEXT, weight=0.7
    ),
    "provenance": Artefact(
        _run, ("provenance.json",), read_provenance, changes=JSON, given=_without_checksum, **_JSON
    ),
    "classes": Artefact(_run, ("classes.json",), read_classes, changes=JSON, weight=0.5, **_JSON),
    "checkpoint": Artefact(_run, ("last.safetensors",), _checkpoint, deserialize, BINARY, weight=1.5),
    "best network": Artefact(_run, ("best.safetensors",), _network, deserialize, BINARY, weight=0.3),
    "log": Artefact(_run, ("metrics.jsonl",), _metrics, changes=JSON, given=_metrics_as_written, **_LINES),
    "ledger": Artefact(
        _evaluation, ("ledger.sqlite",), _numbers_of_the_ledger, _parses_as_database, DATABASE, weight=2.0
    ),
    "ledger, verified": Artefact(
        _evaluation, ("ledger.sqlite",), _verified, _parses_as_database, DATABASE, weight=0.2
    ),
    "evaluation": Artefact(_evaluation, ("evaluation.json",), _printed, changes=JSON, **_JSON),
    "evaluation, checksum fits": Artefact(
        _evaluation, ("evaluation.json",), _printed, changes=FORGED, given=_printed_as_written, **_JSON
    ),
    "subject": Artefact(_evaluation, ("subject.json",), _subject, changes=JSON, given=_without_checksum, **_JSON),
    "stored rows": Artefact(_stored, ("rows.jsonl",), _rows, changes=JSON, given=_rows_as_written, **_LINES),
    "corruptions": Artefact(_corruptions, (RECORD,), _corruption_record, changes=JSON, **_JSON),
    "corruptions, checksum fits": Artefact(_corruptions, (RECORD,), _corruption_record, changes=FORGED, **_JSON),
} | OF_IMAGES | COMMAND_LINES  # fmt: skip
