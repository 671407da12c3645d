"""Training: one loop for all objectives, and checkpoints that hold data only."""

from advsphere.errors import needs

needs("train", "tyro", "yaml")

from advsphere.training.checkpoint import load as load_checkpoint  # noqa: E402
from advsphere.training.guard import Collapse  # noqa: E402
from advsphere.training.hooks import Hooks, Metrics, Stopped, Tick  # noqa: E402
from advsphere.training.log import read_metrics  # noqa: E402
from advsphere.training.loop import Trainer  # noqa: E402
from advsphere.training.settings import TrainSettings  # noqa: E402

__all__ = [
    "Collapse",
    "Hooks",
    "Metrics",
    "Stopped",
    "Tick",
    "TrainSettings",
    "Trainer",
    "load_checkpoint",
    "read_metrics",
]
