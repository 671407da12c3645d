from __future__ import annotations

import os
from pathlib import Path

import pytest

from advsphere import cli

VERSION_2 = {"cpu.max": "{quota} 100000\n"}
VERSION_1 = {"cpu/cpu.cfs_quota_us": "{quota}\n", "cpu/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("files", "quota", "cores", "chosen"),
    [
        (VERSION_2, "250000", 2.5, "2"),
        (VERSION_2, "50000", 0.5, "1"),
        (VERSION_2, "max", None, None),
        (VERSION_2, "1600000", 16.0, None),
        (VERSION_1, "400000", 4.0, "4"),
        (VERSION_1, "-1", None, None),
        ({}, "", None, None),
    ],
)
def test_a_container_s_cores_are_its_threads(
    files: dict[str, str], quota: str, cores: float | None, chosen: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """On a machine with 16 cores."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.format(quota=quota))
    monkeypatch.setattr(cli, "CONTROL", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is restored
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cli.granted() == cores
    cli.limit_threads()
    assert os.environ.get("OMP_NUM_THREADS") == chosen


def test_what_the_user_sets_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("200000 100000")
    monkeypatch.setattr(cli, "CONTROL", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    cli.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "7"
