"""Training: one loop for all objectives, and checkpoints that hold data only."""

from advsphere.training.checkpoint import load as load_checkpoint
from advsphere.training.log import read_metrics
from advsphere.training.loop import Hooks, Metrics, Stopped, Tick, Trainer
from advsphere.training.settings import TrainSettings

__all__ = ["Hooks", "Metrics", "Stopped", "Tick", "TrainSettings", "Trainer", "load_checkpoint", "read_metrics"]
