"""Power loss: what a disk may hold after it, replayed from a recording of all changes. Work goes on from there.

Until a file is synced, any part of what was written to it may be lost, cut off or read as zeros. Names (files made,
renamed, linked, deleted) become durable in their order, but those after the last sync of their folder may be lost. So a
rename can be durable before the content of its file.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.campaign.killing import judged, watched
from tests.campaign.machine import arm, forked
from tests.campaign.record import Record, scratch
from tests.campaign.subjects import Subject


class Change(NamedTuple):
    """A change of a file: create, write, cut, sync, rename, link, unlink, mkdir or rmdir."""

    kind: str
    path: str
    other: str
    offset: int
    data: bytes


def recorded(subject: Subject, folder: Path, log: Path) -> list[Change]:
    """The changes of undisturbed work in a folder."""

    def task() -> None:
        arm(folder, record=log)
        subject.run(folder)

    made = forked(task)
    assert made.status == 0, made.said
    return [*read(log.read_bytes())]


def read(log: bytes) -> Iterator[Change]:
    place = 0
    while place < len(log):
        end = log.index(b"\n", place)
        kind, offset, size, path, other = log[place:end].decode().split("\t")
        place = end + 1 + (int(size) if kind == "write" else 0)
        yield Change(kind, path, other, int(offset), log[end + 1 : place])


@dataclass
class Content:
    """The content of a file: what is durable, and the writes since its last sync."""

    durable: bytes = b""
    pending: list[Change] = field(default_factory=list)

    def after(self, changes: list[Change]) -> bytes:
        held = bytearray(self.durable)
        for change in changes:
            if change.kind == "cut":
                held[change.offset :] = bytes(max(0, change.offset - len(held)))
                continue
            held.extend(bytes(max(0, change.offset - len(held))))
            held[change.offset : change.offset + len(change.data)] = change.data
        return bytes(held)


@dataclass
class Disk:
    """The durable names of a disk, the changes of names since then, and the contents."""

    names: dict[str, Content] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    pending: list[Change] = field(default_factory=list)
    live: dict[str, Content] = field(default_factory=dict)
    made: dict[int, Content] = field(default_factory=dict)

    def apply(self, change: Change) -> None:
        """Take one change."""
        if change.kind in ("sync", "rename") and change.path not in self.live:
            # safetensors renames its own temporary file without libc, so that this is not in the recording.
            beside = [path for path in self.live if Path(path).parent == Path(change.path).parent]
            for path in [path for path in beside if Path(path).name.startswith(".tmp")][-1:]:
                self.apply(Change("rename", path, change.path, 0, b""))
        held = self.live.get(change.path)
        if change.kind in ("write", "cut") and held is not None:
            held.pending.append(change)
        elif change.kind == "sync" and held is not None:
            held.durable, held.pending = held.after(held.pending), []
        elif change.kind == "sync":
            here = [one for one in self.pending if str(Path(one.path).parent) == change.path]
            for one in here:
                self._name(self.names, self.folders, one)
            self.pending = [one for one in self.pending if one not in here]
        elif change.kind not in ("write", "cut"):
            if change.kind == "create":
                self.made[id(change)] = Content()
            self._name(self.live, set(), change)
            self.pending.append(change)

    def _name(self, names: dict[str, Content], folders: set[str], change: Change) -> None:
        if change.kind == "create":
            names[change.path] = self.made[id(change)]
        elif change.kind == "mkdir":
            folders.add(change.path)
        elif change.kind in ("rename", "link") and change.path in names:
            names[change.other] = names[change.path]
            if change.kind == "rename" and change.path != change.other:
                del names[change.path]
        elif change.kind == "unlink":
            names.pop(change.path, None)

    def left(self, rng: random.Random, how: str) -> dict[str, bytes]:
        """The files after a loss of power: `least` and `most` durable, `names` without contents, `zeros`, `some`."""
        names, folders = dict(self.names), set(self.folders)
        count = {"least": 0, "some": rng.randrange(len(self.pending) + 1)}.get(how, len(self.pending))
        for change in self.pending[:count]:
            self._name(names, folders, change)
        return {path: self._held(content, rng, how) for path, content in names.items()}

    @staticmethod
    def _held(content: Content, rng: random.Random, how: str) -> bytes:
        if how in ("least", "names"):
            return content.durable
        if how == "most":
            return content.after(content.pending)
        if how == "zeros":
            return content.after([one._replace(data=bytes(len(one.data))) for one in content.pending])
        kept = [one for one in content.pending if rng.random() < 0.6]
        if kept and rng.random() < 0.5:
            kept[-1] = kept[-1]._replace(data=kept[-1].data[: rng.randrange(len(kept[-1].data) + 1)])
        return content.after(kept)


WAYS = ("some", "least", "names", "some", "zeros", "most")
PART = "power lost"


def lose_power(record: Record, subjects: Mapping[str, Subject], count: int, seed: int = 0) -> None:
    """So many states of a disk, at moments spread over the work."""
    with tempfile.TemporaryDirectory(dir=scratch() or None) as place:
        for number, (name, subject) in enumerate(subjects.items()):
            cases = [*range(number, count, len(subjects))]
            if any(record.due(PART, f"{name} {i}") for i in cases):
                _each(record, name, subject, Path(place, str(number)), cases, seed)


def _each(record: Record, name: str, subject: Subject, place: Path, cases: list[int], seed: int) -> None:
    place.mkdir()
    whole = place / "whole"
    changes = recorded(subject, whole, place / "changes")
    for turn, i in enumerate(cases):
        if not record.due(PART, f"{name} {i}"):
            continue
        rng, folder = random.Random(f"{seed} {name} power {i}"), place / str(i)
        at, how = 1 + int((turn + rng.random()) / len(cases) * len(changes)), rng.choice(WAYS)
        disk = Disk()
        for change in changes[:at]:
            disk.apply(change)
        for path, content in disk.left(rng, how).items():
            there = folder / Path(path).relative_to(whole)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(content)
        outcome, said = judged(watched(subject, folder), subject, whole, folder)
        details = {"said": said[-1500:]} if said else {}
        record.add(PART, f"{name} {i}", outcome, moment=f"change {at} of {len(changes)}", disk=how, **details)
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(place)
