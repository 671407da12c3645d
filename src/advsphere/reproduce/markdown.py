"""Parts of pages and printed tables in Markdown: lines of tables, numbers with intervals, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from advsphere.reproduce.results import StoredResult


def line(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


def head(names: Sequence[str]) -> list[str]:
    """The head of a table."""
    return [line(names), "|---" * len(names) + "|"]


def points(value: float, low: float, high: float, digits: int = 1) -> str:
    """A difference in [-1, 1] and its interval, in points."""
    return f"{100 * value:+.{digits}f} ({100 * low:+.{digits}f} to {100 * high:+.{digits}f})"


def percent(value: float, low: float, high: float, digits: int = 1) -> str:
    """An accuracy in [0, 1] and its interval, in %."""
    return f"{100 * value:.{digits}f} ({100 * low:.1f}-{100 * high:.1f})"


def provenance(results: Sequence[StoredResult], file: Path) -> str:
    """The machines, versions and commits behind results, in a sentence or two."""
    trained = [result.run["trained"] for result in results]
    machines = sorted(
        {f"{t['processor']}, {t['device']}, {t['threads']} thread{'s' * (t['threads'] > 1)}" for t in trained}
    )
    commits = sorted({str(t["commit"]) for t in trained})
    measured = sorted({str(result.document["environments"][0]["commit"]) for result in results
                       if result.document.get("environments")})  # fmt: skip
    text = f"Trained on {'; '.join(machines)}, torch {', '.join(sorted({t['torch'] for t in trained}))}, "
    text += f"at commit{'s' * (len(commits) > 1)} {', '.join(commits)}"
    text += f"; measured at {', '.join(measured)}" if measured else ""
    kept = "All outcomes" if all(result.kind in ("evaluation", "corruptions") for result in results) else "All numbers"
    return f"{text}. {kept}, settings and checksums are in [`results/{file.name}`](../../results/{file.name})."
