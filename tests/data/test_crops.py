"""Random resized crops against torchvision's, whose numbers are drawn from elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from advsphere.data.crops import ResizedCrops
from advsphere.rng import Rng

N = 3000


def ours(width: int, height: int, min_area: float) -> Tensor:
    """(N, 4): left, top, width, height."""
    crops = ResizedCrops.of(Rng(0, torch.arange(N)), min_area)
    return torch.tensor([crops.box(i, width, height) for i in range(N)])


def torchvisions(width: int, height: int, min_area: float) -> Tensor:
    image = torch.empty(1, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = [RandomResizedCrop.get_params(image, [min_area, 1.0], [3 / 4, 4 / 3]) for _ in range(N)]
    return torch.tensor([(left, top, width, height) for top, left, height, width in found])


def apart(a: Tensor, b: Tensor) -> float:
    """The largest distance of two samples' distribution functions (Kolmogorov and Smirnov)."""
    at = torch.cat([a, b]).sort().values
    return float((torch.searchsorted(a.sort().values, at, right=True) / len(a)
                  - torch.searchsorted(b.sort().values, at, right=True) / len(b)).abs().max())  # fmt: skip


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (64, 64), (300, 60)])
@pytest.mark.parametrize("min_area", [0.08, 0.35])
def test_boxes_are_distributed_as_torchvisions(width: int, height: int, min_area: float) -> None:
    boxes, others = ours(width, height, min_area), torchvisions(width, height, min_area)
    features = (
        lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2], lambda b: b[:, 3],
        lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3], lambda b: b[:, 0] + b[:, 2] / 2,
    )  # fmt: skip
    # 1.95 * sqrt(2 / N) is exceeded once in a thousand.
    assert max(apart(f(boxes), f(others)) for f in features) < 1.95 * (2 / N) ** 0.5


@pytest.mark.parametrize("size", [(500, 375), (37, 91), (3, 3), (1, 1), (1, 50), (4000, 2)])
def test_boxes_lie_in_the_image(size: tuple[int, int]) -> None:
    left, top, width, height = ours(*size, 0.08).T
    assert bool((width > 0).all() and (height > 0).all() and (left >= 0).all() and (top >= 0).all())
    assert bool((left + width <= size[0]).all() and (top + height <= size[1]).all())


@pytest.mark.parametrize("size", [(100, 10), (10, 100), (40, 30)])
def test_where_no_try_fits_it_is_torchvisions_centre(size: tuple[int, int]) -> None:
    boxes, others = ours(*size, 1.0), torchvisions(*size, 1.0)
    middle = boxes.mode(0).values
    assert torch.equal(middle, others.mode(0).values)
    assert bool((boxes == middle).all(1).float().mean() > 0.5)


def test_a_crop_is_resized_as_torchvision_does() -> None:
    pixels = torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crops = ResizedCrops.of(Rng(1, torch.arange(5)), 0.08)
    for i, found in enumerate(crops(pixels)):
        left, top, width, height = crops.box(i, 40, 40)
        expected = reference.resized_crop(pixels[i], top, left, height, width, [40, 40], antialias=True)
        # Without AVX2 torchvision resizes in floating point, and rounds in its own way.
        assert int((found.int() - expected.int()).abs().max()) <= 1


def test_a_crop_is_a_function_of_seed_id_and_epoch() -> None:
    ids = torch.arange(50)

    def boxes(rng: Rng) -> list[object]:
        crops = ResizedCrops.of(rng, 0.08)
        return [crops.box(i, 500, 375) for i in range(len(rng.ids))]

    first = boxes(Rng(0, ids))
    assert boxes(Rng(0, ids.flip(0))) == first[::-1], "whatever its batch mates"
    for other in (Rng(1, ids), Rng(0, ids + 50), Rng(0, ids, step=1)):
        assert sum(a == b for a, b in zip(boxes(other), first, strict=True)) < 3
