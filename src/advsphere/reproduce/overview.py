"""All pairs of all tables, in lines: what each gains and keeps, and what they say together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from advsphere.evaluation import WORST
from advsphere.evaluation.ledger import CLEAN
from advsphere.evaluation.survival import BARE, Gain
from advsphere.reproduce.markdown import line, points, rule
from advsphere.reproduce.together import Compared, Family, families

PICTURE = "together.svg"
_SHOWS = "What HE gains with each objective, and keeps"


def overview(every: Sequence[Compared]) -> list[str]:
    """Every pair of every table in a line: what it gains under the headline's attack, and in the worst case; then the
    mean over the objectives of each network.
    """
    heads = ["table", "pair", "network, images", "weight decay", "seeds", "n", "gain under the headline",
             "in the worst case", "share left", "verdict"]  # fmt: skip
    lines = ["## Every pair", "", "Points, with 95 % intervals.", "", *rule(heads)]
    lines += [line(_told(one)) for one in every]
    return [*lines, "", *_together(families(every))]


def summary(family: Family, pages: Path, folder: Path) -> str:
    """A family in a table, both arms and their difference, for a page in a folder; pages: where the picture is."""
    heads = ["objective", "test images", "threat", "seeds", "clean", "bare cosines", "gain", "worst case", "gain"]
    lines = [
        f"{family.network}, weight decay {family.weight_decay}. Accuracy in %, without HE and with it, the mean over "
        "seeds. The gain in points, with its 95 % interval: over images alone with one seed or two, over seeds too "
        "from three on, over pairs and images for all together.",
        "",
        *rule(heads),
    ]
    for one in family.members:
        clean, before, after = (one.gains.gain(name) for name in (CLEAN, one.gains.pgd, WORST))
        attacks = len(one.gains.gains) - 2  # clean and the worst case are none
        of = [one.pair.baseline, f"{one.gains.n} of {one.group.data}", one.group.threat, str(min(one.gains.seeds))]
        seen = f"{one.gains.pgd.removesuffix(BARE)}: {_arms(before)}"
        kept = [_points(before), f"of {attacks} attacks: {_arms(after)}", _points(after)]
        lines.append(line([*of, _arms(clean), seen, *kept]))
    together = ["", f"**{points(*family.mean())}**", "", f"**{points(*family.mean(WORST))}**"]
    lines.append(line(["**together**", "", "", "", "", *together]))
    picture = Path(os.path.relpath(pages / PICTURE, folder)).as_posix()
    return "\n".join([*lines, "", f"![{_SHOWS}]({picture})"])


def _told(one: Compared) -> list[str]:
    table, group, pair, gains = one
    decay = [] if group.weight_decay is None else [f"{group.weight_decay:g}"]
    decay += ["each its best"] if one.at_their_best else []
    share = "" if gains.share is None else "{:.0f} % ({:.0f} to {:.0f})".format(*(100 * part for part in gains.share))
    images = f"{group.network}, {group.data}" + ", last checkpoint" * (group.checkpoint == "last")
    seeds = f"{gains.seeds[0]}" if gains.seeds[0] == gains.seeds[1] else f"{gains.seeds[0]}, {gains.seeds[1]}"
    kept = [f"{gains.pgd}: {_points(gains.gain(gains.pgd))}", _points(gains.gain(WORST))]
    link = f"[{table.name}]({table.name}.md)"
    who = f"{pair.method} less {pair.baseline}"
    return [link, who, images, ", ".join(decay), seeds, str(gains.n), *kept, share, gains.verdict]


def _together(found: Sequence[Family]) -> list[str]:
    told = (
        "The mean over pairs: an objective with HE less that without, on a set of images. Each counts once, with the "
        "mean of its seeds in the first table above that has it, the headline's PGD and the worst case of that table's "
        "attacks. The intervals are over pairs and over images (Student's t)."
    )
    lines = [
        line([
            f"{family.network}, {family.weight_decay}",
            ", ".join(f"{one.pair.method} on {one.group.data}, {one.group.threat}" for one in family.members),
            points(*family.mean()),
            points(*family.mean(WORST)),
        ])
        for family in found
    ]  # fmt: skip
    heads = ["network, weight decay", "pairs", "gain at s = 1", "in the worst case"]
    return ["## Together", "", told, "", *rule(heads), *lines, "", f"![{_SHOWS}]({PICTURE})"] if lines else []


def _arms(gain: Gain) -> str:
    return f"{100 * gain.baseline:.1f} → {100 * gain.method:.1f}"


def _points(gain: Gain) -> str:
    return points(gain.difference, gain.low, gain.high)
