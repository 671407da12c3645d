"""Trained networks outside of experiments: load one, classify photos, export it, share it."""

from advsphere.errors import needs

needs("hub", "huggingface_hub")

from advsphere.deployment.formats import FORMATS, export  # noqa: E402
from advsphere.deployment.trained import Prediction, TrainedClassifier, load  # noqa: E402

__all__ = ["FORMATS", "Prediction", "TrainedClassifier", "export", "load"]
