"""What holds for every corruption: an image's result is its own, the same each time, and nothing else is touched."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from advsphere.corruption import CORRUPTIONS, EXTRA, SEVERITIES, corrupt, generate
from advsphere.corruption.severity import strength, table_for
from advsphere.errors import UserError
from advsphere.rng import Rng
from tests.corruption.pictures import pictures

ALL = (*CORRUPTIONS, *EXTRA)
CERTAIN = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur"}
CERTAIN |= {"saturate"}
X = pictures(6, 32)
DRAWS = Rng(3, torch.arange(10, 16))


def change(images: Tensor, name: str, severity: int) -> float:
    return float((corrupt(images, name, severity).float() - images.float()).abs().mean())


def test_there_are_fifteen_and_four() -> None:
    assert (len(CORRUPTIONS), len(EXTRA), SEVERITIES) == (15, 4, (1, 2, 3, 4, 5))
    assert set(ALL) == set(generate.BY_NAME)


@pytest.mark.parametrize("name", ALL)
def test_an_image_does_not_depend_on_its_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, state = X.clone(), torch.get_rng_state()
    whole = corrupt(X, name, 4, rng=DRAWS)
    assert whole.shape == X.shape and whole.dtype == torch.uint8
    assert torch.equal(X, before) and torch.equal(torch.get_rng_state(), state)
    order = torch.tensor([4, 1, 5])
    part = corrupt(X[order], name, 4, rng=DRAWS.take(order))
    monkeypatch.setattr(generate, "_AT_ONCE", {"cpu": 1})
    alone = corrupt(X, name, 4, rng=DRAWS)
    for other, same in ((part, whole[order]), (alone, whole)):
        # Sums in another order may round to the next grey level, in a few places.
        apart = (other.int() - same.int()).abs()
        assert apart.max() <= 1 and (apart > 0).float().mean() < 2e-3


@pytest.mark.parametrize("name", ALL)
def test_draws_decide_what_is_random_and_nothing_else(name: str) -> None:
    first = corrupt(X, name, 3, rng=DRAWS)
    assert torch.equal(first, corrupt(X, name, 3, rng=DRAWS))
    other = corrupt(X, name, 3, rng=Rng(4, DRAWS.ids))
    assert torch.equal(first, other) == (name in CERTAIN)
    if name not in CERTAIN:  # two images with the same pixels get draws of their own
        twice = corrupt(X[:1].expand(2, -1, -1, -1), name, 3)
        assert not torch.equal(twice[0], twice[1])


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("name", ALL)
def test_the_strongest_changes_more_than_the_mildest(name: str, side: int) -> None:
    x = pictures(2, side)
    mildest, strongest = change(x, name, 1), change(x, name, 5)
    assert mildest > 0 and strongest > 0.5
    assert mildest < strongest or name in ("frost", "elastic_transform", "saturate")  # these go two ways


def test_noise_grows_with_severity() -> None:
    for name in ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "contrast", "brightness"):
        assert all(a < b for a, b in pairwise(change(X, name, s) for s in SEVERITIES))


def test_sides_without_a_table_take_the_nearest_by_ratio() -> None:
    assert [table_for(side) for side in (24, 45, 46, 64, 96, 119, 120, 160, 224, 299)] == [
        *(32, 32, 64, 64, 64, 64, 224, 224, 224, 224)
    ]
    assert corrupt(pictures(1, 40), "fog", 2).shape == (1, 3, 40, 40)
    assert corrupt(pictures(1, 330), "frost", 2).shape == (1, 3, 330, 330)  # wider than some of the textures


def test_parameters_are_those_published() -> None:
    assert strength("gaussian_noise", 5, 32) == (0.10,) and strength("gaussian_noise", 5, 224) == (0.38,)
    assert strength("motion_blur", 3, 64) == (10, 2) and strength("jpeg_compression", 1, 224) == (25,)
    assert strength("elastic_transform", 1, 224) == pytest.approx((488, 170.8, 24.4))


def test_nothing_comes_of_nothing() -> None:
    for name in ALL:
        assert corrupt(X[:0], name, 1).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("images", "name", "severity", "said"),
    [
        (X, "fogg", 1, "no corruption 'fogg'"),
        (X, "fog", 0, "no severity 0"),
        (X, "fog", 6, "no severity 6"),
        (X.float() / 255, "fog", 1, "uint8"),
        (X[:, :1], "fog", 1, "square colour"),
        (X[0], "fog", 1, "square colour"),
        (X[..., :30], "fog", 1, "square colour"),
        (X[..., :8, :8], "fog", 1, "at least 24"),
    ],
)
def test_mistakes_are_named(images: Tensor, name: str, severity: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        corrupt(images, name, severity)
