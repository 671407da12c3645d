"""What the machine computes well: the precision that it has hardware for, and how fast it turned out to be."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from advsphere.errors import UserError
from advsphere.files import cache_folder, read_cache, write_cache

SLOWER = 1.5
"""bfloat16 is reported as slow if it takes more than this many times as long as float32. With AVX512-bf16 it was 3
times faster, and emulated 14 times slower, so noise does not matter."""


def low_precision(device: torch.device, model: nn.Module | None = None) -> torch.dtype | None:
    """The low precision in which a device computes natively. Results depend on it, so no measurement decides it.

    Args:
        device: The device.
        model: The network to compute with.

    Returns:
        bfloat16 if the device supports it natively (AVX512-bf16, AMX, recent GPUs) and the network has no weights in
        float64, which autocast leaves as they are; else None.
    """
    if model is not None and any(p.dtype == torch.float64 for p in model.parameters()):
        return None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return torch.bfloat16 if bfloat16_instructions() else None


def bfloat16_instructions() -> str | None:
    """Name the instructions by which the processor multiplies in bfloat16.

    Returns:
        "amx", "avx512_bf16", or None if it has neither.
    """
    cpu = torch.cpu
    if getattr(cpu, "_is_amx_tile_supported", bool)():
        return "amx"
    return "avx512_bf16" if getattr(cpu, "_is_avx512_bf16_supported", bool)() else None


def processor() -> str:
    """Name the processor.

    Returns:
        Its name, as the operating system reports it.
    """
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def advice(dtype: torch.dtype | None, device: torch.device) -> str | None:
    """One line if this precision is slow on this device. The first call on a machine measures for about a second.

    Args:
        dtype: The precision of a training or a search, None for float32.
        device: The device.

    Returns:
        The line, or None if all is well.
    """
    if device.type != "cpu" or dtype is not torch.bfloat16:
        return None
    speeds = measured_speeds()
    times = speeds["float32, channels last"] / speeds["bfloat16, channels last"]
    native = bfloat16_instructions()
    if native and times < SLOWER:
        return None
    why = "has no instructions for it" if native is None else f"has {native}, but PyTorch does not use it"
    return f"bfloat16 takes {times:.1f} times as long as float32 here, because the processor {why}: --precision float32"


@contextmanager
def repeatable_kernels(repeatable: bool = True) -> Iterator[None]:
    """Let cuDNN use only kernels that give the same bits each time.

    Args:
        repeatable: If False, cuDNN measures which kernels are fastest, and the bits may differ from run to run.

    Yields:
        None. The earlier setting is restored afterwards.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = not repeatable, repeatable
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


@cache
def measured_speeds() -> dict[str, float]:
    """Measure a small convolution, forward and backward.

    This is done once for each processor, version of torch and number of threads, and then read from the user's cache.

    Returns:
        GFLOP/s by precision and memory layout, such as "float32, channels last".
    """
    kernels = f"{torch.backends.cpu.get_cpu_capability()} {os.environ.get('ONEDNN_MAX_CPU_ISA')}"
    key = f"{processor()} {kernels} {torch.__version__} {torch.get_num_threads()}"
    cached = cache_folder() / "machine" / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.json"
    kind = "advsphere machine"
    with suppress(UserError):  # not measured yet, or damaged
        return {name: float(speed) for name, speed in read_cache(cached, kind)["speeds"].items()}
    speeds = _measure()
    with suppress(UserError):  # the cache can't be written
        write_cache(cached, kind, {"key": key, "speeds": speeds})
    return speeds


def _measure(batch: int = 8, channels: int = 64, side: int = 16, turns: int = 3) -> dict[str, float]:
    layouts = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
    # Forward, and gradients of the images and of the weights.
    operations = 3 * 2 * batch * channels**2 * 9 * side**2
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, channels, side, side, generator=generator)
    kernels = torch.rand(channels, channels, 3, 3, generator=generator)
    speeds = {}
    with torch.enable_grad():
        for dtype in (torch.float32, torch.bfloat16):
            for layout, memory_format in layouts.items():
                x, w = (t.to(dtype, memory_format=memory_format, copy=True).requires_grad_() for t in (images, kernels))
                seconds = []
                for _ in range(turns):
                    began = time.perf_counter()
                    torch.autograd.grad(functional.conv2d(x, w, padding=1).sum(), (x, w))
                    seconds.append(time.perf_counter() - began)
                speeds[f"{str(dtype).removeprefix('torch.')}, {layout}"] = round(operations / min(seconds) / 1e9, 1)
    return speeds
