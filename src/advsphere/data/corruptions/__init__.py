"""Common corruptions (Hendrycks and Dietterich 2019): generated at any resolution, read and written as published."""

from advsphere.data.corruptions.generate import corrupt
from advsphere.data.corruptions.tables import CORRUPTIONS, EXTRA, SEVERITIES, TABLES, table_for

__all__ = [
    "CORRUPTIONS",
    "EXTRA",
    "SEVERITIES",
    "TABLES",
    "corrupt",
    "table_for",
]
