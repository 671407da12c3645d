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


@dataclass(frozen=True)
class Sign:
    """A sign of gradient masking that was looked for.

    check: its name. status: "raised"; "absent"; "unjudged", where the suite lacks what it takes to tell. detail: the
    evidence, with n and interval, or what was lacking. advice: what to do about one that was raised, else "".
    """

    check: str
    status: Literal["raised", "absent", "unjudged"]
    detail: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}" + (f"; {self.advice}" if self.advice else "")
