"""Training: one loop for all objectives, and checkpoints that are data."""

from advsphere.training.checkpoint import load as load_checkpoint
from advsphere.training.checkpoint import restore_model, section
from advsphere.training.log import MetricsLog, read_metrics
from advsphere.training.loop import Hooks, Metrics, Stopped, Tick, Trainer
from advsphere.training.settings import TrainSettings
from advsphere.training.step import TrainStep

__all__ = [
    "Hooks",
    "Metrics",
    "MetricsLog",
    "Stopped",
    "Tick",
    "TrainSettings",
    "TrainStep",
    "Trainer",
    "load_checkpoint",
    "read_metrics",
    "restore_model",
    "section",
]
