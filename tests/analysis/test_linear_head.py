"""A network taken apart: what its head says of itself, and logits with FN on the way and without."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.analysis.linear_head import split_head
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereHead
from advsphere.rng import Rng
from tests.analysis.bodies import Body, with_head

D, K, N = 6, 4, 20


@pytest.fixture(scope="module")
def images() -> ImageSet:
    pixels = Rng(0, torch.arange(N)).uniform((1, 3, 3), "pixels")
    return ImageSet(pixels, torch.arange(N) % K, tuple("abcd"), "noise")


@pytest.fixture(scope="module")
def body() -> Body:
    return Body(Rng(1, torch.arange(D)).normal((9,), "body"))


def plain(body: Body, *, bias: bool = True) -> nn.Sequential:
    weight = Rng(2, torch.arange(K)).normal((D,), "head")
    return with_head(body, weight, Rng(2, torch.arange(K)).normal((), "bias") if bias else None)


def spherical(body: Body, **options: bool) -> nn.Sequential:
    head = HypersphereHead(D, K, scale=7.0, **options)
    with torch.no_grad():
        head.weight.copy_(Rng(2, torch.arange(K)).normal((D,), "head"))
    return nn.Sequential(body, head).eval()


def features(body: Body, images: ImageSet) -> Tensor:
    with torch.no_grad():
        z: Tensor = body(images.pixels)
    return z


def test_a_plain_head_with_fn_is_the_formula_of_table_7(body: Body, images: ImageSet) -> None:
    model, z = plain(body), features(body, images)
    found = split_head(model, images, batch_size=7)
    assert not found.normalized
    assert found.mean_norm == pytest.approx(float(z.norm(dim=1).mean()), rel=1e-5)
    head = model[1]
    torch.testing.assert_close(found.weight, head.weight.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.bias, head.bias.detach(), atol=1e-6, rtol=1e-5)
    for factor in (0.5, 1.0, 3.0):
        s = factor * found.mean_norm
        expected = s * F.normalize(z, dim=1) @ head.weight.T + head.bias
        torch.testing.assert_close(found.logits(z, fn=True, factor=factor), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.path(fn=False)(images.pixels), model(images.pixels), atol=1e-4, rtol=1e-4)


def test_a_head_with_fn_of_its_own_can_be_without_it(body: Body, images: ImageSet) -> None:
    model, z = spherical(body), features(body, images)
    found = split_head(model, images)
    assert found.normalized
    torch.testing.assert_close(found.path(fn=True)(images.pixels), model(images.pixels), atol=1e-4, rtol=1e-4)
    cosines = F.normalize(z, dim=1) @ F.normalize(model[1].weight, dim=1).T
    expected = 7.0 * cosines * z.norm(dim=1, keepdim=True) / z.norm(dim=1).mean()
    torch.testing.assert_close(found.logits(z, fn=False), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.cosines(z), cosines, atol=1e-5, rtol=1e-4)


def test_a_sphere_without_fn_is_told_from_one_with_it(body: Body, images: ImageSet) -> None:
    assert not split_head(spherical(body, normalize_features=False), images).normalized
    assert split_head(spherical(body, normalize_weights=False), images).normalized


def test_where_all_features_have_one_norm_fn_changes_nothing(images: ImageSet) -> None:
    class Unit(Body):
        def forward(self, x: Tensor) -> Tensor:
            return 3.0 * F.normalize(super().forward(x), dim=1)

    body = Unit(Rng(1, torch.arange(D)).normal((9,), "body"))
    for model in (plain(body), spherical(body)):
        found = split_head(model, images)
        for factor in (0.5, 1.0, 2.0):
            on, off = (found.path(fn=fn, factor=factor)(images.pixels) for fn in (True, False))
            torch.testing.assert_close(on, off, atol=1e-4, rtol=1e-4)


class Foreign(nn.Module):
    """Another project's cosine head."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = D, K
        self.rows = nn.Parameter(Rng(2, torch.arange(K)).normal((D,), "head"))

    def forward(self, z: Tensor) -> Tensor:
        return 12 * F.normalize(z, dim=1) @ F.normalize(self.rows, dim=1).T


def test_the_head_is_asked_and_not_looked_up(body: Body, images: ImageSet) -> None:
    found = split_head(nn.Sequential(body, Foreign()), images, head="1")
    assert found.normalized
    torch.testing.assert_close(found.weight.norm(dim=1), torch.full((K,), 12.0))


def test_what_has_no_angles_is_refused(body: Body, images: ImageSet) -> None:
    class Curved(Foreign):
        def forward(self, z: Tensor) -> Tensor:
            return (z @ self.rows.T).tanh()

    with pytest.raises(UserError, match="not linear"):
        split_head(nn.Sequential(body, Curved()), images, head="1")
    with pytest.raises(UserError, match="pool"):
        split_head(nn.Sequential(nn.Linear(3, K), nn.Flatten()), images, head="0")
    silent = with_head(Body(torch.zeros(D, 9)), torch.ones(K, D))
    with pytest.raises(UserError, match="all 0"):
        split_head(silent, images)


def test_the_model_is_left_as_it_was(body: Body, images: ImageSet) -> None:
    model = plain(body).train()
    split_head(model, images)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
