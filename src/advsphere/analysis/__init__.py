"""Analyses beyond robust accuracy: curves, angles, gradients, pictures, and tests of the paper's claims."""

from advsphere.errors import needs

needs("report", "matplotlib")

from advsphere.analysis.curves import Curve, accuracy_against_eps, curve_figure  # noqa: E402
from advsphere.analysis.diagnosis import Diagnosis, Network, diagnose  # noqa: E402

__all__ = [
    "Curve",
    "Diagnosis",
    "Network",
    "accuracy_against_eps",
    "curve_figure",
    "diagnose",
]
