"""Tables and figure of the rows of certainty.py.

python benchmarks/certainty_page.py --readme benchmarks/README.md --figure docs/certainty.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from comparison import table

from advsphere.analysis.canvas import INK, canvas, quiet
from advsphere.cli.arguments import parse
from advsphere.reproduce.figures import save
from advsphere.reproduce.results import write_between
from advsphere.threat import radius

ROWS = Path(__file__).with_name("certainty.jsonl")
HONEST = ["network", "images", "certainty", "left by the search", "sampled", "fell", "at most", "robust, %"]
HONEST += ["passes an image: official", "ours", "ratio", "robust on the official code's images: official", "ours"]
HONEST += ["seconds an image: official", "ours"]
MASKED = ["network", "images", "certainty", "left by the search", "sampled, fell at each look", "at most", "robust"]
MASKED += ["the whole AutoAttack's robust images", "the official code's", "passes an image: whole", "ours"]
FATES = {"wrong, or fooled by the search": "#d9dde3", "left, not sampled": "#7fb0e6", "sampled": "#1f5fa8"}
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the rows say."""

    rows: Path = ROWS
    readme: Path | None = None
    """A page with the marks of both tables, which are written anew."""
    figure: Path | None = None
    """Where to draw the figure, an SVG file."""


class Run(NamedTuple):
    """One run of ours, and what it is compared with. None: there is no such row.

    official: the official code, on the same images or a part of them. elsewhere: the same, or on other test images.
    reseeded: the official code whole, on the same images with other seeds. whole: our run of certainty 0 on them.
    """

    own: Row
    official: Row | None
    elsewhere: Row | None
    reseeded: Sequence[Row]
    whole: Row | None

    @property
    def passes(self) -> float:
        return passes(self.own)

    @property
    def theirs(self) -> float | None:
        """The passes an image of the official code. From a part of the images, or from others, they are scaled by the
        share of robust images, which take nearly all of them.
        """
        if self.elsewhere is None:
            return None
        whole = self.official is not None and len(self.official["images"]) == self.own["n"]
        return passes(self.elsewhere) * (1.0 if whole else share(self.own) / share(self.elsewhere))

    @property
    def ratio(self) -> float | None:
        return None if self.theirs is None else self.theirs / self.passes


def share(row: Row) -> float:
    """Of robust images, among those that it is about."""
    return float(row["robust"].count("1") / len(row["robust"]))


def passes(row: Row) -> float:
    return float(row["forwards"] + row["backwards"])


def read(path: Path) -> list[Run]:
    """Our runs by network, number of images and certainty, with what they are compared with."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]

    def matching(row: Row, *alike: str, **wanted: Any) -> list[Row]:
        wanted |= {key: row[key] for key in ("network", "eps", *alike)}
        return [one for one in rows if all(one.get(key) == value for key, value in wanted.items())]

    def run(row: Row) -> Run:
        official, elsewhere = matching(row, "seed", "n", who="official"), matching(row, "seed", who="official")
        every = [one for one in matching(row, "n", who="official") if len(one["images"]) == one["n"]]
        reseeded = [one for one in every if one["seed"] != row["seed"]]
        whole = matching(row, "seed", "n", who="ours", certainty=0)
        return Run(row, first(official), first(official or elsewhere), reseeded, first(whole))

    def first(found: Sequence[Row]) -> Row | None:
        return found[0] if found else None

    ours = [row for row in rows if row["who"] == "ours"]
    return [run(row) for row in sorted(ours, key=lambda row: (row["network"], row["n"], -row["certainty"]))]


def on_official(run: Run) -> list[str]:
    """How many of the images that the official code attacked it leaves, with each seed, and how many of these same
    images we leave.
    """
    if run.official is None:
        return ["", ""]
    part = "".join(run.own["robust"][i] for i in run.official["images"])
    theirs = [row["robust"] for row in (run.official, *run.reseeded)]
    return [" or ".join(f"{one.count('1'):,}" for one in side) + f" of {len(part):,}" for side in (theirs, [part])]


def honest(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        own, bound, theirs = run.own, run.own["bound"], run.elsewhere
        line = [own["network"], f"{own['n']:,}", f"{own['certainty']:g}", f"{bound['survivors']:,}"]
        line += [f"{bound['sampled']:,}", f"{bound['fell']}", f"{bound['points']:.2f}"]
        line += [f"{100 * share(own):.1f}", "" if run.theirs is None else f"{run.theirs:,.0f}", f"{run.passes:,.0f}"]
        line += ["" if run.ratio is None else f"**{run.ratio:.1f}**", *on_official(run)]
        line += ["" if theirs is None else f"{theirs['seconds'] / len(theirs['images']):.2f}"]
        lines.append([*line, f"{own['seconds'] / own['n']:.2f}"])
    return table(HONEST, lines)


def masked(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        own, bound, whole = run.own, run.own["bound"], run.whole
        if whole is None or own is whole:
            continue
        network = own["network"] + ("" if own["eps"] is None else f", eps = {radius(own['eps'])}")
        looks = "; ".join(f"{size:,}, {fell:,}" for size, fell in dict(bound["looks"]).items())
        line = [network, f"{own['n']:,}", f"{own['certainty']:g}", f"{bound['survivors']:,}", looks]
        line += [f"{bound['points']:.2f}", f"{own['robust'].count('1'):,}", compared(own, whole), on_official(run)[0]]
        lines.append([*line, f"{passes(whole):,.0f}", f"{run.passes:,.0f}"])
    return table(MASKED, lines)


def compared(own: Row, whole: Row) -> str:
    if own["robust"] == whole["robust"]:
        return "the same images"
    pairs = [*zip(own["robust"], whole["robust"], strict=True)]
    return f"{pairs.count(('1', '0'))} more robust, {pairs.count(('0', '1'))} fewer"


def picture(runs: Sequence[Run], path: Path) -> None:
    """What the images of each run met, and the passes, beside those of the official code."""
    figure, (fates, cost) = canvas(8.6, 0.9 + 0.36 * len(runs), 1, 2, sharey=True, width_ratios=(3, 2))
    for place, run in enumerate(runs):
        bound, n = run.own["bound"], run.own["n"]
        parts = [n - bound["survivors"], bound["survivors"] - bound["sampled"], bound["sampled"]]
        start = 0.0
        for part, (label, colour) in zip(parts, FATES.items(), strict=True):
            fates.barh(place, 100 * part / n, left=start, color=colour, height=0.62, label="" if place else label)
            start += 100 * part / n
        cost.barh(place, run.passes, color=FATES["sampled"], height=0.62, label="" if place else "ours")
        if run.theirs is not None and run.ratio is not None:
            ends = [place - 0.31, place + 0.31]
            cost.plot([run.theirs] * 2, ends, color=INK, lw=1.6, label="" if place else "official code")
            beside: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            cost.annotate(f"{run.ratio:.1f}x", (run.theirs, place), fontsize=8.5, color=INK, **beside)
    names = [f"{r.own['network']}\n{r.own['n']:,} images, certainty {r.own['certainty']:g}" for r in runs]
    quiet(fates, "images, %", "", title="What the images met", grid="x")
    quiet(cost, "passes an image", "", title="What it cost", grid="x")
    fates.set_yticks(range(len(runs)), names, fontsize=7.5)
    fates.invert_yaxis()
    fates.set_xlim(0, 100)
    fates.set_xticks(range(0, 100, 20))
    cost.margins(x=0.16)
    labels = [axes.get_legend_handles_labels() for axes in (fates, cost)]
    handles, names = ([one for part in parts for one in part] for parts in zip(*labels, strict=True))
    figure.legend(handles, names, frameon=False, fontsize=7.5, loc="outside lower center", ncols=len(names))
    save(figure, path)


def tables(runs: Sequence[Run]) -> dict[str, str]:
    """The tables by the name of their marks."""
    plain, hiding = ([run for run in runs if run.own["masked"] is kind] for kind in (False, True))
    return {"certainty": honest(plain), "masked": masked(hiding)}


def main(options: Arguments) -> None:
    runs = read(options.rows)
    found = tables(runs)
    print("\n\n".join(found.values()))
    if options.readme is not None:
        for name, content in found.items():
            write_between(options.readme, content, begin=f"<!-- {name} -->", end=f"<!-- /{name} -->")
    if options.figure is not None:
        picture([run for run in runs if not run.own["masked"]], options.figure)


if __name__ == "__main__":
    main(parse(Arguments, sys.argv[1:], prog="certainty_page.py"))
