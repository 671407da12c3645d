"""Evaluation that can be trusted and checked again: preflight, attacks, ledger, intervals, verification."""

from advsphere.evaluation.batches import usual_batch_size
from advsphere.evaluation.cells import Cell, Cost
from advsphere.evaluation.checksums import data_checksum, model_checksum
from advsphere.evaluation.engine import Precision, evaluate
from advsphere.evaluation.findings import Finding, Sign
from advsphere.evaluation.intervals import PairedDifference, mcnemar, paired, wilson
from advsphere.evaluation.ledger import CLEAN, Ledger
from advsphere.evaluation.preflight import preflight
from advsphere.evaluation.progress import Progress, progress_bar
from advsphere.evaluation.results import WORST, Evaluation, Strongest, compare, radius
from advsphere.evaluation.rows import Row
from advsphere.evaluation.specs import AttackSpec, describe
from advsphere.evaluation.story import Attempt, Replay, Story, find_name, replay, story
from advsphere.evaluation.suites import SUITES, Case, Effort, suite
from advsphere.evaluation.survival import ENOUGH_SEEDS, Gain, Survival, row_for, survival
from advsphere.evaluation.telling import Telling, telling
from advsphere.evaluation.verify import Verification, verify

__all__ = [
    "CLEAN",
    "ENOUGH_SEEDS",
    "SUITES",
    "WORST",
    "AttackSpec",
    "Attempt",
    "Case",
    "Cell",
    "Cost",
    "Effort",
    "Evaluation",
    "Finding",
    "Gain",
    "Ledger",
    "PairedDifference",
    "Precision",
    "Progress",
    "Replay",
    "Row",
    "Sign",
    "Story",
    "Strongest",
    "Survival",
    "Telling",
    "Verification",
    "compare",
    "data_checksum",
    "describe",
    "evaluate",
    "find_name",
    "mcnemar",
    "model_checksum",
    "paired",
    "preflight",
    "progress_bar",
    "radius",
    "replay",
    "row_for",
    "story",
    "suite",
    "survival",
    "telling",
    "usual_batch_size",
    "verify",
    "wilson",
]
