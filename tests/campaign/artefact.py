"""A kind of file that advsphere reads, made small and valid, and what reading it gives.

A damaged file must be refused in a line, or give what the valid one gives. Some files carry no checksum, because people
write them: configs, command lines, images, class numbers. There another meaning is right if it is the one that the
file now has, by an independent reading: `given` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign import mutations
from tests.campaign.mutations import Change


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
