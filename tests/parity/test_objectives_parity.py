"""PGD-AT, ALP, TRADES, FastAT, N-FGSM and FreeAT, each with and without the sphere, against loops written from the
papers.

Images stay clear of the box by more than eps: ours puts starts and carried perturbations into the box at once, the
official codes some steps later.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from advsphere.hypersphere import AngularMargin, HypersphereConfig
from advsphere.losses import cross_entropy
from advsphere.objectives import ALP, NFGSM, PGDAT, TRADES, Crafting, Criterion, FastAT, FreeAT, Objective
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.laws import conv_net, images, labels
from tests.parity.reference import Bare, batch_mean_kl, he_cross_entropy, near, uniform_noise

S, M, SEED = 15.0, 0.2, 11
spheres = pytest.mark.parametrize("sphere", [False, True], ids=["plain", "HE"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def pixels(n: int, dtype: torch.dtype, seed: int = 3) -> Tensor:
    return images(n, seed=seed, low=0.1, high=0.9).to(dtype)


def ours(sphere: bool, dtype: torch.dtype) -> tuple[nn.Sequential, Criterion]:
    """The package's way: s in the head, m in the criterion."""
    model = conv_net().to(dtype)
    return model, AngularMargin(HypersphereConfig(scale=S, margin=M).attach(model), M) if sphere else cross_entropy


def theirs(sphere: bool, dtype: torch.dtype) -> tuple[Bare, float, float]:
    """The reference's way: bare cosines, and (s, m) for its losses."""
    return Bare(conv_net().to(dtype), sphere), S if sphere else 1.0, M if sphere else 0.0


def same_weights(model: nn.Sequential, bare: Bare, tolerance: float) -> None:
    """Weights, gradients and batch norm's statistics."""
    for name, value in bare.body.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=tolerance), name
    assert torch.allclose(model[-1].weight, bare.weight, atol=tolerance)
    for name, p in bare.body.named_parameters():
        q = model.get_parameter(name)
        assert p.grad is not None and q.grad is not None and torch.allclose(q.grad, p.grad, 1e-4, tolerance), name
    assert torch.allclose(model[-1].weight.grad, bare.weight.grad, 1e-4, tolerance)


def crafted(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The loop of TRADES' code, which the paper's shares: eval mode, ten signed steps, ball, box."""
    model.eval()
    x_adv = near(x, SEED)
    for _ in range(10):
        x_adv = x_adv.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(loss(model(x_adv)), x_adv)
        x_adv = x_adv.detach() + 0.007 * torch.sign(grad)
        x_adv = torch.clamp(torch.min(torch.max(x_adv, x - 0.031), x + 0.031), 0.0, 1.0)
    model.train()
    return x_adv.detach()


def pgd_at(model: nn.Module, x: Tensor, y: Tensor, s: float, m: float) -> tuple[Tensor, Tensor]:
    x_adv = crafted(model, x, lambda z: he_cross_entropy(z, y, s, 0.0))  # no margin inside the attack
    return x_adv, he_cross_entropy(model(x_adv), y, s, m)


def alp(model: nn.Module, x: Tensor, y: Tensor, s: float, m: float) -> tuple[Tensor, Tensor]:
    x_adv = crafted(model, x, lambda z: he_cross_entropy(z, y, s, 0.0))
    z, z_adv = model(x), model(x_adv)
    both = 0.5 * he_cross_entropy(z, y, s, m) + 0.5 * he_cross_entropy(z_adv, y, s, m)
    return x_adv, both + 0.5 * ((z - z_adv) ** 2).mean()  # of the bare cosines, beta = 0.5


def trades(model: nn.Module, x: Tensor, y: Tensor, s: float, m: float) -> tuple[Tensor, Tensor]:
    model.eval()
    clean = (s * model(x)).softmax(1).detach()
    x_adv = crafted(model, x, lambda z: batch_mean_kl(clean, (s * z).softmax(1)))
    z, z_adv = model(x), model(x_adv)
    return x_adv, he_cross_entropy(z, y, s, m) + 6.0 * batch_mean_kl((s * z).softmax(1), (s * z_adv).softmax(1))


Reference = Callable[[nn.Module, Tensor, Tensor, float, float], tuple[Tensor, Tensor]]
METHODS: dict[str, tuple[Callable[[float], Objective], Reference]] = {
    "PGD-AT": (lambda s: PGDAT(), pgd_at),
    "ALP": (lambda s: ALP(beta=0.5 / s**2), alp),  # ours pairs s * cos
    "TRADES": (lambda s: TRADES(beta=6.0), trades),
}


@pytest.mark.parametrize(("make", "reference"), METHODS.values(), ids=METHODS.keys())
@spheres
@dtypes
def test_crafted_images_loss_and_gradients(
    make: Callable[[float], Objective], reference: Reference, sphere: bool, dtype: torch.dtype
) -> None:
    x, y, exact = pixels(12, dtype), labels(12), dtype == torch.float64
    (model, criterion), (bare, s, m) = ours(sphere, dtype), theirs(sphere, dtype)
    objective = make(s)
    x_adv = objective.craft(model, x, y, Crafting(Rng.of(x, SEED)))
    expected_x_adv, expected = reference(bare, x, y, s, m)
    differ = (x_adv - expected_x_adv).abs() > 1e-5
    assert differ.double().mean() <= (0 if exact else 5e-3), "in float32 a sign near zero may turn"
    assert (expected_x_adv - x).abs().mean() > 0.02, "that the attack went somewhere"
    # On the reference's images, so that losses are compared and not signs.
    loss = objective.loss(model.train(), x, expected_x_adv, y, criterion=criterion).total
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6 if exact else 1e-5, abs=1e-5)
    loss.backward()
    expected.backward()
    same_weights(model, bare, 1e-5 if exact else 1e-4)


def test_alp_weighs_what_it_pairs() -> None:
    """With s in the head, beta is the official one over s^2, and that is all there is to it."""
    x, y = pixels(8, torch.float64), labels(8)
    model, criterion = ours(True, torch.float64)
    x_adv = pixels(8, torch.float64, seed=4)
    without = ALP(beta=0.0).loss(model, x, x_adv, y, criterion=criterion).total
    paired = ALP(beta=0.5 / S**2).loss(model, x, x_adv, y, criterion=criterion).total
    cosines, cosines_adv = model(x) / S, model(x_adv) / S
    assert (paired - without).item() == pytest.approx(0.5 * (cosines - cosines_adv).square().mean().item())


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)


def log_odds_of(cos: Tensor, y: Tensor, s: float) -> Tensor:
    """The log-odds against y of the whole batch, log((1 - p_y) / p_y): the stated departure while crafting."""
    p = (s * cos).softmax(1)[torch.arange(len(y)), y]
    return ((1 - p) / p).log().sum()


@spheres
@pytest.mark.parametrize(
    ("objective", "noise", "alpha", "clip"),
    [(FastAT(), 8 / 255, 10 / 255, 8 / 255), (NFGSM(), 16 / 255, 8 / 255, 1.0)],
    ids=["FastAT", "N-FGSM"],
)
def test_one_step_methods_train_as_the_explicit_loop(
    objective: Objective, noise: float, alpha: float, clip: float, sphere: bool
) -> None:
    """Wong et al. 2020, algorithm 3, and de Jorge et al. 2022, algorithm 1, which does not clip: train mode throughout,
    so that batch norm's statistics see both passes.
    """
    (model, criterion), (bare, s, m) = ours(sphere, torch.float64), theirs(sphere, torch.float64)
    optimiser, other = sgd(model), sgd(bare)
    for i, n in enumerate((8, 8, 5)):
        x, y = pixels(n, torch.float64, seed=i), labels(n)
        rng = Rng.of(x, SEED).at(step=i)

        model.train()
        x_adv = objective.craft(model, x, y, Crafting(rng))
        optimiser.zero_grad()
        objective.loss(model, x, x_adv, y, criterion=criterion).total.backward()
        optimiser.step()

        bare.train()
        delta = uniform_noise(x, rng, noise).requires_grad_(True)
        log_odds_of(bare(x + delta), y, s).backward()
        delta = torch.clamp(delta.detach() + alpha * torch.sign(delta.grad), -clip, clip)
        other.zero_grad()
        he_cross_entropy(bare(x + delta), y, s, m).backward()
        other.step()

        assert torch.allclose(x_adv, x + delta, atol=1e-9)
        same_weights(model, bare, 1e-7)


@spheres
def test_log_odds_craft_as_cross_entropy_in_eval_mode_and_almost_so_in_train_mode(sphere: bool) -> None:
    """In train mode batch norm couples the images, and cross-entropy weighs the others' losses by p(not y)."""
    eps, alpha, x, y = 8 / 255, 10 / 255, pixels(64, torch.float64), labels(64)
    rng = Rng.of(x, SEED)
    for mode, at_most in (("eval", 0.0), ("train", 0.2)):
        model, (bare, s, _) = ours(sphere, torch.float64)[0], theirs(sphere, torch.float64)
        x_adv = FastAT(mode=mode).craft(model, x, y, Crafting(rng))
        bare.train(mode == "train")
        delta = uniform_noise(x, rng, eps).requires_grad_(True)
        he_cross_entropy(bare(x + delta), y, s, 0.0).backward()
        delta = torch.clamp(delta.detach() + alpha * torch.sign(delta.grad), -eps, eps)
        differ = ((x_adv - x - delta).abs() > 1e-9).double().mean()
        assert differ <= at_most and (differ > 0) == (mode == "train")


@spheres
def test_free_at_trains_as_the_explicit_loop_over_ragged_batches(sphere: bool) -> None:
    """Shafahi et al. 2019, algorithm 1: delta lives by position in the batch, and one backward serves both; the margin
    is in it.
    """
    eps, repeats = 4 / 255, 3
    (model, criterion), (bare, s, m) = ours(sphere, torch.float64), theirs(sphere, torch.float64)
    objective = FreeAT(threat=ThreatModel(norm="linf", eps=eps), step_size=eps, repeats=repeats)
    optimiser, other = sgd(model), sgd(bare)
    carry, delta = None, torch.zeros(8, 3, 8, 8, dtype=torch.float64)
    for i, n in enumerate((8, 5, 8, 1, 7)):
        x, y = pixels(n, torch.float64, seed=i), labels(n)
        for _ in range(objective.replays):
            x_adv = objective.craft(model, x, y, Crafting(Rng.of(x), carry=carry))
            optimiser.zero_grad()
            objective.loss(model, x, x_adv, y, criterion=criterion).total.backward()
            carry = objective.after_backward(x, x_adv, carry)
            optimiser.step()

            noise = delta[:n].clone().requires_grad_(True)
            other.zero_grad()
            he_cross_entropy(bare(x + noise), y, s, m).backward()
            delta[:n] = torch.clamp(delta[:n] + eps * torch.sign(noise.grad), -eps, eps)
            other.step()

            assert carry is not None and torch.allclose(carry, delta, atol=1e-9)
            same_weights(model, bare, 1e-7)


def test_free_at_puts_a_carried_perturbation_into_the_box() -> None:
    """The stated departure: what the new image has no room for is dropped, so that what is trained on is valid."""
    objective, model, y = FreeAT(threat=ThreatModel(norm="linf", eps=0.1), step_size=0.1), conv_net(), labels(2)
    x = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    x_adv = objective.craft(model, x, y, Crafting(Rng.of(x), carry=torch.full_like(x, 0.1)))
    assert torch.allclose(x_adv - x, torch.tensor([0.1, 0.0])[:, None, None, None].expand_as(x))


def test_free_at_grows_its_state_with_a_larger_batch() -> None:
    objective, model = FreeAT(threat=ThreatModel(norm="linf", eps=0.1), step_size=0.1), conv_net()
    carry = None
    for n in (3, 6, 2):
        x, y = images(n, seed=n, low=0.2, high=0.8), labels(n)
        known = carry
        x_adv = objective.craft(model, x, y, Crafting(Rng.of(x), carry=carry))
        if known is not None:
            kept = min(n, len(known))
            assert torch.allclose((x_adv - x)[:kept], known[:kept], atol=1e-7)
            assert not (x_adv - x)[kept:].any(), "new positions begin at zero"
        objective.loss(model.train(), x, x_adv, y, criterion=cross_entropy).total.backward()
        carry = objective.after_backward(x, x_adv, carry)
    assert carry is not None and len(carry) == 6
