"""The examples and the README run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from advsphere.cli import COMMANDS, main
from advsphere.cli.arguments import parse
from advsphere.cli.train import Options
from advsphere.data import load
from advsphere.recipes import recipe
from tests.launching import run_ranks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
HOW_TO = [path.relative_to(ROOT) for path in (ROOT / "docs" / "howto").glob("*.md") if path.stem != "network"]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PRINTED = {"attack_your_model": "verified", "add_a_report_metric": "report.html"}
PRINTED |= {"export_to_onnx_runtime": "under Square in ONNX Runtime", "train_with_lightning": "worst case"}
PRINTED |= {"train_with_accelerate": "under PGD-20"}
PRINTED |= {"add_a_table": "minus FastAT+HE", "add_an_objective": "worst case", "add_a_data_set": "worst case"}

AS_A_SCRIPT = """
import os, runpy, sys
script, folder = sys.argv[1:]
os.chdir(folder)
sys.argv, sys.path[0] = [script], os.path.dirname(script)
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    (run,) = run_ranks(1, AS_A_SCRIPT, example, tmp_path, seconds=300)
    assert run.returncode == 0, run.stderr
    assert PRINTED.get(example.stem, "") in run.stdout


@pytest.mark.parametrize(
    ("stem", "flags"),
    [
        ("add_an_objective", ["--objective", "examples.add_an_objective:MART", "--objective.beta", "6"]),
        ("add_a_data_set", ["--data.name", "examples.add_a_data_set:shapes", "--threat.eps", "0.1"]),
    ],
)
def test_the_commands_of_an_example(
    stem: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert " ".join(flags) in (ROOT / "examples" / f"{stem}.py").read_text(), "as its docstring says"
    monkeypatch.syspath_prepend(ROOT)
    command = ["train", "digits-pgd-at", *flags, "--epochs", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    assert main([*command, "--resume"]) == 0
    assert main(["evaluate", str(tmp_path), "--n", "20"]) == 0
    assert main(["verify", str(tmp_path)]) == 0


def test_the_readme_s_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 8, 8, generator=generator)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    with torch.no_grad():
        nn.init.normal_(network[0].weight, generator=generator)
        nn.init.normal_(network[3].weight, generator=generator)
    given: dict[str, Any] = {"my_network": network, "x": images[:4], "y": torch.arange(4), "images": images}
    # Labels that an untrained network gets right, so that there is something to attack.
    with torch.no_grad():
        nn.init.zeros_(network[3].bias)
        features = network[:3](images)
        weight = network[3].weight
        given["labels"] = (nn.functional.normalize(features) @ nn.functional.normalize(weight).T).argmax(1)
    exec(compile(code, "README.md", "exec"), given)
    assert "worst case" in capsys.readouterr().out
    assert given["threat"].contains(given["x_adv"], given["x"]).all()


def commands_in(text: str) -> list[list[str]]:
    """The words of the commands in the code blocks of a page."""
    lines = re.findall(r"^    (advsphere .*)$", text, re.MULTILINE)
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md", *sorted(map(str, HOW_TO))])
def test_the_commands_of_a_page_exist(page: str) -> None:
    commands = commands_in((ROOT / page).read_text())
    assert commands
    for words in commands:
        assert words[1] in COMMANDS
        if words[1] == "train":
            parse(Options, [w for w in words[3:] if w != "--he"], prog="", default=Options(config=recipe(words[2])))


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    monkeypatch.chdir(tmp_path)
    pixels = load("digits").test.stored(torch.tensor([7]))[0]
    Image.fromarray(pixels[0, 0].numpy()).save("PHOTO.png")
    for words in commands_in(text):
        assert main(words[1:]) == 0, words
    assert Path("report.html").stat().st_size > 10_000
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "tutorial.md", "exec"), {})
    assert "worst case" in capsys.readouterr().out


def test_the_python_of_your_own_network_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "howto" / "network.md").read_text().replace("epochs=10", "epochs=1")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    torch.manual_seed(0)
    x, y = torch.rand(24, 3, 8, 8), torch.arange(24) % 3
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    mine = {"network": network, "x": x, "y": y, "images": x, "labels": y, "train_set": (x, y), "test_set": (x, y)}
    mine |= {"loader": [(x, y)], "optimizer": torch.optim.SGD(network.parameters(), 0.01)}
    exec(compile("\n".join(blocks), "network.md", "exec"), mine)
    assert Path("loop/last.safetensors").exists() and Path("runs/mine/config.yaml").exists()
    assert mine["trainer"].cursor.epoch == 1 and len(blocks) == 4


def test_the_readme_names_files_that_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) >= 8
    assert [link for link in links if not (ROOT / link).exists()] == []
