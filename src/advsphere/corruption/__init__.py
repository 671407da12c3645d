"""Common corruptions (Hendrycks and Dietterich 2019), generated at any resolution or read in the published formats."""

from advsphere.corruption.evaluate import corruption_accuracy
from advsphere.corruption.generate import Corrupted, corrupt, generated
from advsphere.corruption.published import read_published, save_arrays, save_folders
from advsphere.corruption.result import CorruptionRecord
from advsphere.corruption.severity import CORRUPTIONS, EXTRA, SEVERITIES

__all__ = [
    "CORRUPTIONS",
    "EXTRA",
    "SEVERITIES",
    "Corrupted",
    "CorruptionRecord",
    "corrupt",
    "corruption_accuracy",
    "generated",
    "read_published",
    "save_arrays",
    "save_folders",
]
