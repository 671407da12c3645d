"""What holds for the structure of the package, whatever its files are called.

A unit is a module or a package directly under `advsphere`. Data flows one way,

    data -> objectives (attacks, threat) -> training        attacks -> evaluation -> comparison, report

and the sphere is orthogonal: what attacks, trains or judges networks works on any network, and never imports it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

PACKAGE = Path(__file__).parents[1] / "src" / "advsphere"
FILES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = sorted(file.parent for file in FILES if file.name == "__init__.py" and file.parent != PACKAGE)

TORCH_ONLY = {
    "rng",
    "threat",
    "losses",
    "schedule",
    "state",
    "calling",
    "classifier",
    "hypersphere",
    "attacks",
    "objectives",
}
"""These use torch and the standard library, nothing else."""

HELD_BY = {"torchvision": {"data", "models", "corruption"}, "timm": {"data", "models"}}
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


def dotted(package: Path) -> str:
    return ".".join(("advsphere", *package.relative_to(PACKAGE).parts))


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


def test_units_import_each_other_without_cycles() -> None:
    units = {unit_of(file) for file in FILES} - {"__init__"}
    edges = {unit: {o for file in FILES if unit_of(file) == unit for o in own_units(file)} & units for unit in units}
    list(TopologicalSorter(edges).static_order())


def test_nothing_but_main_imports_the_command_line() -> None:
    assert {unit_of(file) for file in FILES if "cli" in own_units(file)} == {"__main__"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_libraries_are_imported_only_where_they_may_be(file: Path) -> None:
    if unit_of(file) in TORCH_ONLY:
        assert libraries(file) <= {"torch"}
    for library in libraries(file) & HELD_BY.keys():
        assert unit_of(file) in HELD_BY[library]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_exported_name_hides_a_module(package: Path) -> None:
    """`import advsphere.a.b as b` is the module, whatever the package exports."""
    exported = {name.rpartition(".")[2] for name in imported(package / "__init__.py")}
    modules = {path.stem for path in package.glob("*.py")} | {path.name for path in package.iterdir() if path.is_dir()}
    hidden = {
        name for name in exported & modules if f"{dotted(package)}.{name}" not in imported(package / "__init__.py")
    }
    assert not hidden


@pytest.mark.parametrize("unit", ["attacks", "objectives", "training", "evaluation"])
def test_the_sphere_is_orthogonal(unit: str) -> None:
    assert "hypersphere" not in reachable(unit)


def test_training_and_evaluation_do_not_know_each_other() -> None:
    assert "evaluation" not in reachable("training")
    assert "training" not in reachable("evaluation")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_holds_one_idea_and_is_named_for_it(file: Path) -> None:
    lines = len(file.read_text().splitlines())
    assert lines <= 400
    assert not {part.removesuffix(".py") for part in file.relative_to(PACKAGE).parts} & NO_TYPE_OF_THING


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_nothing_is_left_to_do(file: Path) -> None:
    """Plans are written into issues."""
    assert not [line for line in file.read_text().splitlines() if re.search(r"#.*\b(TODO|FIXME|XXX)\b", line)]


def test_the_version_is_the_same_everywhere() -> None:
    root = PACKAGE.parents[1]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((root / "CITATION.cff").read_text())["version"] == version
    assert re.findall(r"^## \[(.*)\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version


def test_importing_the_package_is_quick_and_silent() -> None:
    imports = "import advsphere, advsphere.data, advsphere.models, advsphere.training, sys"
    show = f"{imports}; print(sorted(sys.modules.keys() & set({SLOW_TO_IMPORT})))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
