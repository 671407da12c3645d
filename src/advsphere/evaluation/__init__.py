"""Verifiable evaluation: preflight checks, attacks, ledger, signs of gradient masking, verification."""

from advsphere.evaluation.checks import preflight
from advsphere.evaluation.engine import evaluate
from advsphere.evaluation.ledger import CLEAN, Cell, Cost, Ledger
from advsphere.evaluation.outcomes import AdversarialImages
from advsphere.evaluation.progress import Progress
from advsphere.evaluation.results import WORST, Evaluation
from advsphere.evaluation.rows import Finding, Row, Sign
from advsphere.evaluation.specs import AttackSpec
from advsphere.evaluation.suites import SUITES, Effort, SuiteContext, suite
from advsphere.evaluation.unsampled import compare
from advsphere.evaluation.verification import Verification, verify

__all__ = [
    "CLEAN",
    "SUITES",
    "WORST",
    "AdversarialImages",
    "AttackSpec",
    "Cell",
    "Cost",
    "Effort",
    "Evaluation",
    "Finding",
    "Ledger",
    "Progress",
    "Row",
    "Sign",
    "SuiteContext",
    "Verification",
    "compare",
    "evaluate",
    "preflight",
    "suite",
    "verify",
]
