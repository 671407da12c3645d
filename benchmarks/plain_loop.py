"""Training steps as the official codes take them, written from their description: float32, standard memory layout.

PGD-AT, ALP and TRADES follow the code of hypersphere embedding: crafting in eval mode, with gradients of the images
alone, from a point 0.001 N(0, 1) away; TRADES computes the clean logits again in every step. FastAT and FreeAT follow
their own codes: one backward computes the gradients of images and weights. With hypersphere embedding the margin loss
is that code's too: all other logits are collected example by example, and exp and log are taken by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from advsphere.hypersphere import HypersphereConfig
from advsphere.objectives import ALP, PGDAT, TRADES, FastAT, FreeAT, Objective, Standard


def margin_loss(cosines: Tensor, y: Tensor, scale: float, margin: float) -> Tensor:
    """The mean of -log softmax(s (cos - m 1_y))_y, computed as in the code of hypersphere embedding."""
    true = scale * (cosines.transpose(0, 1)[y].diag() - margin)
    others = torch.cat([torch.cat((cosines[i, :k], cosines[i, k + 1 :])).unsqueeze(0) for i, k in enumerate(y)])
    total = torch.exp(true) + torch.exp(scale * others).sum(1)
    return -(true - torch.log(total)).mean()


class PlainLoop:
    """One training run. `step` takes one optimizer step on a batch.

    Args:
        model: The network, with a head that returns scaled cosines if there is a sphere.
        objective: The method and its settings.
        sphere: Hypersphere embedding, None for a plain head.
        lr: The learning rate of SGD with momentum 0.9 and weight decay 5e-4.
    """

    def __init__(self, model: nn.Module, objective: Objective, sphere: HypersphereConfig | None, lr: float) -> None:
        self.model, self.objective, self.sphere = model, objective, sphere
        self.optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        self.noise: Tensor | None = None

    def step(self, x: Tensor, y: Tensor) -> None:
        self.model.train()
        o = self.objective
        if isinstance(o, FreeAT):
            loss = self._free(o, x, y)
        elif isinstance(o, FastAT):
            loss = self._loss(self.model(self._fast(o, x, y)), y)
        elif isinstance(o, TRADES):
            adversarial = self._pgd(o, x, lambda logits: self._divergence(logits, x))
            clean = self.model(x)
            kl = F.kl_div(F.log_softmax(self.model(adversarial), 1), F.softmax(clean, 1), reduction="batchmean")
            loss = self._loss(clean, y) + o.beta * kl
        elif isinstance(o, ALP):
            adversarial = self._pgd(o, x, lambda logits: self._loss(logits, y, margin=False))
            clean, robust = self.model(x), self.model(adversarial)
            loss = (self._loss(clean, y) + self._loss(robust, y)) / 2 + o.beta * F.mse_loss(clean, robust)
        elif isinstance(o, PGDAT):
            adversarial = self._pgd(o, x, lambda logits: self._loss(logits, y, margin=False))
            loss = self._loss(self.model(adversarial), y)
        else:
            assert isinstance(o, Standard)
            loss = self._loss(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if isinstance(o, FreeAT):
            self._move(o)

    def _loss(self, logits: Tensor, y: Tensor, *, margin: bool = True) -> Tensor:
        if self.sphere is None:
            return F.cross_entropy(logits, y)
        s, m = self.sphere.scale, self.sphere.margin if margin else 0.0
        return margin_loss(logits / s, y, s, m)

    def _divergence(self, logits: Tensor, x: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(logits, 1), F.softmax(self.model(x), 1), reduction="sum")

    def _pgd(self, o: PGDAT, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        eps = o.threat.eps
        self.model.eval()
        adversarial = x + 0.001 * torch.randn_like(x)
        for _ in range(o.steps):
            adversarial.requires_grad_()
            (grad,) = torch.autograd.grad(loss(self.model(adversarial)), [adversarial])
            adversarial = adversarial.detach() + o.step_size * grad.sign()
            adversarial = torch.min(torch.max(adversarial, x - eps), x + eps).clamp(0.0, 1.0)
        self.model.train()
        return adversarial

    def _fast(self, o: FastAT, x: Tensor, y: Tensor) -> Tensor:
        eps = o.threat.eps
        delta = torch.empty_like(x).uniform_(-eps, eps)
        delta = torch.max(torch.min(delta, 1 - x), 0 - x).requires_grad_()
        self._loss(self.model(x + delta), y).backward()
        assert delta.grad is not None
        moved = torch.clamp(delta.detach() + o.step_size * delta.grad.sign(), -eps, eps)
        return x + torch.max(torch.min(moved, 1 - x), 0 - x)

    def _free(self, o: FreeAT, x: Tensor, y: Tensor) -> Tensor:
        self.noise = torch.zeros_like(x) if self.noise is None else self.noise.detach()
        self.noise.requires_grad_()
        return self._loss(self.model((x + self.noise).clamp(0, 1)), y)

    def _move(self, o: FreeAT) -> None:
        assert self.noise is not None and self.noise.grad is not None
        moved = self.noise.detach() + o.step_size * self.noise.grad.sign()
        self.noise = moved.clamp(-o.threat.eps, o.threat.eps)
