"""What an evaluation was of, and where it ran: checksums of model and data, versions, threads, hardware."""

from __future__ import annotations

import hashlib
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advsphere.data import Images


def model_checksum(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of all parameters and saved buffers, wherever they live."""
    digest = hashlib.sha256()
    tensors = {name: v for name, v in model.state_dict().items() if isinstance(v, Tensor)}
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def data_checksum(images: Images, batch_size: int) -> str:
    """SHA-256 over the shape, the float32 pixels and the labels of all images, in order; `batch_size` at a time."""
    digest = hashlib.sha256(f"{len(images)} {images.shape}".encode())
    for index in torch.arange(len(images)).split(batch_size):
        digest.update(images.batch(index)[0].cpu().contiguous().numpy().tobytes())
    digest.update(images.labels.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """All that may change a result by rounding: machine type, versions, kernels, device, threads."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "advsphere": version("advsphere"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "processor": _processor(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "device": gpu or device.type,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """The processor's model name; `platform.processor` has none on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
