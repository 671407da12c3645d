"""The figures of the pages, as SVG whose bytes depend only on the results."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advsphere.analysis.canvas import INK, LINE, MARKERS, SERIES, canvas, legend, outside_legend, quiet
from advsphere.evaluation.results import WORST
from advsphere.files import write_atomically
from advsphere.reproduce.cells import Family, Pair
from advsphere.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def gains_figure(pairs: Sequence[Pair]) -> Figure:
    """Each method's gain under each attack, with its 95 % interval and the paper's gain. One panel shows gains over the
    plain objective, and one gains over HE, for methods derived from it.
    """
    attacks = list(dict.fromkeys(gain.name for pair in pairs for gain in pair.gains.gains))
    methods = list(dict.fromkeys(pair.method for pair in pairs))
    over_he = [pair for pair in pairs if "+" in pair.baseline]
    panels = {"minus the plain objective": [pair for pair in pairs if pair not in over_he], "minus HE": over_he}
    shown = {title: own for title, own in panels.items() if own}
    height = 1.1 + 0.16 * len(attacks) * (1 + len(methods))
    figure, every = canvas(8.0, height, columns=len(shown), sharey=True)
    for axes, (title, own) in zip(every, shown.items(), strict=True):
        for pair in own:
            _gains(axes, pair, methods, attacks)
        axes.axvline(0, color=INK, linewidth=0.8)
        quiet(axes, "gain in points, 95 % interval", "", title=title, grid="x")
    middle = (len(methods) - 1) / 2
    every[0].set_yticks([-(i * (1 + len(methods)) + middle) for i in range(len(attacks))], attacks)
    outside_legend(figure, every[0], columns=3)
    return figure


def _gains(axes: Axes, pair: Pair, methods: Sequence[str], attacks: Sequence[str]) -> None:
    """Draw the gains of one pair. A method has the same colour and marker in every panel."""
    number = methods.index(pair.method)
    colour = SERIES[number % len(SERIES)]
    marker = MARKERS[(number + number // len(SERIES)) % len(MARKERS)]  # no two have both in common
    gains = {gain.name: gain for gain in pair.gains.gains}
    at = {name: -(attacks.index(name) * (1 + len(methods)) + number) for name in gains}
    values = [100 * gain.difference for gain in gains.values()]
    reach = [
        [100 * (gain.difference - gain.low) for gain in gains.values()],
        [100 * (gain.high - gain.difference) for gain in gains.values()],
    ]
    axes.errorbar(values, list(at.values()), xerr=reach, fmt=marker, color=colour, markersize=4.5, elinewidth=1.2,
                  label=pair.method)  # fmt: skip
    theirs = {name: pair.paper_gain(name) for name in gains}
    told = {name: 100 * value for name, value in theirs.items() if value is not None}
    if told:
        axes.plot(list(told.values()), [at[name] for name in told], marker=marker, linestyle="", markersize=6.5,
                  markerfacecolor="none", markeredgecolor=colour,
                  label="the paper's" if number == 0 else None)  # fmt: skip


def together_figure(family: Family) -> Figure:
    """The gain of HE with each objective under the headline attack and in the worst case, with 95 % intervals, and
    below them the means over all objectives.
    """
    names = [f"{one.baseline}\n{one.group.data}" for one in family.members]
    figure, (axes,) = canvas(8.0, 1.0 + 0.5 * len(names))
    for number, (attack, label) in enumerate(((None, "PGD on bare cosines"), (WORST, "worst case"))):
        gains = [one.gains.gain(attack or one.gains.pgd) for one in family.members]
        found = [*(Estimate(value=g.difference, low=g.low, high=g.high) for g in gains), family.mean(attack)]
        values = [100 * one.value for one in found]
        reach = [[100 * (one.value - one.low) for one in found], [100 * (one.high - one.value) for one in found]]
        axes.errorbar(values, [0.15 - 0.3 * number - place for place in range(len(found))], xerr=reach,
                      fmt=MARKERS[number], color=SERIES[number], markersize=5, elinewidth=1.2, label=label)  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axhline(0.5 - len(names), color=LINE, linewidth=0.8)
    axes.set_yticks([-place for place in range(len(names) + 1)], [*names, "together"])
    quiet(axes, "gain of HE in points, 95 % interval", "", grid="x")
    outside_legend(figure, axes)
    return figure


def gradients_figure(ratios: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The norm of each layer's gradient on adversarial images divided by that on clean images, for each network."""
    figure, (axes,) = canvas(8.0, 3.2)
    for number, (name, found) in enumerate(ratios.items()):
        axes.plot(range(len(found["ratio"])), found["ratio"], color=SERIES[number % len(SERIES)],
                  marker=MARKERS[number % len(MARKERS)], markersize=4, linewidth=1.2, label=name)  # fmt: skip
    axes.axhline(1, color=INK, linewidth=0.8)
    layers = next(iter(ratios.values()))["layers"]
    names = [layer.removeprefix("network.") for layer in layers]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    quiet(axes, "", "adversarial / clean")
    legend(axes)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG; the same figure gives the same bytes."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "advsphere", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    write_atomically(path, out.getvalue().encode())
