"""The commands run on a GPU's stand-in, with `--device`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advsphere.cli import main
from advsphere.evaluation import Evaluation
from tests.device.stand_in import DEVICE, counting
from tests.training.tiny import few_digits

SHORT = ["--epochs", "1", "--batch-size", "16", "--data.validation", "15", "--precision", "float32"]
ATTACKED = ["--suite", "paper", "--steps", "3", "--n", "8", "--precision", "float32", "--out"]
VERBS = {
    "verify": ["run"],
    "report": ["run", "--out", "report.html"],
    "results": ["results.jsonl", "run"],
    "predict": ["run", "digit.png"],
    "export": ["run", "--to", "safetensors", "--out", "exported"],
}


def on_the_device(verb: str, *arguments: str) -> int:
    """Run a command on the device; its kernels."""
    with counting() as counts:
        assert main([verb, *arguments, "--device", str(DEVICE)]) == 0
    return counts.kernels


@pytest.fixture(scope="module")
def work(tmp_path_factory, device):
    """A folder with a run that the device trained and attacked."""
    folder = tmp_path_factory.mktemp("verbs")
    with pytest.MonkeyPatch.context() as patch:
        few_digits(patch)
        patch.chdir(folder)
        patch.setenv("ADVSPHERE_DEVICE", "cpu")  # so that what `--device` sets does not last
        assert on_the_device("train", "digits-fastat-he", *SHORT, "--out", "run") > 100
        assert on_the_device("evaluate", "run", *ATTACKED, "run/evaluations/there") > 500
        Image.fromarray(np.full((8, 8), 99, np.uint8)).save("digit.png")
        yield folder


def test_an_evaluation_has_the_same_outcomes_as_on_the_cpu(work):
    assert main(["evaluate", "run", *ATTACKED, "run/evaluations/here", "--device", "cpu"]) == 0
    here, there = (Evaluation.load(Path(f"run/evaluations/{place}/evaluation.json")) for place in ("here", "there"))
    assert [row.outcomes for row in here.rows] == [row.outcomes for row in there.rows]
    shutil.rmtree("run/evaluations/here")


def test_an_attack_is_replayed(work):
    there = Evaluation.load(Path("run/evaluations/there/evaluation.json"))
    assert on_the_device("show", "run/evaluations/there", str(there.clean.outcomes.index("1")), "--replay", "PGD-3") > 0


@pytest.mark.parametrize("verb", VERBS)
def test_verbs(verb, work):
    assert on_the_device(verb, *VERBS[verb]) > 0 or verb in ("results", "export")


@pytest.mark.slow
def test_a_run_is_diagnosed(work):
    assert on_the_device("diagnose", "run", "--n", "10", "--out", "diagnosis") > 0
