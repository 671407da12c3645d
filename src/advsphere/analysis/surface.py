"""A slice of the loss surface around an image: along its adversarial direction and along a random one.

A smooth slope towards the boundary is what gradient attacks need. Ridges and plateaus on the scale of the radius are a
sign that gradients mislead, and that robust accuracy under them flatters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from advsphere.analysis.canvas import INK, SOFT, canvas, quiet
from advsphere.analysis.hard_examples import Crafted
from advsphere.classifier import frozen
from advsphere.losses import Loss, margin
from advsphere.rng import Rng

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, kw_only=True)
class Surface:
    """examples: numbers in the set. along: (A,) places on both axes, in units of the radius; 0 is the clean image, and
    1 on the adversarial axis the adversarial one, if that lies on the ball's surface. values: (n, A, A) of the loss,
    rows along the random direction, columns along the adversarial one.
    """

    examples: tuple[int, ...]
    along: Tensor
    values: Tensor


def loss_surface(
    model: nn.Module,
    crafted: Crafted,
    examples: tuple[int, ...],
    *,
    loss: Loss = margin,
    reach: float = 2.0,
    points: int = 33,
    seed: int = 0,
    batch_size: int = 250,
) -> Surface:
    """The loss of x + a d + b r for a, b from -reach to reach: d is the perturbation that was crafted, r a random step,
    both as long as the radius.

    examples: positions in `crafted`. Pixels are clipped to the box, as an attack would have to. With the margin loss a
    value above 0 means misclassified.
    """
    threat, chosen = crafted.threat, torch.tensor(examples, device=crafted.y.device)
    x, y = crafted.x[chosen], crafted.y[chosen]
    d = crafted.x_adv[chosen] - x
    size = threat.distance(crafted.x_adv[chosen], x).clamp(min=1e-12)
    d = d * (threat.eps / size).view(-1, *[1] * (x.dim() - 1))
    r = threat.eps * threat.ascent(Rng(seed, chosen).normal(x.shape[1:], "surface").to(x.dtype), x)
    along = torch.linspace(-reach, reach, points, device=x.device)
    b, a = (grid.flatten() for grid in torch.meshgrid(along, along, indexing="ij"))
    values = torch.zeros(len(examples), points * points)
    with frozen(model) as classify, torch.no_grad():
        for i in range(len(examples)):
            for index in torch.arange(len(a), device=x.device).split(batch_size):
                u, v = (t[index].view(-1, *[1] * (x.dim() - 1)) for t in (a, b))
                moved = (x[i] + u * d[i] + v * r[i]).clamp(*threat.bounds)
                values[i, index.cpu()] = loss(classify(moved), y[i].expand(len(index))).float().cpu()
    return Surface(examples=examples, along=along.cpu(), values=values.view(-1, points, points))


def surface_figure(found: Mapping[str, Surface]) -> Figure:
    """By the networks' names, a row each: the loss as shades and lines, the boundary (0) as a strong one."""
    columns = len(next(iter(found.values())).examples)
    figure, axes = canvas(0.7 + 2.3 * columns, 2.45 * len(found), len(found), columns, sharex=True, sharey=True)
    for row, (name, surface) in enumerate(found.items()):
        along, limit = surface.along.tolist(), float(surface.values.abs().max())
        for column, example in enumerate(surface.examples):
            ax, values = axes[row * columns + column], surface.values[column].tolist()
            ends = (along[0], along[-1]) * 2
            shown = ax.imshow(values, origin="lower", extent=ends, cmap="RdBu_r", vmin=-limit, vmax=limit,
                              interpolation="bilinear")  # fmt: skip
            ax.contour(along, along, values, levels=9, colors=SOFT, linewidths=0.5, alpha=0.6, linestyles="solid")
            ax.contour(along, along, values, levels=[0.0], colors=INK, linewidths=1.4)
            ax.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color=INK, linewidth=0.7, linestyle=(0, (2, 3)))
            ax.plot(0, 0, marker="o", color=INK, markersize=3.5)
            x_label = "adversarial direction, eps" if row == len(found) - 1 else ""
            quiet(ax, x_label, "random direction, eps" if column == 0 else "", title=f"image {example}", grid="")
        axes[row * columns].set_ylabel(f"{name}\nrandom direction, eps", color=SOFT, fontsize=9, parse_math=False)
        bar = figure.colorbar(shown, ax=axes[row * columns : (row + 1) * columns], shrink=0.85, pad=0.01)
        bar.set_label("margin loss, logits\n(above 0: fooled)", color=SOFT, fontsize=8)
        bar.ax.tick_params(colors=SOFT, length=0, labelsize=8)
        bar.outline.set_visible(False)
    return figure
