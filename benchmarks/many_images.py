"""What an evaluation takes besides its attacks: processor time and bytes of the ledger an image, for many images.

    python benchmarks/many_images.py --n 100000

The network is one linear layer, and the attacks are FGSM and PGD-10. The time within attacks and within the network is
subtracted; what is left is loading, judging in float32, recording, the checks before and the probes after.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advsphere.attacks import fgsm, pgd
from advsphere.data import ImageSet
from advsphere.evaluation import AttackSpec, Ledger, evaluate, judge
from advsphere.threat import ThreatModel

THREAT = ThreatModel(norm="linf", eps=8 / 255)


class Timed(nn.Module):
    """Adds up the processor time of a network's forwards, outside of attacks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seconds, self.attacking = model, 0.0, False

    def forward(self, x: Tensor) -> Tensor:
        began = time.process_time()
        logits: Tensor = self.model(x)
        self.seconds += 0.0 if self.attacking else time.process_time() - began
        return logits


@contextmanager
def timed_attacks(model: Timed) -> Iterator[list[float]]:
    """Yields a list with the processor time of every attack that is run."""
    taken: list[float] = []
    search: Any = vars(judge)["_returned"]

    def timed(*arguments: Any, **options: Any) -> Any:
        began, model.attacking = time.process_time(), True
        try:
            return search(*arguments, **options)
        finally:
            model.attacking = False
            taken.append(time.process_time() - began)

    vars(judge)["_returned"] = timed
    try:
        yield taken
    finally:
        vars(judge)["_returned"] = search


def measured(n: int, side: int) -> dict[str, float]:
    """Evaluate a linear network on n noise images of side x side pixels, with labels of which most are right."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    model = Timed(nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 10)).eval())
    with torch.no_grad():
        labels = torch.cat([model(x / 255).argmax(1) for x in pixels.split(10_000)])
    labels[::20] = (labels[::20] + 1) % 10
    suite = (
        AttackSpec("FGSM", partial(fgsm, threat=THREAT)),
        AttackSpec("PGD-10", partial(pgd, threat=THREAT, steps=10, step_size=2 / 255, until_fooled=True)),
    )
    model.seconds = 0.0
    with tempfile.TemporaryDirectory() as folder, timed_attacks(model) as attacks:
        path, began = Path(folder, "ledger.sqlite"), time.process_time()
        images = ImageSet(pixels, labels, tuple(map(str, range(10))))
        evaluate(model, images, threat=THREAT, suite=suite, ledger=path)
        total = time.process_time() - began
        with Ledger.read(path) as book:
            fooled = sum(book.counts(name).get("fooled", 0) for name in book.attacks)
        size = path.stat().st_size
    outside = total - sum(attacks) - model.seconds
    return {
        "images": n,
        "pixels": 3 * side * side,
        "cells with an image": fooled,
        "milliseconds an image": round(1000 * total / n, 3),
        "of these outside of attacks and network": round(1000 * outside / n, 3),
        "ledger bytes an image": round(size / n, 1),
        "peak MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=4)
    options = parser.parse_args()
    print(json.dumps(measured(options.n, options.side)))


if __name__ == "__main__":
    main()
