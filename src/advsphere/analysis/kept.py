"""What was computed once, in a JSON file that says so if it was changed since."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advsphere.errors import UserError
from advsphere.evaluation.records import content_checksum, read_json
from advsphere.files import write_atomically


def write_kept(path: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write it, whole or not at all. Raises UserError where that can't be done."""
    content = {"format": kind, **values}
    write_atomically(path, json.dumps(content | {"checksum": content_checksum(content)}).encode())


def read_kept(path: Path, kind: str) -> dict[str, Any]:
    """The values. Raises UserError for a file that is missing, of another kind, or changed since."""
    data = read_json(path, kind)
    if data.get("checksum") != content_checksum(data):
        raise UserError(f"{path} was changed after it was written; delete it, and it is computed again")
    return {key: value for key, value in data.items() if key not in ("format", "checksum")}
