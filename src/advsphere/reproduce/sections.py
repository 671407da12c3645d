"""The sections of pages about what no suite attacks: corruptions, FN in the attack, gradients, perturbations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from advsphere.corruption.severity import CORRUPTIONS, EXTRA
from advsphere.reproduce.figures import gradients_figure, save
from advsphere.reproduce.groups import method_name, on_imagenet
from advsphere.reproduce.markdown import head, line, percent, points, provenance
from advsphere.reproduce.results import StoredResult, threat_in_words
from advsphere.reproduce.tables import Measure, Table
from advsphere.stats import mean_over_seeds, wilson

_NOISE, _BLUR = ("Gauss", "Shot", "Impulse"), ("Defocus", "Glass", "Motion", "Zoom")
_WEATHER, _DIGITAL = ("Snow", "Frost", "Fog", "Bright"), ("Contra", "Elastic", "Pixel", "JPEG")
TITLES = dict(zip(CORRUPTIONS, _NOISE + _BLUR + _WEATHER + _DIGITAL, strict=True))
"""The paper's names of the corruptions."""


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
    """By what a section's results have in common, in words."""
    found: dict[str, list[StoredResult]] = {}
    for one in results:
        run = one.run
        threat = threat_in_words(one.document["table 7"]) if table.measure == "FN in the attack" else one.threat
        title = f"{run['network']} on {run['data']}, {one.n:,} test images, {threat}, weight decay "
        found.setdefault(f"{title}{run['weight_decay']:g}", []).append(one)
    return found


def _corruptions(table: Table, group: Sequence[StoredResult], folder: Path | None, figure: str) -> Iterator[str]:
    names = [name for name in TITLES if all(name in one.corruptions.names for one in group)]
    yield from ["", *head(["method", "seed", "epochs", "clean", "mCA", *(TITLES[name] for name in names)])]
    arms: dict[str, dict[int, StoredResult]] = {}
    for one in group:
        arms.setdefault(method_name(one.run), {})[one.run["seed"]] = one
    for name, arm in arms.items():
        theirs = table.paper.get(name, {})
        for seed, one in sorted(arm.items()):
            mca = one.corruptions.mca
            cells = [f"{100 * clean_accuracy(one):.1f}"]
            cells.append(_with_paper(percent(mca.value, mca.low, mca.high), theirs.get("mCA")))
            cells += [_with_paper(f"{100 * accuracy(one, key):.1f}", theirs.get(key)) for key in names]
            yield line([name, str(seed), str(one.run["epochs"]), *cells])
        plain = name.removesuffix("+HE")
        shared = sorted(arm.keys() & arms.get(plain, {}).keys()) if name != plain else []
        if shared:
            cells = corruption_difference([(arm[seed], arms[plain][seed]) for seed in shared], names)
            if theirs and plain in table.paper:
                cells[1] += f"<br>*paper {theirs['mCA'] - table.paper[plain]['mCA']:+.2f}*"
            yield line([f"*less {plain}*", ", ".join(map(str, shared)), "", *cells])


def corruption_difference(pairs: Sequence[tuple[StoredResult, StoredResult]], names: Sequence[str]) -> list[str]:
    """Cells of a method less its baseline: clean, mCA and each corruption, the mean over pairs of equal seed."""
    mca = mean_over_seeds(np.array([_by_image(one) - _by_image(base) for one, base in pairs]))
    clean = fmean(clean_accuracy(one) - clean_accuracy(base) for one, base in pairs)
    each = [fmean(accuracy(one, name) - accuracy(base, name) for one, base in pairs) for name in names]
    change = f"*{points(mca.value, mca.low, mca.high, digits=2)}*" + "<br>*cannot tell*" * mca.cannot_tell
    return [f"*{100 * clean:+.1f}*", change, *(f"*{100 * value:+.1f}*" for value in each)]


def _by_image(result: StoredResult) -> NDArray[np.float64]:
    return np.array(result.corruptions.by_image())


def corruption_names(group: Sequence[StoredResult]) -> dict[str, str]:
    """The corruptions that all results have, the extra ones too, with their titles."""
    titles = TITLES | {name: name.replace("_", " ") for name in EXTRA}
    return {name: title for name, title in titles.items() if all(name in one.corruptions.names for one in group)}


def accuracy(result: StoredResult, name: str) -> float:
    """Under one corruption, averaged over the severities."""
    return 1 - result.corruptions.error(name)


def clean_accuracy(result: StoredResult) -> float:
    """On the images as they are."""
    return float(result.document["numbers"]["clean"])


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
        ratios = sorted(one.document["gradients"]["ratio"])
        yield line([method_name(one.run), str(one.run["seed"]), f"{ratios[len(ratios) // 2]:.2f}"])


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
"""The kind of result that a measure reads, and what writes its sections."""
