"""What lies behind one number: curves, angles, gradients, pictures, and the paper's claims put to the test."""

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
