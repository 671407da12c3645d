"""The benchmarks run against a peer that is made up here; what they conclude from it is known. Nothing is timed."""

from __future__ import annotations

import copy
import importlib
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from advsphere.attacks import fgsm, pgd
from advsphere.cli.arguments import parse
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereConfig
from advsphere.losses import margin
from advsphere.models.networks import WideResNet
from advsphere.recipes import recipe
from advsphere.rng import Rng
from advsphere.runs.build import assemble
from advsphere.runs.config import Config, ModelSettings, differences
from advsphere.threat import ThreatModel
from advsphere.training import Stopped, Trainer, TrainSettings
from tests.corruption.pictures import pictures
from tests.laws import RADII, conv_net, images, linear_net

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = (
    "auto_attack",
    "certainty",
    "certainty_page",
    "comparison_coverage",
    "corruptions",
    "cost",
    "data_path",
    "learnt",
    "low_precision",
    "memory",
    "network",
    "on_gpu",
    "optimality",
    "overfitting",
    "pgd",
    "sample_coverage",
    "search_length",
    "speedrun",
    "square",
    "training",
)
THREAT = ThreatModel(norm="linf", eps=RADII["linf"])
HALF = ThreatModel(norm="linf", eps=RADII["linf"] / 2)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The scripts as modules, imported as when they are run: beside each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("comparison", "plain_loop", "shared_noise", *SCRIPTS)
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
    lines = [
        shlex.split(line, comments=True)
        for line in (FOLDER / "README.md").read_text().splitlines()
        if line.startswith("    python ")
    ]
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


def test_the_cost_of_a_step_is_what_its_passes_cost(benchmarks: SimpleNamespace) -> None:
    """FastAT takes a gradient with respect to its input, two forwards' worth, and one of everything, three."""
    found = benchmarks.cost.cost(recipe("cifar10-small-fastat"))
    first = 3 * 16 * 9 * 32**2
    groups = [(16, 32, 32), (32, 64, 16), (64, 128, 8)]  # channels in and out, side
    multiplications = first + sum((9 * i * o + 9 * o * o + i * o) * side**2 for i, o, side in groups) + 128 * 10
    # What is trained on needs no gradient, which saves the first convolution one.
    assert found.flops == 2 * (5 * multiplications - first)
    assert found.weights == sum(p.numel() for p in WideResNet(10, 2, 10).parameters())
    assert 0.3e6 < found.bytes < 6e6 and found.seconds > 0


@pytest.mark.parametrize("he", [False, True])
@pytest.mark.parametrize("name", ["PGD-AT", "TRADES", "ALP", "FreeAT", "standard"])
def test_the_plain_loop_trains_as_ours_does(
    name: str, he: bool, benchmarks: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same start of the attack, the weights after two steps are equal up to rounding. (The order of the images
    decides which one inherits a perturbation of FreeAT, so it takes the replays of one batch.)
    """
    objective, sphere = benchmarks.training.OBJECTIVES[name], HypersphereConfig() if he else None
    x, y = 0.1 + 0.8 * images(6), torch.arange(6) % 4  # away from the bounds, where FreeAT's codes differ from ours
    network = conv_net()
    with torch.no_grad():
        network[-1].weight.mul_(0.1)  # no probability is 0, which gives TRADES's code NaN
    noise = torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Rng, "normal", lambda rng, shape, purpose: noise.expand(len(rng.ids), *shape))
    monkeypatch.setattr(torch, "randn_like", noise.expand_as)
    config = Config(recipe="test", model=ModelSettings(name="given: a network"), sphere=sphere)
    parts = assemble(config, ImageSet(x, y, tuple("abcd")), network=network)
    theirs, before = copy.deepcopy(parts.model), copy.deepcopy(parts.model)
    batches = 2 if objective.replays == 1 else 1
    settings = TrainSettings(epochs=batches, batch_size=6, lr=1e-3, precision="float32")
    same = ImageSet(x, y, tuple("abcd"))
    Trainer(parts.model, objective, parts.criterion, same, settings=settings, folder=tmp_path).fit()
    plain = benchmarks.plain_loop.PlainLoop(theirs, objective, sphere, 1e-3)
    for _ in range(batches * objective.replays):
        plain.step(x, y)
    start, ours, plainly = (torch.cat([p.flatten() for p in m.parameters()]) for m in (before, parts.model, theirs))
    assert float((ours - plainly).norm() / (plainly - start).norm()) < 1e-3


def test_training_writes_its_rows_and_the_table(
    benchmarks: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        benchmarks.training, "matrix_limits", partial(benchmarks.training.matrix_limits, size=64, budget=0.0)
    )
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- training -->\nold\n<!-- /training -->\nafter\n")
    options = benchmarks.training.Arguments(
        only=("wrn-10-2/FreeAT+HE", "wrn-10-2/FastAT"),
        threads=torch.get_num_threads(), batch_size=2, repeats=2, rows=tmp_path / "rows.jsonl", page=page,
    )  # fmt: skip
    benchmarks.training.main(options)
    benchmarks.training.main(replace(options, only=options.only[:1]))
    rows = {row.objective: row for row in benchmarks.training.read(options.rows)}
    assert rows.keys() == {"FastAT", "FreeAT"} and all(len(row.plain) == len(row.ours) == 2 for row in rows.values())
    # Six passes: both gradients for the attack, and both for the step. Ours leaves out the weights' in the attack.
    assert rows["FastAT"].plain_gflop / rows["FastAT"].ours_gflop == pytest.approx(6 / 5, rel=0.02)
    assert rows["FreeAT"].plain_gflop == pytest.approx(rows["FreeAT"].ours_gflop, rel=0.02)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.index("wrn-10-2/FastAT ") < text.index("wrn-10-2/FreeAT+HE")
    capsys.readouterr()
    benchmarks.training.main(replace(options, minutes=0.0))
    assert "are not measured" in capsys.readouterr().out


def test_both_sides_of_the_data_path_read_every_photo(
    benchmarks: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i in range(7):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (30 * i, 0, 0)).save(path)
    options = benchmarks.data_path.Arguments(
        data=tmp_path / "photos", workers=(0,), size=16, batch_size=3, epochs=1, rounds=1
    )
    benchmarks.data_path.main(options)
    out = capsys.readouterr().out
    assert "7 photos" in out
    assert [line.split("|")[2].strip() for line in out.splitlines() if line.startswith("| 0")] == [
        "torchvision, files", "ours, files", "ours, shards",
    ]  # fmt: skip
    images = benchmarks.data_path.scan_folder(tmp_path / "photos", benchmarks.data_path.View(16, 16))
    files, shards = benchmarks.data_path.prepared(images, tmp_path / "again", 2.0)
    assert Image.open(next(files.rglob("*.jpg"))).size == (80, 60)
    for read in (
        benchmarks.data_path.ours(benchmarks.data_path._all(files, 16), options, 0),
        benchmarks.data_path.ours(benchmarks.data_path._all(shards, 16), options, 0),
        benchmarks.data_path.torchvisions(files, options, 0),
    ):
        x = torch.cat(list(read))
        assert x.shape == (7, 3, 16, 16) and x.dtype == torch.float32
        assert sorted((x[:, 0].amax((1, 2)) * 255 / 30).round().int().tolist()) == list(range(7))


SPEEDRUN = {"data": "digits", "network": "small-cnn", "images": 48, "validation": 16, "held_out": 16, "epochs": 2}


def test_an_interrupted_ablation_goes_on_where_it_stopped(
    benchmarks: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = benchmarks.speedrun
    options = script.Arguments(
        rows=tmp_path / "rows.jsonl", runs=tmp_path / "runs", seeds=2, arms=("base", "label smoothing"), **SPEEDRUN
    )
    with pytest.raises(Stopped):
        script.main(replace(options, minutes=1e-9))
    script.main(replace(options, seeds=1))
    script.main(options)
    said = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["base, seed 0", "label smoothing, seed 0", "base, seed 1", "label smoothing, seed 1"]
    rows = script.read(options.rows, SPEEDRUN)
    assert len(rows) == 4 and not script.read(options.rows, SPEEDRUN | {"epochs": 3})
    for row in rows.values():
        assert len(row["clean"]) == len(row["worst"]) == 16 and row["passes"] == 5 * 48 * 2
        assert [point["passes"] for point in row["history"]] == [5 * 48, 5 * 48 * 2]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- speedrun -->\nold\n<!-- /speedrun -->\nafter\n")
    script.main(replace(options, report=page))
    text = page.read_text()
    assert text.startswith("before\n<!-- speedrun -->\n| arm |") and text.endswith("<!-- /speedrun -->\nafter\n")
    assert "| base | 2 |" in text and "| label smoothing | 2 |" in text and "old" not in text


def test_runs_with_the_guard_and_without_go_on_where_they_stopped(benchmarks: SimpleNamespace, tmp_path: Path) -> None:
    script = benchmarks.overfitting
    small = {"images": 40, "validation": 20, "held_out": 12, "epochs": 1, "data": "digits", "size": 8}
    options = script.Arguments(
        rows=tmp_path / "rows.jsonl", runs=tmp_path / "runs", seeds=(0,), radii=(51,), network="small-cnn", **small
    )
    with pytest.raises(Stopped):
        script.main(replace(options, minutes=1e-9))
    script.main(options)
    rows = script.read(options.rows, script.settings_of(options))
    assert sorted(rows) == sorted(script.cases(options)) and len(rows) == 4
    for case, row in rows.items():
        assert len(row["clean"]) == len(row["fgsm"]) == len(row["pgd"]) == 12 and len(row["history"]) == 1
        if not row.get("run", True):
            again = script.run(replace(options, runs=tmp_path / "again"), case, script.parts(options), float("inf"))
            assert {**again, "run": False} == row, "a guard that does not act changes nothing"
    assert sum(not row.get("run", True) for row in rows.values()) == 2, "nothing collapses in an epoch"
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- overfitting -->\nold\n<!-- /overfitting -->\n")
    script.main(replace(options, report=page))
    assert "0 of 2 with the guard end collapsed" in page.read_text() and (tmp_path / "page.svg").is_file()


def test_every_class_gets_a_pattern_of_its_own_and_of_the_strength_asked_for(benchmarks: SimpleNamespace) -> None:
    grey = ImageSet(torch.full((20, 3, 8, 8), 100, dtype=torch.uint8), torch.arange(20) % 10, tuple("abcdefghij"))
    added = benchmarks.overfitting.with_patterns(grey, 7).pixels.int() - 100
    assert added.abs().eq(7).all() and added[:10].equal(added[10:])
    assert len({tuple(one.flatten().tolist()) for one in added[:10]}) == 10
    assert benchmarks.overfitting.with_patterns(grey, 0).pixels.equal(grey.pixels)


def test_rows_of_different_settings_make_no_table(benchmarks: SimpleNamespace, tmp_path: Path) -> None:
    script, rows = benchmarks.overfitting, (FOLDER / "overfitting.jsonl").read_text().splitlines()
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*rows, rows[0]]))
    with pytest.raises(UserError, match="two rows of one run"):
        script.read(path)
    path.write_text("\n".join([rows[0].replace('"lr": 0.1', '"lr": 0.2'), *rows[1:]]))
    with pytest.raises(UserError, match="different settings"):
        script.table(script.read(path))


def test_the_cost_of_a_worst_case_is_read_between_epochs(benchmarks: SimpleNamespace) -> None:
    history = [{"passes": 100, "worst": 0.2}, {"passes": 200, "worst": 0.4}, {"passes": 300, "worst": 0.3}]
    cost = benchmarks.speedrun.cost
    assert cost(history, 0.1) == 100 and cost(history, 0.4) == 200 and cost(history, 0.5) is None
    assert cost(history, 0.25) == pytest.approx(125)


def test_every_arm_changes_what_its_name_says_and_nothing_else(benchmarks: SimpleNamespace) -> None:
    script = benchmarks.speedrun
    options = script.Arguments()
    base = script.config_of(options, "base", 0)
    for arm in script.ARMS:
        changed = {change.path.partition(".")[0] for change in differences(base, script.config_of(options, arm, 0))}
        assert changed == (set() if arm == "base" else {"sphere"} if "hypersphere" in arm else {"training"})
    assert script.config_of(options, "base", 2).training.seed == 2


def local_optimality(results: list[dict[str, Any]], norm: str, names: list[str]) -> dict[str, dict[str, float]]:
    """Eq. 4 and 5 of AttackBench's paper for images that are all classified correctly."""
    norms = torch.tensor([one["distances"][norm] for one in results], dtype=torch.float64)
    pool = norms.amin(0)
    farthest = pool.max()
    area = norms.clamp(max=farthest).mean(1)
    scores = (farthest - area) / (farthest - pool.mean())
    return {"optimality_scores": dict(zip(names, scores.tolist(), strict=True))}


def test_optimality_the_page_shows_what_the_rows_say(benchmarks, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = SimpleNamespace(compare_attacks_optimality=local_optimality)
    monkeypatch.setitem(sys.modules, "attackbench.metrics.optimality", metric)
    rows = [json.loads(line) for line in (FOLDER / "optimality.jsonl").read_text().splitlines()]
    head, *lines = benchmarks.optimality.optimalities(rows)
    assert benchmarks.comparison.table(head, lines) in (FOLDER / "README.md").read_text()
    assert len({(row["network"], row["norm"], row["attack"]) for row in rows}) == len(rows)
    assert all(row["forwards"] + row["backwards"] <= 2000 for row in rows)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_optimality_our_attacks_get_the_steps_that_the_budget_buys(benchmarks, norm: str) -> None:
    x, spent = images(1), [0, 0]
    model = linear_net(torch.randn(10, 192, generator=torch.Generator().manual_seed(0)))
    y = model(x).argmax(1)
    model.register_forward_hook(lambda *_: spent.__setitem__(0, spent[0] + 1))
    model.register_full_backward_hook(lambda *_: spent.__setitem__(1, spent[1] + 1))
    for name, attack in benchmarks.optimality.ours(norm, 200).items():
        spent[:] = 0, 0
        attack(model, x, y)
        few = name == "deepfool" or norm == "l0"  # they end when no smaller perturbation is possible
        assert (1 if few else 150) <= sum(spent) <= 210, name
