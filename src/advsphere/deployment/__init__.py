"""Trained networks outside of experiments: load one, classify photos, export it, share it."""

from advsphere.deployment.formats import FORMATS, export
from advsphere.deployment.trained import Prediction, TrainedClassifier, load

__all__ = ["FORMATS", "Prediction", "TrainedClassifier", "export", "load"]
