"""`pip install advsphere` brings few packages. What they suffice for works, and the rest asks for an extra in one line.

The packages that the core does not require are hidden from the import system, as if they were not installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

MOST = 10
"""The most packages beyond torch's own."""

HIDE = """
import json, sys
hidden = set(json.loads(sys.argv[1]))

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
"""

CORE = """
import torch
from torch import nn
import advsphere as adv
import advsphere.data
from advsphere.attacks import cw, deepfool, fab, mim, rays, square
from advsphere.evaluation import Ledger
from advsphere.objectives import FastAT
import advsphere.comparison.gain, advsphere.models, advsphere.stats

torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
adv.attach_head(net, scale=5.0)
x = torch.rand(12, 3, 4, 4)
y = net(x).argmax(1)
threat = adv.ThreatModel(norm="linf", eps=0.1)
assert threat.contains(adv.pgd(net.eval(), x, y, threat=threat, steps=3, step_size=0.05), x).all()
result = adv.evaluate(net, x, y, threat=threat, ledger="ledger.sqlite")
result.save("evaluation.json")
assert adv.verify("evaluation.json", "ledger.sqlite", net, x, y).passed
print(result.table())
assert len(result.records()) == 12 * len(result.attacks)
try:
    result.to_pandas()
except adv.UserError as error:
    assert "pip install 'advsphere[pandas]'" in str(error)
else:
    raise AssertionError("pandas is not hidden")
"""

MISSING = {
    "import advsphere.training": "train",
    "import advsphere.report": "report",
    "import advsphere.corruption": "report",
    "import advsphere as adv; adv.train": "train",
    "import advsphere as adv; adv.load": "hub",
    "from advsphere.data import load; load('digits')": "data",
    "from advsphere.models import build; build('vit', num_classes=2, image_size=8, mean=[0] * 3, std=[1] * 3)": "train",
}


def requirements(names: Iterable[str]) -> set[str]:
    """These distributions and all that they require, by their normalised names."""
    found, ahead = set[str](), [*names]
    while ahead:
        name = re.sub(r"[-_.]+", "-", ahead.pop()).lower()
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another system
            continue
        found.add(name)
        ahead += [re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line]
    return found


def core() -> set[str]:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    return requirements(re.split(r"[^\w.-]", line)[0] for line in project["dependencies"])


@pytest.fixture(scope="module")
def hidden() -> str:
    """The importable names of all installed packages outside the core, as JSON."""
    allowed = core() | {"advsphere"}
    providers = importlib.metadata.packages_distributions()
    names = [n for n, by in providers.items() if not {re.sub(r"[-_.]+", "-", b).lower() for b in by} & allowed]
    assert {"tyro", "timm", "matplotlib"} <= {*names}
    return json.dumps(names)


def run(code: str, hidden: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDE + code, hidden], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_core_has_few_packages() -> None:
    beyond = core() - requirements(["torch"])
    assert len(beyond) <= MOST, sorted(beyond)


def test_the_core_attacks_and_evaluates_without_the_rest(hidden: str, tmp_path: Path) -> None:
    done = run(CORE, hidden, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "worst case" in done.stdout


def test_what_needs_more_asks_for_it_in_one_line(hidden: str, tmp_path: Path) -> None:
    tries = "".join(
        f"""
try:
    exec({code!r})
except ImportError as error:
    print(error)
else:
    print("nothing is missing")
"""
        for code in MISSING
    )
    done = run(tries, hidden, tmp_path)
    assert done.returncode == 0, done.stderr
    for line, extra in zip(done.stdout.splitlines(), MISSING.values(), strict=True):
        assert re.fullmatch(rf"\w+ is not installed: pip install 'advsphere\[{extra}\]'", line)


def test_so_does_the_command_line(hidden: str, tmp_path: Path) -> None:
    done = run("from advsphere.cli import main; sys.exit(main(['evaluate', 'runs/a']))", hidden, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: tyro is not installed: pip install 'advsphere[train]'\n"
