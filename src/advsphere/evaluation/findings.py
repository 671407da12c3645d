"""What a check found, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """check: what was looked at. status: "ok"; "fixed", wrong but put right; "noted", to be known by whoever reads the
    numbers; "failed". detail: a sentence.
    """

    check: str
    status: Literal["ok", "fixed", "noted", "failed"]
    detail: str
