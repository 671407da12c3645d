"""The feature attack: towards images of other classes, in the features that enter the network's head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.attacks.combine import attack_kind
from advsphere.classifier import Classifier, fooled
from advsphere.errors import UserError
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

MOST = 16
"""How many guides of one example are tried at once, at most."""


@dataclass(frozen=True, eq=False)
class Guides:
    """Images whose features an attack may steer to, usually the evaluated set itself.

    images: (N, C, H, W), as the model takes them. labels: (N,) int64. Raises UserError where the two don't match.
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
        """(B,) positions: for each of the labels y (B,) an image of another class, all of them equally likely.

        Raises UserError where there is none.
        """
        by_class = self.labels.argsort(stable=True)
        low, high = (torch.searchsorted(self.labels[by_class], y, right=right) for right in (False, True))
        others = len(by_class) - (high - low)
        if (others == 0).any():
            raise UserError(
                f"there are {len(by_class)} guides, and none of another class than {y[others == 0][0].item()}; "
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
    """The feature attack of github.com/Line290/FeatureAttack (no paper), the column "FeaAtt." of the paper's Table 2;
    x: (B, C, H, W) in bounds, y: (B,) labels -> x_adv of the same shape.

    From a uniform point of the ball, `steps` steps up the cosine between the features of the image and those of a guide
    of another class, for `tries` guides of each example: one, then 2, 4, 8 and always 16 of them at once, and none any
    more as soon as one has changed the prediction. Where none does, the result of the try with the highest margin is
    returned, or the clean image where its margin is higher. head: the layer of `model` whose input the features are,
    `split(network).head`; it is watched while the model runs, so one forward gives features and logits, whatever view
    of the network (frozen, folded, autocast) the model is. step_size: in pixel units, along `threat.ascent`. draws:
    guides and starts. At most 1 + tries * (steps + 2) forwards of each image, never of more at once than x has, or 16.
    Raises UserError for tries < 1, a head that the model does not run, and guides without another class.

    Differs from the official code, which has eps 8/255, 1/255 a step, 20 or 50 steps and 100 to 1000 guides (the
    paper's own settings are not published): there all guides of an image are one batch that ends when the first
    succeeds, here few are tried first, since one is often enough; the verdict has the same meaning.
    """
    if tries < 1:
        raise UserError(f"the attack can't work with {tries} guides for each image; 100 is usual")
    x, rng = x.detach(), rng or Rng.of(x)
    climb = _Climb(model, head, threat, steps, step_size)
    with torch.no_grad():
        logits = model(x)
    result, best, done = x.clone(), margin(logits, y).double(), fooled(logits, y)
    for numbers in _together(tries):
        for index in (~done).nonzero().squeeze(1).split(max(1, len(x) // len(numbers))):
            tried = [rng.take(index).at(restart=rng.restart * tries + number) for number in numbers]
            goal = climb.goals(guides, torch.stack([guides.draw(y[index], one) for one in tried], 1), x.dtype)
            start = torch.stack([threat.sample(x[index], one) for one in tried], 1)
            x_adv, value, hit = climb.run(start, x[index], y[index], goal)
            better = hit | (value > best[index])
            result[index[better]], best[index[better]] = x_adv[better], value[better]
            done[index] = hit
    return result


def _together(tries: int) -> Iterator[range]:
    """The numbers of the tries, in groups as large as all before them and one more, up to MOST. The same for any batch,
    since which of the tries succeeds first is a matter of the group.
    """
    first = 0
    while first < tries:
        last = min(first + min(first + 1, MOST), tries)
        yield range(first, last)
        first = last


class _Climb(NamedTuple):
    """Steps towards the features of guides."""

    model: Classifier
    head: nn.Module
    threat: ThreatModel
    steps: int
    step_size: float

    @torch.no_grad()
    def goals(self, guides: Guides, places: Tensor, dtype: torch.dtype) -> Tensor:
        """The features, (b, T, D), of the guides at `places`, (b, T); one forward for each, however often drawn."""
        chosen, position = places.unique(return_inverse=True)
        return self.seen(guides.images[chosen].to(dtype))[1][position]

    def run(self, x_adv: Tensor, x: Tensor, y: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """T tries of each example at once, x_adv: (b, T, ...), goal: (b, T, D). All of them end at the first success of
        one. Returns that or the one of the highest margin, (b, ...), its margin and whether it fools, (b,).
        """
        result, index = x.clone(), torch.arange(len(x), device=x.device)
        best, won = x.new_zeros(len(x), dtype=torch.float64), torch.zeros_like(index, dtype=torch.bool)
        for i in range(self.steps + 1):
            shape, label = x_adv.shape[:2], y.repeat_interleave(x_adv.shape[1])
            with torch.set_grad_enabled(i < self.steps):
                leaf = x_adv.flatten(0, 1).detach().requires_grad_(i < self.steps)
                logits, features = self.seen(leaf)
                likeness = F.cosine_similarity(features, goal.flatten(0, 1)).sum()
            hit, value = fooled(logits, label).view(shape), margin(logits.detach(), label).double().view(shape)
            pick = torch.where(hit.any(1), hit.int().argmax(1), value.argmax(1))
            over = hit.any(1) | (i == self.steps)
            rows, place = over.nonzero().squeeze(1), index[over]
            result[place], best[place] = x_adv[rows, pick[over]], value[rows, pick[over]]
            won[place], rest = hit.any(1)[over], ~over
            if not rest.any():
                break
            grad = torch.autograd.grad(likeness, leaf)[0].view_as(x_adv)[rest]
            index, x, y, goal, x_adv = index[rest], x[rest], y[rest], goal[rest], x_adv[rest]
            ascent = self.threat.ascent(grad.flatten(0, 1), x_adv.flatten(0, 1))
            centre = x.repeat_interleave(x_adv.shape[1], dim=0)
            x_adv = self.threat.project(x_adv.flatten(0, 1) + self.step_size * ascent, centre).view_as(x_adv)
        return result, best, won

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits (B, K), features (B, D) in at least float32) of one forward."""
        caught: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            logits = self.model(x)
        finally:
            handle.remove()
        if not caught:
            raise UserError(
                f"the model under attack never runs the {type(self.head).__name__} that was given as its head; "
                "take split(network).head of the very network that is attacked"
            )
        features = caught[-1].flatten(1)
        return logits, features.to(torch.promote_types(features.dtype, torch.float32))
