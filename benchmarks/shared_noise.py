"""Stand-ins for numpy.random that hand the published generators the draws that ours would make of an image.

So that their results can be compared pixel by pixel, and not in distribution alone. They know the order in which those
functions draw. Shot and impulse noise have no such stand-in: they turn draws into counts, or into black and white, by
other rules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from advsphere.corruption.noise import normal, symmetric
from advsphere.rng import Rng

Functions = dict[str, Callable[..., Any]]


def shared_noise(name: str, example: int, severity: int, side: int) -> Functions | None:
    """uniform, normal, randint or choice as numpy.random has them, for one image; None where there is no such thing."""
    rng = Rng(0, torch.tensor([example])).at(step=severity)

    def uniform(*shape: int, purpose: str = name) -> Any:
        return rng.uniform(shape, purpose)[0].numpy().astype(np.float64)

    def even(*shape: int, purpose: str = name) -> Any:
        return symmetric(rng, shape, purpose)[0].numpy().astype(np.float64)

    def gaussian(size: tuple[int, ...], loc: float = 0, scale: float = 1) -> Any:
        planes = (3, side, side) if len(size) == 3 else (1, side, side)
        z = normal(rng, planes, name)[0].numpy().astype(np.float64)
        return loc + scale * (z.transpose(1, 2, 0) if len(size) == 3 else z[0])

    match name:
        case "gaussian_noise" | "speckle_noise" | "spatter":
            return {"normal": gaussian}
        case "snow":
            return {"normal": gaussian, "uniform": lambda low, high: low + (high - low) * uniform(purpose="snow angle")}
        case "motion_blur":
            return {"uniform": lambda low, high: low + (high - low) * uniform()}
        case "glass_blur":
            offsets = _glass(rng, side)
            return {"randint": lambda low, high, size: next(offsets)(high)}
        case "fog":
            side = 1 << (side - 1).bit_length()
            noise = _squares_and_diamonds(even(side, side))
            return {"uniform": lambda low, high, shape: high * next(noise)}
        case "elastic_transform":
            shift = iter(even(2, side, side, purpose=f"{name} displacement"))
            affine = 2 * uniform(3, 2, purpose=f"{name} affine") - 1
            return {"uniform": lambda low, high, size: high * affine if size == (3, 2) else next(shift)}
        case "frost":
            picks = iter(uniform(3))
            return {"randint": lambda *limits: int(next(picks) * limits[-1])}
    return None


def _glass(rng: Rng, side: int) -> Iterator[Callable[[int], Any]]:
    """For each pixel in the order of the passes, a function from the reach to its offsets (dx, dy)."""
    for number in itertools.count():
        u = rng.at(restart=number).integers((2, side, side), "glass_blur")[0].numpy()
        reach = 0

        def offsets(d: int, h: int, w: int, u: Any = u) -> Any:
            nonlocal reach
            reach = d
            dy, dx = (u[:, h, w] * 2 * d >> 16) - d
            return dx, dy

        h = w = 0
        while True:
            # The first call tells the reach, and with it where a pass begins and ends.
            yield lambda d, h=h, w=w: offsets(d, h or side - d, w or side - d)  # type: ignore[misc]
            h, w = h or side - reach, (w or side - reach) - 1
            if w == reach:
                h, w = h - 1, side - reach
            if h == reach:
                break


def _squares_and_diamonds(noise: Any) -> Iterator[Any]:
    """The parts of a plane of noise in the order of the diamond-square algorithm."""
    size = step = len(noise)
    while step >= 2:
        half = step // 2
        yield noise[half:size:step, half:size:step]
        yield noise[0:size:step, half:size:step]
        yield noise[half:size:step, 0:size:step]
        step = half
