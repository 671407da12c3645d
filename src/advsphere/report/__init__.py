"""One self-contained HTML page about the robustness of one model, or of several on the same images."""

from advsphere.report.judged import Command, Judged, Pictures, Seed
from advsphere.report.page import page, report
from advsphere.report.verdict import Verdict, verdicts

__all__ = ["Command", "Judged", "Pictures", "Seed", "Verdict", "page", "report", "verdicts"]
