"""The sections of pages on measurements other than attacks: corruptions, FN in the attack, gradients, perturbations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from advsphere.corruption.severity import CORRUPTIONS, EXTRA
from advsphere.files import canonical
from advsphere.reproduce.figures import gradients_figure, save
from advsphere.reproduce.groups import confounders, method_name, on_imagenet
from advsphere.reproduce.markdown import head, line, percent, points, provenance
from advsphere.reproduce.results import StoredResult, threat_in_words
from advsphere.reproduce.tables import Measure, Numbers, Table
from advsphere.stats import difference_of_arms, wilson

_NOISE, _BLUR = ("Gauss", "Shot", "Impulse"), ("Defocus", "Glass", "Motion", "Zoom")
_WEATHER, _DIGITAL = ("Snow", "Frost", "Fog", "Bright"), ("Contra", "Elastic", "Pixel", "JPEG")
TITLES = dict(zip(CORRUPTIONS, _NOISE + _BLUR + _WEATHER + _DIGITAL, strict=True))
"""The paper's names of the corruptions."""
ALL_TITLES = TITLES | {name: name.replace("_", " ") for name in EXTRA}


def sections(table: Table, results: Sequence[StoredResult], file: Path, folder: Path | None) -> list[str]:
    """The sections of a table's page from one file of results; figures are written into `folder`, if given."""
    wanted = {(method.name, method.data == "imagenet") for method in table.shown_methods}
    kind, write = _MEASURES[table.measure]
    own = [one for one in results if one.kind == kind and (method_name(one.run), on_imagenet(one.run)) in wanted]
    return [
        "\n".join([f"## {title}", *write(table, group, folder, f"{table.name}-{file.stem}-{number}.svg"), "",
                   provenance(group, file)])
        for number, (title, group) in enumerate(_by_title(table, own).items())
    ]  # fmt: skip


def _by_title(table: Table, results: Sequence[StoredResult]) -> dict[str, list[StoredResult]]:
    """Group results by the title of their section, which names the settings that they have in common."""
    found: dict[str, list[StoredResult]] = {}
    for one in results:
        run = one.run
        threat = threat_in_words(one.document["table 7"]) if table.measure == "FN in the attack" else one.threat
        title = f"{run['network']} on {run['data']}, {one.n:,} test images, {threat}, weight decay "
        found.setdefault(f"{title}{run['weight_decay']:g}", []).append(one)
    return found


def _corruptions(table: Table, group: Sequence[StoredResult], folder: Path | None, figure: str) -> Iterator[str]:
    yield ""
    yield from corruption_table(group, method_name, TITLES, table.paper)


def corruption_table(
    group: Sequence[StoredResult],
    name_of: Callable[[Mapping[str, Any]], str],
    titles: Mapping[str, str],
    paper: Numbers | None = None,
) -> Iterator[str]:
    """A line for each run and, below a method with HE, its mean difference from its plain partner over shared seeds.

    `name_of` returns the name of a run's method. `titles` names the corruptions to show, if all results have them.
    """
    names = [name for name in titles if all(name in one.corruptions.names for one in group)]
    yield from head(["method", "seed", "epochs", "clean", "mCA", *(titles[name] for name in names)])
    arms: dict[str, dict[int, StoredResult]] = {}
    for one in group:
        arms.setdefault(name_of(one.run), {})[one.run["seed"]] = one
    plain_arms = {
        _partners(one.run): name for name, arm in arms.items() for one in arm.values() if not one.run["scale"]
    }
    for name, arm in arms.items():
        theirs = (paper or {}).get(name, {})
        for seed, one in sorted(arm.items()):
            mca = one.corruptions.mca
            cells = [f"{100 * float(one.document['numbers']['clean']):.1f}"]
            cells.append(_with_paper(percent(mca.value, mca.low, mca.high), theirs.get("mCA")))
            cells += [_with_paper(f"{100 * _accuracy(one, key):.1f}", theirs.get(key)) for key in names]
            yield line([name, str(seed), str(one.run["epochs"]), *cells])
        plain = plain_arms.get(_partners(next(iter(arm.values())).run), name)
        shared = sorted(arm.keys() & arms[plain].keys()) if plain != name else []
        if shared:
            cells = _difference([(arm[seed], arms[plain][seed]) for seed in shared], names)
            if paper and theirs and plain in paper:
                cells[1] += f"<br>*paper {theirs['mCA'] - paper[plain]['mCA']:+.2f}*"
            yield line([f"*minus {plain}*", ", ".join(map(str, shared)), "", *cells])


def _partners(run: Mapping[str, Any]) -> str:
    """A key that is equal for a method and its plain partner."""
    return canonical(confounders(run))


def _difference(pairs: Sequence[tuple[StoredResult, StoredResult]], names: Sequence[str]) -> list[str]:
    """Cells of a method minus its baseline: clean, mCA and each corruption, averaged over pairs of equal seed."""
    arms = (np.array([one.corruptions.by_image() for one in arm]) for arm in zip(*pairs, strict=True))
    mca, _ = difference_of_arms(*arms)
    clean = fmean(one.document["numbers"]["clean"] - base.document["numbers"]["clean"] for one, base in pairs)
    each = [fmean(_accuracy(one, name) - _accuracy(base, name) for one, base in pairs) for name in names]
    change = f"*{points(mca.value, mca.low, mca.high, digits=2)}*" + "<br>*cannot tell*" * mca.cannot_tell
    return [f"*{100 * clean:+.1f}*", change, *(f"*{100 * value:+.1f}*" for value in each)]


def _accuracy(result: StoredResult, name: str) -> float:
    """The accuracy under one corruption, averaged over the severities."""
    return 1 - result.corruptions.error(name)


def _with_paper(cell: str, paper: float | None) -> str:
    return cell if paper is None else f"{cell}<br>paper {paper:.2f}"


def _fn_in_the_attack(table: Table, group: Sequence[StoredResult], folder: Path | None, figure: str) -> Iterator[str]:
    yield from ["", *head(["network", "seed", "FN in the attack", "PGD-1", "PGD-2"])]
    for one in group:
        name = method_name(one.run)
        for fn in (False, True):
            theirs = table.paper.get(name + ", FN in the attack" * fn, {})
            found = {cell["steps"]: cell for cell in one.document["table 7"]["cells"] if cell["FN"] == fn}
            cells = []
            for steps in (1, 2):
                k, n = found[steps]["k"], found[steps]["n"]
                cells.append(_with_paper(percent(k / n, *wilson(k, n)), theirs.get(f"PGD-{steps}")))
            yield line([name, str(one.run["seed"]), "yes" if fn else "no", *cells])


def _gradients(table: Table, group: Sequence[StoredResult], folder: Path | None, figure: str) -> Iterator[str]:
    networks = {f"{method_name(one.run)}, seed {one.run['seed']}": one.document["gradients"] for one in group}
    if folder is not None:
        save(gradients_figure(networks), folder / figure)
    yield from ["", f"![Gradient-norm ratios by layer]({figure})", ""]
    yield from head(["network", "seed", "median ratio of the layers"])
    for one in group:
        middle = median(one.document["gradients"]["ratio"])
        yield line([method_name(one.run), str(one.run["seed"]), f"{middle:.2f}"])


def _perturbations(table: Table, group: Sequence[StoredResult], folder: Path | None, figure: str) -> Iterator[str]:
    for one in group:
        name = method_name(one.run)
        picture = f"![{name}](../../results/{one.picture})"
        yield from ["", f"### {name}, seed {one.run['seed']}", "", picture]


_Writer = Callable[[Table, Sequence[StoredResult], Path | None, str], Iterator[str]]
_MEASURES: dict[Measure, tuple[str, _Writer]] = {
    "corruptions": ("corruptions", _corruptions),
    "FN in the attack": ("diagnosis", _fn_in_the_attack),
    "gradients": ("diagnosis", _gradients),
    "perturbations": ("diagnosis", _perturbations),
}
"""For each measure, the kind of result that it reads and the function that writes its sections."""
