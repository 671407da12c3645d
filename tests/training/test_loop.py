from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from advsphere.data import Augment
from advsphere.errors import UserError
from advsphere.hypersphere import AngularMargin, HypersphereConfig
from advsphere.losses import cross_entropy
from advsphere.objectives import PGDAT, Crafting, Criterion, FastAT, FreeAT, Losses, Objective, Standard
from advsphere.rng import derived_seed, permutation
from advsphere.schedule import Linear
from advsphere.threat import ThreatModel
from advsphere.training import Hooks, Metrics, Stopped, Tick, Trainer, TrainSettings, load_checkpoint
from advsphere.training.averaging import MovingAverage
from tests.laws import OBJECTIVES, conv_net
from tests.training.tiny import State, few_images, kept, order_of, same, state, stopping_after, tiny_trainer

RAMP = Linear(((0.0, 0.0), (1.0, 1.0)))


@dataclass(frozen=True, kw_only=True)
class Watched(FreeAT):
    """FreeAT that notes the images and the carried perturbation of each craft."""

    seen: tuple[list[Tensor], list[Tensor | None]] = field(default_factory=lambda: ([], []))

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, context: Crafting) -> Tensor:
        self.seen[0].append(x)
        self.seen[1].append(context.carry)
        return super().craft(model, x, y, context)


def batches(seed: int, epoch: int, n: int = 22, size: int = 8) -> list[Tensor]:
    return list(permutation(n, seed=seed, epoch=epoch).split(size))


# What a run computes, against loops written out by hand.


def by_hand(objective: Objective, *, epochs: int = 2, seed: int = 0) -> nn.Module:
    """Standard and free adversarial training as in their papers, in plain PyTorch."""
    net, data = conv_net(), few_images()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    delta = torch.zeros(8, 3, 8, 8)
    for epoch in range(epochs):
        for index in batches(seed, epoch):
            x, y = data.pixels[index] / 255.0, data.labels[index]
            for _ in range(objective.replays):
                x_adv = (x + delta[: len(x)]).clamp(0, 1).requires_grad_(True)
                optimizer.zero_grad()
                F.cross_entropy(net(x_adv), y).backward()
                if isinstance(objective, FreeAT):
                    eps, stepped = objective.threat.eps, x_adv.detach() + objective.step_size * x_adv.grad.sign()
                    delta[: len(x)] = stepped.clamp(x - eps, x + eps).clamp(0, 1) - x
                optimizer.step()
    return net


@pytest.mark.parametrize("objective", [Standard(), FreeAT(repeats=3)], ids=["Standard", "FreeAT"])
def test_the_weights_are_those_of_a_loop_by_hand(objective: Objective, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, objective)
    trainer.fit()
    expected = by_hand(objective)
    torch.testing.assert_close(state(trainer.model), state(expected), rtol=1e-3, atol=1e-4)
    assert (state(expected)["8.weight"] - state(conv_net())["8.weight"]).abs().max() > 0.01, "it would not show"


def test_labels_are_smoothed_in_the_loss_and_not_while_crafting(tmp_path: Path) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    @dataclass(frozen=True, kw_only=True)
    class Noting(FastAT):
        def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
            seen.append((x_adv, criterion(model(x_adv), y).detach()))
            return super().loss(model, x, x_adv, y, criterion=criterion)

    for smoothing in (0.0, 0.25):
        trainer = tiny_trainer(tmp_path / str(smoothing), Noting(), epochs=1, label_smoothing=smoothing)
        trainer._train_epoch()
    hard, soft = seen[0], seen[len(seen) // 2]
    assert torch.equal(hard[0], soft[0])
    net, y = conv_net(), few_images().labels[batches(0, 0)[0]]
    net.train()
    torch.testing.assert_close(hard[1], F.cross_entropy(net(hard[0]), y, reduction="none"))
    smooth = F.cross_entropy(net(hard[0]), y, reduction="none", label_smoothing=0.25)
    torch.testing.assert_close(soft[1], smooth)


def test_free_training_carries_its_perturbation_by_position(tmp_path: Path) -> None:
    """Over batches of 8, 8 and 6: the last two places wait for the next full batch."""
    objective = Watched(repeats=3)
    trainer = tiny_trainer(tmp_path, objective)
    taken = []
    trainer.optimizer.register_step_post_hook(lambda *_: taken.append(trainer.cursor))
    trainer.fit()
    xs, carries = objective.seen
    assert [(c.epoch, c.batch, c.replay) for c in taken] == [
        (e, b, r) for e in range(2) for b in range(3) for r in range(3)
    ]
    assert [len(x) for x in xs] == [8] * 6 + [6] * 3 + [8] * 6 + [6] * 3
    assert carries[0] is None and all(len(c) == 8 for c in carries[1:])
    for i in (7, 8, 9):  # after each step on the six images
        assert torch.equal(carries[i][6:], carries[6][6:]) and not torch.equal(carries[i][:6], carries[6][:6])
    carried = trainer.gradient.carried().abs().max()
    assert 0.01 < carried <= objective.threat.eps + 1e-6


def test_an_image_that_joined_the_last_batch_is_trained_on_too(tmp_path: Path) -> None:
    objective = Watched(repeats=2)
    trainer = tiny_trainer(tmp_path, objective, batch_size=7)
    trainer.fit()
    assert [len(x) for x in objective.seen[0]] == [7, 7, 7, 7, 8, 8] * 2
    assert len(trainer.gradient.carried()) == 8


def test_one_augmentation_is_shared_by_replays_and_drawn_anew_by_epoch_and_seed(tmp_path: Path) -> None:
    cut = {}
    for seed in range(2):
        objective = Watched(repeats=3)
        augment = Augment(padding=2, flip=True)
        tiny_trainer(tmp_path / f"{seed}", objective, augment=augment, batch_size=22, seed=seed).fit()
        xs = objective.seen[0]
        assert all(torch.equal(xs[0], x) for x in xs[:3]) and all(torch.equal(xs[3], x) for x in xs[3:])
        for epoch in range(2):
            cut[seed, epoch] = xs[3 * epoch][permutation(22, seed=seed, epoch=epoch).argsort()]
    for a, b in combinations(cut.values(), 2):
        assert (a != b).flatten(1).any(1).sum() > 15, "the same images, cut differently"


# Schedules, steps, order.


@pytest.mark.parametrize("objective", [Standard(), FreeAT(repeats=3)], ids=["Standard", "FreeAT"])
def test_the_learning_rate_and_the_hook_follow_the_progress_of_every_step(objective: Objective, tmp_path: Path) -> None:
    rates: list[float] = []
    progress: list[float] = []
    trainer = tiny_trainer(
        tmp_path, objective, hooks=Hooks(before_step=progress.append), lr=0.01, lr_schedule=RAMP, epochs=3
    )
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.fit()
    steps = 3 * 3 * objective.replays
    assert progress == pytest.approx([i / steps for i in range(steps)])
    assert rates == pytest.approx([0.01 * i / steps for i in range(steps)])


def test_scale_and_margin_are_set_before_the_step_that_uses_them(tmp_path: Path) -> None:
    sphere = HypersphereConfig(
        scale=10.0, margin=0.4, scale_schedule=Linear(((0.0, 0.5), (1.0, 1.0))), margin_schedule=RAMP
    )
    net = conv_net()
    criterion = AngularMargin(sphere.attach(net), sphere.margin)
    seen = []

    def watching(logits: Tensor, y: Tensor) -> Tensor:
        seen.append((float(criterion.head.scale), criterion.margin))
        return criterion(logits, y)

    trainer = tiny_trainer(tmp_path, Standard(), model=net, criterion=watching)
    trainer.hooks.before_step = lambda progress: sphere.set_progress(criterion, progress)
    trainer.fit()
    assert [scale for scale, _ in seen] == pytest.approx([5 + 5 * i / 6 for i in range(6)])
    assert [margin for _, margin in seen] == pytest.approx([0.4 * i / 6 for i in range(6)])


def test_the_order_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    first = order_of(tmp_path / "a", seed=0)
    assert [len(b) for b in first] == [8, 8, 6] * 2
    epochs = [[i for batch in part for i in batch] for part in (first[:3], first[3:])]
    assert all(sorted(epoch) == list(range(22)) for epoch in epochs) and epochs[0] != epochs[1]
    assert epochs == [permutation(22, seed=0, epoch=e).tolist() for e in range(2)]
    torch.manual_seed(99)
    assert order_of(tmp_path / "b", seed=0) == first != order_of(tmp_path / "c", seed=1)


def test_a_part_of_another_kind_is_told_in_one_line(tmp_path: Path) -> None:
    parts = {"settings": TrainSettings(), "folder": tmp_path}
    for changed, said in (
        (
            {"settings": {"epochs": 1}},
            "settings is {'epochs': 1}; give an object of TrainSettings",
        ),
        ({"objective": FreeAT}, r"objective is the class FreeAT; give an object of Objective \(advsphere.objectives\)"),
        ({"objective": "pgd"}, "objective is 'pgd'; give an object of Objective"),
        ({"optimizer": optim.SGD(conv_net().parameters())}, "optimizer is of type SGD; give a function"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; give a function or a class"),
        ({"hooks": {"on_tick": print}}, r"hooks is {.*}; give an object of Hooks \(advsphere.training.hooks\)"),
        ({"world": 2}, r"world is 2; give an object of World"),
    ):
        given = {"objective": FreeAT()} | parts | changed
        with pytest.raises(UserError, match=said):
            Trainer(conv_net(), criterion=cross_entropy, images=few_images(), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_seed_decides_the_run(name: str, tmp_path: Path) -> None:
    def run(folder: str, seed: int) -> State:
        net, objective = conv_net(dropout=0.3), OBJECTIVES[name].objective
        trainer = tiny_trainer(tmp_path / folder, objective, model=net, seed=seed, augment=Augment(padding=1))
        trainer.fit()
        return state(trainer.model)

    torch.manual_seed(1)
    first = run("first", 0)
    torch.manual_seed(2)
    assert same(first, run("again", 0))
    assert not same(first, run("other", 1))


def test_the_global_generator_is_set_once_a_step_and_never_read_otherwise(tmp_path: Path) -> None:
    """Crafting, validation and checkpoints leave it alone."""
    states: list[Tensor] = []
    trainer = tiny_trainer(tmp_path, PGDAT(steps=2), checkpoint_minutes=0.0)
    trainer.hooks.before_step = lambda progress: states.append(torch.get_rng_state())
    trainer.optimizer.register_step_post_hook(lambda *_: states.append(torch.get_rng_state()))
    torch.manual_seed(7)
    outside = torch.get_rng_state()
    trainer.fit()
    assert torch.equal(states[0], outside)
    for i, (e, b) in enumerate((e, b) for e in range(2) for b in range(3)):
        expected = torch.Generator().manual_seed(derived_seed(0, "step", e, b, 0)).get_state()
        assert torch.equal(states[2 * i + 1], expected), "nothing drew from it during the step"
        assert i == 5 or torch.equal(states[2 * i + 2], expected), "nor between steps"


# What is kept.


def test_the_average_is_validated_and_kept(tmp_path: Path) -> None:
    validated: list[State] = []
    trainer = tiny_trainer(tmp_path, FastAT(), ema=0.6)
    trainer.hooks.validate = lambda model: validated.append(state(model)) or {"robust": 1 / len(validated)}
    average: dict[str, Tensor] = {}

    def follow(*_: object) -> None:
        for name, value in trainer.model.state_dict().items():
            if value.is_floating_point():
                average[name] = 0.6 * average[name] + 0.4 * value if name in average else value.clone()

    trainer.optimizer.register_step_post_hook(follow)
    trainer.fit()
    last = kept(tmp_path, "last")
    torch.testing.assert_close({name: last[name] for name in average}, average, rtol=1e-4, atol=1e-6)
    assert same(last, state(trainer.result)) and same(last, validated[1])
    assert same(kept(tmp_path, "best"), validated[0])
    raw = kept(tmp_path, "last", "raw")
    assert same(raw, state(trainer.model)) and not torch.allclose(raw["8.weight"], last["8.weight"], rtol=1e-3)


def test_the_average_is_that_of_torch() -> None:
    model = conv_net()
    ours = MovingAverage(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for i in range(4):
        model(torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(i)))  # moves the running statistics
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5)
        ours.update(model)
        theirs.update_parameters(model)
    assert same(state(ours.module), state(theirs.module)) and ours.updates == int(theirs.n_averaged)


@pytest.mark.parametrize(("objective", "chosen_by"), [(PGDAT(steps=1), "robust"), (Standard(), "clean")])
def test_best_is_the_last_of_those_that_validate_best(objective: Objective, chosen_by: str, tmp_path: Path) -> None:
    values, seen = iter([0.3, 0.5, 0.5, 0.4]), []
    trainer = tiny_trainer(tmp_path, objective, epochs=4)

    def validate(model: nn.Module) -> Metrics:
        seen.append(state(model))
        other = len(seen) / 4  # would choose the last epoch
        return {"clean": other, "robust": other} | {chosen_by: next(values)}

    trainer.hooks.validate = validate
    trainer.fit()
    assert same(kept(tmp_path, "best"), seen[2]) and same(kept(tmp_path, "last"), seen[3])
    tensors, meta = load_checkpoint(tmp_path / "best.safetensors")
    assert meta["metrics"]["epoch"] == 3 and meta["metrics"][chosen_by] == 0.5
    assert tensors.keys() == {f"model.{name}" for name in seen[1]}, "what one may want to publish, and no more"
    meta = load_checkpoint(tmp_path / "last.safetensors")[1]
    assert meta["best"] == 0.5 and meta["cursor"] == [4, 0, 0]


@pytest.mark.parametrize(("every", "epochs", "due"), [(2, 5, [2, 4, 5]), (3, 3, [3]), (9, 4, [4]), (1, 2, [1, 2])])
def test_validation_is_due_every_few_epochs_and_after_the_last(
    every: int, epochs: int, due: list[int], tmp_path: Path
) -> None:
    """The best is among those validated; the epochs between have no accuracy and never replace it."""
    logged: list[Metrics] = []
    hooks = Hooks(validate=lambda model: {"robust": 1 / (1 + len(logged))}, on_epoch=logged.append)
    trainer = tiny_trainer(tmp_path, PGDAT(steps=1), epochs=epochs, validate_every=every, hooks=hooks)
    trainer.fit()
    assert [line["epoch"] for line in logged] == [*range(1, epochs + 1)]
    assert [line["epoch"] for line in logged if "robust" in line] == due
    assert load_checkpoint(tmp_path / "best.safetensors")[1]["metrics"]["epoch"] == due[0]
    with pytest.raises(UserError, match="after every 0 epochs: give 1 or more"):
        TrainSettings(validate_every=0)


def test_a_best_from_before_a_resume_stays_the_best(tmp_path: Path) -> None:
    values = iter([0.5, 0.4])
    hooks = Hooks(validate=lambda model: {"robust": next(values)}, stop=stopping_after(4))
    with pytest.raises(Stopped):
        tiny_trainer(tmp_path, PGDAT(steps=1), hooks=hooks).fit()
    first = kept(tmp_path, "best")
    hooks.stop = lambda: False
    resumed = tiny_trainer(tmp_path, PGDAT(steps=1), hooks=hooks)
    resumed.resume()
    resumed.fit()
    assert same(kept(tmp_path, "best"), first) and not same(kept(tmp_path, "last"), first)


@pytest.mark.parametrize("metrics", [{"clean": 0.1, "robust": 0.0}, {}])
def test_there_is_a_best_even_where_nothing_is_resisted_or_validated(metrics: Metrics, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, PGDAT(steps=1), hooks=Hooks(validate=lambda model: metrics))
    trainer.fit()
    assert same(kept(tmp_path, "best"), kept(tmp_path, "last"))


def test_metrics_and_ticks_say_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("advsphere.training.loop.time.monotonic", lambda: float(next(clock)))
    ticks: list[Tick] = []
    epochs: list[Metrics] = []
    losses: list[float] = []
    hooks = Hooks(validate=lambda model: {"robust": 0.25}, on_tick=ticks.append, on_epoch=epochs.append)

    def criterion(logits: Tensor, y: Tensor) -> Tensor:
        losses.extend(cross_entropy(logits, y).tolist())
        return cross_entropy(logits, y)

    tiny_trainer(tmp_path, FreeAT(repeats=2), criterion=criterion, hooks=hooks, lr_schedule=RAMP).fit()
    assert [(t.epoch, t.images, t.of) for t in ticks] == [(e, n, 22) for e in range(2) for n in (8, 16, 22)]
    assert ticks[0].loss == pytest.approx(sum(losses[:16]) / 16)
    assert [m["epoch"] for m in epochs] == [1, 2] and all(m["robust"] == 0.25 for m in epochs)
    assert [m["loss"] for m in epochs] == pytest.approx([sum(losses[:44]) / 44, sum(losses[44:]) / 44])
    assert [m["lr"] for m in epochs] == pytest.approx([0.01 * 5 / 12, 0.01 * 11 / 12]), "of the epoch's last step"
    # Twelve steps, and the wait for the device after each epoch.
    assert epochs[1]["seconds"] == 14 and epochs[1]["images_per_second"] == pytest.approx(44 / 14)


def test_the_model_trains_in_train_mode_and_every_parameter_gets_its_turn(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, PGDAT(steps=2))
    trainer.hooks.validate = lambda model: {"robust": float(model.eval().training)}  # leaves it in eval mode
    trainer.model.eval()
    before, modes = copy.deepcopy(trainer.model), []
    trainer.optimizer.register_step_pre_hook(lambda *_: modes.append([m.training for m in trainer.model.modules()]))
    trainer.fit()
    assert all(all(each) for each in modes)
    assert all(not torch.equal(a, b) for a, b in zip(before.parameters(), trainer.model.parameters(), strict=True))
    assert torch.equal(trainer.model.state_dict()["1.num_batches_tracked"], torch.tensor(6)), "crafting does not count"


def test_images_outside_the_bounds_are_refused_with_the_first_batch(tmp_path: Path) -> None:
    objective = FastAT(threat=ThreatModel(norm="linf", eps=0.1, bounds=(0.4, 0.6)))
    with pytest.raises(UserError, match="the images have pixels from"):
        tiny_trainer(tmp_path, objective).fit()


def test_bounds_of_another_unit_are_refused_at_once(tmp_path: Path) -> None:
    threat = ThreatModel(norm="linf", eps=8, bounds=(0, 255))
    with pytest.raises(UserError, match="eps = 8/255"):
        tiny_trainer(tmp_path, FreeAT(threat=threat))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_network_that_returns_more_than_logits_is_trained_as_any_other(name: str, tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = conv_net()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(x.mul_(1.0)), x

    objective, pair, plain = OBJECTIVES[name].objective, Pair(), conv_net()
    tiny_trainer(tmp_path / "pair", objective, model=pair, epochs=1).fit()
    tiny_trainer(tmp_path / "plain", objective, model=plain, epochs=1).fit()
    assert all(torch.equal(a, b) for a, b in zip(pair.state_dict().values(), plain.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_single_image_in_a_part_is_no_trouble_for_batch_norm(name: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    images = few_images(13)  # batches of 8 and 5, the latter in parts of 4 and 1
    tiny_trainer(tmp_path, OBJECTIVES[name].objective, model=net, images=images, accumulate=2, epochs=1).fit()
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_give_the_same_bits_unless_speed_is_asked_for(tmp_path: Path, deterministic: bool) -> None:
    """The promise that a resumed run equals an uninterrupted one needs it on a GPU."""
    cudnn, seen = torch.backends.cudnn, set[tuple[bool, bool]]()
    before = cudnn.benchmark, cudnn.deterministic
    hooks = Hooks(before_step=lambda progress: seen.add((cudnn.benchmark, cudnn.deterministic)))
    tiny_trainer(tmp_path, Standard(), hooks=hooks, deterministic=deterministic).fit()
    assert seen == {(not deterministic, deterministic)} and (cudnn.benchmark, cudnn.deterministic) == before
