"""The provenance of a number: the code, the libraries and the machine that computed it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import advsphere
from advsphere.machine import bfloat16_instructions, processor


def environment(device: torch.device) -> dict[str, Any]:
    """The versions and the machine as JSON-able values: all that may change a result besides settings and inputs."""
    return {
        "advsphere": advsphere.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": f"{sys.platform} {platform.machine()}",
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_bfloat16": bfloat16_instructions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        **(_cuda() if device.type == "cuda" else {}),
    }


def _cuda() -> dict[str, Any]:
    """The versions of CUDA, cuDNN and the driver. cuDNN chooses the kernels, so it decides about the last bits."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = (_output(*query) or "").partition("\n")[0] or None
    return {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": driver}


def commit() -> str | None:
    """The commit of this package, with "+changes" if its files differ from it; None outside a checkout."""
    tracked = _output("git", "ls-files", "--error-unmatch", Path(__file__).name)
    head = _output("git", "rev-parse", "--short=12", "HEAD") if tracked else None
    return head and head + ("" if _output("git", "status", "--porcelain", ".") == "" else "+changes")


def _output(*command: str) -> str | None:
    """What a command prints when it is run in this package's folder; None if it fails."""
    folder = Path(__file__).parent
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
