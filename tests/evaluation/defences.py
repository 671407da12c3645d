"""Constructed defences around one small network, for which the accuracy that is left is known by other means.

Each one hides what an attack needs: the gradient, the loss, the logits, or the same answer twice. None makes the
network more robust by much. The truth is measured by images that fool the undefended network, shown to the defence, and
by a random search on the defence.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.attacks import pgd, square
from advsphere.data import load
from advsphere.hypersphere import attach_head
from advsphere.losses import log_odds, margin
from advsphere.models import build
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

THREAT = ThreatModel(norm="linf", eps=0.2)
HALF = ThreatModel(norm="linf", eps=0.1)


def bits(x: Tensor) -> Tensor:
    """(B,) int64: a number that depends on every bit of an image."""
    words = x.detach().float().contiguous().view(torch.int32).flatten(1).long()
    places = torch.arange(1, words.shape[1] + 1, device=x.device) * 2654435761
    return ((words * places) ^ (words >> 7)).sum(1) & 0x7FFFFFFF


def noise(x: Tensor, shape: torch.Size | tuple[int, ...], purpose: str) -> Tensor:
    """(B, *shape) of standard normal numbers that depend on the bits of the images only."""
    return Rng(0, bits(x)).normal(shape, purpose)


class Forward(torch.autograd.Function):
    """Returns the second argument, and passes gradients, changed by a function, to the first one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.change(grads[0]), None, None


def replaced(x: Tensor, value: Tensor, change: Callable[[Tensor], Tensor] = lambda grad: grad) -> Tensor:
    """`value`, whose gradient with respect to `x` is `change` of the incoming one."""
    out: Tensor = Forward.apply(x, value.detach(), change)  # type: ignore[no-untyped-call]
    return out


class Defence(nn.Module):
    """A network with a function in front of it and one behind it."""

    def __init__(
        self,
        network: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor, Tensor], Tensor] = lambda z, x: z,
    ) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.network(self.before(x)), x)


# In front of the network.


def random_signs(width: int) -> Callable[[Tensor], Tensor]:
    """The identity. Backward, each pixel has a random sign, drawn anew for every 1 / width of its value."""

    def before(x: Tensor) -> Tensor:
        cell = (x.detach() * width).floor().long().flatten(1)
        place = torch.arange(cell.shape[1]) * 7919
        flip = (((cell + place) * 2654435761 >> 11) & 1).view_as(x) * 2.0 - 1.0
        return replaced(x, x, lambda grad: grad * flip)

    return before


def signs_of_bits(share: float) -> Callable[[Tensor], Tensor]:
    """The identity. Backward, this share of the pixels has the wrong sign, drawn anew for every image."""

    def before(x: Tensor) -> Tensor:
        flip = 1.0 - 2.0 * (Rng(0, bits(x)).uniform(x.shape[1:], "signs") < share)
        return replaced(x, x, lambda grad: grad * flip)

    return before


def sparse(x: Tensor) -> Tensor:
    """The identity. Backward, one pixel in eight keeps its gradient."""
    return replaced(x, x, lambda grad: grad * (Rng(0, bits(x)).uniform(x.shape[1:], "pixels") < 0.125))


def turned_off_the_grey_levels(x: Tensor) -> Tensor:
    """The identity. Backward, the gradient of pixels that are no whole sixteenth points the other way."""
    whole = ((x * 16 - (x * 16).round()).abs() < 1e-3).detach()
    return replaced(x, x, lambda grad: torch.where(whole, grad, -grad))


def decoy(x: Tensor) -> Tensor:
    """The identity. Backward, the gradient is noise that depends on the image's bits."""
    other = noise(x, x.shape[1:], "decoy")
    return replaced(x, x, lambda grad: other * grad.abs().mean())


def scaled_gradient(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: replaced(x, x, lambda grad: factor * grad)


def rounded(levels: int) -> Callable[[Tensor], Tensor]:
    return lambda x: (x * levels).round() / levels


def straight_through(levels: int) -> Callable[[Tensor], Tensor]:
    return lambda x: replaced(x, (x * levels).round() / levels)


def soft_steps(levels: int, hardness: float) -> Callable[[Tensor], Tensor]:
    """Rounds pixels by steep sigmoids, so that the gradient is almost zero except at the steps."""

    def before(x: Tensor) -> Tensor:
        place = x * levels
        floor = place.detach().floor()
        return (floor + torch.sigmoid(hardness * (place - floor - 0.5))) / levels

    return before


def ripples(frequency: float) -> Callable[[Tensor], Tensor]:
    """Adds a fine wave, whose slope hides that of the image."""
    return lambda x: x + 8 * torch.sin(frequency * x) / frequency


def small_noise_of_bits(size: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x + size * noise(x, x.shape[1:], "pixels")


@cache
def _cosines() -> Tensor:
    k = torch.arange(8.0)
    basis = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis


def jpeg(step: float) -> Callable[[Tensor], Tensor]:
    """Quantises the discrete cosine transform of blocks of 8 x 8 pixels, coarsely at high frequencies."""

    def before(x: Tensor) -> Tensor:
        c = _cosines().to(x)
        b, channels, height, width = x.shape
        blocks = x.reshape(b, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
        k = torch.arange(8.0)
        size = step * (1 + k[:, None] + k[None]) / 2
        coarse = ((c @ blocks @ c.T) / size).round() * size
        return (c.T @ coarse @ c).transpose(3, 4).reshape_as(x)

    return before


def median(x: Tensor) -> Tensor:
    """The median of three by three pixels."""
    windows = F.unfold(F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate"), 3)
    return windows.median(1).values.view_as(x)


def resized(x: Tensor) -> Tensor:
    """Draws another size and another place for every call (Xie et al. 2018)."""
    side = int(torch.randint(6, 9, ()))
    left, top = (int(torch.randint(0, 9 - side, ())) for _ in range(2))
    small = F.interpolate(x, size=(side, side), mode="bilinear")
    return F.pad(small, (left, 8 - side - left, top, 8 - side - top))


def gaussian(size: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x + size * torch.randn_like(x)


# Behind the network.


def hard_labels(z: Tensor, x: Tensor) -> Tensor:
    """Ten for the predicted class, else zero; backward, the gradient of the logits."""
    return replaced(z, 10.0 * F.one_hot(z.argmax(1), z.shape[1]))


def bare_hard_labels(z: Tensor, x: Tensor) -> Tensor:
    return 10.0 * F.one_hot(z.argmax(1), z.shape[1]) + 0 * z


def temperature(t: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, x: z / t


def sigmoid(z: Tensor, x: Tensor) -> Tensor:
    return torch.sigmoid(4 * z)


def clamp(z: Tensor, x: Tensor) -> Tensor:
    """Lets the logits differ by a twentieth at most, and keeps their order by far less than that."""
    return (z - z.amax(1, keepdim=True)).clamp(min=-0.05)


def bonus(z: Tensor, x: Tensor) -> Tensor:
    return z + 1000 * F.one_hot(z.argmax(1), z.shape[1])


def logit_noise(size: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, x: z + size * noise(x, z.shape[1:], "logits")


def waves(z: Tensor, x: Tensor) -> Tensor:
    """Adds a fine wave to the logits, too low to change many predictions."""
    return z + 0.5 * torch.sin(500 * z)


def coarse(z: Tensor, x: Tensor) -> Tensor:
    return (z * 0.5).round() / 0.5


def turned_near_the_boundary(z: Tensor, x: Tensor) -> Tensor:
    """Backward, the gradient points the other way once the network is less sure."""
    sure = z.detach().softmax(1).amax(1, keepdim=True) > 0.95
    return replaced(z, z, lambda grad: torch.where(sure, grad, -grad))


def half(z: Tensor, x: Tensor) -> Tensor:
    """Gradients pass through float16, where they underflow."""
    return replaced(z, z, lambda grad: (grad * 1e-8).half().float())


def rejects_to_another(z: Tensor, x: Tensor) -> Tensor:
    """Answers the next class if it is unsure."""
    sure = (z.softmax(1).amax(1, keepdim=True) > 0.9).to(z)
    return sure * z + (1 - sure) * z.roll(1, 1).detach()


def rejects_to_a_constant(z: Tensor, x: Tensor) -> Tensor:
    """Answers the first class if it is unsure."""
    sure = (z.softmax(1).amax(1, keepdim=True) > 0.9).to(z)
    return sure * z + (1 - sure) * 10 * F.one_hot(torch.zeros(len(z), dtype=torch.int64), z.shape[1])


class Votes(nn.Module):
    """The share of votes of the network for several roundings of the image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        views = [(x * 8 + shift).round() / 8 for shift in (-0.3, -0.1, 0.0, 0.1, 0.3)]
        labels = [self.network(view).argmax(1) for view in views]
        return torch.stack([F.one_hot(label, 10).float() for label in labels]).sum(0) + 0 * x.sum((1, 2, 3))[:, None]


class Activation(nn.Module):
    """Keeps a share of the activations, the largest ones (k-WTA, Xiao et al. 2020)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0).view_as(x)


# The networks.


@cache
def network(kind: str = "plain") -> nn.Module:
    """A small network trained on the digits in a few seconds: "plain", "smooth" labels, "robust", "HE", "k-WTA"."""
    images = load("digits").train
    model: nn.Module = build(
        "small-cnn", num_classes=10, in_channels=1, image_size=8, mean=(0.3053,), std=(0.3760,), init_seed=0
    )
    if kind == "k-WTA":
        model.network.bn2 = nn.Sequential(model.network.bn2, Activation(0.1))
    if kind in ("HE", "robust HE"):
        attach_head(model, scale=15.0)
    epochs = 8 if "robust" in kind else 6
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * 12)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=order).split(125)[:12]:
            x, y = images.batch(index)
            if "robust" in kind:
                model.eval()
                x = pgd(model, x, y, threat=THREAT, steps=3, step_size=0.1, rng=Rng(0, index))
            model.train()
            loss = F.cross_entropy(model(x), y, label_smoothing=0.6 if kind == "smooth" else 0.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Case:
    """A defence with the threat that it is tried under.

    Attributes:
        make: Builds the defended network.
        threat: The threat.
        base: The kind of the undefended network.
        honest: Nothing is hidden, so no sign may be raised.
        random: Each call answers differently.
    """

    make: Callable[[], nn.Module]
    threat: ThreatModel = THREAT
    base: str = "plain"
    honest: bool = False
    random: bool = False

    def truth(self, x: Tensor, y: Tensor) -> float:
        """The accuracy that is left by images that fool the undefended network, and by Square on the defence."""
        model, plain = self.make(), network(self.base)
        left = torch.ones(len(x), dtype=torch.bool)
        for loss in (log_odds, margin):
            for start in range(2):
                rng = Rng.of(x, seed=start)
                x_adv = pgd(
                    plain, x, y, threat=self.threat, steps=50, step_size=self.threat.eps / 8, loss=loss, rng=rng
                )
                with torch.no_grad():
                    left &= predicted(model, x_adv, self.random) == y
        if not self.random:
            x_adv = square(model, x[left], y[left], threat=self.threat, queries=1000)
            with torch.no_grad():
                left[left.clone()] = model(x_adv).argmax(1) == y[left]
        return float(left.float().mean())


def predicted(model: nn.Module, x: Tensor, random: bool) -> Tensor:
    """The class that most of 51 calls answer, or that the only one answers."""
    calls = torch.stack([model(x).argmax(1) for _ in range(51 if random else 1)])
    return calls.mode(0).values


def _plain(**parts: Any) -> Callable[[], nn.Module]:
    return lambda: Defence(network(), **parts).eval()


def _shattered() -> nn.Module:
    """The features are rounded before the last layer."""
    model = copy.deepcopy(network())
    fc = model.network.fc
    model.network.fc = nn.Sequential(Steps(2.0), fc)
    return model


def _tiny_features() -> nn.Module:
    """Features of 1e-30 times their size, which the last layer enlarges again."""
    model = copy.deepcopy(network())
    fc = model.network.fc
    with torch.no_grad():
        fc.weight.mul_(1e30)
    model.network.fc = nn.Sequential(Times(1e-30), fc)
    return model


class Steps(nn.Module):
    def __init__(self, levels: float) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.levels).round() / self.levels


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


CASES: dict[str, Case] = {
    "plain network": Case(network, honest=True),
    "plain network, half the radius": Case(network, HALF, honest=True),
    "HE": Case(lambda: network("HE"), base="HE", honest=True),
    "adversarially trained": Case(lambda: network("robust"), base="robust", honest=True),
    "adversarially trained, HE": Case(lambda: network("robust HE"), base="robust HE", honest=True),
    "label smoothing of 0.6": Case(lambda: network("smooth"), base="smooth", honest=True),
    "random signs backward, 8 a unit": Case(_plain(before=random_signs(8))),
    "random signs backward, 1000 a unit": Case(_plain(before=random_signs(1000))),
    "random signs and hard labels": Case(_plain(before=random_signs(64), after=hard_labels), HALF),
    "random signs and hard labels, whole radius": Case(_plain(before=random_signs(64), after=hard_labels)),
    "random signs of the image's bits": Case(_plain(before=signs_of_bits(0.5))),
    "four signs in ten are wrong": Case(_plain(before=signs_of_bits(0.4))),
    "random signs, half the radius": Case(_plain(before=signs_of_bits(0.5)), HALF),
    "a gradient of noise": Case(_plain(before=decoy)),
    "the wrong sign leaks": Case(_plain(before=scaled_gradient(-0.01))),
    "the wrong sign near the boundary": Case(_plain(after=turned_near_the_boundary)),
    "the wrong sign off the grey levels": Case(_plain(before=turned_off_the_grey_levels)),
    "one pixel in eight has a gradient": Case(_plain(before=sparse)),
    "gradients of 1e-30": Case(_plain(before=scaled_gradient(1e-30))),
    "gradients through float16": Case(_plain(after=half)),
    "pixels rounded, hard": Case(_plain(before=rounded(8))),
    "pixels rounded, straight through": Case(_plain(before=straight_through(8))),
    "pixels rounded, soft": Case(_plain(before=soft_steps(8, 40.0))),
    "a fine wave on the pixels": Case(_plain(before=ripples(3000.0))),
    "a wave on the pixels": Case(_plain(before=ripples(300.0))),
    "noise of the image's bits on pixels": Case(_plain(before=small_noise_of_bits(0.1))),
    "noise of the image's bits on logits": Case(_plain(after=logit_noise(2.0))),
    "a fine wave on the logits": Case(_plain(after=waves)),
    "JPEG": Case(_plain(before=jpeg(0.2))),
    "median filter": Case(_plain(before=median)),
    "votes": Case(lambda: Votes(network())),
    "hard labels": Case(_plain(after=bare_hard_labels)),
    "temperature 1e-9": Case(_plain(after=temperature(1e-9))),
    "temperature 1e9": Case(_plain(after=temperature(1e9))),
    "sigmoid on logits": Case(_plain(after=sigmoid)),
    "clamped logits": Case(_plain(after=clamp)),
    "a bonus for the predicted class": Case(_plain(after=bonus)),
    "logits rounded": Case(_plain(after=coarse)),
    "features rounded": Case(_shattered),
    "tiny features": Case(_tiny_features),
    "k-WTA": Case(lambda: network("k-WTA")),
    "rejects to another class": Case(_plain(after=rejects_to_another)),
    "rejects to a constant": Case(_plain(after=rejects_to_a_constant)),
    "random resizing": Case(_plain(before=resized), random=True),
    "Gaussian noise": Case(_plain(before=gaussian(0.2)), random=True),
}
"""The defences by name."""
