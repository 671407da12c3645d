"""The command line: what it does, and that a user's mistake gets one clear line and no traceback."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image

import advsphere
from advsphere.cli import COMMANDS, main
from advsphere.cli.arguments import number, seconds
from advsphere.cli.diagnose import Options as DiagnoseOptions
from advsphere.cli.evaluate import Options as EvaluateOptions
from advsphere.cli.show import Options as ShowOptions
from advsphere.cli.train import Options as TrainOptions
from advsphere.cli.verify import Options as VerifyOptions
from advsphere.evaluation import Effort, Evaluation
from advsphere.reproduce import results
from advsphere.runs.folder import read_config
from advsphere.runs.target import EvaluationTarget
from tests.campaign.machine import NO_MOUNTS, ROOT
from tests.cli.help_texts import outdated

QUICK_TRAIN = ["train", "digits-fastat-he", "--epochs", "2", "--out"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training run, evaluated on 40 images."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main([*QUICK_TRAIN, str(folder)]) == 0
    assert main(["evaluate", str(folder), "--n", "40", "--suite", "paper"]) == 0
    return folder


def evaluation_of(run: Path) -> Path:
    (folder,) = (run / "evaluations").iterdir()
    return folder


def test_a_run_is_trained_evaluated_and_verified(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.yaml", "provenance.json", "last.safetensors", "best.safetensors", "metrics.jsonl"}
    assert {path.name for path in evaluation_of(run).iterdir()} >= {"evaluation.json", "ledger.sqlite", "subject.json"}
    assert main(["verify", str(evaluation_of(run) / "evaluation.json")]) == 0
    assert capsys.readouterr().out.rstrip().endswith("verified")


def test_the_same_evaluation_again_finds_the_ledger_complete(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (evaluation_of(run) / "evaluation.json").read_bytes()
    assert main(["evaluate", str(run), "--n", "40", "--suite", "paper"]) == 0
    assert (evaluation_of(run) / "evaluation.json").read_bytes() == before
    assert "PGD-50 (s = 1)" in capsys.readouterr().out


def test_verify_fails_on_a_changed_number(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = evaluation_of(shutil.copytree(run, tmp_path / "copy")) / "evaluation.json"
    text = json.loads(written.read_text())
    text["worst"]["k"] += 1
    written.write_text(json.dumps(text))
    assert main(["verify", str(written.parent)]) == 1
    assert "NOT verified" in capsys.readouterr().out


def test_results_are_added_once_and_shown(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    page.write_text("before\n<!-- results -->\nan earlier table\n<!-- /results -->\nafter\n")
    for _ in range(2):
        assert main(["results", str(file), str(run), "--data-name", "the digits", "--into", str(page)]) == 0
    (stored,) = results.read(file)
    assert stored.evaluation == Evaluation.load(evaluation_of(run) / "evaluation.json")
    assert stored.run["overrides"] == [{"path": "training.epochs", "old": 20, "new": 2}]
    assert stored.run["data"] == "the digits" and stored.run["trained"]["torch"]
    text = page.read_text()
    assert text.startswith("before") and text.rstrip().endswith("after") and "an earlier table" not in text
    assert "`digits-fastat-he`" in text and "upper bound" in text


def test_of_two_evaluations_by_one_suite_one_has_to_be_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, file = shutil.copytree(run, tmp_path / "copy"), str(tmp_path / "rows.jsonl")
    again = shutil.copytree(evaluation_of(copy), copy / "evaluations" / "other")
    assert main(["results", file, str(copy)]) == 1
    said = capsys.readouterr().err
    assert f"advsphere results {file}" in said and str(again) in said and not Path(file).exists()
    assert main(["results", file, str(again)]) == 0 and len(results.read(Path(file))) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["trian"], 2, "did you mean 'train'"),
        (["train", "digits-pgd"], 1, "digits-pgd-at"),
        (["train", "digits-pgd-at", "--epoch", "3"], 2, "--epochs"),
        (["train", "digits-pgd-at", "--objective.stepsize", "3"], 2, "--objective.step-size"),
        (["train", "digits-pgd-at", "--objective.threat.eps", "8/x"], 2, "--objective.threat.eps"),
        (["train", "digits-pgd-at", "--objective.steps", "0"], 2, "both must be"),
        (["train", "digits-pgd-at", "--epochs", "1.5"], 2, "--epochs: '1.5' is no whole number; `advsphere train"),
        (["train", "digits-pgd-at", "--workers", "two"], 2, "--workers: 'two' does not fit; give a whole number; "),
        (["train", "digits-pgd-at", "--epochs"], 2, "Missing value for argument '--epochs'"),
        (["evaluate", "r", "--certainty", "high"], 2, "'high' does not fit; give a number or one of 'usual', 'paired'"),
        (["evaluate", "r", "--mean", "a", "b"], 2, "--mean: 'a b' does not fit; give several: each a number"),
        (["evaluate", "r", "--norm", "l3"], 2, "--norm: 'l3' does not fit; give one of 'linf', 'l2', 'l1'"),
        (["compare", "a"], 2, "METHOD The folder of a run"),
        (["train", "cifar10-fastat", "--data.root", "nowhere"], 1, "cifar-10-batches-py"),
        (["train", "digits-pgd-at", "--model.name", "resnet17"], 1, "resnet18"),
        (["evaluate", "nowhere"], 1, "config.yaml"),
        (["evaluate", "no[/where]"], 1, "no[/where] holds no run"),
        (["evaluate", "--model", "nowhere:build", "--data", "nowhere"], 1, "nowhere"),
        (["evaluate"], 2, "--suite"),
        (["diagnose", "nowhere"], 1, "config.yaml"),
        (["diagnose"], 2, "--baseline"),
        (["verify", "nowhere"], 1, "advsphere evaluate"),
        (["results", "nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["results", "rows.jsonl", "nowhere", "--check"], 1, "no folder nowhere"),
        (["results", "rows.jsonl", ".", "--pages", "pages"], 1, "without it"),
        (["results", "rows.jsonl", "--into", "nowhere.md"], 1, "nowhere.md"),
    ],
)
def test_a_mistake_gets_one_clear_line(
    arguments: list[str],
    status: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVSPHERE_DATA", raising=False)
    try:
        found = main(arguments)
    except SystemExit as exit_:  # the parser's own way
        found = exit_.code if isinstance(exit_.code, int) else 1
    shown = "".join(capfd.readouterr())
    assert found == status
    assert says in shown and "Traceback" not in shown
    assert len(shown.splitlines()) == 1 or len(arguments) == 1, "a command alone prints its help"


def test_evaluate_refuses_what_does_not_fit(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, says in (
        (["--suite", "quik"], "did you mean 'quick'"),
        (["--eps=-1"], "not negative"),
        (["--eps", "0"], "nothing to attack"),
        (["--suite", "table6", "--norm", "l2"], "does not support l2"),
        (["--suite", "table2", "--head", "network.nothing"], "no linear layer"),
        (["--checkpoint", "best", "--n", "0"], "image"),
    ):
        assert main(["evaluate", str(run), *arguments]) == 1
        shown = "".join(capfd.readouterr())
        assert says in shown and "Traceback" not in shown


def test_another_threat_than_the_trained_one_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", str(run), "--n", "10", "--steps", "2"]
    assert main([*asked, "--norm", "l2", "--eps", "0.5"]) == 0
    said = "trained against linf, eps = 0.2; judged against l2, eps = 0.5"
    assert said in capsys.readouterr().out.replace("\n", " ")
    assert main(asked) == 0 and "judged against" not in capsys.readouterr().out


def test_a_second_run_does_not_overwrite_the_first(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (run / "last.safetensors").read_bytes()
    assert main([*QUICK_TRAIN, str(run)]) == 1
    assert "--resume" in "".join(capfd.readouterr())
    assert main([*QUICK_TRAIN, str(run), "--resume", "--lr", "0.3"]) == 1
    assert "training.lr: 0.1 -> 0.3" in "".join(capfd.readouterr())
    assert (run / "last.safetensors").read_bytes() == before


def test_a_pair_of_runs_is_diagnosed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain"
    assert main(["train", "digits-fastat", "--epochs", "1", "--diagnose", "--out", str(plain)]) == 0
    capsys.readouterr()
    assert main(["diagnose", str(run), "--baseline", str(plain), "--n", "30"]) == 0
    shown = capsys.readouterr().out
    written = json.loads((run / "diagnosis" / "diagnosis.json").read_text())
    for number_, claim in enumerate(written["claims"], 1):
        assert f"{number_}. {claim['statement']}: {claim['answer'].upper()}" in shown
    assert "the hypersphere (s = 15, m = 0.2, FN, WN; only the run has it)" in shown
    assert "training.epochs: 1 -> 2" in shown
    assert [list(network["gradients"]) for network in written["networks"]] == [
        ["initial", "last", "as judged, m = 0", "as judged"],
        ["initial", "last", "as judged"],
    ]
    ratios = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    assert any(name.startswith("gradient_ratio/") for name in ratios[0])
    names = {path.name for path in (run / "diagnosis").iterdir()}
    assert {"claim-1-effective.png", "claim-4-margin.png", "pictures-baseline.png"} < names
    assert main(["diagnose", str(run), "--baseline", str(run), "--n", "10"]) == 1, "a run is no baseline of itself"


def test_an_interrupted_run_goes_on_with_resume(tmp_path: Path) -> None:
    arguments = ["train", "digits-pgd-at", "--epochs", "3", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "advsphere", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "last.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume" in shown and "Traceback" not in shown, shown
    assert main([*arguments, "--resume"]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_model_that_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    (tmp_path / "greys.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))\n"
    )
    for label, grey in enumerate((60, 200)):
        folder = tmp_path / "photos" / "val" / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (grey + i,) * 3).save(folder / f"{i}.png")
    weights = {
        "1.weight": torch.stack([-torch.ones(192), torch.ones(192)]),
        "1.bias": torch.tensor([192.0, -192.0]) / 2,
    }
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    own = ["--model", "greys:build", "--weights", "net.pt", "--data", "photos", "--image-size", "8", "--out", "found"]
    assert main(["evaluate", *own, "--eps", "40/255"]) == 0
    evaluation = json.loads(Path("found/evaluation.json").read_text())
    # The grey levels are 60..65 and 200..205, the boundary is 127.5: 40/255 reaches none.
    assert evaluation["worst"]["k"] == 12 and evaluation["clean"]["k"] == 12
    assert main(["verify", "found"]) == 0
    assert main(["evaluate", *own[:-1], "more", "--eps", "65/255"]) == 0
    # 65 reaches those at 63, 64 and 65 from below (127.5 - 62.5) and none from above.
    assert json.loads(Path("more/evaluation.json").read_text())["worst"]["k"] == 9
    capsys.readouterr()


THEIRS = """
import torch
from torch import nn

def images():
    return torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
"""


def test_weights_that_hold_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "net.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "of_a_stranger.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    assert (
        main(["evaluate", "--model", "of_a_stranger:build", "--weights", "net.pt", "--data", "of_a_stranger:images"])
        == 1
    )
    assert "net.pt" in "".join(capfd.readouterr())
    assert not (tmp_path / "owned").exists()


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        assert f"advsphere {name}" in capsys.readouterr().out
    assert not (names := [*outdated()]), f"write the help of {names} again: python -m tests.cli.help_texts --write"


def test_epochs_between_validations_have_no_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--epochs", "2", "--batch-size", "600", "--data.validation", "20", "--validate-every", "2"]
    assert main(["train", "digits-standard", "--out", str(tmp_path / "run"), *flags]) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch "))
    assert "validation" not in first and "validation: clean" in second
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 1, "not evaluated yet"


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_a_help_text_does_not_wait_for_torch(words: list[str]) -> None:
    show = f"import sys; from advsphere.cli import main; main({words}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", show], capture_output=True, check=False).returncode == 0


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"advsphere {version('advsphere')}\n"
    assert advsphere.__version__ == version("advsphere")
    assert set(dir(advsphere)) >= {*advsphere.__all__} and advsphere.train and advsphere.load_run


@pytest.mark.parametrize(
    ("flags", "trained", "judged", "told"),
    [
        ([], ("linf", 0.2), ("linf", 0.2), False),
        (["--threat.norm", "l2", "--threat.eps=0.5"], ("l2", 0.5), ("l2", 0.5), False),
        (["--objective.threat.eps", "0.1"], ("linf", 0.1), ("linf", 0.2), True),
        (["--threat.eps", "0.3", "--objective.threat.eps", "0.1"], ("linf", 0.1), ("linf", 0.3), True),
    ],
)
def test_a_flag_for_the_threat_model_is_for_training_too(
    flags: list[str],
    trained: tuple[str, float],
    judged: tuple[str, float],
    told: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ["--data.validation", "1200", "--epochs", "1", "--objective.steps", "1"]
    assert main(["train", "digits-pgd-at", *flags, *few, "--out", str(tmp_path)]) == 0
    config = read_config(tmp_path)
    assert (config.objective.threat.norm, config.objective.threat.eps) == trained
    assert (config.threat.norm, config.threat.eps) == judged
    assert ("trained against linf, eps = 0.1; validated" in capsys.readouterr().out) == told


def test_the_flags_are_these() -> None:
    """A flag is a promise: one more, or one less, is to be decided here."""

    def names(kind: type) -> set[str]:
        return {field.name for field in dataclasses.fields(kind)}

    assert names(TrainOptions) == {"config", "out", "resume", "he", "diagnose", "log_to"}
    assert names(DiagnoseOptions) == {"subject", "baseline", "norm", "eps", "head", "seed", "batch_size", "out"}
    assert names(EvaluateOptions) == {
        "subject", "suite", "effort", "budget", "certainty", "norm", "eps", "seed", "batch_size", "precision",
        "head", "out",
    }  # fmt: skip
    assert names(Effort) == {"restarts", "steps", "guides", "cascade"}
    assert names(EvaluationTarget) == {
        "run",
        "checkpoint",
        "model",
        "weights",
        "data",
        "image_size",
        "mean",
        "std",
        "num_classes",
        "scale",
        "n",
    }
    assert names(VerifyOptions) == {"folder", "share", "seed"}
    assert names(ShowOptions) == {"folder", "example", "replay", "out"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90s", 90.0),
        ("90sec", 90.0),
        ("10m", 600.0),
        ("10min", 600.0),
        ("1.5h", 5400.0),
        ("45", 45.0),
        ("1h30m", 5400.0),
    ],
)
def test_times_are_read_as_people_write_them(text: str, value: float) -> None:
    assert seconds(text) == value
    for wrong in ("", "0", "0s", "-1m", "10 minutes", "10mm", "m", "1h30", "5d", "inf", "nan", "1/0"):
        with pytest.raises(ValueError, match="is not a positive time; write 90s, 10m or 1h30m"):
            seconds(wrong)


ON_A_READ_ONLY_MOUNT = """
import sys
from advsphere.cli import main
from tests.campaign.machine import mount_read_only
mount_read_only(sys.argv[1])
for line in sys.argv[2:]:
    print("==", main(line.split()), flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts of Linux")
def test_on_a_read_only_mount_commands_work_or_say_why_in_one_line(run: Path) -> None:
    begun = f"evaluate {run} --suite paper --n 40"
    writing = {f"train digits-fastat-he --epochs 2 --resume --out {run}", begun, f"{begun} --seed 1", f"report {run}"}
    writing |= {f"export {run} --to torch-export", f"reproduce table3 --budget smoke --runs {run}/runs"}
    Image.new("L", (8, 8), 99).save(run / "photo.png")
    reading = {f"verify {run}", f"predict {run} {run}/photo.png"}
    lines = sorted(writing) + sorted(reading)
    words = [sys.executable, "-c", ON_A_READ_ONLY_MOUNT, str(run), *lines]
    place = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(words, env=place, cwd=run, capture_output=True, text=True, check=False)
    if NO_MOUNTS in done.stderr:
        pytest.skip(NO_MOUNTS)
    statuses = [int(line.removeprefix("== ")) for line in done.stdout.splitlines() if line.startswith("== ")]
    assert statuses == [1] * len(writing) + [0] * len(reading), done.stdout + done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(writing) and all("Read-only file system" in line for line in said), done.stderr


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.5", 0.5), ("1e-3", 1e-3), ("2", 2.0)])
def test_radii_are_read_as_people_write_them(text: str, value: float) -> None:
    assert number(text) == pytest.approx(value, rel=1e-15)
    for wrong in ("8/0", "1" + "0" * 400 + "/3", "eight", ""):
        with pytest.raises(ValueError):
            number(wrong)


def test_the_device_is_named_anywhere_on_the_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADVSPHERE_DEVICE", "cpu")  # so that it is restored after this test
    for words in (["--device", "cuda:99", "evaluate", str(run)], ["verify", str(run), "--device=cuda:99"]):
        assert main(words) == 1
        assert "the device cuda:99 can't be used here; choose one of cpu" in capfd.readouterr().err
    assert main(["verify", str(run), "--device", "cpu"]) == 0


def test_sphere_settings_without_the_sphere_name_the_cure(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits-fastat", "--sphere.scale", "9"]) == 1
    assert "--sphere.scale is about hypersphere embedding: add --he to this recipe" in capfd.readouterr().err
