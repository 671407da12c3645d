"""Digital corruptions: contrast, elastic transform, pixelation, JPEG, saturation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from advsphere.corruption.blur import gaussian_filter
from advsphere.corruption.noise import symmetric
from advsphere.errors import needs
from advsphere.rng import Rng


def contrast(images: Tensor, rng: Rng, share: float) -> Tensor:
    """Pull each channel towards its mean."""
    x = images.float()
    return x.mul_(share).add_(x.mean((2, 3), keepdim=True).mul_(1 / share - 1))


def saturate(images: Tensor, rng: Rng, factor: float, offset: float) -> Tensor:
    """Replace S of HSV by S * factor + offset, clipped to [0, 1]. Grey counts as red with saturation zero."""
    x = images.float()
    v, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    span = v - low
    loss = (span / v.clamp(min=1)).mul_(factor).add_(offset).clamp_(0, 1).mul_(v)  # V minus lowest
    below = (v - x).div_(span.clamp(min=1))
    below[:, 1:] += (span < 1).float()
    return v - below.mul_(loss)


def pixelate(images: Tensor, rng: Rng, share: float) -> Tensor:
    """Shrink to `share` of the side by averaging (Pillow's BOX filter), and enlarge again by repeating pixels.

    All planes are shrunk as one tall image. Borders between planes coincide with pixel borders of the small image, so
    no average mixes two planes. A mean of exactly half a grey level may be rounded the other way than as published.
    """
    side, planes = images.shape[-1], images.shape[:2].numel()
    small = int(side * share)
    tall = Image.fromarray(images.cpu().reshape(planes * side, side).numpy())
    shrunk = tall.resize((small, small * planes), Image.Resampling.BOX)
    enlarged = np.array(shrunk.resize((side, side * planes), Image.Resampling.NEAREST))
    return torch.from_numpy(enlarged).view(images.shape).to(images.device)


def jpeg_compression(images: Tensor, rng: Rng, quality: float) -> Tensor:
    """Encode as JPEG of this quality, with colours at half the resolution, and decode with libjpeg."""
    needs("data", "torchvision")
    from torchvision.io import decode_jpeg, encode_jpeg

    def through(image: Tensor) -> Tensor:  # (S, S, 3), the codec's layout
        return decode_jpeg(encode_jpeg(image.permute(2, 0, 1), int(quality))).permute(1, 2, 0)

    # Stacking channels is twice as fast as permuting them.
    pixels = torch.stack(images.cpu().unbind(1), -1)
    if (threads := torch.get_num_threads()) == 1:
        done = [through(image) for image in pixels]
    else:
        with ThreadPoolExecutor(threads) as pool:
            done = list(pool.map(through, pixels))
    return torch.stack(done).permute(0, 3, 1, 2).to(images.device)


def elastic_transform(images: Tensor, rng: Rng, amplitude: float, smoothness: float, jitter: float) -> Tensor:
    """Apply a random affine map, then random smooth displacements, both with linear interpolation.

    The affine map moves three corners of a square about the centre by at most `jitter`. The displacements are uniform
    noise, smoothed by a Gaussian of width `smoothness` and multiplied by `amplitude`. The image is mirrored at its
    border.
    """
    x, side = images.float(), images.shape[-1]
    grid = torch.arange(side, device=x.device, dtype=torch.float32)
    column, row, constant = _affine(rng, side, jitter).mul(2 / (side - 1)).float().unsqueeze(-1).unbind(1)
    at = (column * grid + constant - 1)[:, :, None, :] + (row * grid)[:, :, :, None]  # (B, 2, S, S), in -1..1
    x = F.grid_sample(x, at.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=True)
    if amplitude:
        shift = symmetric(rng, (2, side, side), "elastic_transform displacement")
        shift = gaussian_filter(shift, smoothness, border="reflect", truncate=3.0).mul_(2 * amplitude / side)
        here = (2 * grid + 1) / side - 1
        shift[:, 0] += here
        shift[:, 1] += here[:, None]
        x = F.grid_sample(x, shift.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)
    return x


def _affine(rng: Rng, side: int, jitter: float) -> Tensor:
    """(B, 3, 2) float64: maps (x, y, 1) of the result to (x, y) of the image."""
    centre, arm = side // 2, side // 3
    fixed = torch.tensor(
        [[centre + arm, centre + arm], [centre + arm, centre - arm], [centre - arm, centre - arm]],
        dtype=torch.float64,
        device=rng.ids.device,
    )
    moved = fixed + rng.uniform((3, 2), "elastic_transform affine").double().mul_(2).sub_(1).mul_(jitter)
    return torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), fixed.expand_as(moved))
