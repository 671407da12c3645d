from __future__ import annotations

from pathlib import Path

import pytest

from advsphere.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two short training runs for a module to evaluate, without the sphere and with it."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [folder / "plain", folder / "sphere"]
    for run, recipe in zip(runs, ("digits-fastat", "digits-fastat-he"), strict=True):
        assert main(["train", recipe, "--epochs", "3", "--out", str(run)]) == 0
    return runs
