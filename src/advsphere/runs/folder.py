"""Write and read the folder of a run.

config.yaml          the config with which the run started
provenance.json      code, libraries, machine, number of processes; checksums of user-defined source files, of
                     config.yaml and of classes.json; collapses and their remedies; each later change of the number
                     of epochs
classes.json         the class names, in the order of the network's outputs
last.safetensors     the state after the last step, from which training resumes
previous.safetensors the one before it, in case that one is damaged
good.safetensors     the state after the last epoch without a collapse, to which the guard goes back
best.safetensors     the network that was best on held-out training images
metrics.jsonl        one line for each epoch; tensorboard/ has the same numbers
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from advsphere import named
from advsphere.data import Images, from_dataset
from advsphere.errors import UserError
from advsphere.files import content_checksum, content_errors, some, write_atomically
from advsphere.runs.build import build_model, chosen_device, from_scratch, load_test_data, renamed
from advsphere.runs.config import GIVEN, Config, differences, user_names
from advsphere.runs.config_yaml import from_yaml, to_yaml
from advsphere.schedule import Constant
from advsphere.training import Collapse, load_checkpoint
from advsphere.training.checkpoint import PREVIOUS, restore_model, section
from advsphere.typed import typed

CONFIG, PROVENANCE, CLASSES = "config.yaml", "provenance.json", "classes.json"


class Run(NamedTuple):
    """A trained network with its config and its test images."""

    config: Config
    model: nn.Module
    test: Images

    def __repr__(self) -> str:
        return f"<Run {self.config.recipe}: {self.config.model.name}, tested on {self.test!r}>"


def read_config(folder: Path) -> Config:
    """The config of a run, with its present number of epochs. Raises UserError if the folder holds none, or not the one
    that the run started with.
    """
    path = folder / CONFIG
    if not path.is_file():
        made = f"`advsphere train RECIPE --out {folder}` makes one"
        cure = "models.load_weights and --weights read a file" if folder.is_file() else made
        raise UserError(f"{folder} holds no run: there is no config.yaml in it; {cure}")
    config = from_yaml(_intact(path), str(path), of_run=True)
    changes = _provenance(folder).get("extended") if (folder / PROVENANCE).is_file() else None
    with content_errors(folder / PROVENANCE):
        return replace(config, training=replace(config.training, epochs=changes[-1]["to"])) if changes else config


def read_provenance(folder: Path) -> dict[str, Any]:
    """What a run recorded about its code, libraries and machine. Raises UserError if it is missing or damaged."""
    found = _provenance(folder)
    return {key: value for key, value in found.items() if key not in ("files", "checksum")}


def ranks(folder: Path) -> int:
    """The number of processes that started a run."""
    return int(_provenance(folder).get("ranks", 1))


def held_out(folder: Path) -> int:
    """The number of training images that a run held out; earlier versions recorded only the number asked for."""
    return int(_provenance(folder).get("held_out", read_config(folder).data.validation))


@typed
def load_run(
    folder: Path | str,
    which: Literal["best", "last"] = "best",
    *,
    data_root: Path | str | None = None,
    model: nn.Module | None = None,
    test: Any = None,
    device: str | torch.device | None = None,
) -> Run:
    """Load a trained network with its config and test images.

    Args:
        folder: The run's folder.
        which: The checkpoint to load.
        data_root: The new folder of its images, if they have been moved.
        model: The network, for a run whose network was passed from Python. The run's weights are loaded into it.
        test: The test images, for a run whose images were passed from Python; see `advsphere.data.from_dataset`.
        device: Where to put both, such as "cuda:1"; by default the GPU if there is one.

    Returns:
        The config, the network in eval mode, and the test images, with labels numbered by the run's classes.

    Raises:
        UserError: If the run, its checkpoint or its images do not exist or are damaged, or the images have classes that
            the run does not know.
    """
    folder, data_root = Path(folder), None if data_root is None else Path(data_root)
    config = read_config(folder)
    name = None if config.data.name.startswith(GIVEN) else config.data.name
    images = load_test_data(config, data_root) if test is None else from_dataset(test, name=name).hard()
    images = by_classes(images, read_classes(folder), folder)
    where = chosen_device(device)
    return Run(config, load_network(folder, which, images, model=model).to(where), images.to(where))


def load_network(
    folder: Path, which: Literal["best", "last"], images: Images, *, model: nn.Module | None = None
) -> nn.Module:
    """The network of a run, in eval mode on the CPU; `images` have its shape and classes. Raises as `load_run`."""
    path = folder / f"{which}.safetensors"
    tensors, _ = load_checkpoint(path)
    network = build_model(from_scratch(read_config(folder)), images, network=model)
    restore_model(network, section("model", tensors), path)
    return network.eval()


def by_classes(images: Images, classes: Sequence[str] | None, folder: Path) -> Images:
    """Renumber the labels of images by the classes of a run. Classes are matched by name.

    Args:
        images: Images with classes of the same names, in any order; some may be missing.
        classes: The run's classes; None if they are not known.
        folder: The run's folder, for the error.

    Returns:
        The images. Images that lie class by class, as in a folder, are sorted by the run's classes.

    Raises:
        UserError: If the run does not know a class.
    """
    if classes is None or images.classes == tuple(classes):
        return images
    if len(images.classes) == len(classes) and (_numbered(images.classes) or _numbered(classes)):
        return images  # tar shards and tensors have class numbers and no names
    unknown = sorted(set(images.classes) - set(classes))
    if unknown:
        raise UserError(
            f"{images.name} has classes that the run in {folder} was not trained on: {some(unknown)}; it knows "
            f"{some(list(classes))}. Rename the class folders, or give the images of this run"
        )
    numbers = torch.tensor([list(classes).index(name) for name in images.classes], device=images.labels.device)
    labels = numbers[images.labels]
    renumbered = renamed(images, tuple(classes), labels)
    return renumbered.take(labels.argsort(stable=True)) if bool((images.labels.diff() >= 0).all()) else renumbered


def claim(folder: Path, config: Config, resume: bool) -> bool:
    """Whether the folder holds a checkpoint from which this run can resume. Nothing is written.

    Raises:
        UserError: If the folder holds a run and `resume` is False, holds another run or a part of one, or holds a
            config.yaml that is not a run's, or if user-defined source files have changed since the run started.
    """
    begun = any((folder / name).exists() for name in ("last.safetensors", PREVIOUS))
    if begun and not resume:
        raise UserError(
            f"{folder} already holds a run; continue it with --resume, or name another folder with --out (in Python "
            "resume=True and folder=...)"
        )
    if not begun:
        if (path := folder / CONFIG).exists():  # refuse to overwrite a config.yaml that is not a run's
            from_yaml(path.read_bytes(), str(path))
        return False
    if not (folder / CONFIG).exists():
        raise UserError(
            f"{folder} holds a checkpoint and no config.yaml, so a part of the run was removed; put it back, remove "
            "the rest, or name another folder with --out"
        )
    changes = differences(read_config(folder), config)
    if any(change.path != "training.epochs" for change in changes):
        told = "; ".join(map(str, changes))
        raise UserError(f"{folder} holds a run with other settings ({told}); resume with those, or use another --out")
    before, now = _provenance(folder).get("sources", {}), sources(config)
    changed = [name for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        raise UserError(
            f"{some(changed)}: the source file has changed since the run in {folder} started, so a resume would mix "
            "two versions; restore the file, or use another --out"
        )
    return True


def record(folder: Path, config: Config, environment: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Record the run's config, environment and classes before its first step."""
    checksums = sources(config)
    provenance = {**environment, **({"sources": checksums} if checksums else {})}
    files = {CONFIG: to_yaml(config).encode(), CLASSES: json.dumps(list(classes)).encode()}
    provenance["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    provenance["checksum"] = content_checksum(provenance)
    for name, content in {**files, PROVENANCE: json.dumps(provenance, indent=1).encode()}.items():
        write_atomically(folder / name, content)


def extend(folder: Path, config: Config, finished: int) -> list[str]:
    """Record that a run, after these finished epochs, goes on to another number of epochs. Returns a line for the user,
    or none if the number is the same.
    """
    planned, epochs = read_config(folder).training.epochs, config.training.epochs
    if planned == epochs:
        return []
    change = {"from": planned, "to": epochs, "finished": finished}
    _amend(folder, extended=[*_provenance(folder).get("extended", []), change])
    told = f"this run was to end after {planned} epochs, now after {epochs}"
    schedules = [config.training.lr_schedule]
    if config.sphere is not None:
        schedules += [config.sphere.scale_schedule, config.sphere.margin_schedule]
    if finished and any(schedule != Constant() for schedule in schedules):
        return [
            f"{told}: from here on its schedules are those of a run of {epochs}, at {finished / epochs:.0%} of it, so "
            f"it does not equal a run that began with {epochs}"
        ]
    validated = finished < planned or planned % config.training.validate_every == 0
    return [told if validated else f"{told}; epoch {planned} was validated as its last one, and may be the best"]


def half_written(folder: Path) -> list[Path]:
    """Checkpoints that a process began, and could not end: it was killed, or the disk failed."""
    return [*folder.glob(".*.safetensors.*"), *folder.glob(".tmp??????")]  # safetensors' own name comes first


def require_record(folder: Path) -> None:
    """Raise UserError if the files that describe the run, or its last checkpoint, were removed while it trained."""
    missing = [name for name in (CONFIG, PROVENANCE, "last.safetensors") if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{some(missing)} disappeared from {folder} while it trained; restore them, or train again with another "
            "--out"
        )


def record_collapses(folder: Path, collapses: Sequence[Collapse]) -> None:
    """Record collapses, and the guard's remedies, in the run's provenance."""
    _amend(folder, collapses=[collapse._asdict() for collapse in collapses])


def _amend(folder: Path, **entries: Any) -> None:
    provenance = _provenance(folder) | entries
    provenance["checksum"] = content_checksum(provenance)
    write_atomically(folder / PROVENANCE, json.dumps(provenance, indent=1).encode())


def read_collapses(folder: Path) -> list[Collapse]:
    """The collapses of a run. Raises UserError if its provenance is missing or damaged."""
    return [Collapse(**one) for one in _provenance(folder).get("collapses", ())]


def check_classes(folder: Path, classes: Sequence[str]) -> None:
    """Raise UserError if the training images of a resumed run have other classes than at its start."""
    known = read_classes(folder)
    if known is None or (len(classes) == len(known) and (_numbered(classes) or _numbered(known))):
        return
    if list(classes) != known:
        raise UserError(f"{folder} was trained on the classes {some(known)}, now there are {some(list(classes))}")


def _numbered(classes: Sequence[str]) -> bool:
    return list(classes) == [str(i) for i in range(len(classes))]


def sources(config: Config) -> dict[str, str]:
    """The checksum of the source file of each user-defined part, by the part's name."""
    checksums = {name: named.source_checksum(name) for name in user_names(config)}
    return {name: checksum for name, checksum in checksums.items() if checksum is not None}


def _provenance(folder: Path) -> dict[str, Any]:
    path = folder / PROVENANCE
    try:
        found = json.loads(path.read_bytes())
        intact = isinstance(found, dict) and found.get("checksum") in (None, content_checksum(found))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read ({error}); restore it, or train again") from error
    if not intact:
        raise UserError(f"{path} was changed after the run started; restore it, or train again")
    return dict(found)


def _intact(path: Path) -> bytes:
    """The content of a file of a run. Raises UserError if it is not the one that the run recorded at its start.

    Runs of version 0.2 and earlier recorded no checksums.
    """
    content = path.read_bytes()
    recorded = path.with_name(PROVENANCE).is_file() and _provenance(path.parent).get("files", {}).get(path.name)
    if recorded and recorded != hashlib.sha256(content).hexdigest():
        raise UserError(
            f"{path} was changed or damaged after the run started, so its checkpoints would be read with other "
            "settings; restore the file, or train again with `advsphere train` and the new settings"
        )
    return content


def read_classes(folder: Path) -> list[str] | None:
    """The run's class names; None for runs of earlier versions, which did not record them."""
    path = folder / CLASSES
    if not path.is_file():
        return None
    try:
        classes: list[str] = json.loads(_intact(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or train again") from error
    return classes
