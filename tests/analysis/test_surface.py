"""A slice of the loss surface: on a linear model it is a plane."""

from __future__ import annotations

import pytest
import torch

from advsphere.analysis.crafting import craft
from advsphere.analysis.surface import loss_surface, surface_figure
from advsphere.losses import margin
from advsphere.threat import ThreatModel
from tests.analysis import linear


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_a_plane_through_the_clean_and_the_adversarial_image(norm: str) -> None:
    threat = ThreatModel(norm=norm, eps=0.02)  # type: ignore[arg-type]
    network = linear.model()
    crafted = craft(network, linear.images(network, 6), threat=threat, steps=20)
    found = loss_surface(network, crafted, (1, 4), points=9, batch_size=7)
    assert found.along.tolist() == [i / 2 - 2 for i in range(9)] and found.values.shape == (2, 9, 9)
    middle, at_one = 4, 6
    with torch.no_grad():
        clean, adversarial = (margin(network(x), crafted.y)[[1, 4]] for x in (crafted.x, crafted.x_adv))
    torch.testing.assert_close(found.values[:, middle, middle], clean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.values[:, middle, at_one], adversarial, atol=1e-3, rtol=1e-3)
    for dimension in (1, 2):
        bends = found.values.diff(dim=dimension).diff(dim=dimension)
        assert float(bends.abs().max()) < 1e-4
    slope = found.values.diff(dim=2)[:, 0, 0]
    assert (slope > found.values.diff(dim=1)[:, 0, 0].abs()).all(), "no direction is steeper than the adversarial one"


def test_the_figure_has_a_panel_for_each_image() -> None:
    network = linear.model()
    crafted = craft(network, linear.images(network, 6), threat=ThreatModel(norm="linf", eps=0.02))
    found = loss_surface(network, crafted, (0, 2, 5), points=5)
    figure = surface_figure({"one": found, "two": found})
    assert len([ax for ax in figure.axes if ax.images]) == 2 * 3
