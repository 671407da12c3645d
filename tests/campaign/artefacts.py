"""The files that advsphere reads, made small and valid, and what reading them gives.

A damaged file must be refused in a line, or give what the valid one gives. Some files carry no checksum, because people
write them: configs, command lines, images, class numbers. There another meaning is right if it is the one that the
file now has, by an independent reading: `given` says so.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import sqlite3
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from advsphere.corruption.evaluate import corruption_accuracy
from advsphere.corruption.generate import generated
from advsphere.corruption.published import read_published
from advsphere.corruption.result import RECORD, CorruptionRecord
from advsphere.corruption.severity import CORRUPTIONS
from advsphere.data import ImageSet, load, load_test
from advsphere.data.cifar import read_cifar
from advsphere.evaluation import Evaluation, Ledger, evaluate, verify
from advsphere.files import tensor_checksum
from advsphere.models import load_weights
from advsphere.reproduce import results
from advsphere.runs.config import to_dict
from advsphere.runs.config_yaml import from_yaml, to_yaml
from advsphere.runs.folder import load_network, read_classes, read_config, read_provenance
from advsphere.runs.target import EvaluationTarget
from advsphere.runs.train import train
from advsphere.training import load_checkpoint, read_metrics
from tests.campaign import mutations
from tests.campaign.mutations import Change
from tests.corruption.pictures import pictures
from tests.evaluation.cases import FEW, THREAT, linear
from tests.training.tiny import tiny_config


@dataclass(frozen=True)
class Artefact:
    """A kind of file.

    Attributes:
        make: Writes the valid files into a folder.
        files: Those that are damaged, relative to it.
        read: What reading the folder gives, by name or number.
        parses: Whether a file has the syntax of its format, by an independent reader.
        changes: How it is damaged.
        given: Whether another outcome is that of the file as it now is: (file, its outcome, the valid outcome).
        weight: Its share of all cases.
    """

    make: Callable[[Path], object]
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    parses: Callable[[bytes], object]
    changes: tuple[Change, ...]
    given: Callable[[Path, Any, Any], bool] = lambda path, found, valid: False
    weight: float = 1.0


TEXT: tuple[Change, ...] = (mutations.text, mutations.text, mutations.text, mutations.bits, mutations.places)
JSON: tuple[Change, ...] = (mutations.values, mutations.values, mutations.text, mutations.bits, mutations.places)
FORGED: tuple[Change, ...] = (mutations.forged,)
DATABASE: tuple[Change, ...] = (mutations.rows, mutations.rows, mutations.bits, mutations.places)
BINARY: tuple[Change, ...] = (mutations.bits, mutations.bits, mutations.bits, mutations.places)


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


def _parses_as_tensors(content: bytes) -> object:
    from safetensors import deserialize

    return deserialize(content)


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
    written = json.loads(path.read_bytes())
    return repr(found[1]) == repr([written["clean"], *written["attacks"], written["worst"]])


def _subject(folder: Path) -> Any:
    return str(EvaluationTarget.read(folder))


def _without_checksum(path: Path, found: Any, valid: Any) -> bool:
    """Without the checksum, as version 0.2 wrote it."""
    return "checksum" not in json.loads(path.read_bytes())


# Rows and records.


def _stored(folder: Path) -> None:
    lines = (Path(__file__).parents[2] / "results" / "cpu.jsonl").read_text().splitlines()
    whole = [json.loads(line) for line in lines]
    kinds = [next(line for line in whole if line["kind"] == kind) for kind in ("training", "evaluation")]
    shortest = min((line for line in lines if json.loads(line)["kind"] == "evaluation"), key=len)
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kinds[:1]) + shortest + "\n")


def _rows(folder: Path) -> Any:
    found = []
    for one in results.read(folder / "rows.jsonl"):
        more = [row.to_dict() for row in one.evaluation.rows] if one.kind == "evaluation" else one.document
        found.append((one.label, one.key, repr(more)))
    return found


def _rows_as_written(path: Path, found: Any, valid: Any) -> bool:
    """The document is the valid one; the block of the run beside it has no checksum."""
    return all(document in [other[2] for other in valid] for _, _, document in found)


def _corruptions(folder: Path) -> None:
    images = ImageSet(pictures(3, 24), torch.arange(3), ("a", "b", "c"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(108, 3)).eval()
    corruption_accuracy(model, images, generated(images), record=folder / RECORD)


def _corruption_record(folder: Path) -> Any:
    record = CorruptionRecord.load(folder / RECORD)
    return record.clean.outcomes, [(c.corruption, c.severity, c.outcomes) for c in record.cells], repr(record.mca)


# Images.


def _cifar(folder: Path) -> None:
    def file(name: str, content: Mapping[bytes, object]) -> None:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))

    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.random.default_rng(i).integers(0, 256, (2, 3072), dtype=np.uint8)
        file(name, {b"data": data, b"labels": [i, (i + 3) % 10], b"batch_label": b"x"})
    file("batches.meta", {b"label_names": [f"class {i}".encode() for i in range(10)]})


def _read_cifar(folder: Path) -> Any:
    data = read_cifar("cifar10", folder)
    return _held(data.train), _held(data.test), data.note


def _held(images: Any) -> Any:
    x, y = images.batch(torch.arange(len(images)))
    assert len(x) == len(y) and int(y.max()) < len(images.classes) and int(y.min()) >= 0
    return tensor_checksum({"x": x}), y.tolist(), images.classes


def _named_as_other(path: Path, found: Any, valid: Any) -> bool:
    """The files carry no checksum; MD5 sums of the published ones say that they are others."""
    return path.name in found[2]


def _parses_as_pickle(content: bytes) -> object:
    return [*pickletools.genops(content)]


def _photos(folder: Path) -> None:
    for i, image in enumerate(pictures(4, 24)):
        place = folder / "val" / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{i}.{('png', 'png', 'jpg', 'gif')[i]}")


def _read_photos(folder: Path) -> Any:
    images = load_test("imagefolder", folder, image_size=16)
    pixels = images.batch(torch.arange(len(images)))[0]
    return len(images), images.labels.tolist(), [tensor_checksum({"x": x}) for x in pixels]


def _other_pixels(path: Path, found: Any, valid: Any) -> bool:
    """Pillow decodes the damaged image to other pixels, of this image only. It checks no checksum of PNG."""
    different = sum(a != b for a, b in zip(found[2], valid[2], strict=True))
    return bool(found[:2] == valid[:2] and different <= 1)


def _parses_as_image(content: bytes) -> object:
    with Image.open(io.BytesIO(content)) as picture:
        return picture.size


def _shards(folder: Path) -> None:
    (folder / "val").mkdir(exist_ok=True)
    with tarfile.open(folder / "val" / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, image in enumerate(pictures(4, 16)):
            png = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(png, "png")
            for suffix, content in (("png", png.getvalue()), ("cls", str(i % 2).encode())):
                member = tarfile.TarInfo(f"{i:04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _read_shards(folder: Path) -> Any:
    images = load_test("imagefolder", folder, image_size=16)
    pixels = images.batch(torch.arange(len(images)))[0]
    return len(images), images.labels.tolist(), [tensor_checksum({"x": x}) for x in pixels]


def _other_label(path: Path, found: Any, valid: Any) -> bool:
    """The class numbers are those that an independent reader finds; and as for a single image."""
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
        labels = []
        for name in (name for name in members if name.endswith("png")):
            content = tar.extractfile(members[name.replace("png", "cls")])
            labels.append(int(content.read()) if content else -1)
    different = sum(a != b for a, b in zip(found[2], valid[2], strict=True))
    return found[1] == labels and found[0] == valid[0] and different <= 1


def _parses_as_tar(content: bytes) -> object:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        return tar.getmembers()


def _index(folder: Path) -> None:
    _shards(folder)
    _read_shards(folder)


def _published(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "labels.npy", np.tile(np.arange(2), 5).astype(np.int64))
    for name in CORRUPTIONS:
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8))


def _read_published(folder: Path) -> Any:
    clean = ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), ("a", "b"))
    images = read_published(folder, clean).load("fog", 3)
    x, y = images.batch(torch.arange(len(images)))
    return len(x), y.tolist(), tensor_checksum({"x": x})


def _pixels_as_stored(path: Path, found: Any, valid: Any) -> bool:
    """The header still says what it said, so that other bytes are other pixels, and labels are as before."""
    return found[:2] == valid[:2] and path.name == "fog.npy"


def _parses_as_array(content: bytes) -> object:
    return np.load(io.BytesIO(content), allow_pickle=False)


# Weights of others.


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _weights(folder: Path) -> None:
    torch.manual_seed(0)
    state = _net().state_dict()
    torch.save({"state_dict": state, "epoch": 3}, folder / "net.pt")
    save_file(state, folder / "net.safetensors")


def _load_weights(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        net = _net()
        load_weights(net, folder / name)
        return tensor_checksum(net.state_dict())

    return read


def _values_as_stored(path: Path, found: Any, valid: Any) -> bool:
    """Neither format has a checksum of its values; the numbers are those in the file, with our names and shapes."""
    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)["state_dict"]
    else:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    net = _net()
    own = net.state_dict()
    net.load_state_dict({name.removeprefix("net."): value for name, value in state.items()}, strict=False)
    return set(own) - set(state) <= {"1.num_batches_tracked"} and found == tensor_checksum(net.state_dict())


def _parses_as_zip(content: bytes) -> object:
    import zipfile

    return zipfile.ZipFile(io.BytesIO(content)).namelist()


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
    "checkpoint": Artefact(_run, ("last.safetensors",), _checkpoint, _parses_as_tensors, BINARY, weight=1.5),
    "best network": Artefact(_run, ("best.safetensors",), _network, _parses_as_tensors, BINARY, weight=0.3),
    "log": Artefact(_run, ("metrics.jsonl",), _metrics, changes=JSON, given=_metrics_as_written, **_LINES),
    "ledger": Artefact(
        _evaluation, ("ledger.sqlite",), _numbers_of_the_ledger, _parses_as_database, DATABASE, weight=2.0
    ),
    "ledger, verified": Artefact(
        _evaluation, ("ledger.sqlite",), _verified, _parses_as_database, DATABASE, weight=0.05
    ),
    "evaluation": Artefact(_evaluation, ("evaluation.json",), _printed, changes=JSON, **_JSON),
    "evaluation, checksum fits": Artefact(
        _evaluation, ("evaluation.json",), _printed, changes=FORGED, given=_printed_as_written, **_JSON
    ),
    "subject": Artefact(_evaluation, ("subject.json",), _subject, changes=JSON, given=_without_checksum, **_JSON),
    "stored rows": Artefact(_stored, ("rows.jsonl",), _rows, changes=JSON, given=_rows_as_written, **_LINES),
    "corruptions": Artefact(_corruptions, (RECORD,), _corruption_record, changes=JSON, **_JSON),
    "corruptions, checksum fits": Artefact(_corruptions, (RECORD,), _corruption_record, changes=FORGED, **_JSON),
    "CIFAR-10": Artefact(
        _cifar, ("data_batch_3", "test_batch", "batches.meta"), _read_cifar, _parses_as_pickle, BINARY, _named_as_other
    ),
    "image folder": Artefact(
        _photos, ("val/cat/0.png", "val/cat/2.jpg", "val/dog/3.gif"), _read_photos, _parses_as_image, BINARY,
        _other_pixels,
    ),
    "tar shard": Artefact(_shards, ("val/0.tar",), _read_shards, _parses_as_tar, BINARY, _other_label),
    "corrupted images": Artefact(
        _published, ("fog.npy", "labels.npy"), _read_published, _parses_as_array, BINARY, _pixels_as_stored
    ),
    "weights": Artefact(
        _weights, ("net.safetensors",), _load_weights("net.safetensors"), _parses_as_tensors, BINARY, _values_as_stored
    ),
    "pickled weights": Artefact(
        _weights, ("net.pt",), _load_weights("net.pt"), _parses_as_zip, BINARY, _values_as_stored
    ),
}  # fmt: skip
LEDGERS = ("ledger", "ledger, verified")
