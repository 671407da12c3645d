"""Part "speed": images a second and peak memory of training, beside a plain loop, and a profile of single steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_session import Setting, Step, synchronize
from plain_loop import PlainLoop
from torch.profiler import ProfilerActivity, profile

from advsphere.data import ImageSet
from advsphere.hypersphere import HypersphereConfig
from advsphere.objectives import PGDAT, TRADES, FastAT, Objective
from advsphere.recipes import recipe
from advsphere.runs.build import assemble
from advsphere.runs.config import Config
from advsphere.training import Hooks, Metrics, Trainer, TrainSettings

OBJECTIVES: dict[str, Objective] = {"FastAT": FastAT(), "PGD-10 AT": PGDAT(), "TRADES": TRADES()}
BATCHES = (128, 512)
VARIANTS: dict[str, dict[str, Any]] = {"": {}, ", any kernels": {"deterministic": False}}
"""Settings of the loop to time. Without `deterministic`, cuDNN chooses the fastest kernels."""
if "compile" in {field.name for field in fields(TrainSettings)}:
    VARIANTS[", compiled"] = {"compile": True}
SPHERE = HypersphereConfig(scale=15.0, margin=0.2)


def steps() -> Iterator[Step]:
    for name in OBJECTIVES:
        seconds = 8 if name == "FastAT" else 15
        for size in BATCHES:
            label = f"speed/{name} batch {size}"
            for variant, settings in VARIANTS.items():
                compiling = 45 if "compile" in settings else 0
                yield Step(f"{label}{variant}", seconds + compiling, partial(speed, name, size, settings, None))
            yield Step(f"{label}, plain loop", seconds - 2, partial(plain, name, size))
    yield Step("speed/FastAT+HE batch 128", 8, partial(speed, "FastAT", 128, {}, SPHERE))
    yield Step("speed/profile", 15, profiled)


def speed(
    name: str, size: int, settings: dict[str, Any], sphere: HypersphereConfig | None, setting: Setting
) -> dict[str, Any]:
    """Our loop: two epochs, of which the second is timed."""
    config, images = _problem(name, size, setting, steps=2 if setting.tiny else 30)
    config = replace(config, training=replace(config.training, epochs=2, **settings), sphere=sphere)
    ends: list[float] = []

    def ended(metrics: Metrics) -> None:
        ends.append(metrics["seconds"])

    trainer = _trainer(config, images, setting, ended)
    _forget_peak(setting)
    trainer.fit()
    rate = len(images) / (ends[1] - ends[0])
    return {"images/s": round(rate, 1), "precision": str(trainer.dtype or "float32"), **_peak(setting)}


def plain(name: str, size: int, setting: Setting) -> dict[str, Any]:
    """The plain loop, in float32 as its authors wrote it (with PyTorch's usual TF32), and under bfloat16 autocast."""
    config, images = _problem(name, size, setting, steps=1)
    model = assemble(config, images).model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    x, y = images.to(setting.device).batch(torch.arange(len(images)))
    result: dict[str, Any] = {}
    for precision in (torch.float32, torch.bfloat16):
        loop = PlainLoop(copy.deepcopy(model).to(setting.device), config.objective, None, 0.01)
        low = precision == torch.bfloat16
        _forget_peak(setting)
        with torch.autocast(setting.device.type, dtype=precision) if low else nullcontext():
            rate = _rate(partial(loop.step, x, y), len(x), setting)
        kind = str(precision).removeprefix("torch.")
        result |= {f"images/s, {kind}": rate} | {f"{key}, {kind}": value for key, value in _peak(setting).items()}
    return result


def profiled(setting: Setting) -> dict[str, Any]:
    """Where the time of FastAT's steps goes, as a file; the numbers here are for one step."""
    steps = 2 if setting.tiny else 10
    config, images = _problem("FastAT", 128, setting, steps=steps)
    config, gpu = replace(config, training=replace(config.training, epochs=2)), setting.device.type == "cuda"
    found = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])], acc_events=True)

    def ended(metrics: Metrics) -> None:
        if metrics["epoch"] == 1:  # which warmed up
            found.start()

    _trainer(config, images, setting, ended).fit()
    synchronize(setting.device)
    found.stop()
    averages = found.key_averages()
    order = "self_device_time_total" if gpu else "self_cpu_time_total"
    (setting.out / "profile.txt").write_text(averages.table(sort_by=order, row_limit=60))
    launches = sum(event.count for event in averages if event.key.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    return {"steps": steps, "launches of a step": launches / steps, "table": "profile.txt"}


def _problem(name: str, size: int, setting: Setting, *, steps: int) -> tuple[Config, ImageSet]:
    """A recipe of CIFAR-10's size on images of noise."""
    size, side = (8, 8) if setting.tiny else (size, 32)
    config = recipe("cifar10-fastat")
    network = replace(config.model, name="small-cnn") if setting.tiny else config.model
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (size * steps, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (size * steps,), generator=generator)
    training = replace(config.training, batch_size=size, lr=0.01)
    config = replace(config, model=network, objective=OBJECTIVES[name], training=training)
    return config, ImageSet(pixels, labels, tuple("0123456789"))


def _trainer(config: Config, images: ImageSet, setting: Setting, on_epoch: Callable[[Metrics], None]) -> Trainer:
    parts = assemble(config, images)
    return Trainer(
        parts.model.to(setting.device),
        config.objective,
        parts.criterion,
        images.to(setting.device),
        settings=config.training,
        folder=_folder(setting),
        hooks=Hooks(on_epoch=on_epoch),
    )


def _folder(setting: Setting) -> Path:
    folder = setting.work / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _rate(step: Callable[[], object], size: int, setting: Setting) -> float:
    """Images a second over some steps, after three to warm up."""
    warm, timed = (1, 1) if setting.tiny else (3, 20)
    for _ in range(warm):
        step()
    synchronize(setting.device)
    began = time.perf_counter()
    for _ in range(timed):
        step()
    synchronize(setting.device)
    return round(size * timed / (time.perf_counter() - began), 1)


def _forget_peak(setting: Setting) -> None:
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setting.device)


def _peak(setting: Setting) -> dict[str, Any]:
    """The most memory that tensors took."""
    if setting.device.type != "cuda":
        return {}
    return {"peak, MiB": round(torch.cuda.max_memory_allocated(setting.device) / 2**20)}
