"""A self-contained HTML page about the robustness of one model, or of several models on the same images."""

from advsphere.errors import needs

needs("report", "matplotlib", "jinja2")

from advsphere.report.collect import ModelReport  # noqa: E402
from advsphere.report.document import page, report  # noqa: E402
from advsphere.report.rendering import TableCell, figure, table  # noqa: E402
from advsphere.report.sections import section  # noqa: E402

__all__ = ["ModelReport", "TableCell", "figure", "page", "report", "section", "table"]
