"""`advsphere predict`: classify photos with a trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from advsphere.cli.arguments import parse
from advsphere.cli.printing import terminal
from advsphere.data.encoded import SUFFIXES
from advsphere.data.folders import images_below
from advsphere.data.images import UnreadableImagesError
from advsphere.deployment import load
from advsphere.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Classify images with the network of a run. The run's own images are not needed.

    advsphere predict runs/mine holiday.jpg

    advsphere predict runs/mine photos/*.jpg more-photos/ --top 3
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a training run."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")]
    """Image files, and folders with image files at any depth."""
    top: int = 1
    """Number of classes to name for each image, the most likely first."""
    checkpoint: Literal["best", "last"] = "best"
    """The checkpoint of the run."""


def main(arguments: list[str]) -> int:
    """Print a line for each image that can be read; the others are named at the end."""
    options = parse(Options, arguments, prog="advsphere predict")
    if options.top < 1:
        raise UserError(f"--top {options.top}: name at least one class")
    files = [file for place in options.images for file in _files(place)]
    if not files:
        raise UserError("name image files or folders: advsphere predict RUN photo.jpg")
    model, console, unreadable = load(options.run, options.checkpoint), terminal(soft_wrap=True), list[str]()
    width = max(len(str(file)) for file in files)
    for file in files:
        try:
            (prediction,) = model.predict(file, top=options.top)
        except UnreadableImagesError as error:
            unreadable += error.problems
        else:
            console.print(f"{file!s:<{width}}  {prediction}")
    if unreadable:
        raise UnreadableImagesError(unreadable)
    return 0


def _files(place: Path) -> list[Path]:
    if not place.exists():
        raise UserError(f"there is no image {place}")
    if not place.is_dir():
        return [place]
    if not (found := images_below(place)):
        raise UserError(f"no images in {place}, looked for {' '.join(sorted(SUFFIXES))}: name another folder")
    return found
