"""What every minimal-norm attack keeps and returns: the smallest adversarial example of each image so far."""

from __future__ import annotations

import torch
from torch import Tensor

from advsphere.threat import Norm, ThreatModel


class Smallest:
    """The record of a search over a batch of images x, (B, ...), all of it by position in the batch.

    x_adv: (B, ...), the smallest one found (the clean image where there is none). distance: (B,) its norm, infinite
    where there is none. done: (B,) bool, what needs no more search: the clean image is adversarial itself or, for a
    verdict at one `eps`, one within eps was found. Raises UserError as `ThreatModel`.
    """

    def __init__(self, x: Tensor, *, norm: Norm, bounds: tuple[float, float], eps: float | None = None) -> None:
        self.threat = ThreatModel(norm=norm, eps=0.0 if eps is None else eps, bounds=bounds)
        self.eps = eps
        self.x = x.detach()
        self.x_adv = self.x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        self.done = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def offer(self, index: Tensor, x_adv: Tensor, adversarial: Tensor) -> Tensor:
        """Take what is adversarial and smaller than before; index: (b,) positions, x_adv: (b, ...), adversarial: (b,)
        bool. Returns (b,) the norms of the adversarial, infinite for the others.
        """
        norms = torch.full((len(index),), torch.inf, dtype=self.x.dtype, device=self.x.device)
        place, x_adv = index[adversarial], x_adv[adversarial]
        x = self.x[place]
        norms[adversarial] = distance = self.threat.distance(x_adv, x)
        better, enough = distance < self.distance[place], distance == 0
        if self.eps is not None:
            enough |= self.threat.contains(x_adv, x)
        self.x_adv[place[better]], self.distance[place[better]] = x_adv[better], distance[better]
        self.done[place] |= better & enough
        return norms

    def open(self) -> Tensor:
        """The positions that are not done."""
        return (~self.done).nonzero().squeeze(1)

    def result(self) -> Tensor:
        """(B, ...): x_adv; for a verdict at one eps the clean image where none within eps was found."""
        if self.eps is None:
            return self.x_adv
        return torch.where(over_pixels(self.done, self.x), self.x_adv, self.x)


def over_pixels(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), one for all pixels of an image; like: (B, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))
