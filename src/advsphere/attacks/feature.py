"""The feature attack: towards images of other classes, in the features that enter the network's head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.attacks.combine import restarts
from advsphere.classifier import Classifier, fooled
from advsphere.draws import Draws
from advsphere.errors import UserError
from advsphere.threat import ThreatModel


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

    def draw(self, y: Tensor, draws: Draws) -> Tensor:
        """(B, C, H, W): for each of the labels y (B,) an image of another class, all of them equally likely.

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
        place = (draws.uniform((), "guide") * others).long().clamp(max=others - 1)
        return self.images[by_class[torch.where(place < low, place, place + high - low)]]


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
    draws: Draws | None = None,
) -> Tensor:
    """The feature attack of github.com/Line290/FeatureAttack (no paper), the column "FeaAtt." of the paper's Table 2;
    x: (B, C, H, W) in bounds, y: (B,) labels -> x_adv of the same shape.

    From a uniform point of the ball, `steps` steps up the cosine between the features of the image and those of a guide
    of another class; an example is done as soon as it is no longer predicted as y, for at most `tries` guides one after
    the other. Where nothing fools, the result of the try with the highest margin is returned. head: the layer of
    `model` whose input the features are, `split(network).head`; it is watched while the model runs, so one forward
    gives features and logits, whatever view of the network (frozen, folded, autocast) the model is. step_size: in pixel
    units, along `threat.ascent`. draws: guides and starts. At most 1 + tries * (steps + 3) forwards of each image.
    Raises UserError for tries < 1, a head that the model does not run, and guides without another class.

    Differs from the official code, which has eps 8/255, 1/255 a step, 20 or 50 steps and 100 to 1000 guides (the
    paper's own settings are not published): there the guides of one image are a batch that stops when the first of them
    succeeds, here they are tries over a batch of images; the verdict has the same meaning.
    """
    if tries < 1:
        raise UserError(f"the attack can't work with {tries} guides for each image; 100 is usual")
    one = partial(_one_guide, threat=threat, head=head, guides=guides, steps=steps, step_size=step_size)
    return restarts(one, tries)(model, x, y, draws=draws)


def _one_guide(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    /,
    *,
    threat: ThreatModel,
    head: nn.Module,
    guides: Guides,
    steps: int,
    step_size: float,
    draws: Draws | None = None,
) -> Tensor:
    """One try, for one guide of each example."""
    x, draws = x.detach(), draws or Draws.of(x)
    with torch.no_grad():
        _, goal = _seen(model, head, guides.draw(y, draws).to(x.dtype))
    x_adv = threat.sample(x, draws)
    result, index = x_adv.clone(), torch.arange(len(x), device=x.device)
    for i in range(steps + 1):
        with torch.enable_grad():
            x_adv = x_adv.detach().requires_grad_(True)
            logits, features = _seen(model, head, x_adv)
            (grad,) = torch.autograd.grad(F.cosine_similarity(features, goal).sum(), x_adv)
        x_adv, rest = x_adv.detach(), ~fooled(logits, y)
        result[index] = x_adv
        if i == steps or not rest.any():
            break
        index, x, y, goal, x_adv, grad = index[rest], x[rest], y[rest], goal[rest], x_adv[rest], grad[rest]
        x_adv = threat.project(x_adv + step_size * threat.ascent(grad, x_adv), x)
    return result


def _seen(model: Classifier, head: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(logits (B, K), features (B, D) in at least float32) of one forward."""
    caught: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        logits = model(x)
    finally:
        handle.remove()
    if not caught:
        raise UserError(
            f"the model under attack never runs the {type(head).__name__} that was given as its head; "
            "take split(network).head of the very network that is attacked"
        )
    features = caught[-1].flatten(1)
    return logits, features.to(torch.promote_types(features.dtype, torch.float32))
