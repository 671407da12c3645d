"""Evaluation that can be trusted and checked again: preflight, attacks, ledger, intervals, verification."""

from advsphere.evaluation.checks import preflight
from advsphere.evaluation.engine import Precision, Progress, evaluate
from advsphere.evaluation.ledger import CLEAN, Cell, Cost, Ledger
from advsphere.evaluation.results import WORST, Evaluation, Strongest, compare
from advsphere.evaluation.rows import Finding, Row, Sign
from advsphere.evaluation.shared import usual_batch_size
from advsphere.evaluation.specs import AttackSpec, describe
from advsphere.evaluation.suites import SUITES, Effort, SuiteContext, suite
from advsphere.evaluation.trace import Attempt, Notable, Replay, Trace, find_name, notable, replay, trace_example
from advsphere.evaluation.verification import Verification, verify

__all__ = [
    "CLEAN",
    "SUITES",
    "WORST",
    "AttackSpec",
    "Attempt",
    "Cell",
    "Cost",
    "Effort",
    "Evaluation",
    "Finding",
    "Ledger",
    "Notable",
    "Precision",
    "Progress",
    "Replay",
    "Row",
    "Sign",
    "Strongest",
    "SuiteContext",
    "Trace",
    "Verification",
    "compare",
    "describe",
    "evaluate",
    "find_name",
    "notable",
    "preflight",
    "replay",
    "suite",
    "trace_example",
    "usual_batch_size",
    "verify",
]
