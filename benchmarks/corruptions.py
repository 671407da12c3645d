"""Corruptions beside the published generators: do they agree, and how much faster are they?

The generators are those of hendrycks/robustness (make_cifar_c.py, make_tinyimagenet_c.py, make_imagenet_c.py), run as
they are but for what newer libraries broke: numpy.float_, numpy.fromstring, scipy.ndimage.interpolation and
skimage's `multichannel`. They need scikit-image, opencv-python, wand and ImageMagick's library beside the packages of
this project.

Ours is timed in one batch of all images, the reference image by image as it is made, each on images in its own layout.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from comparison import show
from PIL import Image
from shared_noise import shared_noise

from advsphere.cli.arguments import parse
from advsphere.corruption import CORRUPTIONS, EXTRA, SEVERITIES, corrupt
from advsphere.rng import Rng

GENERATORS = {32: "make_cifar_c.py", 64: "make_tinyimagenet_c.py", 224: "make_imagenet_c.py"}
RANDOM = {
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog",
    "elastic_transform", "speckle_noise", "spatter",
}  # fmt: skip
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Our corruptions beside the published generators: agreement, or speed."""

    checkout: Annotated[Path, tyro.conf.Positional]
    """A checkout of hendrycks/robustness."""
    images: Annotated[Path, tyro.conf.Positional]
    """(N, S, S, 3) uint8 with S of 32, 64 or 224, .npy."""
    n: int = 100
    """How many of the images."""
    speed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Time, instead of comparing."""
    each: int = 20
    """How many images the reference is timed on: it is slow, and takes one after the other."""
    only: tuple[str, ...] = (*CORRUPTIONS, *EXTRA)
    """Some of the corruptions."""
    save: Path | None = None
    """Write the reference's images there, as CIFAR-10-C lays them out but for the labels, and nothing else."""
    threads: int = 1


class Published:
    """The functions of one published generator, called as the generator calls them."""

    def __init__(self, checkout: Path, side: int) -> None:
        self.folder = checkout / "ImageNet-C" / "create_c"
        generator = self.folder / GENERATORS.get(side, "")
        if not generator.is_file():
            raise SystemExit(
                f"no {generator} to compare with at {side} pixels: git clone https://github.com/hendrycks/robustness, "
                "and take images of 32, 64 or 224 pixels"
            )
        source = generator.read_text()
        source = source[source.index("# /////////////// Distortion Helpers") :]
        for end in ("# /////////////// Further Setup", "import collections"):
            source = source.split(end)[0]
        source = source.replace("from scipy.ndimage.interpolation import", "from scipy.ndimage import")
        source = source.replace("np.float_)", "np.float64)").replace("np.fromstring", "np.frombuffer")
        self.names: dict[str, Any] = {"np": np}
        exec(compile(source, GENERATORS[side], "exec"), self.names)
        self.names["gaussian"] = _gaussian_with_multichannel(self.names["gaussian"])
        self.names["cv2"].setNumThreads(torch.get_num_threads())

    def __call__(self, image: Image.Image, name: str, severity: int) -> Pixels:
        with contextlib.chdir(self.folder), warnings.catch_warnings():  # frost's files are named without a folder
            warnings.simplefilter("ignore")
            return np.uint8(self.names[name](image, severity))  # type: ignore[return-value]

    @contextlib.contextmanager
    def drawing(self, **functions: Callable[..., Any]) -> Iterator[None]:
        """With functions of one's own in the place of those of numpy.random."""
        own = SimpleNamespace(**{k: getattr(np, k) for k in dir(np) if not k.startswith("__")})
        own.random = SimpleNamespace(**functions)
        self.names["np"] = own
        try:
            yield
        finally:
            self.names["np"] = np


def _gaussian_with_multichannel(gaussian: Callable[..., Any]) -> Callable[..., Any]:
    def patched(image: Any, sigma: float, multichannel: bool = False, **keywords: Any) -> Any:
        return gaussian(image, sigma=sigma, channel_axis=-1 if multichannel else None, **keywords)

    return patched


def batch(pixels: Pixels) -> torch.Tensor:
    """As ours takes them: (N, 3, S, S)."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def ours(pixels: Pixels, name: str, severity: int, frost: Path | None = None) -> Pixels:
    """The same images under ours; frost: a folder with the published textures."""
    done = corrupt(batch(pixels), name, severity, rng=Rng(0, torch.arange(len(pixels))), frost_folder=frost)
    return done.permute(0, 2, 3, 1).numpy()


def agreement(published: Published, pixels: Pixels, names: Sequence[str]) -> Iterator[list[object]]:
    """Rows of a table: values that are equal and that are at most 1 apart, of a deterministic corruption or with the
    same draws; the mean absolute change of the clean image and the PSNR, of theirs with their own draws and of ours.
    """
    for name in names:
        rows = [_compared(published, pixels, name, severity) for severity in SEVERITIES]
        equal, near, largest, *means = zip(*rows, strict=True)
        cells = [f"{100 * statistics.fmean(part):.2f}" for part in (equal, near)] if equal[0] is not None else ["", ""]
        cells += ["" if largest[0] is None else f"{max(largest):.0f}"]
        yield [name, *cells, *(f"{statistics.fmean(part):.2f}" for part in means)]


def _compared(published: Published, pixels: Pixels, name: str, severity: int) -> tuple[Any, ...]:
    clean = pixels.astype(np.int16)
    images = [Image.fromarray(p) for p in pixels]
    theirs = np.stack([published(image, name, severity) for image in images]).astype(np.int16)
    mine = ours(pixels, name, severity).astype(np.int16)
    apart: Any = None
    if name not in RANDOM:
        apart = np.abs(theirs - mine)
    elif shared_noise(name, 0, severity, pixels.shape[1]) is not None:
        alike = []
        for number, image in enumerate(images):
            with published.drawing(**(shared_noise(name, number, severity, pixels.shape[1]) or {})):
                alike.append(published(image, name, severity))
        original = ours(pixels, name, severity, published.folder) if name == "frost" else mine
        apart = np.abs(np.stack(alike).astype(np.int16) - original)
    agreed = (None, None, None) if apart is None else ((apart == 0).mean(), (apart <= 1).mean(), apart.max())
    changes = [np.abs(v - clean).mean() for v in (theirs, mine)]
    return *agreed, *changes, psnr(theirs, pixels), psnr(mine, pixels)


def save(published: Published, pixels: Pixels, names: Sequence[str], folder: Path) -> None:
    """Their images as CIFAR-10-C lays them out, but for the labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        done = [published(Image.fromarray(p), name, severity) for severity in SEVERITIES for p in pixels]
        np.save(folder / f"{name}.npy", np.stack(done))


def psnr(a: Any, b: Any) -> float:
    """The mean over images, in dB; an unchanged image counts as 60."""
    error = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3))
    return float(np.where(error > 0, 10 * np.log10(255**2 / np.maximum(error, 1e-9)), 60).clip(max=60).mean())


def speed(published: Published, pixels: Pixels, names: Sequence[str], each: int) -> Iterator[list[object]]:
    """Rows of a table: microseconds for an image, the mean over severities, wall-clock and of the processor, and the
    ratio of the latter; then its geometric means.
    """
    images, few = batch(pixels), [Image.fromarray(p) for p in pixels[:each]]
    ratios = {}
    for name in names:
        theirs, mine = np.zeros(2), np.zeros(2)
        for severity in SEVERITIES:

            def reference(name: str = name, severity: int = severity) -> None:
                for image in few:
                    published(image, name, severity)

            def ours_at_once(name: str = name, severity: int = severity) -> None:
                corrupt(images, name, severity)

            a, b = in_turns(reference, ours_at_once)
            theirs += 1e6 * a / len(few) / len(SEVERITIES)
            mine += 1e6 * b / len(images) / len(SEVERITIES)
        ratios[name] = theirs[1] / mine[1]
        yield [name, *(f"{wall:,.1f} ({cpu:,.1f})" for wall, cpu in (theirs, mine)), f"{ratios[name]:.1f}"]
    main = [ratio for name, ratio in ratios.items() if name in CORRUPTIONS]
    for label, part in (("geometric mean of the 15", main), ("geometric mean of all", list(ratios.values()))):
        if part:
            yield [label, "", "", f"{statistics.geometric_mean(part):.1f}"]


def in_turns(*works: Callable[[], Any], times: int = 3) -> list[Any]:
    """For each, its least seconds of (wall-clock, processor), after one call that is not counted: other programs on the
    machine only ever add to them.
    """
    for work in works:
        work()
    least = [np.full(2, np.inf) for _ in works]
    for _ in range(times):
        for best, work in zip(least, works, strict=True):
            began = time.perf_counter(), time.process_time()
            work()
            np.minimum(best, (time.perf_counter() - began[0], time.process_time() - began[1]), out=best)
    return least


def main(options: Arguments) -> None:
    torch.set_num_threads(options.threads)
    pixels = np.load(options.images)[: options.n]
    published = Published(options.checkout.resolve(), pixels.shape[1])
    if options.save:
        return save(published, pixels, options.only, options.save)
    print(f"{len(pixels)} images of {pixels.shape[1]} pixels, {torch.get_num_threads()} threads\n")
    if options.speed:
        titles = ["corruption", "reference, us (cpu)", "ours, us (cpu)", "ratio (cpu)"]
        show(titles, list(speed(published, pixels, options.only, options.each)))
    else:
        means = [f"{what}, {whose}" for what in ("change", "PSNR") for whose in ("theirs", "ours")]
        titles = ["corruption", "equal, %", "within 1, %", "largest", *means]
        show(titles, list(agreement(published, pixels, options.only)))


if __name__ == "__main__":
    main(parse(Arguments, sys.argv[1:] or ["--help"], prog="corruptions.py"))
