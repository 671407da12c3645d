"""A cell of the ledger: what became of one example under one attack."""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Status = Literal["fooled", "resisted", "invalid", "not_run"]
"""`fooled`: inside the ball and misclassified by the model in float32. `invalid`: the attack left the ball, which
counts as resisted. `not_run`: the clean image is misclassified already, or an attack that this one comes after fooled
it, so nothing was tried.
"""


class Cell(NamedTuple):
    """One example under one attack.

    prediction: the model's, in float32, of what the attack returned (-1 for NaN logits; None where nothing was
    predicted). distance: of that from the clean image. x_adv: (C, H, W), of a fooled one, and of what a minimal-norm
    attack found outside the ball.
    """

    example: int
    status: Status
    prediction: int | None = None
    distance: float | None = None
    x_adv: Tensor | None = None


@dataclass(frozen=True)
class Cost:
    """What an attack took. forwards: images that went through the model while searching."""

    seconds: float
    forwards: int


def packed(x: Tensor | None) -> bytes | None:
    """The float32 values of a tensor, compressed without loss."""
    return None if x is None else zlib.compress(x.detach().cpu().float().contiguous().numpy().tobytes(), 1)


def unpacked(blob: bytes, shape: Sequence[int]) -> Tensor:
    """The tensor that was packed. Raises ValueError for bytes that are none of this shape."""
    try:
        return torch.from_numpy(np.frombuffer(zlib.decompress(blob), dtype=np.float32).copy().reshape(shape))
    except (zlib.error, TypeError) as error:
        raise ValueError(str(error)) from error


def fingerprint(blob: bytes) -> str:
    """SHA-256 of the values in a packed tensor, which does not depend on the build of zlib that packed them."""
    with contextlib.suppress(zlib.error):  # damaged bytes are taken as they are, so that the damage shows
        blob = zlib.decompress(blob)
    return hashlib.sha256(blob).hexdigest()
