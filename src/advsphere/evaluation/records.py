"""JSON data: one way to write a value down, where two of them differ, and files of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advsphere.errors import UserError


def canonical(value: Any) -> str:
    """The same text for the same JSON-able value: sorted keys, no needless space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, a line for each: "model.checksum: "1f" is not "2e"" names a's and b's."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (u, v) in enumerate(zip(a, b, strict=True)) for d in differences(u, v, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {_short(a)} is not {_short(b)}"]


def content_checksum(data: Mapping[str, Any]) -> str:
    """SHA-256 over all entries but the one called "checksum"."""
    return hashlib.sha256(canonical({k: v for k, v in data.items() if k != "checksum"}).encode()).hexdigest()


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """A JSON object whose entry "format" is `kind`, otherwise unchecked. Raises UserError."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as {kind!r}: {error}") from error
    if not isinstance(data, dict) or data.get("format") != kind:
        raise UserError(f"{path} is no {kind!r}; give a file that `advsphere evaluate` of this version wrote")
    return data


def some(lines: Sequence[str], most: int = 5) -> str:
    """The first few of many, and how many more there are."""
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return ", ".join(lines[:most]) + more


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}"
