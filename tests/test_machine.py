"""The precision of a machine is a documented fact about it; a measurement only warns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from advsphere import machine
from advsphere.errors import UserError
from advsphere.machine import advice, low_precision, measured_speeds

CPU = torch.device("cpu")
NATIVE = {f"{dtype}, channels {where}": 50.0 for dtype in ("float32", "bfloat16") for where in ("first", "last")}


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the user's, and nothing measured in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured_speeds.cache_clear()
    yield tmp_path
    measured_speeds.cache_clear()


def on(instructions: str | None, slowness: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with these instructions, on which bfloat16 takes `slowness` times as long as float32."""
    monkeypatch.setattr(machine, "bfloat16_instructions", lambda: instructions)
    speeds = {name: 50.0 / (slowness if "bfloat16" in name else 1) for name in NATIVE}
    monkeypatch.setattr(machine, "_measure", lambda: speeds)


def test_the_processor_s_instructions_decide_and_not_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    on("amx", 10.0, monkeypatch)
    assert low_precision(CPU) is torch.bfloat16
    on(None, 0.1, monkeypatch)
    assert low_precision(CPU) is None
    monkeypatch.undo()
    assert low_precision(CPU) in (None, torch.bfloat16)


@pytest.mark.parametrize(
    ("instructions", "slowness", "says"),
    [
        ("avx512_bf16", 0.4, None),
        ("avx512_bf16", 1.2, None),
        ("avx512_bf16", 12.0, "takes 12.0 times as long .* has avx512_bf16, but PyTorch does not use it"),
        (None, 11.5, "takes 11.5 times as long .* no instructions for it: --precision float32"),
    ],
)
def test_one_line_where_bfloat16_is_slow(
    instructions: str | None, slowness: float, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(instructions, slowness, monkeypatch)
    line = advice(torch.bfloat16, CPU)
    if says is None:
        assert line is None
    else:
        assert line is not None and "\n" not in line and re.search(says, line), line
    assert advice(None, CPU) is None, "float32 is never slow"


def test_is_measured_once_on_a_machine(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = list[int]()
    monkeypatch.setattr(machine, "_measure", lambda: times.append(1) or dict(NATIVE))
    assert measured_speeds() == measured_speeds() == NATIVE
    measured_speeds.cache_clear()  # as in another process
    assert measured_speeds() == NATIVE and len(times) == 1
    (file,) = (fresh / "advsphere" / "machine").iterdir()
    assert json.loads(file.read_text())["speeds"] == NATIVE
    file.write_text("{}")
    measured_speeds.cache_clear()
    assert measured_speeds() == NATIVE and len(times) == 2
    for name, value in {"get_num_threads": lambda: 97, "__version__": "3.0"}.items():
        measured_speeds.cache_clear()
        monkeypatch.setattr(torch, name, value)
        measured_speeds()
    assert len(times) == 4


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise UserError("disk full")

    monkeypatch.setattr(machine, "write_cache", refuses)
    speeds = measured_speeds()
    assert speeds.keys() == NATIVE.keys() and all(speed > 0 for speed in speeds.values())


def test_the_processor_s_name_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: "processor : 0\nHardware : none\n")
    assert machine.processor() == (machine.platform.processor() or machine.platform.machine())
