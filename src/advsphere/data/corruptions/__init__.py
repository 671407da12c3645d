"""Common corruptions (Hendrycks and Dietterich 2019): generated at any resolution, read and written as published."""

from advsphere.data.corruptions.generate import corrupt
from advsphere.data.corruptions.published import read_published, save_arrays, save_folders
from advsphere.data.corruptions.sets import Corrupted, generated
from advsphere.data.corruptions.tables import CORRUPTIONS, EXTRA, SEVERITIES, TABLES, table_for

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
