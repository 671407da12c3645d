"""What lies behind one number: curves, angles, gradients, pictures, and the paper's claims put to the test."""

from advsphere.analysis.curves import (
    Curve,
    StepsCurve,
    accuracy_against_eps,
    accuracy_against_steps,
    curve_figure,
    steps_figure,
)
from advsphere.analysis.diagnosis import Diagnosis, Network, diagnose
from advsphere.analysis.gradients import LayerGradients, layer_gradients

__all__ = [
    "Curve",
    "Diagnosis",
    "LayerGradients",
    "Network",
    "StepsCurve",
    "accuracy_against_eps",
    "accuracy_against_steps",
    "curve_figure",
    "diagnose",
    "layer_gradients",
    "steps_figure",
]
