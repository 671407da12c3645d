"""`advsphere predict`: classify photos with a trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table
from rich.text import Text

from advsphere.cli.arguments import parse
from advsphere.cli.printing import terminal
from advsphere.data.encoded import SUFFIXES
from advsphere.deployment import load
from advsphere.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Classify images with the network of a run. The run's own images are not needed.

    advsphere predict runs/mine holiday.jpg

    advsphere predict runs/mine photos/*.jpg more-photos/ --top 3
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of a training run."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files, and folders of image files."""
    top: int = 1
    """Number of classes to name for each image, the most likely first."""
    checkpoint: Literal["best", "last"] = "best"
    """The checkpoint of the run."""


def main(arguments: list[str]) -> int:
    """Print a line for each image."""
    options = parse(Options, arguments, prog="advsphere predict")
    if options.top < 1:
        raise UserError(f"--top {options.top}: name at least one class")
    files = [file for place in options.images for file in _files(place)]
    if not files:
        raise UserError("name image files or folders: advsphere predict RUN photo.jpg")
    model = load(options.run, options.checkpoint)
    table = Table("image", "prediction", box=None, header_style="dim")
    for file, prediction in zip(files, model.predict(files, top=options.top), strict=True):
        table.add_row(Text(str(file), overflow="fold"), Text(str(prediction)))
    terminal().print(table)
    return 0


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
    if not place.exists():
        raise UserError(f"there is no image {place}")
    return [place]
