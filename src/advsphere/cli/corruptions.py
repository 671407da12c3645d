"""`advsphere corruptions`: measure the accuracy of a run or a user's model under common corruptions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from advsphere.cli.arguments import parse
from advsphere.cli.printing import terminal
from advsphere.corruption.evaluate import corruption_accuracy, recheck
from advsphere.corruption.generate import generated
from advsphere.corruption.published import read_published, save_arrays, save_folders
from advsphere.corruption.result import ALEXNET, RECORD, CorruptionRecord, corruption_figure
from advsphere.corruption.severity import SEVERITIES
from advsphere.errors import UserError
from advsphere.evaluation.progress import progress_bar
from advsphere.reproduce import collecting, results
from advsphere.reproduce.listing import listing
from advsphere.runs.target import EvaluationTarget


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure accuracy under the 15 common corruptions, each at 5 severities, and their mean, mCA.

    Generated images:  advsphere corruptions runs/cifar10-small-fastat --n 1000

    Published images:  advsphere corruptions runs/cifar10-small-fastat --root CIFAR-10-C

    Your own model:  advsphere corruptions --model mypackage.nets:build --weights net.pt --data photos --image-size 224

    Writes corruptions.json with every outcome, and a heat map. After an interruption, the same command continues.
    """

    subject: Annotated[EvaluationTarget, tyro.conf.arg(name="")] = EvaluationTarget()
    generate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Generate the corrupted images; the default without --root."""
    root: Path | None = None
    """Read corrupted images from a folder with NAME.npy and labels.npy (CIFAR-10-C) or NAME/SEVERITY/CLASS/
    (ImageNet-C)."""
    extra: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Add speckle noise, Gaussian blur, spatter and saturation, which mCA does not count."""
    frost: Path | None = None
    """A folder with the published frost textures, frost1.png to frost5.jpg. The default textures are noise."""
    seed: int = 0
    """Seed of the generated corruptions."""
    reference: str | None = None
    """Also print mCE relative to another model: the folder of its record on the same images, or alexnet (for
    ImageNet-C)."""
    row: Path | None = None
    """Add the run's numbers as a row to this file of results (JSON lines), and print the table of its rows."""
    data_name: str | None = None
    """The name of the images in the row; by default the name of the data set."""
    save: Path | None = None
    """Write the generated images to this folder in the published layout, for other tools. Nothing is measured."""
    layout: Literal["arrays", "folders"] | None = None
    """The layout of --save; by default arrays for images of 32 pixels, folders for others."""
    verify: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check an existing record: its numbers, and the predictions on the first 50 images of each set."""
    batch_size: int = 250
    """Images per batch."""
    out: Path | None = None
    """The output folder; by default one in the run's folder, or in runs/own for your own model."""


def main(arguments: list[str]) -> int:
    """Measure, and print the table and the folder of the record."""
    options = parse(Options, arguments, prog="advsphere corruptions")
    subject, console = options.subject, terminal(soft_wrap=True)
    if options.root is not None and (options.generate or options.save is not None or options.frost is not None):
        raise UserError("--root reads corrupted images; leave out --generate, --save and --frost, or leave out --root")
    model, images = subject.load()
    if options.root is not None:
        corrupted = read_published(options.root, images, extra=options.extra)
    else:
        corrupted = generated(images, extra=options.extra, seed=options.seed, frost_folder=options.frost)
    if options.save is not None:
        layout = options.layout or ("arrays" if images.shape[-1] == 32 else "folders")
        (save_arrays if layout == "arrays" else save_folders)(corrupted, options.save)
        console.print(f"{len(corrupted.names)} corruptions of {len(images)} images: {options.save}")
        return 0
    folder = options.out or _folder(options)
    if options.verify:
        wrong = recheck(model, corrupted, CorruptionRecord.load(folder / RECORD))
        console.print("\n".join(wrong) or f"{folder}: verified")
        return 1 if wrong else 0
    batch_size = options.batch_size
    with progress_bar(console=terminal(), transient=False, disable=False) as show:
        record = corruption_accuracy(
            model, images, corrupted, record=folder / RECORD, batch_size=batch_size, on_progress=show
        )
    subject.save(folder)
    corruption_figure(record).savefig(folder / "corruptions.png", dpi=150)
    console.print(_table(record))
    for line in _summary(record, options.reference):
        console.print(line)
    console.print(f"record and heat map: {folder}")
    if options.row is not None:
        if subject.run is None:
            raise UserError("--row is for runs, because a result names the run's recipe; omit it for your own model")
        results.add(options.row, [collecting.corrupted(folder, data_name=options.data_name)])
        stored = [one for one in results.read(options.row) if one.kind == "corruptions"]
        console.print(listing(stored))
    return 0


def _folder(options: Options) -> Path:
    """The default folder, whose name depends on every option that changes the record."""
    subject = options.subject
    name = "generated" if options.root is None else options.root.resolve().name
    name += f"-{subject.checkpoint}"
    name += "" if subject.n is None else f"-n{subject.n}"
    name += "-extra" if options.extra else ""
    name += "-frost" if options.frost is not None else ""
    name += f"-seed{options.seed}" if options.seed else ""
    return (Path("runs/own") if subject.run is None else subject.run) / "corruptions" / name


def _table(record: CorruptionRecord) -> Table:
    table = Table("severity", title="accuracy under corruption, in %", title_justify="left")
    for heading in (*map(str, SEVERITIES), "mean"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in record.names:
        shares = [*(record.cell(name, s).accuracy for s in SEVERITIES), 1 - record.error(name)]
        style = None if name in record.counted else "dim"
        table.add_row(escape(name), *(f"{100 * share:.1f}" for share in shares), style=style)
    return table


def _summary(record: CorruptionRecord, reference: str | None) -> list[str]:
    (low, high), mca, counted = record.clean.interval, record.mca, record.counted
    which = "all 15 corruptions" if len(counted) == 15 else f"{len(counted)} of 15: {', '.join(counted)}"
    lines = [
        f"clean {100 * record.clean.accuracy:.1f} % ({100 * low:.1f} - {100 * high:.1f}), n = {record.clean.n}",
        f"mCA {100 * mca.value:.2f} % ({100 * mca.low:.2f} - {100 * mca.high:.2f}), over {which}",
    ]
    if reference == "alexnet":
        lines.append(f"mCE {100 * record.mce(ALEXNET):.1f} %, relative to AlexNet's published errors on ImageNet-C")
    elif reference is not None:
        other = CorruptionRecord.load(Path(reference) / RECORD)
        d = record.better_than(other)
        unclear = ": cannot tell the two apart" if d.cannot_tell else ""
        lines.append(f"mCE {100 * record.mce(other):.1f} %, relative to {reference}")
        lines.append(
            f"paired difference in mCA: {100 * d.value:+.2f} points "
            f"({100 * d.low:+.2f} to {100 * d.high:+.2f}){unclear}"
        )
    return lines
