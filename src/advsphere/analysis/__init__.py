"""Analyses beyond robust accuracy: curves, angles, gradients, pictures, and tests of the paper's claims."""

from advsphere.analysis.curves import Curve, accuracy_against_eps, curve_figure
from advsphere.analysis.diagnosis import Diagnosis, Network, diagnose

__all__ = [
    "Curve",
    "Diagnosis",
    "Network",
    "accuracy_against_eps",
    "curve_figure",
    "diagnose",
]
