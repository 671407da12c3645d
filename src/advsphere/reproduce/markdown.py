"""What every page is written with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from advsphere.results import Row


def line(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


def rule(heads: Sequence[str]) -> list[str]:
    """The head of a table."""
    return [line(heads), "|---" * len(heads) + "|"]


def points(value: float, low: float, high: float) -> str:
    """A difference in [-1, 1] and its interval, in points."""
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def provenance(rows: Sequence[Row], file: Path) -> str:
    """Where numbers come from, in a sentence or two."""
    trained = [row["trained"] for row in rows]
    machines = sorted(
        {f"{t['processor']}, {t['device']}, {t['threads']} thread{'s' * (t['threads'] > 1)}" for t in trained}
    )
    commits = sorted({str(t["commit"]) for t in trained})
    judged = sorted({str(row["evaluated"]["commit"]) for row in rows if "commit" in row["evaluated"]})
    told = f"Trained on {'; '.join(machines)}, torch {', '.join(sorted({t['torch'] for t in trained}))}, "
    told += f"at commit{'s' * (len(commits) > 1)} {', '.join(commits)}"
    told += f"; measured at {', '.join(judged)}" if judged else ""
    return f"{told}. Each outcome, setting and checksum: [`results/{file.name}`](../../results/{file.name})."
