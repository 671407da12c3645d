from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from advsphere.data import Augment
from advsphere.data.batching import epoch_batches
from advsphere.data.images import as_float
from advsphere.errors import UserError
from advsphere.rng import Rng


def random_images(batch: int, height: int = 6, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def places_of(x: Tensor, pixels: Tensor, padding: int) -> list[tuple[int, int, bool]]:
    """For each result, the one (row, column, mirrored) whose slice of the zero-padded image it is."""
    height, width = pixels.shape[2:]
    padded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    places = []
    for found, image in zip((x * 255).round().byte().numpy(), padded, strict=True):
        fits = [
            (row, column, mirrored)
            for row in range(2 * padding + 1)
            for column in range(2 * padding + 1)
            for mirrored in (False, True)
            if (image[:, row : row + height, column : column + width][..., :: -1 if mirrored else 1] == found).all()
        ]
        assert len(fits) == 1
        places.append(fits[0])
    return places


def test_each_result_is_a_slice_of_the_padded_image_and_all_places_are_equally_likely() -> None:
    pixels, padding = random_images(1800), 1
    places = places_of(Augment(padding=padding, flip=True)(pixels, Rng(0, torch.arange(1800))), pixels, padding)
    counts = {place: places.count(place) for place in set(places)}
    assert len(counts) == 3 * 3 * 2
    # 100 are expected at each of 18 places; chi-squared with 17 degrees of freedom exceeds 50 once in 25,000 seeds.
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 50


def test_offsets_cover_zero_to_twice_the_padding() -> None:
    pixels = random_images(400)
    places = places_of(Augment(padding=4, flip=False)(pixels, Rng(1, torch.arange(400))), pixels, 4)
    assert {row for row, _, _ in places} == {column for _, column, _ in places} == set(range(9))
    assert not any(mirrored for _, _, mirrored in places)


def test_without_padding_and_flips_the_pixels_are_unchanged() -> None:
    pixels = random_images(5)
    assert torch.equal(Augment(padding=0, flip=False)(pixels, Rng(0, torch.arange(5))), as_float(pixels))


def test_flips_alone_mirror_about_half() -> None:
    pixels = random_images(400)
    x = Augment(padding=0, flip=True)(pixels, Rng(0, torch.arange(400)))
    mirrored = (x == as_float(pixels.flip(-1))).flatten(1).all(1)
    same = (x == as_float(pixels)).flatten(1).all(1)
    assert bool((mirrored ^ same).all()) and 140 < int(mirrored.sum()) < 260


def test_alternating_flips_mirror_each_image_in_every_other_epoch() -> None:
    pixels, augment = random_images(400), Augment(padding=1, flip=True, alternate=True)
    epochs = [places_of(augment(pixels, Rng(0, torch.arange(400), step=step)), pixels, 1) for step in range(4)]
    mirrored = torch.tensor([[place[2] for place in places] for places in epochs])
    assert torch.equal(mirrored[2], mirrored[0]) and torch.equal(mirrored[1], ~mirrored[0])
    assert torch.equal(mirrored[3], mirrored[1]) and 140 < int(mirrored[0].sum()) < 260
    at_random = Augment(padding=1, flip=True)
    for step in range(2):
        rng = Rng(0, torch.arange(400), step=step)
        assert [place[:2] for place in places_of(at_random(pixels, rng), pixels, 1)] == [p[:2] for p in epochs[step]]
    with pytest.raises(UserError, match="set flip too"):
        Augment(padding=1, alternate=True)


def test_cutout_is_a_grey_square_whose_centre_is_any_pixel() -> None:
    """An image of 6 x 9 has 54 centres. A square of 3 around one of them is cut off at the borders."""
    pixels, side = random_images(5400), 3
    x = Augment(cutout=side)(pixels, Rng(0, torch.arange(5400)))
    cut = (x != as_float(pixels)).any(1)
    assert bool((x == 0.5).all(1)[cut].all())
    squares: dict[tuple[int, ...], int] = {}
    for one in cut:
        rows, columns = one.any(1).nonzero().squeeze(1).tolist(), one.any(0).nonzero().squeeze(1).tolist()
        assert int(one.sum()) == len(rows) * len(columns)
        edges = rows[0], rows[-1], columns[0], columns[-1]
        squares[edges] = squares.get(edges, 0) + 1
    expected = {(max(r - 1, 0), min(r + 1, 5), max(c - 1, 0), min(c + 1, 8)): 100 for r in range(6) for c in range(9)}
    assert squares.keys() == expected.keys()
    # Chi-squared with 53 degrees of freedom exceeds 110 once in 100,000 seeds.
    assert sum((squares[edges] - 100) ** 2 / 100 for edges in expected) < 110
    even = Augment(cutout=4)(pixels, Rng(0, torch.arange(5400)))
    assert int((even == 0.5).all(1).flatten(1).sum(1).max()) == 16


def test_cutout_keeps_its_input_and_the_crops() -> None:
    pixels, rng = as_float(random_images(50)).contiguous(memory_format=torch.channels_last), Rng(3, torch.arange(50))
    kept = pixels.clone()
    x = Augment(padding=2, flip=True, cutout=3)(pixels, rng)
    assert torch.equal(pixels, kept)
    plain = Augment(padding=2, flip=True)(pixels, rng)
    assert bool(((x == plain) | (x == 0.5)).all()) and not torch.equal(x, plain)


@pytest.mark.parametrize("settings", [{"padding": 2}, {"flip": True}, {"flip": True, "alternate": True, "cutout": 3}])
def test_choices_may_be_drawn_for_a_whole_epoch_at_once(settings: dict[str, object]) -> None:
    pixels, rng, augment = random_images(16), Rng(0, torch.arange(16), step=1), Augment(**settings)
    index, drawn = torch.tensor([9, 2, 14]), augment.draw(rng)
    assert torch.equal(augment.apply(pixels[index], drawn[index]), augment(pixels[index], rng.take(index)))


def test_crops_are_the_same_with_flips_on_and_off() -> None:
    pixels, rng = random_images(50), Rng(3, torch.arange(50))
    plain = places_of(Augment(padding=2, flip=False)(pixels, rng), pixels, 2)
    flipped = places_of(Augment(padding=2, flip=True)(pixels, rng), pixels, 2)
    moved = [(row, column) for row, column, _ in flipped]
    assert moved == [(row, column) for row, column, _ in plain] and any(mirrored for *_, mirrored in flipped)


def test_a_result_does_not_depend_on_batch_mates() -> None:
    pixels, rng = random_images(16), Rng(0, torch.arange(100, 116), step=5)
    whole = Augment(padding=4, flip=True)(pixels, rng)
    for index in (torch.tensor([3]), torch.tensor([9, 2, 14])):
        assert torch.equal(Augment(padding=4, flip=True)(pixels[index], rng.take(index)), whole[index])


def test_seed_id_and_step_each_change_the_result() -> None:
    pixels, ids = random_images(1).repeat(64, 1, 1, 1), torch.arange(64)
    results = [
        Augment(padding=4, flip=True)(pixels, rng)
        for rng in (Rng(0, ids), Rng(1, ids), Rng(0, ids + 64), Rng(0, ids, step=1))
    ]
    assert torch.equal(results[0], Augment(padding=4, flip=True)(pixels, Rng(0, ids)))
    for other in results[1:]:
        assert (other != results[0]).flatten(1).any(1).float().mean() > 0.9


def test_float_pixels_give_what_uint8_gives_and_the_input_is_kept() -> None:
    pixels, rng = random_images(8), Rng(0, torch.arange(8))
    kept = pixels.clone()
    x = Augment(padding=3, flip=True)(pixels, rng)
    assert torch.equal(pixels, kept)
    assert torch.equal(x, Augment(padding=3, flip=True)(as_float(pixels), rng))


def test_the_result_is_channels_last_and_global_randomness_untouched() -> None:
    before = torch.get_rng_state()
    x = Augment(padding=4, flip=True)(random_images(8), Rng(0, torch.arange(8)))
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(torch.get_rng_state(), before)


def test_epoch_batches_hold_each_example_once_in_the_order_of_seed_and_epoch() -> None:
    batches = epoch_batches(100, 32, seed=0, epoch=3)
    assert [len(batch) for batch in batches] == [32, 32, 32, 4]
    order = torch.cat(batches)
    assert order.dtype == torch.int64 and sorted(order.tolist()) == list(range(100))
    assert torch.equal(torch.cat(epoch_batches(100, 7, seed=0, epoch=3)), order)
    assert not torch.equal(torch.cat(epoch_batches(100, 32, seed=0, epoch=4)), order)
    assert not torch.equal(torch.cat(epoch_batches(100, 32, seed=1, epoch=3)), order)


def test_a_single_example_that_is_left_over_joins_the_batch_before() -> None:
    assert [len(b) for b in epoch_batches(9, 4, seed=0, epoch=0)] == [4, 5]
    assert [len(b) for b in epoch_batches(10, 4, seed=0, epoch=0)] == [4, 4, 2]
    assert [len(b) for b in epoch_batches(1, 4, seed=0, epoch=0)] == [1]
    assert [len(b) for b in epoch_batches(3, 1, seed=0, epoch=0)] == [1, 1, 1]


def test_padding_cannot_be_negative() -> None:
    with pytest.raises(UserError, match="-3"):
        Augment(padding=-3)


def test_cutout_cannot_be_negative() -> None:
    with pytest.raises(UserError, match="-1 pixels"):
        Augment(cutout=-1)


@pytest.mark.parametrize("min_area", [0.0, -0.1, 1.5])
def test_a_crop_is_a_share_of_the_image(min_area: float) -> None:
    with pytest.raises(UserError, match=r"give a share in \(0, 1\]"):
        Augment(min_area=min_area)
