"""`advsphere corruptions`, on a user-defined model and a folder of images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advsphere.cli import main
from advsphere.corruption.result import CorruptionRecord
from tests.corruption.pictures import pictures

MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments that name a model and eight images; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "nets_of_mine.py").write_text(MODEL)
    for number, image in enumerate(pictures(8, 32)):
        place = tmp_path / "photos" / "val" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    return ["--model", "nets_of_mine:build", "--data", "photos", "--image-size", "32"]


def test_generated_saved_and_read_again(mine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corruptions", *mine, "--out", "a"]) == 0
    shown = capsys.readouterr().out
    record = CorruptionRecord.load(tmp_path / "a" / "corruptions.json")
    assert f"mCA {100 * record.mca.value:.2f} %" in shown and "all 15 corruptions" in shown
    assert (tmp_path / "a" / "corruptions.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "a" / "subject.json").read_text())["model"] == "nets_of_mine:build"

    assert main(["corruptions", *mine, "--out", "a", "--verify"]) == 0
    assert "verified" in capsys.readouterr().out

    assert main(["corruptions", *mine, "--save", "C"]) == 0
    assert np.load(tmp_path / "C" / "snow.npy").shape == (40, 32, 32, 3)
    assert main(["corruptions", *mine, "--root", "C", "--out", "b"]) == 0
    again = CorruptionRecord.load(tmp_path / "b" / "corruptions.json")
    assert [c.pixels for c in again.cells] == [c.pixels for c in record.cells]
    assert [c.outcomes for c in again.cells] == [c.outcomes for c in record.cells]

    assert main(["corruptions", *mine, "--out", "a", "--reference", "a"]) == 0
    shown = capsys.readouterr().out
    assert "mCE 100.0 %, relative to a" in shown and "+0.00 points" in shown and "cannot tell" in shown


def test_a_part_of_the_corruptions_is_named(
    mine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["corruptions", *mine, "--save", "C", "--extra"]) == 0
    for path in (tmp_path / "C").glob("*.npy"):
        if path.stem not in ("labels", "fog", "saturate"):
            path.unlink()
    assert main(["corruptions", *mine, "--root", "C", "--extra", "--reference", "alexnet"]) == 0
    shown = capsys.readouterr().out
    assert "over 1 of 15: fog" in shown and "saturate" in shown and "AlexNet" in shown
    assert (tmp_path / "runs" / "own" / "corruptions" / "C-best-extra" / "corruptions.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--root", "nowhere"], "there is no folder nowhere"),
        (["--root", "photos", "--save", "C"], "leave out"),
        (["--frost", "photos"], "no frost1.png in photos"),
        (["--verify"], "there is no file"),
        (["--image-size", "16"], "at least 24 pixels"),
    ],
)
def test_a_mistake_gets_one_line(
    mine: list[str], arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = mine[:-2] if "--image-size" in arguments else mine
    assert main(["corruptions", *options, *arguments]) == 1
    shown = capsys.readouterr().err
    assert said in shown and len(shown.strip().splitlines()) == 1 and "Traceback" not in shown


def test_rows_are_of_runs(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corruptions", *mine, "--n", "2", "--row", "rows.jsonl"]) == 1
    assert "--row is for runs" in capsys.readouterr().err
