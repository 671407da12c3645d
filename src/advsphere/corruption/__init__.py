"""Common corruptions (Hendrycks and Dietterich 2019): generated at any resolution, read and written as published."""

from advsphere.corruption.generate import corrupt
from advsphere.corruption.published import read_published, save_arrays, save_folders
from advsphere.corruption.sets import Corrupted, generated
from advsphere.corruption.severity import CORRUPTIONS, EXTRA, SEVERITIES, TABLES, table_for

__all__ = [
    "CORRUPTIONS",
    "EXTRA",
    "SEVERITIES",
    "TABLES",
    "Corrupted",
    "corrupt",
    "generated",
    "read_published",
    "save_arrays",
    "save_folders",
    "table_for",
]
