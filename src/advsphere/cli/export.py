"""`advsphere export`: write a trained network for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from advsphere.cli.arguments import parse
from advsphere.cli.printing import terminal
from advsphere.deployment import export, load
from advsphere.deployment.formats import SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write the network of a run for other tools, and check that what was written gives the same logits.

    advsphere export runs/mine --to onnx

    advsphere export runs/mine --to hugging-face --out my-model

    The network takes pixels (N, C, H, W) in [0, 1] and returns logits; its input normalisation is inside.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a training run."""
    to: Literal["onnx", "torch-export", "torchscript", "safetensors", "hugging-face"] = "onnx"
    """The format.
    - onnx: for ONNX Runtime and others; needs pip install 'advsphere[export]'.
    - torch-export: for torch.export.load.
    - torchscript: for torch.jit.load, also in C++.
    - safetensors: the weights alone.
    - hugging-face: a folder with weights, settings and a model card, for TrainedClassifier.from_pretrained.
    """
    checkpoint: Literal["best", "last"] = "best"
    """The checkpoint of the run."""
    out: Path | None = None
    """The file or folder to write; by default in the run's folder."""


def main(arguments: list[str]) -> int:
    """Print what was written, and how well its logits agree."""
    options = parse(Options, arguments, prog="advsphere export")
    model, console = load(options.run, options.checkpoint), terminal(soft_wrap=True)
    if options.to == "hugging-face":
        folder = options.out or options.run / "hugging-face"
        model.save_pretrained(folder)
        console.print(f"{folder}: use it with TrainedClassifier.from_pretrained({str(folder)!r})")
        return 0
    path = options.out or options.run / f"{options.checkpoint}-export{SUFFIXES[options.to]}"
    network = model.network if options.to == "safetensors" else model
    difference = export(network, model.shape, path, options.to)
    console.print(f"{path}: its logits differ from the network's by at most {difference:.1g} of the largest logit")
    if options.to == "safetensors":
        console.print(f"load it into the same network with advsphere.models.load_weights(network, {str(path)!r})")
    else:
        shape = ", ".join(map(str, model.shape))
        console.print(
            f"it takes pixels (N, {shape}) in [0, 1] and returns a logit for each class, in the order of "
            f"{options.run / 'classes.json'}"
        )
    return 0
