"""Build networks by name, with their input normalisation, and load weights from files."""

from advsphere.models.by_name import build
from advsphere.models.weights import load_weights

__all__ = ["build", "load_weights"]
