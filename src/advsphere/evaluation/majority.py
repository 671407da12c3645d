"""A model with random numbers inside, evaluated as the majority of several calls."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from advsphere.calling import answer
from advsphere.rng import derived_seed
from advsphere.threat import over_pixels


class Majority(nn.Module):
    """A randomised model as a deterministic one, which answers the class that most of its calls answer.

    The logits are the mean of the log-probabilities of `draws` calls, so their gradient is the expectation over
    transformation of Athalye et al. 2018 (arXiv 1707.07397). If the majority answers another class than the mean, that
    class is lifted to the top. The calls use fixed seeds of torch's generator, one set where a gradient is taken and
    another one elsewhere, so an attack can't adapt to the random numbers that judge it. The numbers of an image depend
    on its place in the batch.

    Args:
        model: The randomised model. It must take its random numbers from torch's generator.
        draws: The number of calls.
    """

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        searching = torch.is_grad_enabled() and x.requires_grad
        each = []
        for i in range(self.draws):
            seed = derived_seed(i, "search" if searching else "judge")
            if searching:  # one graph at a time: a call is computed again for its gradient
                each.append(checkpoint(self._call, x, seed, use_reentrant=False, preserve_rng_state=False))
            else:
                each.append(self._call(x, seed))
        calls = torch.stack(each)
        mean = calls.mean(0)
        votes = calls.argmax(2).mode(0).values
        lifted = torch.zeros_like(mean).scatter(1, votes[:, None], 1.0)
        gap = (mean.amax(1) - mean.gather(1, votes[:, None]).squeeze(1)).detach()
        return mean + lifted * over_pixels(torch.where(gap > 0, gap + 1e-3, 0.0), mean)

    def _call(self, x: Tensor, seed: int) -> Tensor:
        generators = [torch.default_generator]  # torch.manual_seed would take longer than a small network
        if x.device.type == "cuda":
            generators.append(torch.cuda.default_generators[x.device.index or 0])
        before = [generator.get_state() for generator in generators]
        try:
            for generator in generators:
                generator.manual_seed(seed)
            return answer(self.model, x).log_softmax(1)
        finally:
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)


def as_judged(model: nn.Module, draws: int) -> nn.Module:
    """The model, or the majority of `draws` of its calls if `draws` is not 0."""
    return Majority(model, draws) if draws else model
