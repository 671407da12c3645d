"""Evaluation that can be trusted and checked again: preflight, attacks, ledger, intervals, verification."""

from advsphere.evaluation.cells import Cell, Cost
from advsphere.evaluation.checksums import data_checksum, model_checksum
from advsphere.evaluation.engine import Precision, evaluate
from advsphere.evaluation.findings import Finding
from advsphere.evaluation.intervals import PairedDifference, mcnemar, paired, wilson
from advsphere.evaluation.ledger import CLEAN, Ledger
from advsphere.evaluation.preflight import preflight
from advsphere.evaluation.progress import Progress, progress_bar
from advsphere.evaluation.results import WORST, Evaluation, Row, compare, radius
from advsphere.evaluation.specs import AttackSpec, describe
from advsphere.evaluation.suites import SUITES, Case, Effort, suite
from advsphere.evaluation.verify import Verification, verify

__all__ = [
    "CLEAN",
    "SUITES",
    "WORST",
    "AttackSpec",
    "Case",
    "Cell",
    "Cost",
    "Effort",
    "Evaluation",
    "Finding",
    "Ledger",
    "PairedDifference",
    "Precision",
    "Progress",
    "Row",
    "Verification",
    "compare",
    "data_checksum",
    "describe",
    "evaluate",
    "mcnemar",
    "model_checksum",
    "paired",
    "preflight",
    "progress_bar",
    "radius",
    "suite",
    "verify",
    "wilson",
]
