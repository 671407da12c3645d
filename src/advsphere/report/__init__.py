"""One self-contained HTML page about the robustness of one model, or of several on the same images."""

from advsphere.report.collect import Command, ModelReport, Pictures, Seed
from advsphere.report.document import page, report
from advsphere.report.verdict import Verdict, verdicts

__all__ = [
    "Command",
    "ModelReport",
    "Pictures",
    "Seed",
    "Verdict",
    "page",
    "report",
    "verdicts",
]
