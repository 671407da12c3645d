"""Per-example state of attacks: the examples still attacked, and the smallest adversarial example found."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from advsphere.attacks.active import put, reads_are_free
from advsphere.threat import Norm, ThreatModel, over_pixels


@dataclass(frozen=True)
class Rows:
    """Tensors with one row for each example that is still attacked."""

    def take(self, rows: Tensor) -> Self:
        """Keep the examples of these numbers."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class Smallest:
    """The smallest adversarial example of each image so far. All tensors are indexed by position in the batch.

    `x_adv` (B, ...) holds the smallest example found, or the clean image, and `distance` (B,) its perturbation's norm,
    infinite if none was found. `done` (B,) marks the images that need no more search, because the clean image is
    adversarial or an example within eps is found.
    """

    def __init__(self, x: Tensor, *, norm: Norm, bounds: tuple[float, float], eps: float | None = None) -> None:
        self.threat = ThreatModel(norm=norm, eps=0.0 if eps is None else eps, bounds=bounds)
        self.eps = eps
        self.x = x.detach()
        self.x_adv = self.x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        self.done = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def take(self, rows: Tensor) -> Smallest:
        """The same for the images of these numbers, which may repeat."""
        part = copy(self)
        part.x, part.x_adv, part.distance, part.done = (t[rows] for t in (self.x, self.x_adv, self.distance, self.done))
        return part

    def offer_clean(self, adversarial: Tensor) -> None:
        """Note which of the clean images are adversarial, (B,) bool."""
        self.offer(torch.arange(len(self.x), device=self.x.device), self.x, adversarial)

    def offer(self, index: Tensor, x_adv: Tensor, adversarial: Tensor) -> Tensor:
        """Keep the candidates (b, ...) at positions `index` (b,) that are adversarial and smaller than before.

        Returns the norms (b,) of the adversarial ones, infinite for the others.
        """
        norms = torch.full((len(index),), torch.inf, dtype=self.x.dtype, device=self.x.device)
        # Measure the adversarial ones only, or all where it takes a wait to know them.
        rows = adversarial.nonzero().squeeze(1) if reads_are_free(self.x.device) else slice(None)
        place, x_adv, hit = index[rows], x_adv[rows], adversarial[rows]
        x = self.x[place]
        norms[rows] = distance = torch.where(hit, self.threat.distance(x_adv, x), norms[rows])
        better, enough = distance < self.distance[place], distance == 0
        if self.eps is not None:
            enough |= self.threat.contains(x_adv, x)
        put(self.x_adv, place, better, x_adv)
        put(self.distance, place, better, distance)
        self.done[place] |= better & enough
        return norms

    def open(self) -> Tensor:
        """The positions that are not done."""
        return (~self.done).nonzero().squeeze(1)

    def result(self) -> Tensor:
        """The images (B, ...) to return: `x_adv`, but if eps is given, the clean image where `x_adv` exceeds it."""
        if self.eps is None:
            return self.x_adv
        return torch.where(over_pixels(self.done, self.x), self.x_adv, self.x)
