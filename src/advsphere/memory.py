"""Going on in smaller parts where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from advsphere.classifier import Classifier, frozen
from advsphere.errors import out_of_memory

T = TypeVar("T")


def leading_part(compute: Callable[[Tensor], T], index: Tensor) -> T:
    """Compute something for examples, or for the first half, quarter and so on of them if memory runs out.

    Random numbers belong to an example, so they are the same in any part.

    Args:
        compute: Takes the numbers of examples.
        index: The numbers, (B,) int64.

    Returns:
        What `compute` returned for the first of them.
    """
    while True:
        try:
            return compute(index)
        except Exception as error:
            if not out_of_memory(error) or len(index) == 1:
                raise
        # The failed attempt's tensors are free only here, after the block of its error.
        index = index[: (len(index) + 1) // 2]
        torch.cuda.empty_cache()


def with_frozen(model: nn.Module, compute: Callable[[Parts], T]) -> T:
    """Compute something with a frozen model, again with smaller parts of its batches if memory runs out.

    Args:
        model: The model.
        compute: Takes the classifier. It sends halves, quarters and so on of a batch through the model where a whole
            one does not fit, and a gradient then computes the forwards again.

    Returns:
        What `compute` returned.
    """
    with frozen(model) as classify:
        parts = Parts(classify)
        while True:
            try:
                return compute(parts)
            except Exception as error:
                if not out_of_memory(error) or parts.most <= 1:
                    raise
            parts = Parts(classify, (parts.most + 1) // 2)
            torch.cuda.empty_cache()


class Parts:
    """A classifier that sends a batch in parts through another one; `most` is the largest number sent at once.

    Args:
        classify: The other classifier.
        limit: The largest part; None sends whole batches.
    """

    def __init__(self, classify: Classifier, limit: int | None = None) -> None:
        self.classify, self.limit, self.most = classify, limit, 0

    def __call__(self, x: Tensor, through: Classifier | None = None) -> Tensor:
        """The logits (B, K), or what `through` returns for the images."""
        compute = through or self.classify
        if self.limit is None or len(x) <= self.limit:
            self.most = max(self.most, len(x))
            return compute(x)
        self.most = self.limit
        parts: list[Tensor] = [checkpoint(compute, part, use_reentrant=False) for part in x.split(self.limit)]
        return torch.cat(parts)
