"""Losses per example: logits (B, K) and a target -> (B,), higher is better for the adversary.

The target is the labels (B,). `cross_entropy`, `smoothed` and `kl` also take soft labels: probabilities (B, K), as from
mixup or cutmix. The others compare one class with its rivals, so they are undefined for soft labels.

Losses compute in at least float32 for any precision of the network. None captures a batch tensor, so attacks may drop
examples from the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from advsphere.errors import UserError

__all__ = [
    "Loss",
    "at_scale",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "is_soft",
    "kl",
    "log_odds",
    "margin",
    "smoothed",
    "widen",
]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, K), target) -> losses (B,)."""


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """The log-odds against the label, l = logsumexp_{j != y} z_j - z_y.

    Cross-entropy is softplus(l). Both have the same gradient direction and the same maximiser, but l never saturates.
    If z_y is 100 above the rest, the gradient of cross-entropy is exactly zero, and that of l is intact. Therefore
    attacks ascend l by default where a paper says cross-entropy.

    Args:
        logits: (B, K).
        y: Labels (B,), int64.

    Returns:
        Losses (B,).

    Raises:
        UserError: For soft labels, and on a CPU for a label without a logit.
    """
    z = widen(logits)
    _require_labels("log_odds", y)
    return _without(z, y).logsumexp(1) - z.gather(1, y[:, None]).squeeze(1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, -log softmax(z)_y; finite for any finite logits.

    Args:
        logits: (B, K).
        y: Labels (B,), int64, or soft labels p (B, K), for which it is -sum_k p_k log softmax(z)_k.

    Returns:
        Losses (B,).

    Raises:
        UserError: If soft labels have another number of classes than the logits.
    """
    if is_soft(y):
        log_q = F.log_softmax(widen(logits), 1)
        if y.shape != log_q.shape:
            raise UserError(f"the soft labels are {tuple(y.shape)}, but the logits {tuple(log_q.shape)}")
        return -(y.to(log_q.dtype) * log_q).sum(1)
    return F.softplus(log_odds(logits, y))


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The margin against the label, max_{j != y} z_j - z_y: positive exactly where y is not predicted.

    Source: Carlini & Wagner 2017 (arXiv 1608.04644), f_6.

    Args:
        logits: (B, K).
        y: Labels (B,), int64.

    Returns:
        Losses (B,).

    Raises:
        UserError: For soft labels.
    """
    z = widen(logits)
    _require_labels("margin", y)
    return _without(z, y).amax(1) - z.gather(1, y[:, None]).squeeze(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (max_{j != y} z_j - z_y) / (z_(1) - z_(3)).

    Source: Croce & Hein 2020 (arXiv 2003.01690, eq. 6). Shifting or scaling the logits does not change it.

    Args:
        logits: (B, K), K >= 3.
        y: Labels (B,), int64.

    Returns:
        Losses (B,).

    Raises:
        UserError: With fewer than three classes, or for soft labels.
    """
    if logits.shape[1] < 3:
        raise UserError(f"the DLR loss needs at least 3 classes, the model has {logits.shape[1]}; use the margin loss")
    top = widen(logits).topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp(min=1e-12)


def dlr_targeted(logits: Tensor, pair: Tensor) -> Tensor:
    """Targeted difference of logits ratio, (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2).

    Source: Croce & Hein 2020 (arXiv 2003.01690, eq. 7). Raising it moves towards the target class, so ascend it also in
    a targeted attack.

    Args:
        logits: (B, K), K >= 4.
        pair: The label y and the target class t, (B, 2) int64.

    Returns:
        Losses (B,).

    Raises:
        UserError: With fewer than four classes.
    """
    if logits.shape[1] < 4:
        raise UserError(
            f"the targeted DLR loss needs at least 4 classes, the model has {logits.shape[1]}; use the margin loss"
        )
    z = widen(logits)
    own, goal = z.gather(1, pair).unbind(1)
    top = z.topk(4, dim=1).values
    return (goal - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp(min=1e-12)


def kl(logits: Tensor, probabilities: Tensor) -> Tensor:
    """KL divergence KL(p || softmax(z)), as in TRADES (Zhang et al. 2019, arXiv 1901.08573, eq. 5).

    Args:
        logits: (B, K).
        probabilities: p, (B, K) with rows that sum to 1.

    Returns:
        Losses (B,).
    """
    log_q = F.log_softmax(widen(logits), 1)
    p = probabilities.to(log_q.dtype)
    # Not F.kl_div: its gradient with respect to p is NaN where p underflows to 0 (a scale of 60 is enough).
    return (p * (p.clamp(min=torch.finfo(p.dtype).tiny).log() - log_q)).sum(1)


def smoothed(loss: Loss, smoothing: float) -> Loss:
    """A loss with label smoothing, for training.

    Source: Szegedy et al. 2016 (arXiv 1512.00567, section 7), with the share spread over all classes, as in
    `torch.nn.CrossEntropyLoss`. The part for the other classes has no angular margin.

    Args:
        loss: The loss for the label, such as `cross_entropy`.
        smoothing: The share of the label's probability that is spread, in [0, 1).

    Returns:
        (1 - smoothing) times the loss plus smoothing times the mean cross-entropy over all classes.
    """

    def spread(logits: Tensor, y: Tensor) -> Tensor:
        everywhere = -F.log_softmax(widen(logits), 1).mean(1)
        return (1 - smoothing) * loss(logits, y) + smoothing * everywhere

    return spread


def at_scale(loss: Loss, factor: float) -> Loss:
    """A loss of rescaled logits.

    Args:
        loss: The loss.
        factor: Factor of the logits. 1 / s attacks a head of scale s on its bare cosines.

    Returns:
        The loss of `factor` times the logits.
    """

    def scaled(logits: Tensor, target: Tensor) -> Tensor:
        return loss(widen(logits) * factor, target)

    return scaled


def is_soft(y: Tensor) -> bool:
    """Whether labels are probabilities of the classes.

    Args:
        y: Labels (B,), or soft labels (B, K).

    Returns:
        True for soft labels.
    """
    return y.dim() == 2 and y.is_floating_point()


def widen(logits: Tensor) -> Tensor:
    """Convert to at least float32, because bfloat16 has too few digits for differences of logits.

    Args:
        logits: A tensor of floats.

    Returns:
        The same numbers, in float32 or wider.
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _require_labels(name: str, y: Tensor) -> None:
    if y.dim() != 1:
        raise UserError(
            f"{name} takes class numbers (B,), not {tuple(y.shape)}: use losses.cross_entropy for soft labels, and "
            "argmax(1) for one-hot rows"
        )


def _without(z: Tensor, y: Tensor) -> Tensor:
    try:
        return z.scatter(1, y[:, None], float("-inf"))
    except RuntimeError as error:
        if "out of bounds" not in str(error):
            raise
        raise UserError(
            f"the labels go from {int(y.min())} to {int(y.max())}, but there are {z.shape[1]} logits; number the "
            "classes from 0, in the order of the logits"
        ) from error
