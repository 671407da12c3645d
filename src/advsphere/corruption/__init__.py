"""Common corruptions (Hendrycks and Dietterich 2019), generated at any resolution or read in the published formats."""

from advsphere.errors import needs

needs("report", "matplotlib")

from advsphere.corruption.evaluate import corruption_accuracy  # noqa: E402
from advsphere.corruption.generate import Corrupted, corrupt, generated  # noqa: E402
from advsphere.corruption.published import read_published, save_arrays, save_folders  # noqa: E402
from advsphere.corruption.result import CorruptionRecord  # noqa: E402
from advsphere.corruption.severity import CORRUPTIONS, EXTRA, SEVERITIES  # noqa: E402

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
