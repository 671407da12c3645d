"""`advsphere report`, from two short runs to a page; what it chooses, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from advsphere.analysis.curves import Curve
from advsphere.cli import main
from advsphere.comparison.find import Finished, common
from advsphere.corruption.result import RECORD
from advsphere.data import load_test
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation
from advsphere.report.collect import ModelReport, model_name, unique_names
from advsphere.report.sections import SECTIONS, section
from advsphere.runs.target import EvaluationTarget
from tests.evaluation.cases import change
from tests.report import made
from tests.report.parsed import parse, texts

QUICK = ["--suite", "quick", "--steps", "2", "--n", "60"]


@pytest.fixture(scope="module")
def runs(runs: list[Path]) -> list[Path]:
    """Evaluated."""
    for run in runs:
        assert main(["evaluate", str(run), *QUICK]) == 0
    assert main(["evaluate", str(runs[1]), "--suite", "paper", "--steps", "2", "--n", "60"]) == 0
    return runs


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> Path:
    assert main(["report", *map(str, runs)]) == 0
    return runs[1] / "report.html"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Finds the examples as a user's modules; the sections that they register are removed again."""
    before = dict(SECTIONS)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    yield
    sys.modules.pop("add_a_report_metric", None)
    SECTIONS.clear()
    SECTIONS.update(before)


def evaluations(run: Path, suite: str = "quick") -> Path:
    (found,) = run.glob(f"evaluations/{suite}-*")
    return found


def test_the_page_has_everything_that_two_runs_can_tell(page: Path, runs: list[Path]) -> None:
    tree = parse(page.read_text())
    ids = [section.attributes["id"] for section in tree.all("section")]
    assert ids == [
        *("accuracy", "flags", "curves", "classes", "agreement", "angles", "pictures", "counts", "training"),
        *("attacks", "checks", "provenance", "reproduce"),
    ]
    header = tree.all("header")[0].text
    assert "digits, 60 images" in header and "these two checkpoints" in header
    evaluation = Evaluation.load(evaluations(runs[0]) / "evaluation.json")
    assert f"{100 * evaluation.worst.accuracy:.1f}" in tree.one("accuracy").text
    record = json.loads(page.with_suffix(".json").read_text())
    assert [row["name"] for row in record["rows"]] == ["FastAT", "FastAT+HE"]
    assert [row["architecture"] for row in record["rows"]] == ["small-cnn"] * 2


def test_the_commands_do_what_they_say(page: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    lines = [node.text for node in parse(page.read_text()).one("reproduce").all("code")]
    assert [line.split()[1] for line in lines] == [
        *("train", "evaluate", "verify") * 2,
        *("compare", "diagnose", "report"),
    ]
    assert lines[0] == shlex.join(["advsphere", "train", "digits-fastat", "--out", str(runs[0]), "--epochs", "3"])
    before = (evaluations(runs[0]) / "evaluation.json").read_bytes()
    for line in (lines[1], lines[2]):
        assert main(shlex.split(line)[1:]) == 0
    assert (evaluations(runs[0]) / "evaluation.json").read_bytes() == before
    assert "verified" in capsys.readouterr().out


def test_what_was_computed_is_kept_and_makes_the_same_page(
    page: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = page.read_bytes()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("advsphere.report.collect.accuracy_against_eps", never)
    monkeypatch.setattr("advsphere.report.collect.spread_of_angles", never)
    assert main(["report", *map(str, runs)]) == 0
    assert page.read_bytes() == before
    shown = capsys.readouterr().out
    assert str(page) in shown.replace("\n", "") and "upper bound" in shown


def test_curve_and_angles_of_a_sample_or_of_all(
    page: Path, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advsphere.cli.report.SAMPLE", 20)
    assert main(["report", str(runs[0]), "--out", str(tmp_path / "some.html")]) == 0
    assert (tmp_path / "some.html").read_text().count("20 images, drawn from all 60") == 2
    kept = {path.name for path in evaluations(runs[0]).glob("*-20.json")}
    assert kept == {"curve-20.json", "angles-20.json"}
    assert main(["report", str(runs[0]), "--whole", "--out", str(tmp_path / "all.html")]) == 0
    assert "drawn from" not in (tmp_path / "all.html").read_text()


def test_the_largest_complete_record_of_this_checkpoint_is_shown(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "plain"
    shutil.copytree(runs[0], run)
    model = Evaluation.load(evaluations(run) / "evaluation.json").identity["model"]
    small, large = made.corruption(names=("fog",)), made.corruption()
    own = {"small": small, "large": large, "incomplete": replace(large, cells=large.cells[:-1])}
    for name, record in own.items():
        replace(record, identity=record.identity | {"model": model}).save(run / "corruptions" / name / RECORD)
    made.corruption(20, names=("fog", "frost", "contrast", "snow")).save(run / "corruptions" / "another" / RECORD)
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    shown = parse((tmp_path / "page.html").read_text()).one("corruptions")
    assert "2 of 15 corruptions (fog, contrast)" in shown.text
    (drawn,) = shown.all("img")
    assert "spatter" in texts(drawn)


def test_curves_of_another_model_are_not_believed(page: Path, runs: list[Path], tmp_path: Path) -> None:
    kept = evaluations(runs[0]) / "curve-60.json"
    right = kept.read_bytes()
    kept.write_bytes((evaluations(runs[1]) / "curve-60.json").read_bytes())
    assert main(["report", str(runs[0]), "--out", str(tmp_path / "one.html")]) == 0
    assert kept.read_bytes() == right and Curve.load(kept)
    # Its attacks take two steps, which is too few to find planted examples.
    assert parse((tmp_path / "one.html").read_text()).all("h1")[0].text == (
        "There is no verdict on the robust accuracy of FastAT."
    )


def test_an_evaluation_s_folder_will_do_as_well(page: Path, runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["report", *(str(evaluations(run)) for run in runs), "--data-name", "scans", "--out", str(out)]) == 0
    assert "scans, 60 images" in out.read_text()


def test_the_strongest_in_common_is_chosen(runs: list[Path]) -> None:
    found, notes = common(runs, None)
    assert [one.evaluation.identity["suite"]["name"] for one in found] == ["quick", "quick"] and not notes
    (alone,), _ = common(runs[1:], None)
    assert alone.evaluation.identity["suite"]["name"] == "paper"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (lambda runs: ["report", str(runs[0]), "--suite", "autoattack"], "--suite autoattack` makes one"),
        (lambda runs: ["report", str(runs[0].parent)], "holds no finished evaluation"),
        (lambda runs: ["report", "nowhere"], "there is no folder nowhere"),
        (lambda runs: ["report", str(runs[0]), str(evaluations(runs[1], "paper"))], "no evaluation in common"),
    ],
)
def test_a_mistake_gets_one_line_with_the_cure(
    asked: Callable[[list[Path]], list[str]], says: str, runs: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(runs)) == 1
    shown = "".join(capfd.readouterr())
    assert says in shown and "Traceback" not in shown


def test_a_user_s_section_is_one_file(page: Path, runs: list[Path], tmp_path: Path, own: None) -> None:
    """examples/add_a_report_metric.py, named on the command line; its numbers are computed here by another way."""
    out = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--section", "add_a_report_metric:calibration", "--out", str(out)]) == 0
    tree = parse(out.read_text())
    ids = [section.attributes["id"] for section in tree.all("section")]
    assert ids[ids.index("classes") + 1] == "calibration"
    model, images = EvaluationTarget(run=runs[0], n=60).load()
    x, y = images.batch(torch.arange(60))
    with torch.no_grad():
        probabilities = model(x).softmax(1)
    gaps: dict[int, float] = {}
    for p, label in zip(probabilities.tolist(), y.tolist(), strict=True):
        number = min(9, int(10 * max(p)))
        gaps[number] = gaps.get(number, 0.0) + (p.index(max(p)) == label) - max(p)
    row = tree.one("calibration").all("tbody")[0].all("tr")[0]
    assert row.all("td")[0].text == f"{100 * sum(map(abs, gaps.values())) / 60:.1f}"
    assert "--section add_a_report_metric:calibration" in tree.one("reproduce").text


@pytest.mark.parametrize(
    ("name", "says"),
    [("add_a_report_metric:error", "not a section"), ("nowhere:a", "nowhere"), ("add_a_report_metric:b", "has no")],
)
def test_a_section_that_is_none_gets_one_line(
    name: str, says: str, runs: list[Path], own: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(runs[0]), "--section", name]) == 1
    shown = " ".join("".join(capfd.readouterr()).split())
    assert says in shown and "Traceback" not in shown


def test_a_section_does_not_replace_another(own: None) -> None:
    def accuracy(models: Sequence[ModelReport]) -> None:
        """Named as one of ours."""

    with pytest.raises(UserError, match="rename"):
        section("Accuracy")(accuracy)


def test_a_user_s_model_has_the_name_that_it_was_given_by() -> None:
    def named(**target: Path) -> str:
        return model_name(Finished(Path(), made.evaluation(), EvaluationTarget(model="mine.nets:build", **target)))

    assert named() == "mine.nets"
    assert named(weights=Path("weights/robust-net.safetensors")) == "robust-net"


def test_models_of_one_name_are_told_apart() -> None:
    a, b = Path("runs/a"), Path("runs/b")
    assert unique_names(["PGD-AT", "TRADES"], [a, a]) == ["PGD-AT", "TRADES"]
    assert unique_names(["PGD-AT", "TRADES", "PGD-AT"], [a, a, b]) == ["PGD-AT (a)", "TRADES", "PGD-AT (b)"]
    assert unique_names(["PGD-AT", "PGD-AT"], [a, a]) == ["PGD-AT (1)", "PGD-AT (2)"]


def test_an_older_format_is_passed_over_with_a_note(runs: list[Path], tmp_path: Path) -> None:
    old = tmp_path / "evaluations" / "quick-old"
    old.mkdir(parents=True)
    (old / "evaluation.json").write_text('{"format": "advsphere evaluation 1"}')
    with pytest.raises(UserError, match="left out"):
        common([tmp_path], None)


def test_an_outdated_evaluation_is_a_line_of_the_page(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs[1], tmp_path / "run")
    (strongest,), _ = common([run], None)
    change(strongest.folder / "ledger.sqlite", "UPDATE meta SET value = ? WHERE key = 'format'", '"advsphere ledger 1"')
    assert main(["report", str(run)]) == 0
    shown = "".join(capsys.readouterr().out.split())
    for text in (shown, "".join(parse((run / "report.html").read_text()).all("header")[0].text.split())):
        assert f"Leftout:{strongest.folder / 'ledger.sqlite'}isnoledgerofthisversion" in text
    assert main(["report", str(run), "--suite", strongest.evaluation.identity["suite"]["name"]]) == 1
    assert "holds no finished evaluation of suite" in capsys.readouterr().err


def test_the_labels_have_to_be_those_of_the_ledger(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    others = load_test("digits").split(100, seed=0)[0]
    monkeypatch.setattr("advsphere.runs.build.load_test", lambda *_, **__: others)
    assert main(["report", str(runs[0]), "--out", str(runs[0] / "never.html")]) == 1
    assert not (runs[0] / "never.html").exists()
