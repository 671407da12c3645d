"""`advsphere corruptions`: accuracy under common corruptions, of a run or a model of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from advsphere.analysis import corruption_figure
from advsphere.cli.arguments import parse
from advsphere.cli.progress import progress_bar
from advsphere.corruption import SEVERITIES, Corrupted, generated, read_published, save_arrays, save_folders
from advsphere.corruption.evaluate import corruption_accuracy, recheck
from advsphere.corruption.result import ALEXNET, RECORD, CorruptionRecord
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.reproduce import results
from advsphere.reproduce.results import corruption_markdown, corruption_row
from advsphere.runs.target import EvaluationTarget


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure accuracy under the 15 common corruptions, each at 5 severities, and their mean, mCA.

    Generated:  advsphere corruptions runs/cifar10-small-fastat --n 1000

    As published:  advsphere corruptions runs/cifar10-small-fastat --root CIFAR-10-C

    Yours:  advsphere corruptions --model mypackage.nets:build --weights net.safetensors --data photos --image-size 224

    Everything is written down: corruptions.json with each outcome, and a heat map. Interrupt it at any time; the same
    command goes on.
    """

    subject: Annotated[EvaluationTarget, tyro.conf.arg(name="")] = EvaluationTarget()
    generate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Generate the corrupted images; that is the default without --root."""
    root: Path | None = None
    """Read them: a folder with NAME.npy and labels.npy (CIFAR-10-C) or NAME/SEVERITY/CLASS/ (ImageNet-C)."""
    extra: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also speckle noise, Gaussian blur, spatter and saturation, which do not enter mCA."""
    frost: Path | None = None
    """A folder with the published frost textures, frost1.png to frost5.jpg; without it they are made of noise."""
    seed: int = 0
    """Of what is generated."""
    reference: str | None = None
    """For mCE: the folder of another model's record on the same images, or alexnet (for ImageNet-C)."""
    row: Path | None = None
    """Add a run's numbers as a row to this file of results (JSON lines), and print the table of its rows."""
    data_name: str | None = None
    """What the images are called in the row; the data set's name by default."""
    save: Path | None = None
    """Write what is generated there, in the published layout, for other tools; nothing is measured."""
    layout: Literal["arrays", "folders"] | None = None
    """Of --save; by default arrays for images of 32 pixels, folders for others."""
    verify: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check a record instead: its numbers, and the first 50 images of each set once more."""
    batch_size: int = 250
    out: Path | None = None
    """Where to write; by default a folder in the run's, or runs/own for a model of yours."""


def main(arguments: list[str]) -> int:
    """Parse, measure, print the table and where the record lies."""
    options = parse(Options, arguments or ["--help"], prog="advsphere corruptions")
    console = Console(highlight=False, soft_wrap=True)
    if options.root is not None and (options.generate or options.save is not None or options.frost is not None):
        raise UserError("--root reads images; leave out --generate, --save and --frost, or leave out --root")
    model, images = options.subject.load()
    corrupted = _corrupted(options, images)
    if options.save is not None:
        return _save(options, images, corrupted, console)
    folder = options.out or _folder(options)
    if options.verify:
        wrong = recheck(model, corrupted, CorruptionRecord.load(folder / RECORD))
        console.print("\n".join(wrong) or f"{folder}: verified", markup=False)
        return 1 if wrong else 0
    with progress_bar() as on_progress:
        record = corruption_accuracy(
            model,
            images,
            corrupted,
            record=folder / RECORD,
            batch_size=options.batch_size,
            on_progress=on_progress,
        )
    options.subject.save(folder)
    corruption_figure(record).savefig(folder / "corruptions.png", dpi=150)
    console.print(_table(record))
    for line in _summary(record, options.reference):
        console.print(line, markup=False)
    console.print(f"record and heat map: {folder}", markup=False)
    if options.row is not None:
        if options.subject.run is None:
            raise UserError("--row is for runs, whose recipe it names; leave it out for a model of your own")
        row = corruption_row(options.subject.run, folder, record, data_name=options.data_name)
        results.add(options.row, [row])
        console.print(corruption_markdown(results.read(options.row)), markup=False)
    return 0


def _corrupted(options: Options, images: Images) -> Corrupted:
    if options.root is not None:
        return read_published(options.root, images, extra=options.extra)
    return generated(images, extra=options.extra, seed=options.seed, frost_folder=options.frost)


def _save(options: Options, images: Images, corrupted: Corrupted, console: Console) -> int:
    assert options.save is not None
    layout = options.layout or ("arrays" if images.shape[-1] == 32 else "folders")
    (save_arrays if layout == "arrays" else save_folders)(corrupted, options.save)
    console.print(f"{len(corrupted.names)} corruptions of {len(images)} images: {options.save}", markup=False)
    return 0


def _folder(options: Options) -> Path:
    """A folder for each question, so that another question does not meet the record of this one."""
    subject = options.subject
    name = "generated" if options.root is None else options.root.resolve().name
    name += f"-{subject.checkpoint}"
    name += "" if subject.n is None else f"-n{subject.n}"
    name += "-extra" if options.extra else ""
    name += "-frost" if options.frost is not None else ""
    name += f"-seed{options.seed}" if options.seed else ""
    return (Path("runs/own") if subject.run is None else subject.run) / "corruptions" / name


def _table(record: CorruptionRecord) -> Table:
    table = Table(title="accuracy under corruption, in %", title_justify="left")
    table.add_column("severity")
    for heading in (*map(str, SEVERITIES), "mean"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in record.names:
        values = [100 * record.cell(name, s).accuracy for s in SEVERITIES]
        mean = 100 * (1 - record.error(name))
        style = None if name in record.counted else "dim"
        table.add_row(escape(name), *(f"{v:.1f}" for v in (*values, mean)), style=style)
    return table


def _summary(record: CorruptionRecord, reference: str | None) -> list[str]:
    low, high = record.clean.interval
    lines = [f"clean {100 * record.clean.accuracy:.1f} % ({100 * low:.1f} - {100 * high:.1f}), n = {record.clean.n}"]
    mca = record.mca
    counted = record.counted
    which = "all 15 corruptions" if len(counted) == 15 else f"{len(counted)} of 15: {', '.join(counted)}"
    lines.append(f"mCA {100 * mca.value:.2f} % ({100 * mca.low:.2f} - {100 * mca.high:.2f}), over {which}")
    if reference == "alexnet":
        lines.append(f"mCE {100 * record.mce(ALEXNET):.1f} %, against AlexNet's published errors on ImageNet-C")
    elif reference is not None:
        other = CorruptionRecord.load(Path(reference) / RECORD)
        d = record.better_than(other)
        lines.append(f"mCE {100 * record.mce(other):.1f} %, against {reference}")
        told = ": cannot tell the two apart" if d.cannot_tell else ""
        lines.append(f"mCA {100 * d.value:+.2f} points ({100 * d.low:+.2f} to {100 * d.high:+.2f}) to it, paired{told}")
    return lines
