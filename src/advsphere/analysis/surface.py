"""A slice of the loss surface around an image, along its adversarial direction and along a random one.

Gradient attacks need a smooth slope towards the boundary. Ridges and plateaus on the scale of the radius indicate
misleading gradients, so that robust accuracy under gradient attacks is too high.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from advsphere.analysis.canvas import INK, SOFT, canvas, quiet
from advsphere.analysis.crafting import Crafted
from advsphere.classifier import frozen
from advsphere.losses import margin
from advsphere.rng import Rng

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REACH = 2.0
"""Extent of a slice in each direction, in radii."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Surface:
    """The margin loss (n, A, A) around n examples: rows along the random direction, columns along the adversarial one.

    `along` (A,) are the positions on both axes, in units of the radius. 0 is the clean image. 1 on the adversarial axis
    is the adversarial image, if that lies on the ball's surface.
    """

    examples: tuple[int, ...]
    along: Tensor
    values: Tensor


def loss_surface(
    model: nn.Module,
    crafted: Crafted,
    examples: tuple[int, ...],
    *,
    points: int = 33,
    seed: int = 0,
    batch_size: int = 250,
) -> Surface:
    """The margin loss of x + a d + b r for a, b from -REACH to REACH; a value above 0 means misclassified.

    d is the crafted perturbation and r a random step, both scaled to the radius. `examples` are positions in
    `crafted`. Pixels are clipped to the box, as in an attack.
    """
    threat, chosen = crafted.threat, torch.tensor(examples, device=crafted.y.device)
    x, y = crafted.x[chosen], crafted.y[chosen]
    d = crafted.x_adv[chosen] - x
    size = threat.distance(crafted.x_adv[chosen], x).clamp(min=1e-12)
    d = d * (threat.eps / size).view(-1, *[1] * (x.dim() - 1))
    r = threat.eps * threat.ascent(Rng(seed, chosen).normal(x.shape[1:], "surface").to(x.dtype), x)
    along = torch.linspace(-REACH, REACH, points, device=x.device)
    b, a = (grid.flatten() for grid in torch.meshgrid(along, along, indexing="ij"))
    values = torch.zeros(len(examples), points * points)
    with frozen(model) as classify, torch.no_grad():
        for i in range(len(examples)):
            for index in torch.arange(len(a), device=x.device).split(batch_size):
                u, v = (t[index].view(-1, *[1] * (x.dim() - 1)) for t in (a, b))
                moved = (x[i] + u * d[i] + v * r[i]).clamp(*threat.bounds)
                values[i, index.cpu()] = margin(classify(moved), y[i].expand(len(index))).float().cpu()
    return Surface(examples=examples, along=along.cpu(), values=values.view(-1, points, points))


def surface_figure(found: Mapping[str, Surface]) -> Figure:
    """A row for each network: the loss as colours and contour lines, with the decision boundary (0) as a thick line."""
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
            y_label = f"{name}\nrandom direction, eps" if column == 0 else ""
            quiet(ax, x_label, y_label, title=f"image {example}", grid="")
            ax.yaxis.label.set_parse_math(False)
        bar = figure.colorbar(shown, ax=axes[row * columns : (row + 1) * columns], shrink=0.85, pad=0.01)
        bar.set_label("margin loss, logits\n(above 0: fooled)", color=SOFT, fontsize=8)
        bar.ax.tick_params(colors=SOFT, length=0, labelsize=8)
        bar.outline.set_visible(False)
    return figure
