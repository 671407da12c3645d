"""Who may import whom, and how large a file may grow.

A unit is a module or package directly under `advsphere`. Data flows one way,

    data -> objectives (attacks, threat) -> training        attacks -> evaluation -> report

and the sphere is orthogonal: what attacks, trains or judges networks must work on any network, and so never imports it.
A new module needs a row in MAY_IMPORT; an edge that is missing there is a decision, not an oversight.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "advsphere"
FILES = sorted(PACKAGE.rglob("*.py"))

CORE = {"errors", "files", "provenance", "draws", "threat", "losses", "schedule", "distributed", "classifier"}
SETUP = {"config", "data", "models", "hypersphere", "objectives", "training"}  # what a run is made of

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "provenance": set(),
    "draws": {"errors"},
    "threat": {"errors", "draws"},
    "losses": {"errors"},
    "schedule": {"errors"},
    "distributed": {"errors"},
    "classifier": {"errors"},
    "hypersphere": {"errors", "losses", "schedule", "classifier"},
    "attacks": CORE,
    "objectives": CORE | {"attacks"},
    "data": {"errors", "files", "draws", "distributed"},
    "models": {"errors", "classifier", "hypersphere"},
    "training": CORE | {"attacks", "objectives", "data"},
    "evaluation": CORE | {"attacks", "data"},
    "analysis": CORE | {"attacks", "data", "evaluation", "hypersphere"},
    "report": CORE | {"evaluation", "analysis"},
    "config": CORE | {"data", "models", "hypersphere", "objectives", "training"},
    "confounders": {"config"},
    "recipes": CORE | SETUP,
    "experiment": CORE | SETUP | {"attacks", "recipes"},
    "dossier": CORE | SETUP | {"confounders", "recipes", "experiment", "evaluation", "analysis", "report"},
    "demo": CORE | SETUP | {"attacks", "recipes", "experiment", "evaluation", "analysis", "report", "dossier"},
    "results": CORE | {"config", "training", "recipes", "experiment", "evaluation"},
    "corruption_table": CORE | {"data", "evaluation", "results"},
    "reproduce": CORE
    | SETUP
    | {"confounders", "recipes", "experiment", "evaluation", "analysis", "results", "corruption_table"},
    "cli": CORE
    | SETUP
    | {"confounders", "attacks", "recipes", "experiment", "evaluation", "analysis", "report", "dossier", "demo"}
    | {"results", "corruption_table", "reproduce"},
    "__main__": {"cli"},
}

TORCH_ONLY = CORE - {"errors"} | {"hypersphere", "attacks", "objectives"}
"""These use torch and the standard library, nothing else."""

HELD_BY = {"torchvision": {"data", "models"}, "timm": {"data", "models"}}
"""Libraries that only these units may import."""

NO_TYPE_OF_THING = {"utils", "util", "helpers", "base", "misc", "common"}
"""Names that say nothing about what is inside."""

SLOW_TO_IMPORT = ["torchvision", "timm", "matplotlib", "sklearn", "transformers", "tensorboard"]


def unit_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """The full names that a file imports anywhere, also inside functions; `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write the import in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_units(file: Path) -> set[str]:
    """The other units of the package that a file imports; "advsphere" stands for its __init__."""
    units = {n.removeprefix("advsphere.").split(".")[0] for n in imported(file) if n.split(".")[0] == "advsphere"}
    return units - {unit_of(file)}


def libraries(file: Path) -> set[str]:
    return {n.split(".")[0] for n in imported(file)} - sys.stdlib_module_names - {"advsphere"}


def reachable(unit: str) -> set[str]:
    """Every unit that comes along when this one is imported."""
    seen: set[str] = set()
    new = {unit}
    while new:
        seen |= new
        new = {other for file in FILES if unit_of(file) in new for other in own_units(file)} - seen
    return seen - {unit}


def test_the_table_has_no_cycles() -> None:
    list(TopologicalSorter(MAY_IMPORT).static_order())


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_unit_may(file: Path) -> None:
    unit = unit_of(file)
    if unit == "__init__":
        assert "cli" not in own_units(file)
        return
    assert unit in MAY_IMPORT, f"{unit} needs a row in MAY_IMPORT"
    assert own_units(file) <= MAY_IMPORT[unit]
    if unit in TORCH_ONLY:
        assert libraries(file) <= {"torch"}
    for library in libraries(file) & HELD_BY.keys():
        assert unit in HELD_BY[library]


@pytest.mark.parametrize("unit", ["attacks", "objectives", "training", "evaluation"])
def test_the_sphere_is_orthogonal(unit: str) -> None:
    assert "hypersphere" not in reachable(unit)


def test_training_and_evaluation_do_not_know_each_other() -> None:
    assert "evaluation" not in reachable("training")
    assert "training" not in reachable("evaluation")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_holds_one_idea_and_is_named_for_it(file: Path) -> None:
    lines = len(file.read_text().splitlines())
    assert lines <= 300
    assert not {part.removesuffix(".py") for part in file.relative_to(PACKAGE).parts} & NO_TYPE_OF_THING


def test_importing_the_package_is_quick_and_silent() -> None:
    show = f"import advsphere, sys; print(sorted(sys.modules.keys() & set({SLOW_TO_IMPORT})))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
