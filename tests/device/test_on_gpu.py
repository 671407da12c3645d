"""A part of the session for a GPU, on the stand-in device, where mixing devices fails as it does on a GPU."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.device import stand_in
from tests.test_on_gpu import scripts  # noqa: F401 (a fixture)

STEPS = (
    "machine",
    "smoke/attack pgd",
    "smoke/attack feature_attack",
    "smoke/objective fastat-he",
    "smoke/suite paper",
    "smoke/ledger of a CPU",
    "smoke/equal runs",
    "speed/FastAT batch 128",
    "speed/FastAT batch 128, plain loop",
    "table 3/train fastat-he seed 0",
    "table 3/PGD-50 fastat-he seed 0",
)


def test_the_session_runs_on_another_device(scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv(scripts.on_gpu.DEVICE, str(stand_in.DEVICE))
    steps = [step for step in scripts.on_gpu.steps() if step.name in STEPS]
    assert len(steps) == len(STEPS)
    setting = scripts.gpu_session.Setting(
        device=stand_in.DEVICE,
        work=tmp_path / "work",
        out=tmp_path,
        until=time.monotonic() + 1000,
        tiny=True,
    )
    states = scripts.gpu_session.run(steps, setting, tmp_path / "rows.jsonl")
    rows = scripts.gpu_session.read(tmp_path / "rows.jsonl")
    assert {*states.values()} == {"done"}, [row["error"] for row in rows.values() if "error" in row]
    assert rows["smoke/objective fastat-he"]["result"]["on"] == str(stand_in.DEVICE)
