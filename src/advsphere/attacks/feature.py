"""The feature attack: move an image towards images of other classes, in the features that enter the network's head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.attacks.active import Active, put
from advsphere.attacks.combine import attack_kind, prepared
from advsphere.classifier import Classifier, fooled, gradient, head_inputs
from advsphere.errors import UserError
from advsphere.losses import margin, widen
from advsphere.rng import Rng
from advsphere.threat import ThreatModel, over_pixels

MOST = 16
"""Largest number of guides that one example tries at once."""


@dataclass(frozen=True, eq=False)
class Guides:
    """Images whose features an attack may approach, usually the evaluated set itself.

    Attributes:
        images: Images (N, C, H, W), within the bounds.
        labels: Their labels (N,), int64.

    Raises:
        UserError: If images and labels do not match.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dim() < 2 or self.labels.shape != self.images.shape[:1]:
            raise UserError(
                f"guides need images (N, C, H, W) and a label for each, but have "
                f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )

    def draw(self, y: Tensor, rng: Rng) -> Tensor:
        """Draw a guide of another class for each example, all of them equally likely.

        Args:
            y: Labels (B,) of the examples.
            rng: Random numbers for these examples.

        Returns:
            Positions (B,) in `images`.

        Raises:
            UserError: If there is no guide of another class.
        """
        by_class = self.labels.argsort(stable=True)
        low, high = (torch.searchsorted(self.labels[by_class], y, right=right) for right in (False, True))
        others = len(by_class) - (high - low)
        if (others == 0).any():
            raise UserError(
                f"none of the {len(by_class)} guides has another class than {y[others == 0][0].item()}; "
                "give images of at least two classes"
            )
        place = (rng.uniform((), "guide") * others).long().clamp(max=others - 1)
        return by_class[torch.where(place < low, place, place + high - low)]


@attack_kind("iterative")
def feature_attack(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    /,
    *,
    threat: ThreatModel,
    head: nn.Module,
    guides: Guides,
    tries: int = 100,
    steps: int = 100,
    step_size: float = 1 / 255,
    rng: Rng | None = None,
) -> Tensor:
    """Feature attack: raise the cosine similarity to the features of an image of another class.

    Source: github.com/Line290/FeatureAttack (no paper), the column "FeaAtt." of Table 2 in Pang et al. 2020 (arXiv
    2002.08619). Each try begins at a uniform point of the ball. An example tries one guide, then 2, 4, 8 and always 16
    at once, and stops as soon as one fools the model. Costs at most 1 + tries * (steps + 2) forwards of each image. No
    forward is larger than the batch, or than 16 images.

    Differs from the official code (eps 8/255, steps of 1/255, 20 or 50 steps, 100 to 1000 guides; the paper's settings
    are not published), where all guides of an image form one batch. Here few are tried first, because one often
    succeeds. Either way an example is fooled if any guide succeeds.

    Args:
        model: Maps images to logits (B, K). It may be any view of the network, such as a frozen one.
        x: Clean images (B, C, H, W), within the bounds.
        y: Labels (B,).
        threat: Norm, radius and bounds.
        head: The layer of the network whose input is the features, `split(network).head`.
        guides: The images to approach.
        tries: Number of guides for each example, at least 1.
        steps: Number of steps towards each guide.
        step_size: Length of a step in pixel units, along `threat.ascent`.
        rng: Random numbers for guides and starts; by default of seed 0 and ids 0 to B - 1.

    Returns:
        The adversarial images, same shape as `x`. Where nothing succeeds it is the result with the highest margin loss,
        or the clean image if its margin loss is higher.

    Raises:
        UserError: If tries < 1, the model does not run `head`, or there is no guide of another class.
    """
    model = prepared(model, x, threat, y)
    if tries < 1:
        raise UserError(f"tries is {tries}, but each image needs at least 1 guide (100 is usual)")
    x, rng = x.detach(), rng or Rng.of(x)
    climb = _Climb(model, head, threat, steps, step_size)
    with torch.no_grad():
        logits = model(x)
    result, best, done = x.clone(), margin(logits, y).double(), fooled(logits, y)
    for numbers in _together(tries):
        left = (~done).nonzero().squeeze(1)
        if len(left) == 0:
            break
        for index in left.split(max(1, len(x) // len(numbers))):
            tried = [rng.take(index).at(restart=rng.restart * tries + number) for number in numbers]
            goal = climb.goals(guides, torch.stack([guides.draw(y[index], one) for one in tried], 1), x.dtype)
            start = torch.stack([threat.sample(x[index], one) for one in tried], 1)
            x_adv, value, hit = climb.run(start, x[index], y[index], goal)
            better = hit | (value > best[index])
            put(result, index, better, x_adv)
            put(best, index, better, value)
            done[index] = hit
    return result


def _together(tries: int) -> Iterator[range]:
    """Divide the tries into groups of 1, 2, 4, 8 and then MOST.

    The groups do not depend on the batch, because the group decides which of its tries counts as the first success.
    """
    first = 0
    while first < tries:
        last = min(first + min(first + 1, MOST), tries)
        yield range(first, last)
        first = last


class _Climb(NamedTuple):
    """The ascent towards the features of guides, with its settings."""

    model: Classifier
    head: nn.Module
    threat: ThreatModel
    steps: int
    step_size: float

    @torch.no_grad()
    def goals(self, guides: Guides, places: Tensor, dtype: torch.dtype) -> Tensor:
        """The features (b, T, D) of the guides at `places`, (b, T). Each guide is forwarded once."""
        chosen, position = places.unique(return_inverse=True)
        return self.seen(guides.images[chosen].to(dtype))[1][position]

    def run(self, x_adv: Tensor, x: Tensor, y: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """T tries of each example at once, all of which end at the first success.

        x_adv is (b, T, ...) and goal (b, T, D). For each example returns its success, or else the result with the
        highest margin, (b, ...), the margin (b,) and whether the result fools the model (b,).
        """
        result, best = x.clone(), x.new_zeros(len(x), dtype=torch.float64)
        active, won = Active(torch.arange(len(x), device=x.device)), torch.zeros_like(best, dtype=torch.bool)
        for i in range(self.steps + 1):
            shape, label = x_adv.shape[:2], y.repeat_interleave(x_adv.shape[1])
            with torch.set_grad_enabled(i < self.steps):
                leaf = x_adv.flatten(0, 1).detach().requires_grad_(i < self.steps)
                logits, features = self.seen(leaf)
                likeness = F.cosine_similarity(features, goal.flatten(0, 1)).sum()
            hit, value = fooled(logits, label).view(shape), margin(logits.detach(), label).double().view(shape)
            success = hit.any(1)
            pick = torch.where(success, hit.int().argmax(1), value.argmax(1))[:, None]
            over = (success | (i == self.steps)) & active.open
            put(result, active.index, over, x_adv.take_along_dim(over_pixels(pick, x_adv), 1).squeeze(1))
            put(best, active.index, over, value.take_along_dim(pick, 1).squeeze(1))
            put(won, active.index, over, success)
            rest = active.drop(over)
            if i == self.steps or len(active) == 0:
                break
            grad = gradient(likeness, leaf).view_as(x_adv)
            if rest is not None:
                grad, x, y, goal, x_adv = grad[rest], x[rest], y[rest], goal[rest], x_adv[rest]
            ascent = self.threat.ascent(grad.flatten(0, 1), x_adv.flatten(0, 1))
            centre = x.repeat_interleave(x_adv.shape[1], dim=0)
            x_adv = self.threat.project(x_adv.flatten(0, 1) + self.step_size * ascent, centre).view_as(x_adv)
        return result, best, won

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and features (B, D), the latter in at least float32, from one forward."""
        with head_inputs(self.head) as latest:
            logits = self.model(x)
            return logits, widen(latest().flatten(1))
