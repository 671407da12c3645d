"""`pip install advsphere` brings few packages. What they suffice for works, and the rest asks for an extra in one line.

The wheel is built from the sdist. The packages that it does not require are hidden from the import system, as if they
were not installed. A slow test installs the wheel into empty environments, with the oldest and the newest torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return requirements(re.split(r"[^\w.-]", line)[0] for line in project["dependencies"])


@pytest.fixture(scope="module")
def hidden() -> str:
    """The importable names of all installed packages outside the core, as JSON."""
    allowed = core() | {"advsphere"}
    providers = importlib.metadata.packages_distributions()
    names = [n for n, by in providers.items() if not {re.sub(r"[-_.]+", "-", b).lower() for b in by} & allowed]
    assert {"tyro", "timm", "matplotlib"} <= {*names}
    return json.dumps(names)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist alone."""
    folder = tmp_path_factory.mktemp("dist")

    def build(kind: str, source: Path) -> Path:
        order = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
        subprocess.run(order, cwd=source, check=True, capture_output=True)
        return next(folder.glob("*.tar.gz" if kind == "sdist" else "*.whl"))

    with tarfile.open(build("sdist", ROOT)) as packed:
        packed.extractall(folder, filter="data")
    return build("wheel", next(folder.glob("advsphere-*/")))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(wheel.parent / "site")
    return wheel.parent / "site"


@pytest.fixture
def run(hidden: str, installed: Path, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs code with the installed wheel, without the hidden packages."""

    def run(code: str) -> subprocess.CompletedProcess[str]:
        order = [sys.executable, "-c", f"{HIDE}\nsys.path.insert(0, sys.argv[2])\n{code}", hidden, str(installed)]
        return subprocess.run(order, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_the_wheel_has_every_file_of_the_package(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}

    assert files(installed / "advsphere") == files(ROOT / "src" / "advsphere")


def test_the_core_has_few_packages() -> None:
    beyond = core() - requirements(["torch"])
    assert len(beyond) <= MOST, sorted(beyond)


def test_the_core_attacks_and_evaluates_without_the_rest(run: Callable[..., Any], installed: Path) -> None:
    done = run(CORE + "print(adv.__file__)")
    assert done.returncode == 0, done.stderr
    assert "worst case" in done.stdout and str(installed) in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("torch", ["torch==2.6.*", "torch"])
@pytest.mark.parametrize("python", ["python3.11", "python3.12", "python3.13"])
def test_the_core_works_in_an_empty_environment(wheel: Path, python: str, torch: str, tmp_path: Path) -> None:
    if shutil.which(python) is None or subprocess.run([python, "--version"], check=False).returncode:
        pytest.skip(f"there is no {python}")
    subprocess.run([python, "-m", "venv", "empty"], cwd=tmp_path, check=True)
    own = tmp_path / "empty" / "bin" / "python"
    for words in (["-m", "pip", "install", "-q", str(wheel), torch], ["-c", CORE], ["-m", "advsphere", "--version"]):
        done = subprocess.run([own, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_what_needs_more_asks_for_it_in_one_line(run: Callable[..., Any]) -> None:
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
    done = run(tries)
    assert done.returncode == 0, done.stderr
    for line, extra in zip(done.stdout.splitlines(), MISSING.values(), strict=True):
        assert re.fullmatch(rf"\w+ is not installed: pip install 'advsphere\[{extra}\]'", line)


def test_so_does_the_command_line(run: Callable[..., Any]) -> None:
    done = run("from advsphere.cli import main; sys.exit(main(['evaluate', 'runs/a']))")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: tyro is not installed: pip install 'advsphere[train]'\n"
