"""Per-sample losses: (B, K) logits and what they are compared with -> (B,), higher = better for the adversary.

They run in float32 whatever the network computed in. None captures a batch tensor, so a batch can be compacted under
them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from advsphere.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """l = logsumexp_{j != y} z_j - z_y, the log-odds against y; y: (B,) int64.

    Cross-entropy is softplus(l): both rise in the same direction and have the same maximiser, but l never saturates.
    Where a confident network's cross-entropy has a gradient of exactly zero (z_y 100 above the rest, as with a scale of
    1000), the gradient of l is intact. Hence it is what attacks ascend by default wherever a paper says
    "cross-entropy".
    """
    z = widen(logits)
    return _without(z, y).logsumexp(1) - z.gather(1, y[:, None]).squeeze(1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example, -log softmax(z)_y; finite for any finite logits. y: (B,) int64."""
    return F.softplus(log_odds(logits, y))


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y: positive exactly where y is not predicted (Carlini & Wagner 2017, arXiv 1608.04644, f_6).
    y: (B,) int64.
    """
    z = widen(logits)
    return _without(z, y).amax(1) - z.gather(1, y[:, None]).squeeze(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (max_{j != y} z_j - z_y) / (z_(1) - z_(3)) (Croce & Hein 2020, arXiv 2003.01690, eq.
    6). y: (B,) int64.

    Unchanged by shifting or scaling the logits. Raises UserError with fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise UserError(f"the DLR loss needs at least 3 classes, the model has {logits.shape[1]}; use the margin loss")
    top = widen(logits).topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp(min=1e-12)


def dlr_targeted(logits: Tensor, pair: Tensor) -> Tensor:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) (Croce & Hein 2020, eq. 7); pair: (B, 2) int64, the label y and the
    target class t.

    Already points to the target: ascend it, also in a targeted attack. Raises UserError with fewer than four classes.
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
    """KL(probabilities || softmax(z)) of each example; probabilities: (B, K), rows that sum to 1 (TRADES, Zhang et al.
    2019, eq. 5).
    """
    log_q = F.log_softmax(widen(logits), 1)
    p = probabilities.to(log_q.dtype)
    # Not F.kl_div: where p underflows to 0 (a scale of 60 is enough) its gradient with respect to p is NaN.
    return (p * (p.clamp(min=torch.finfo(p.dtype).tiny).log() - log_q)).sum(1)


def at_scale(loss: Loss, factor: float) -> Loss:
    """The loss on `factor` times the logits: 1 / s attacks a head of scale s on its bare cosines."""

    def scaled(logits: Tensor, target: Tensor) -> Tensor:
        return loss(widen(logits) * factor, target)

    return scaled


def widen(logits: Tensor) -> Tensor:
    """Logits in at least float32: bfloat16 has too few digits for their differences."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _without(z: Tensor, y: Tensor) -> Tensor:
    return z.scatter(1, y[:, None], float("-inf"))
