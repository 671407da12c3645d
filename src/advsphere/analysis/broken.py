"""Which of ever stronger attacks is the first to fool the model, for each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.draws import Draws, permutation
from advsphere.evaluation import AttackSpec
from advsphere.evaluation.judge import exact_float32, predict, strike
from advsphere.evaluation.preflight import device_of
from advsphere.threat import ThreatModel


def drawn(count: int, most: int | None, *, seed: int) -> Tensor:
    """(n,) int64: the numbers of `count` examples, in order; a sample of `most` where there are more (None: of all)."""
    if most is None or most >= count:
        return torch.arange(count)
    return permutation(count, seed=seed, epoch=0, purpose="a look")[:most].sort().values


def first_to_break(
    model: nn.Module,
    images: Images,
    examples: Tensor,
    attacks: Sequence[tuple[ThreatModel, AttackSpec]],
    *,
    seed: int,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> tuple[int, ...]:
    """For each of the examples, (n,) int64 in order, 0 where its clean prediction is wrong, else the number of the
    first attack (from 1) that fooled, or len(attacks) + 1 where none did. Each attack gets only what resisted all
    before it, and is judged in its own ball, in float32. on_progress: told (attacks done, in all), over all batches.
    """
    device, broken = device_of(model), torch.full((len(images),), len(attacks) + 1)
    batches = examples.split(batch_size)
    with exact_float32():
        for number, index in enumerate(batches):
            x, y = (t.to(device) for t in images.batch(index))
            with frozen(model) as exact:
                fooled = predict(exact, x, y)[0].cpu()
            broken[index[fooled]] = 0
            for i, (threat, spec) in enumerate(attacks, 1):
                at = (broken[index] > len(attacks)).to(device)
                if at.any():
                    draws = Draws(seed, index.to(device)[at])
                    verdict = strike(model, spec, threat, x[at], y[at], draws)
                    broken[index[at.cpu()][verdict.fooled.cpu()]] = i
                on_progress(number * len(attacks) + i, len(batches) * len(attacks))
    return tuple(broken[examples].tolist())
