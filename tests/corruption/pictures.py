"""Pictures to corrupt: smooth colours, a few hard edges, and grey, black and white parts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pictures(n: int, side: int) -> Tensor:
    """(n, 3, side, side) uint8, the same every time."""
    rng = np.random.default_rng(side)
    row, column = np.mgrid[0:side, 0:side] / side
    made = []
    for _ in range(n):
        a, b, c = rng.uniform(-3, 3, (3, 3, 1, 1))
        x = 0.5 + 0.45 * np.sin(a + 3 * b * row + 3 * c * column)
        top, left = rng.integers(0, side // 2, 2)
        x[:, top : top + side // 4, left : left + side // 3] = rng.uniform(0, 1, (3, 1, 1))
        x[:, : side // 8, : side // 8] = rng.integers(0, 2)
        x[:, -side // 8 :, -side // 8 :] = rng.uniform()
        made.append(x)
    return torch.from_numpy(np.round(255 * np.stack(made)).astype(np.uint8))
