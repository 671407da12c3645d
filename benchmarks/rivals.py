"""Tasks of a user in six libraries: lines of code, packages and size. Every cell is run.

    python benchmarks/rivals.py DIR --install   # install each library with what it needs beyond torch (about 2 GB)
    python benchmarks/rivals.py DIR             # run all cells, and write the table in benchmarks/README.md
    python benchmarks/rivals.py DIR --only ART  # one library, without writing

The code of each cell is in `rivals.toml`. Imports count as lines. A library that does not offer a task has no match
for a stated pattern in its source. Packages and MiB are those that pip installs beyond torch's own.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from advsphere.reproduce.results import write_between

HERE = Path(__file__).parent
CELLS: dict[str, Any] = tomllib.loads((HERE / "rivals.toml").read_text())
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]

BEFORE = """
import sys, types
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from sklearn.datasets import load_digits

sys.modules.setdefault("visdom", types.ModuleType("visdom"))
torch.manual_seed(0)
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images, labels = (images / 16).float().reshape(-1, 1, 8, 8), labels.long()
train, x, y, eps = DataLoader(TensorDataset(images[100:], labels[100:]), 100), images[:4], labels[:4], 0.1
net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))
optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
for _ in range(5):
    for part, wanted in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(part), wanted).backward()
        optimizer.step()

class Rounded(nn.Module):
    def forward(self, x):
        return net((x * 4).round() / 4)

masked, before = Rounded().eval(), nn.utils.parameters_to_vector(net.parameters()).clone()
net.eval()
accuracy = lambda images: (net(images).argmax(1) == y).float().mean()
moved = lambda net: not nn.utils.parameters_to_vector(net.parameters()).equal(before)
"""


def install(folder: Path) -> None:
    """Install each library into its own folder, and record its packages and their size."""
    torch = _packages("torch")
    for name, wanted in CELLS["libraries"].items():
        place, pinned = folder / name, _packages(*wanted)
        found = {p: v for p, v in pinned.items() if p not in torch} if pinned else {}
        names = [f"{package}=={version}" for package, version in found.items() if package != "advsphere"] or wanted
        own = ["."] if "advsphere" in found else []
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([*PIP, "install", "--no-deps", "--target", place, *names, *own], check=True)
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file() and file.suffix != ".pyc")
        (folder / f"{name}.json").write_text(json.dumps({"packages": len(found), "MiB": round(size / 2**20)}))
        for clashing in place.glob("torchvision*"):  # one for another torch
            shutil.rmtree(clashing)


def _packages(*wanted: str) -> dict[str, str]:
    """What pip would install in an empty environment; empty if it can't."""
    order = [*PIP, "install", "--dry-run", "--ignore-installed", "--report", "-", *wanted]
    done = subprocess.run(order, capture_output=True, text=True, check=False)
    found = [item["metadata"] for item in json.loads(done.stdout)["install"]] if done.returncode == 0 else []
    return {item["name"].lower(): item["version"] for item in found}


def run(folder: Path, library: str, task: dict[str, Any]) -> str:
    """The lines that a task takes in a library, "-" if the pattern has no match in its source, "fails" if it raises."""
    cell = task[library]
    if isinstance(cell, dict) and "absent" in cell:
        roots = [folder / library / module for module in CELLS["modules"][library].split()]
        for file in (file for root in roots for file in root.rglob("*.py")):
            if match := re.search(cell["absent"], file.read_text(errors="replace"), re.IGNORECASE):
                raise SystemExit(f"{library} may offer {task['what']}: {match[0]!r} in {file}")
        return "-"
    lines, raises = (cell["code"], cell["raises"]) if isinstance(cell, dict) else (cell, None)
    code = f"{BEFORE}\n{lines}\nassert {task['holds']}\n"
    with tempfile.TemporaryDirectory() as here:
        path = f"import sys; sys.path.insert(0, {str((folder / library).resolve())!r})\n"
        done = subprocess.run(
            [sys.executable, "-c", path + code], cwd=here, capture_output=True, text=True, check=False
        )
    if raises and raises in done.stderr:
        return "fails"
    if done.returncode or raises:
        raise SystemExit(f"{library}, {task['what']}: {done.stderr[-2000:]}")
    return str(len([line for line in lines.splitlines() if line.strip()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--only", choices=CELLS["libraries"])
    options = parser.parse_args()
    if options.install:
        return install(options.folder)
    names = [options.only] if options.only else [*CELLS["libraries"]]
    sizes = {name: json.loads((options.folder / f"{name}.json").read_text()) for name in names}
    heads = [f"{name} {CELLS['libraries'][name][0].partition('==')[2]}".strip() for name in names]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(names) + 1) + "|"]
    for task in CELLS["tasks"].values():
        lines.append(f"| {task['what']} | {' | '.join(run(options.folder, name, task) for name in names)} |")
        print(lines[-1], flush=True)
    for what in ("packages", "MiB"):
        lines.append(
            f"| {what} beyond torch's | {' | '.join(str(sizes[n][what] or 'does not install') for n in names)} |"
        )
    if not options.only:
        write_between(HERE / "README.md", "\n".join(lines), begin="<!-- rivals -->", end="<!-- /rivals -->")


if __name__ == "__main__":
    main()
