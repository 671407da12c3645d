"""What to look at besides one number: accuracy against eps, and pictures of the perturbations."""

from advsphere.analysis.curves import Curve, accuracy_against_eps, curve_figure
from advsphere.analysis.pictures import Picture, fooled_by, pictures, strongest
from advsphere.analysis.strips import stored_strips, strip, strip_figure

__all__ = [
    "Curve",
    "Picture",
    "accuracy_against_eps",
    "curve_figure",
    "fooled_by",
    "pictures",
    "stored_strips",
    "strip",
    "strip_figure",
    "strongest",
]
