"""What the paper's trainings cost: operations and memory counted, seconds of this machine measured, GPU-hours
extrapolated.

    python benchmarks/cost.py

Prints the table of docs/scaling.md. Operations are those of one real step of each recipe, as PyTorch's flop counter
sees them; memory is what autograd keeps of it, for the whole batch, with weights, gradients and momentum. The only
thing that is assumed is what a GPU sustains.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from comparison import show
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from advsphere.cli.arguments import parse
from advsphere.data import ImageSet
from advsphere.machine import low_precision, processor
from advsphere.objectives import Crafting
from advsphere.provenance import commit
from advsphere.recipes import OURS, TABLES
from advsphere.rng import Rng
from advsphere.runs.build import Parts, assemble
from advsphere.runs.config import Config

IMAGES = {"cifar10": 49_000, "imagefolder": 1_280_167}
"""To train on, without those that are held out; the folder is ImageNet."""
CLASSES = {"cifar10": 10, "imagefolder": 1000}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    teraflops: float = 75.0
    """What one GPU is assumed to sustain: 75 is 7.6 % of an H100's dense bfloat16 peak of 989."""
    threads: int = 1
    """Of the processor, for what is measured."""
    words: tuple[str, ...] = ()
    """Only recipes whose names hold one of these."""


@dataclass(frozen=True)
class Cost:
    """Of one step, for one image. flops: all replays. seconds: of the processor, all replays. bytes: kept by autograd.
    weights: how many the network has.
    """

    flops: float
    seconds: float
    bytes: float
    weights: int


class Operations(TorchDispatchMode):
    """Counts floating point operations by PyTorch's table. (Its `FlopCounterMode` also follows modules, by hooks that
    `torch.autograd.grad` does not stand.)
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def chosen(words: tuple[str, ...]) -> Iterator[tuple[str, Config]]:
    """Each table's plain recipes; the sphere adds less than one part in a hundred to any of them."""
    seen = set[tuple[object, ...]]()
    for table, configs in TABLES.items():
        for config in configs:
            key = (config.model, replace(config.training, weight_decay=0), type(config.objective), table == "Table 6")
            if table != OURS and key not in seen and (not words or any(word in config.recipe for word in words)):
                seen.add(key)
                yield table, config


def step(parts: Parts, config: Config, x: Tensor, y: Tensor, dtype: torch.dtype | None) -> None:
    """Craft, loss and backward, once."""
    context = Crafting(Rng(0, torch.arange(len(x))), None, dtype, config.training.fold, parts.shift)
    x_adv = config.objective.craft(parts.model, x, y, context)
    loss(parts, config, x, x_adv, y, dtype).backward()
    config.objective.after_backward(x, x_adv, None)


def loss(parts: Parts, config: Config, x: Tensor, x_adv: Tensor, y: Tensor, dtype: torch.dtype | None) -> Tensor:
    parts.model.train()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        return config.objective.loss(parts.model, x, x_adv, y, criterion=parts.criterion).total


def cost(config: Config) -> Cost:
    """One step on a few images of noise, as training takes it on this machine."""
    size, classes = config.data.image_size or 32, CLASSES[config.data.name]
    batch = 2
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, size, size, generator=generator).to(memory_format=torch.channels_last)
    y = torch.arange(batch)
    blank = ImageSet(torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.int64), tuple(map(str, range(classes))))
    parts, dtype = assemble(config, blank), low_precision(x.device)
    step(parts, config, x, y, dtype)  # libraries prepare themselves, and the network is tried before its first batch
    began = time.process_time()
    with Operations() as counted:  # type: ignore[no-untyped-call]
        step(parts, config, x, y, dtype)
    seconds = time.process_time() - began
    replays = config.objective.replays
    weights = sum(p.numel() for p in parts.model.parameters())
    kept = _kept(parts.model, lambda: loss(parts, config, x, x.clone().requires_grad_(), y, torch.bfloat16))
    return Cost(counted.total * replays / batch, seconds * replays / batch, kept / batch, weights)


def _kept(model: nn.Module, forward: object) -> int:
    """Bytes that autograd keeps from a forward for its backward, without the parameters, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, Tensor] = {}  # held, so that no other tensor takes the place of one that was counted

    def note(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()  # type: ignore[operator]
    del result
    return sum(t.untyped_storage().nbytes() for at, t in found.items() if at not in own)


def main(options: Arguments) -> None:
    torch.set_num_threads(options.threads)
    rows = list[list[object]]()
    for table, config in chosen(options.words):
        found, training = cost(config), config.training
        images = IMAGES[config.data.name] * training.epochs
        # Weights, gradients and momentum in float32.
        memory = found.bytes * training.batch_size + 12 * found.weights
        row = {
            "table": table,
            "recipe": f"`{config.recipe}`",
            "weights, M": f"{found.weights / 1e6:.1f}",
            "GFLOP an image and epoch": f"{found.flops / 1e9:.1f}",
            "epochs": training.epochs,
            "memory, GiB": f"{memory / 2**30:.0f}",
            "images/s, core": f"{1 / found.seconds:.3g}",
            "images/s, GPU": f"{options.teraflops * 1e12 / found.flops:,.0f}",
            "GPU-hours": f"{images * found.flops / options.teraflops / 1e12 / 3600:.2g}",
        }
        rows.append(list(row.values()))
        print(*row.values(), file=sys.stderr, flush=True)
    dtype = str(low_precision(torch.device("cpu")) or torch.float32).removeprefix("torch.")
    print(
        "Counted: weights, GFLOP, memory for the whole batch. "
        f"Measured: images/s of a core ({processor()}, {dtype}, torch {torch.__version__}, commit {commit()}). "
        f"Extrapolated, not measured: images/s and hours of a GPU, assumed to sustain {options.teraflops:g} TFLOP/s.\n"
    )
    show(list(row), rows)


if __name__ == "__main__":
    main(parse(Arguments, sys.argv[1:], prog="cost.py"))
