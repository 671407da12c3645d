"""A self-contained HTML page about the robustness of one model, or of several models on the same images."""

from advsphere.report.collect import ModelReport
from advsphere.report.document import page, report
from advsphere.report.rendering import TableCell, figure, table
from advsphere.report.sections import section

__all__ = ["ModelReport", "TableCell", "figure", "page", "report", "section", "table"]
