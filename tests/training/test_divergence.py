"""Training that diverges: said in one line, and nothing good is lost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from advsphere.errors import UserError
from advsphere.losses import cross_entropy
from advsphere.objectives import Standard
from advsphere.training import Hooks, load_checkpoint
from tests.training.tiny import kept, names_in, same, state, tiny_trainer


def turning_bad(after: int, value: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy that becomes `value` after this many calls."""
    calls = Counter[str]()

    def criterion(logits: Tensor, y: Tensor) -> Tensor:
        calls["all"] += 1
        return cross_entropy(logits, y) * (1.0 if calls["all"] <= after else value)

    return criterion


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("after", [3, 5])
def test_a_loss_that_is_not_finite_names_epoch_and_cure_and_spoils_nothing(
    value: float, after: int, tmp_path: Path
) -> None:
    good = tiny_trainer(tmp_path / "good", Standard(), epochs=1)
    good.fit()
    hooks = Hooks(
        validate=lambda model: {"robust": 0.5}, on_epoch=lambda m: pytest.fail("said") if m["epoch"] == 2 else None
    )
    bad = tiny_trainer(tmp_path / "bad", Standard(), criterion=turning_bad(after, value), hooks=hooks)
    with pytest.raises(
        UserError, match=r"diverged in epoch 2, by batch \d.*last\.safetensors is from before.*--lr"
    ) as e:
        bad.fit()
    assert "\n" not in str(e.value)
    assert same(kept(tmp_path / "bad", "last"), state(good.model))
    assert same(kept(tmp_path / "bad", "best"), state(good.model))
    assert names_in(tmp_path / "bad") == {"last.safetensors", "best.safetensors"}
    again = tiny_trainer(tmp_path / "bad", Standard())
    again.resume()
    assert again.cursor == (1, 0, 0) and same(state(again.model), state(good.model))


@pytest.mark.parametrize("minutes", [0.0, 5.0])
def test_weights_that_blow_up_in_an_epoch_s_last_step_are_not_kept(minutes: float, tmp_path: Path) -> None:
    """Its loss was still finite, so that alone would not show it."""
    trainer = tiny_trainer(tmp_path, Standard(), checkpoint_minutes=minutes)
    trainer.hooks.validate = lambda model: pytest.fail("validated") if trainer.cursor.epoch == 1 else {"robust": 0.5}
    steps = Counter[str]()

    def blow_up(*_: object) -> None:
        steps["all"] += 1
        if steps["all"] == 6:
            trainer.model[0].weight.data[0] = math.inf

    trainer.optimizer.register_step_post_hook(blow_up)
    with pytest.raises(UserError, match="diverged in epoch 2, by batch 3"):
        trainer.fit()
    for which in ("last", "best"):
        assert all(t.isfinite().all() for t in load_checkpoint(tmp_path / f"{which}.safetensors")[0].values())


def test_no_checkpoint_is_promised_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="diverged in epoch 1") as caught:
        tiny_trainer(tmp_path, Standard(), criterion=turning_bad(0, math.nan)).fit()
    assert "safetensors" not in str(caught.value) and not any(tmp_path.iterdir())


def test_divergence_is_noticed_at_the_next_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("advsphere.training.loop.time.monotonic", lambda: float(next(clock)))
    trainer = tiny_trainer(tmp_path, Standard(), criterion=turning_bad(1, math.nan), epochs=100)
    with pytest.raises(UserError, match="diverged in epoch 1, by batch 2"):
        trainer.fit()
