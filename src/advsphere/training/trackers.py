"""Where the metrics of a run are shown: TensorBoard, Weights & Biases or MLflow.

The file metrics.jsonl is the record. So a tracker that fails while a run trains costs a warning, and not the run.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from advsphere.errors import MissingPackageError, UserError, first_line, needs
from advsphere.files import disk_errors, write_atomically

Tracker = Literal["tensorboard", "wandb", "mlflow"]
PROJECT = "advsphere"
"""The name of the project in Weights & Biases, and of the experiment in MLflow, unless WANDB_PROJECT or
MLFLOW_EXPERIMENT_NAME is set."""

Begun = tuple[Callable[[dict[str, float]], None], Callable[[], None]]
"""Shows the metrics of an epoch, and ends the tracker."""
Named = tuple[str, Callable[..., Any], Callable[..., Any]]
"""The name of the run there, and the same two functions."""


def check_tracker(to: str) -> None:
    """Raise UserError if the package of the tracker is missing."""
    if to == "tensorboard":
        needs("train", "tensorboard")
    elif find_spec(to) is None:
        raise MissingPackageError(f"{to} is not installed: pip install {to}")


def begin(to: Tracker, folder: Path, from_epoch: int, config: Mapping[str, Any]) -> Begun:
    """Begin to show the run in this folder, or continue after `from_epoch`. Raises UserError if the tracker fails."""
    check_tracker(to)
    if to == "tensorboard":
        return _tensorboard(folder, from_epoch)
    known = folder / f"{to}.txt"  # the name by which the tracker knows this run, so that a resume continues it
    name = known.read_text() if from_epoch and known.is_file() else None
    try:
        name, show, close = {"wandb": _wandb, "mlflow": _mlflow}[to](folder.resolve(), name, _flat(config))
    except Exception as error:  # packages of others raise anything
        raise UserError(f"{to} can't begin: {first_line(error)}; mend that, or leave out --log-to") from error
    write_atomically(known, name.encode())
    return _patient(to, show), _patient(to, close)


def _tensorboard(folder: Path, from_epoch: int) -> Begun:
    from torch.utils.tensorboard import SummaryWriter  # takes a second to import

    place, hook = folder / "tensorboard", threading.excepthook

    def failed(failure: threading.ExceptHookArgs) -> None:
        """The next call raises an error of TensorBoard's thread again, so a traceback of it is not printed."""
        ours = type(failure.thread).__module__.startswith("tensorboard.")
        if not (ours and issubclass(failure.exc_type, OSError)):
            hook(failure)

    threading.excepthook = failed
    with disk_errors(place):
        board = SummaryWriter(str(place), purge_step=from_epoch + 1)

    def show(metrics: dict[str, float]) -> None:
        with disk_errors(place):
            for name, value in metrics.items():
                board.add_scalar(name, value, metrics["epoch"])
            board.flush()

    def close() -> None:
        try:
            with disk_errors(place):
                board.close()
        finally:
            threading.excepthook = hook

    return show, close


def _wandb(folder: Path, name: str | None, config: dict[str, Any]) -> Named:
    wandb: Any = import_module("wandb")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), name=folder.name, dir=str(folder), config=config, id=name,
        resume="allow",
    )  # fmt: skip
    return str(run.id), lambda metrics: run.log(metrics, step=int(metrics["epoch"])), run.finish


def _mlflow(folder: Path, name: str | None, config: dict[str, Any]) -> Named:
    mlflow: Any = import_module("mlflow")
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    run = mlflow.start_run(run_id=name, run_name=None if name else folder.name)
    if name is None:
        mlflow.log_params(config)
    return str(run.info.run_id), lambda metrics: mlflow.log_metrics(metrics, step=int(metrics["epoch"])), mlflow.end_run


def _patient(to: str, call: Callable[..., Any]) -> Callable[..., None]:
    def patiently(*given: Any) -> None:
        try:
            call(*given)
        except Exception as error:
            warnings.warn(f"{to} failed: {first_line(error)}; metrics.jsonl has all metrics", stacklevel=2)

    return patiently


def _flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return found
