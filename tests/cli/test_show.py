"""`advsphere show`: what it prints, where the picture lies, and that the line it prints attacks the example again."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from advsphere.cli import main
from advsphere.evaluation import CLEAN, Ledger
from advsphere.files import packed
from advsphere.training import checkpoint
from tests.evaluation.cases import change

EVALUATE = ["evaluate", "--n", "40", "--eps", "0.15"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training run with two evaluations: attacks on all examples, and attacks in turn."""
    folder = tmp_path_factory.mktemp("show") / "a run"
    assert main(["train", "digits-fastat-he", "--epochs", "2", "--out", str(folder)]) == 0
    assert main([*EVALUATE, str(folder)]) == 0
    assert main([*EVALUATE, str(folder), "--suite", "paper", "--budget", "10m", "--n", "30"]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to break; the run itself is found where it was."""
    shutil.copytree(trained, tmp_path / "a run")
    return tmp_path / "a run"


def evaluation(run: Path, suite: str = "quick") -> Path:
    (folder,) = run.glob(f"evaluations/{suite}-*")
    return folder


def show(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    capfd.readouterr()
    status = main(["show", *map(str, arguments)])
    shown = "".join(capfd.readouterr())
    assert "Traceback" not in shown
    return status, shown


def examples(folder: Path, attack: str, status: str) -> list[int]:
    with Ledger.read(folder / "ledger.sqlite") as book:
        return [cell.example for cell in book.cells(attack) if cell.status == status]


def line(shown: str, start: str) -> str:
    (found,) = [text.split(start, 1)[1] for text in shown.splitlines() if text.startswith(start)]
    return found.split(": ", 1)[-1]


@pytest.mark.parametrize("suite", ["quick", "paper"])
@pytest.mark.parametrize("status", ["fooled", "resisted"])
def test_the_printed_line_comes_to_the_recorded_outcome(
    run: Path, suite: str, status: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = evaluation(run, suite)
    with Ledger.read(folder / "ledger.sqlite") as book:
        robust = [i for i, mark in enumerate(book.outcomes()) if mark == "1"]
        attack = next(iter(book.attacks))
    example = robust[0] if status == "resisted" else examples(folder, attack, "fooled")[0]
    code, shown = show(capfd, folder, example)
    assert code == 0 and f"example {example}: " in shown
    command = line(shown, "attack it again")
    assert shlex.split(command)[:3] == ["advsphere", "show", str(folder)]
    code, again = show(capfd, *shlex.split(command)[2:])
    assert code == 0 and "\nthe same outcome\n" in again
    recorded, now = (line(again, f"  {when}") for when in ("recorded:", "now:"))
    assert recorded.strip() == now.strip() and status in recorded + again
    assert Path(line(again, "picture")).is_file()


def test_the_picture_has_a_row_for_each_attack_that_fooled(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(run)
    rows = {}
    for example in range(40):
        with Ledger.read(folder / "ledger.sqlite") as book:
            rows[example] = sum(book.adversarial(name, example) is not None for name in book.attacks)
    several, none = max(rows, key=lambda i: rows[i]), next(i for i in rows if not rows[i])
    assert rows[several] >= 3
    sizes = {}
    for example in (several, none):
        _, shown = show(capfd, folder, example)
        path = Path(line(shown, "picture"))
        assert path == folder / f"example-{example}.png"
        with Image.open(path) as picture:
            sizes[example] = picture.size
    width, height = sizes[several]
    assert width > sizes[none][0] * 2 and height > sizes[none][1] * (rows[several] - 1)
    before = path.read_bytes()
    show(capfd, folder, none, "--out", run / "else where.png")
    assert (run / "else where.png").read_bytes() == before


def test_a_misclassified_image_has_no_attack_to_replay(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(run)
    wrong = examples(folder, CLEAN, "fooled")[0]
    code, shown = show(capfd, folder, wrong)
    assert code == 0 and "misclassified without an attack" in shown and "--replay" not in shown
    code, shown = show(capfd, folder, wrong, "--replay", "PGD-20")
    assert code == 1 and "there is nothing to replay" in shown


def test_a_changed_outcome_is_found_out(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(run)
    fooled = examples(folder, "FGSM", "fooled")[0]
    label = "(SELECT label FROM examples WHERE examples.example = cells.example)"
    change(
        folder / "ledger.sqlite",
        f"UPDATE cells SET status = 'resisted', x_adv = NULL, prediction = {label} "
        "WHERE attack = 'FGSM' AND example = ?",
        fooled,
    )
    code, shown = show(capfd, folder, fooled, "--replay", "FGSM")
    assert code == 1 and "a DIFFERENT outcome" in shown


def test_a_run_shows_the_example_in_all_its_evaluations(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    both = [str(evaluation(run, suite)) for suite in ("paper", "quick")]
    code, shown = show(capfd, run, 3)
    assert code == 0 and [text for text in shown.splitlines() if text in both] == both
    assert shown.count("example 3: ") == 2 and "margin PGD-50" in shown and "margin PGD-100" in shown
    code, shown = show(capfd, run, 35)  # the other one has 30
    assert code == 0 and shown.count("example 35: ") == 1 and "margin PGD-100" in shown
    attack = "margin PGD-100"
    with Ledger.read(evaluation(run) / "ledger.sqlite") as book:
        tried = next(c.example for c in book.cells(attack) if c.status != "not_run")
    code, shown = show(capfd, run, tried, "--replay", attack)  # only one of them has this attack
    assert code == 0 and "the same outcome" in shown
    code, shown = show(capfd, run, tried, "--out", run / "one.png")
    assert code == 1 and all(folder in shown for folder in both) and not (run / "one.png").exists()


def test_without_an_example_a_few_are_named_and_can_be_copied(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, shown = show(capfd, run)
    assert code == 0 and "closest to the boundary" in shown
    named = [text.strip() for text in shown.splitlines() if text.strip().startswith("advsphere show")]
    assert len(named) >= 3
    code, shown = show(capfd, *shlex.split(named[0].split("   ")[0])[2:])
    assert code == 0 and "picture: " in shown


def test_an_evaluation_that_is_not_finished_can_be_shown_too(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(run)
    (folder / "evaluation.json").unlink()
    change(folder / "ledger.sqlite", "DELETE FROM cells WHERE attack = 'PGD-100' AND example >= 20")
    with Ledger.read(folder / "ledger.sqlite") as book:
        example = next(i for i, mark in enumerate(book.outcomes()) if mark == "1" and i >= 20)
    code, shown = show(capfd, folder, example)
    assert code == 0 and "not reached" in shown and "no attack fooled it so far" in shown
    code, shown = show(capfd, folder, example, "--replay", "PGD-100")
    assert code == 0 and "no recorded outcome to compare with" in shown
    assert main(["verify", str(folder)]) == 1
    assert "is finished; run the same" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["quick", "40"], "the evaluation has 40, numbered from 0"),
        (["quick", "-1"], "there is no example -1"),
        (["run", "40"], "numbered from 0"),
        (["quick", "0", "--replay", "PGD20"], "did you mean 'PGD-20'"),
        (["run", "0", "--replay", "PGD20"], "did you mean 'PGD-20'"),
        (["run", "0", "--replay", "clean"], "no attack of this evaluation is called 'clean'"),
        (["quick", "--replay", "PGD-20"], "give its number after the folder"),
        (["nowhere", "0"], "holds no evaluation"),
    ],
)
def test_a_mistake_gets_one_clear_line(
    arguments: list[str], says: str, trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"quick": evaluation(trained), "run": trained}
    code, shown = show(capfd, places.get(arguments[0], arguments[0]), *arguments[1:])
    assert code == 1 and says in shown and len(shown.splitlines()) == 1


def test_a_photo_is_found_by_its_file_and_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    photos = photo_folder(tmp_path / "photos")
    target = ["--model", "tests.evaluation.cases:tiny", "--data", str(photos), "--image-size", "6"]
    assert main(["evaluate", *target, "--eps", "0.001", "--out", str(tmp_path / "found"), "--suite", "quick"]) == 0
    with Ledger.read(tmp_path / "found" / "ledger.sqlite") as book:
        assert book.files == ["bright/x.png", "bright/y.png", "dark/x.png", "dark/z.png"]
    for name in ("dark/x.png", photos / "val" / "dark" / "x.png", 2):
        code, shown = show(capfd, tmp_path / "found", name)
        assert code == 0 and shown.startswith("example 2 (dark/x.png): dark, ")
    assert show(capfd, tmp_path / "found", "z.png")[1].startswith("example 3 (dark/z.png): dark")
    for name, says in {
        "x.png": "2 images are called x.png: bright/x.png, dark/x.png; name one",
        "dark/y.png": "did you mean",
        "zzz": "the first one is bright/x.png",
    }.items():
        code, shown = show(capfd, tmp_path / "found", name)
        assert code == 1 and says in shown and len(shown.splitlines()) == 1
    assert ".png, " in show(capfd, tmp_path / "found")[1]


def photo_folder(folder: Path) -> Path:
    """Photos of two classes, of which the model of `tiny` classifies some rightly."""
    random = torch.Generator().manual_seed(0)
    for name in ("bright/x", "bright/y", "dark/x", "dark/z"):
        path = folder / "val" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(256, (6, 6, 3), generator=random, dtype=torch.uint8).numpy()).save(path)
    return folder


def test_images_without_files_have_numbers_only(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, shown = show(capfd, evaluation(trained), "cat")
    assert code == 1 and "have no file names; give a number instead of 'cat'" in shown and len(shown.splitlines()) == 1


def test_what_is_damaged_is_said_in_one_line(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(run)
    path, whole = folder / "ledger.sqlite", (folder / "ledger.sqlite").read_bytes()
    fooled = examples(folder, "FGSM", "fooled")[0]
    for blob, says in ((packed(torch.zeros(3)), "is damaged"), (None, "has lost the result of FGSM")):
        change(path, "UPDATE cells SET x_adv = ? WHERE attack = 'FGSM' AND example = ?", blob, fooled)
        code, shown = show(capfd, folder, fooled)
        assert code == 1 and says in shown.splitlines()[-1]
    for content in (whole[: len(whole) // 2], b"no ledger at all", b""):
        path.write_bytes(content)
        code, shown = show(capfd, folder, 0)
        assert code == 1 and str(path) in shown and len(shown.splitlines()) == 1
    path.write_bytes(whole)
    (folder / "subject.json").unlink()
    code, shown = show(capfd, folder, 0)
    assert code == 1 and "subject.json" in shown and len(shown.splitlines()) == 1


def test_after_more_training_an_evaluation_is_one_of_another_network(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors, values = checkpoint.load(run / "best.safetensors")
    other = {name: 2 * t if t.is_floating_point() else t for name, t in tensors.items()}
    checkpoint.save(run / "best.safetensors", other, values)
    folder = evaluation(run)
    code, shown = show(capfd, folder)
    assert code == 0 and f"! the network has changed since the evaluation in {folder}" in shown
    for command in (["evaluate", run, "--n", "40", "--eps", "0.15"], ["report", folder], ["verify", folder]):
        assert main(list(map(str, command))) == 1
        said = "".join(capfd.readouterr())
        assert "more training" in said and "Traceback" not in said


def test_other_images_are_refused(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(run)
    change(folder / "ledger.sqlite", "UPDATE examples SET label = 9 - label WHERE example = 0")
    code, shown = show(capfd, folder, 0)
    assert code == 1 and "have changed since the evaluation" in shown and len(shown.splitlines()) == 1
