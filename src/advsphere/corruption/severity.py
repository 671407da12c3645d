"""The published strength of each corruption at each severity, for images of 32, 64 and 224 pixels.

Source: D. Hendrycks and T. Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*
(ICLR 2019, arXiv 1903.12261), with the numbers of make_cifar_c.py (32), make_tinyimagenet_c.py and
make_imagenet_64_c.py (64) and make_imagenet_c.py (224) in hendrycks/robustness at 8190fe3. Lengths are in pixels,
intensities in units of the range [0, 1]. The numbers are in severity.json; each corruption's function names them.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

from advsphere.errors import UserError

_NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")
_BLUR = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
_WEATHER = ("snow", "frost", "fog", "brightness")
_DIGITAL = ("contrast", "elastic_transform", "pixelate", "jpeg_compression")
CORRUPTIONS = _NOISE + _BLUR + _WEATHER + _DIGITAL
"""The 15 corruptions of the benchmark, in its order; mCA and mCE average over these."""
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The four corruptions that the benchmark keeps for validation."""
SEVERITIES = (1, 2, 3, 4, 5)
"""From mild to strong."""
TABLES = {32: "CIFAR-10-C", 64: "Tiny-ImageNet-C", 224: "ImageNet-C"}
"""Image side for which a table was published, and the data set made with it."""
_ELASTIC = {32: 32, 64: 64, 224: 244}
"""The lengths of elastic_transform are fractions of these sides. 244 is a typo of the published generator, and the
published images were made with it.
"""


def table_for(side: int) -> int:
    """The side (32, 64 or 224) whose table is used unscaled at this side: the nearest by ratio, which is our choice."""
    return min(TABLES, key=lambda known: abs(math.log(known / side)))


def strength(name: str, severity: int, side: int) -> tuple[float, ...]:
    """The parameters of a corruption. Raises UserError for an unknown name or a severity outside 1 to 5."""
    table = _tables().get(name)
    if table is None:
        raise UserError(f"there is no corruption {name!r}; there are {', '.join((*CORRUPTIONS, *EXTRA))}")
    if severity not in SEVERITIES:
        raise UserError(f"there is no severity {severity}: the benchmark's are 1 (mild) to 5 (strong)")
    row = tuple(table[str(table_for(side))][severity - 1])
    return tuple(_ELASTIC[table_for(side)] * share for share in row) if name == "elastic_transform" else row


@cache
def _tables() -> dict[str, dict[str, list[list[float]]]]:
    """The parameters at each severity, by name and side."""
    tables: dict[str, dict[str, list[list[float]]]] = json.loads(Path(__file__).with_suffix(".json").read_text())
    return tables
