"""Where memory runs out, everything goes on in smaller parts, with the same results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advsphere.cli import main
from advsphere.evaluation import Evaluation, evaluate, verify
from advsphere.losses import log_odds
from advsphere.memory import with_frozen
from tests.evaluation.cases import THREAT, linear, pgd_spec


class Small(nn.Module):
    """A network that only takes some images at once."""

    def __init__(self, inner: nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return self.inner(x)


def test_an_evaluation_and_its_verification_have_the_outcomes_of_a_machine_with_more_memory(tmp_path: Path) -> None:
    known = linear(40)

    def outcome(most: int, ledger: Path) -> Evaluation:
        model = Small(known.model, most)
        return evaluate(model, known.images, known.labels, threat=THREAT, suite=[pgd_spec()], seed=1, ledger=ledger)

    plain, small = outcome(40, tmp_path / "plain.sqlite"), outcome(3, tmp_path / "ledger.sqlite")
    assert [row.outcomes for row in small.rows] == [row.outcomes for row in plain.rows]
    assert 0 < small.worst.k < small.clean.k
    assert [(one.check, one.status) for one in small.findings] == [(one.check, one.status) for one in plain.findings]
    assert [(one.check, one.status) for one in small.signs] == [(one.check, one.status) for one in plain.signs]
    small.save(tmp_path / "evaluation.json")
    found = verify(
        tmp_path / "evaluation.json",
        tmp_path / "ledger.sqlite",
        Small(known.model, 3),
        known.images,
        suite=[pgd_spec()],
        seed=0,
    )
    assert found.passed, found
    with pytest.raises(RuntimeError, match=r"^.enforce fail"):
        outcome(0, tmp_path / "none.sqlite")


def test_a_gradient_that_finds_no_memory_is_computed_in_parts() -> None:
    known = linear(10)
    tried: list[int] = []

    def gradient(classify: nn.Module) -> Tensor:
        x = known.images.clone().requires_grad_()
        values = log_odds(classify(x), known.labels)
        tried.append(len(tried))
        if len(tried) < 3:
            raise torch.OutOfMemoryError("in the backward")
        return torch.autograd.grad(values.sum(), x)[0]

    whole = known.images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(log_odds(known.model(whole), known.labels).sum(), whole)
    assert torch.allclose(with_frozen(known.model, gradient), expected) and len(tried) == 3


@pytest.mark.parametrize(("command", "cure"), [("verify", "--device cpu"), ("diagnose", "--batch-size")])
def test_the_advice_is_one_that_the_command_can_follow(
    command: str, cure: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(arguments: list[str]) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"advsphere.cli.{command}.main", fails)
    assert main([command, "x"]) == 1
    said = capsys.readouterr().err
    assert cure in said and ("--batch-size" in said) == (cure == "--batch-size") and "Traceback" not in said
