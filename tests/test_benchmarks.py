"""The benchmarks run against a peer that is made up here; what they conclude from it is known. Nothing is timed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from advsphere.attacks import fgsm, pgd
from advsphere.cli.arguments import parse
from advsphere.losses import margin
from advsphere.threat import ThreatModel
from tests.data.corruptions.pictures import pictures
from tests.laws import RADII, conv_net, images

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = ("auto_attack", "corruptions", "low_precision", "memory", "network", "pgd", "square")
THREAT = ThreatModel(norm="linf", eps=RADII["linf"])
HALF = ThreatModel(norm="linf", eps=RADII["linf"] / 2)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The scripts as modules, imported as when they are run: beside each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("comparison", "same_draws", *SCRIPTS)
    before = {name: sys.modules.pop(name, None) for name in names}
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture
def target(benchmarks: SimpleNamespace) -> Any:
    model, x = conv_net().eval(), images(30)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::10] = (y[::10] + 1) % 4
    return benchmarks.comparison.Target(model, conv_net().eval(), x, y, THREAT, torch.bfloat16)


def test_each_has_its_command_in_the_readme_and_takes_it(benchmarks: SimpleNamespace) -> None:
    lines = [line.split() for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("    python ")]
    commands = {Path(words[1]).stem: words[2:] for words in lines}
    assert commands.keys() >= set(SCRIPTS)
    for name in SCRIPTS:
        module = getattr(benchmarks, name)
        parse(getattr(module, "Arguments", benchmarks.comparison.Options), commands[name], prog=name)


def test_a_peer_that_is_not_there_is_one_clear_line(benchmarks: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no autoattack_of_nobody to compare with .* get it"):
        benchmarks.comparison.peer("autoattack_of_nobody", None, "get it")


GENERATOR = """
# /////////////// Distortion Helpers ///////////////
from types import SimpleNamespace

cv2 = SimpleNamespace(setNumThreads=lambda n: None)
gaussian = None

def contrast(image, severity):
    x, share = np.array(image) / 255.0, (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = x.mean((0, 1), keepdims=True)
    return 255 * (mean + share * (x - mean))

def gaussian_noise(image, severity):
    x, sigma = np.array(image) / 255.0, (0.04, 0.06, 0.08, 0.09, 0.1)[severity - 1]
    return 255 * np.clip(x + np.random.normal(size=x.shape, scale=sigma), 0, 1)

def pixelate(image, severity):
    return np.array(image) // 2 + severity
# /////////////// Further Setup /////////////////
raise SystemExit("the rest is not run")
"""


@pytest.fixture
def published(benchmarks: SimpleNamespace, tmp_path: Path) -> Any:
    folder = tmp_path / "ImageNet-C" / "create_c"
    folder.mkdir(parents=True)
    (folder / "make_cifar_c.py").write_text(GENERATOR)
    return benchmarks.corruptions.Published(tmp_path, 32)


def test_corruptions_that_agree_and_one_that_does_not(benchmarks: SimpleNamespace, published: Any) -> None:
    pixels = pictures(4, 32).permute(0, 2, 3, 1).contiguous().numpy()
    names = ["contrast", "gaussian_noise", "pixelate"]
    rows = {row[0]: row[1:] for row in benchmarks.corruptions.agreement(published, pixels, names)}
    for name in names[:2]:
        equal, near, largest, theirs, ours, *_ = map(float, rows[name])
        assert equal > 98 and near == 100 and largest <= 1 and ours == pytest.approx(theirs, rel=0.05)
    assert float(rows["pixelate"][1]) < 50 and int(rows["pixelate"][2]) > 50


def test_corruptions_are_timed_in_turns(benchmarks: SimpleNamespace, published: Any) -> None:
    order: list[str] = []
    least = benchmarks.corruptions.in_turns(lambda: order.append("a"), lambda: order.append("b"), times=2)
    assert "".join(order) == "ababab" and len(least) == 2
    pixels = pictures(2, 32).permute(0, 2, 3, 1).contiguous().numpy()
    rows = list(benchmarks.corruptions.speed(published, pixels, ["contrast", "pixelate"], 1))
    assert [row[0] for row in rows] == [*("contrast", "pixelate", "geometric mean of the 15", "geometric mean of all")]


def test_a_generator_that_is_not_there_is_one_clear_line(benchmarks: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no .*make_cifar_c\.py to compare with at 32 pixels: git clone"):
        benchmarks.corruptions.Published(tmp_path, 32)
    with pytest.raises(SystemExit, match="at 48 pixels"):
        benchmarks.corruptions.Published(tmp_path, 48)


class FakeAutoAttack:
    """In its first stage FGSM at half of the radius, which misses some; in the others nothing."""

    def __init__(self, model: Any, *, norm: str, eps: float, **_: object) -> None:
        assert norm == "Linf"
        self.model, self.eps = model, eps
        self.attacks_to_run = ["one", "two", "three", "four"]

    def run_standard_evaluation(self, x: Tensor, y: Tensor, bs: int) -> Tensor:
        return fgsm(self.model, x, y, threat=HALF) if self.attacks_to_run == ["one"] else x


def test_auto_attack_counts_each_stage_and_explains_what_differs(
    benchmarks: SimpleNamespace, target: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ascent = partial(pgd, threat=THREAT, steps=30, step_size=THREAT.eps / 4, keep="best", loss=margin)
    ours = {"FGSM": partial(fgsm, threat=HALF), "PGD": ascent}
    script: ModuleType = benchmarks.auto_attack
    monkeypatch.setattr(script, "stages", lambda threat: ours)
    monkeypatch.setattr(script.Target, "of", classmethod(lambda cls, options: target))
    monkeypatch.setattr(script, "peer", lambda *_: SimpleNamespace(AutoAttack=FakeAutoAttack))
    script.main(benchmarks.comparison.Options(run=Path()))
    out = capsys.readouterr().out
    rows = {
        row[1].strip(): [cell.strip() for cell in row]
        for row in (line.split("|") for line in out.split("\n"))
        if len(row) > 6
    }
    assert rows["FGSM"][3] == rows["FGSM"][5] == rows["PGD"][3], "the peer's later stages find nothing"
    assert float(rows["all"][5].rstrip("%")) < float(rows["all"][3].rstrip("%")), "PGD finds more"
    apart = [row for row in rows.values() if row[2] == "ours"]
    assert len(apart) == round((float(rows["all"][3][:-1]) - float(rows["all"][5][:-1])) / 100 * 30)
    assert all(row[3] == "PGD" and row[7] == "8 of 8" for row in apart)
    assert "27 classified correctly" in out and "times sooner" in out


def test_pgd_compares_the_same_attack(benchmarks: SimpleNamespace, target: Any) -> None:
    def package(model: Any, *, eps: float, alpha: float, steps: int, random_start: bool) -> Any:
        return partial(partial(pgd, model), threat=THREAT, steps=steps, step_size=alpha, keep="best")

    hit = benchmarks.pgd.ours(target, 16, 0, target.dtype)
    assert hit[::10].all() and 0 < hit.sum() < 30, "what is wrong without an attack counts as fooled"
    assert (benchmarks.pgd.theirs(target, package, 16) == hit).float().mean() > 0.9


def test_queries_are_read_off_the_rounds(benchmarks: SimpleNamespace, target: Any) -> None:
    assert benchmarks.square.queries_of([4, 4, 3, 1, 1], 5) == [2, 3, 3]
    assert benchmarks.square.queries_of([4, 4, 3, 1, 1], 9) == [2, 3, 3, 5]
    rounds = benchmarks.square.ours(target, target.model, 40, 0)
    assert rounds[:2] == [30, 27] and len(rounds) <= 40
    assert len(benchmarks.square.queries_of(rounds, 40)) == 30 - rounds[-1]


def test_chance_is_the_sign_test(benchmarks: SimpleNamespace) -> None:
    assert benchmarks.low_precision.chance(0, 0) == benchmarks.low_precision.chance(3, 3) == 1.0
    assert benchmarks.low_precision.chance(0, 5) == pytest.approx(2 / 32)
