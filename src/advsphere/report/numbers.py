"""Numbers as people read them, in plain ASCII; shares of examples become percent and points."""

from __future__ import annotations

from advsphere.evaluation import Gain, PairedDifference


def percent(share: float) -> str:
    """0.61 -> "61.0"."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """0.046 -> "+4.6"; what rounds to zero has no sign."""
    rounded = round(100 * difference, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}"


def limits(interval: tuple[float, float], dash: str = "-") -> str:
    """The interval of an accuracy, in percent: "56.7-65.2"."""
    return dash.join(map(percent, interval))


def span(difference: PairedDifference | Gain) -> str:
    """The interval of a difference, in points: "+2.3 to +6.9"."""
    return f"{points(difference.low)} to {points(difference.high)}"


def share(part: float) -> str:
    """A part of a gain, in whole percent: "38"; what rounds to zero has no sign."""
    return f"{round(100 * part)}" if abs(part) < 10 else f"{'-' if part < 0 else ''}over 1000"


def shares(low: float, high: float) -> str:
    """Its interval: "-40 to 60"."""
    return f"{share(low)} to {share(high)}"


def probability(p: float) -> str:
    """A p-value: "0.34", "0.004", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
