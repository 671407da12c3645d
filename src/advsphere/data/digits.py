"""Handwritten digits that come with scikit-learn: the data set that needs no download.

Source: E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI repository (1998), its test part.
"""

from __future__ import annotations

import torch

from advsphere.data.images import Dataset, ImageSet
from advsphere.draws import permutation

TEST_IMAGES = 500


def read_digits() -> Dataset:
    """1,297 images to train on and 500 to test on, 1x8x8; the 17 grey levels 0..16 are spread over 0..255.

    scikit-learn has no split of these; ours is fixed, by address, and is the same on every machine.
    """
    from sklearn.datasets import load_digits  # slow to import, and needed here alone

    bunch = load_digits()
    levels = torch.from_numpy(bunch.images).unsqueeze(1)
    digits = ImageSet(
        (levels * 255 / 16).round().to(torch.uint8),
        torch.from_numpy(bunch.target).long(),
        tuple(str(digit) for digit in bunch.target_names),
        "digits",
    )
    order = permutation(len(digits), seed=0, epoch=0, purpose="digits test split")
    return Dataset(digits.take(order[TEST_IMAGES:].sort().values), digits.take(order[:TEST_IMAGES].sort().values))
