"""No number flatters a constructed defence without a sign, and honest networks raise none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import pgd
from advsphere.data import ImageSet, load, load_test
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec, Effort, Ledger, Sign, evaluate, verify
from advsphere.evaluation.display import NO_VERDICT
from advsphere.evaluation.majority import Majority
from advsphere.evaluation.masking import refuted
from advsphere.evaluation.probes import FEW, QUERIES, missing, probes_of
from advsphere.evaluation.suites import SuiteContext, attacks_of
from advsphere.models import build
from advsphere.threat import ThreatModel
from tests.evaluation.cases import THREAT, change, linear, pgd_spec
from tests.evaluation.defences import CASES, HALF, network, signs_of_bits
from tests.evaluation.defences_table import NEW, SUITES, flatters, images, outcome
from tests.evaluation.test_masking import row

ADDED = ("slopes", "planted", "random search")


class Before(nn.Module):
    def __init__(self, model: nn.Module, change) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.change(x))


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """The number of images of each call of the model."""
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    try:
        yield calls
    finally:
        handle.remove()


def quick_and_probes(model: nn.Module, x: Tensor, y: Tensor, path: Path, threat) -> tuple[int, dict[str, int]]:
    """Images sent through the model by the attacks of `quick`, and by each probe."""
    result = evaluate(model, x, y, threat=threat, ledger=path)
    with Ledger.read(path) as book:
        spent = {}
        for name in ADDED:
            with counted(model) as calls:
                specs = attacks_of("quick", SuiteContext(threat=threat))
                dict(probes_of(book, model, as_set(x, y), specs, [name]))
            spent[name] = sum(calls)
    return sum(row.forwards or 0 for row in result.attacks), spent


def as_set(x: Tensor, y: Tensor) -> ImageSet:
    return ImageSet(x, y, tuple(map(str, range(10))))


# Constructed defences.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("random signs, half the radius", {"false gradients", "planted examples missed"}),
        ("random signs and hard labels", {"false gradients", "planted examples missed"}),
        ("the wrong sign near the boundary", {"random search finds more"}),
    ],
)
def test_a_defence_that_gradients_do_not_break_gets_no_verdict(name: str, expected: set[str]) -> None:
    case = CASES[name]
    found = evaluate(case.make(), *images(24), threat=case.threat, effort=Effort(steps=20))
    raised = {sign.check for sign in found.raised}
    assert expected <= raised and found.worst.accuracy > 0.1
    assert found.refuted(found.worst).check in expected
    text = found.table(width=110)
    (worst,) = [line for line in text.splitlines() if "worst case" in line]
    assert NO_VERDICT in worst and "%" not in worst and f"{found.worst.k} / 24" in worst
    assert "no verdict on robust accuracy" in text and "! not a verdict: " in text and "--suite black-box" in text
    assert "%" in next(line for line in text.splitlines() if line.strip().startswith(("clean", "│ clean", "| clean")))
    assert "strongest: " not in text + found._repr_html_()


@pytest.mark.parametrize("name", ["plain network, half the radius", "HE", "label smoothing of 0.6"])
def test_an_honest_network_raises_no_sign(name: str) -> None:
    found = outcome(CASES[name], "quick", 40).evaluation
    assert not found.raised and found.flags == () and NO_VERDICT not in found.table()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_no_suite_flatters_a_defence_without_a_sign(name: str) -> None:
    case = CASES[name]
    truth = case.truth(*images())
    for suite in ("quick", "rand", "black-box") if case.random else SUITES:
        found = outcome(case, suite).evaluation
        if found is not None:
            assert not flatters(found, truth), f"{suite}: {found.worst.accuracy} and no sign, truth {truth}"
            assert not (case.honest and {sign.check for sign in found.raised} & NEW.keys()), found.raised
        else:
            assert case.random == (suite != "rand")


# The probes.


def test_the_probes_are_a_function_of_what_they_measure(tmp_path: Path) -> None:
    model, x, y = linear(60, classes=5)
    specs, path = [pgd_spec()], tmp_path / "ledger.sqlite"
    evaluate(model, x, y, threat=THREAT, suite=specs, ledger=path)
    with Ledger.read(path) as book:
        first, again = (dict(probes_of(book, model, as_set(x, y), specs, ADDED)) for _ in range(2))
        assert first.items() <= book.probes.items()
    assert first == again
    assert first["slopes"] == {"n": 64, "false": 0}
    assert first["planted"]["n"] > 10 and first["planted"]["missed"] == {"PGD": 0}


def test_an_attack_that_barely_moves_misses_what_is_planted() -> None:
    """The gradient is right, but the attack does not follow it far enough."""
    model, x, y = linear(60, classes=5)
    lame = partial(pgd, threat=THREAT, steps=3, step_size=THREAT.eps / 1000, start="clean", keep="best")
    result = evaluate(model, x, y, threat=THREAT, suite=[AttackSpec("lame", lame)])
    checks = [sign.check for sign in result.raised]
    assert "planted examples missed" in checks and "false gradients" not in checks
    assert result.refuted(result.row("lame")) and "lame misses" in result.refuted(result.row("lame")).detail
    # A stronger attack beside it finds them.
    both = evaluate(model, x, y, threat=THREAT, suite=[AttackSpec("lame", lame), pgd_spec()])
    assert not both.raised and both.refuted(both.worst) is None


def test_black_box_attacks_stand_where_gradients_fail() -> None:
    model, x, y = linear(12, classes=5)
    wide = ThreatModel(norm="linf", eps=0.4)
    found = evaluate(Before(model, signs_of_bits(0.5)), x, y, threat=wide, suite="black-box")
    assert [row.name for row in found.attacks] == ["Square", "RayS"]
    assert "false gradients" in {sign.check for sign in found.raised}
    assert found.refuted(found.worst) is None and NO_VERDICT not in found.table()


def test_what_was_fooled_is_fooled() -> None:
    """An accuracy of zero needs no doubt, whatever the gradient is."""
    sign = Sign("false gradients", "raised", "", refutes="gradient attacks")
    none, some, search = row("PGD", 1000), row("PGD-50", 900), row("Square", 800, name="square")
    assert refuted(none, [], [sign]) is None and refuted(some, [], [sign]) is sign
    assert refuted(None, [none, some], [sign]) is None and refuted(None, [some], [sign]) is sign
    assert refuted(None, [some, search], [sign]) is sign and refuted(None, [search], [sign]) is None
    everything = replace(sign, refutes="every attack")
    assert refuted(None, [search], [everything]) is everything


def test_a_budget_that_goes_on_searches_again_among_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    model, x, y = linear(60, classes=5)
    evaluate(model, x, y, threat=THREAT, suite=[pgd_spec()], ledger=path)
    with Ledger.read(path) as book:
        left = book.outcomes().count("1")
        assert missing(book) == [] and book.probes["random search"]["resisted"] == left
    change(path, "UPDATE cells SET status = 'resisted' WHERE attack = 'PGD'")
    with Ledger.read(path) as book:
        assert missing(book) == ["random search"]


def test_probes_cost_little(tmp_path: Path) -> None:
    """At most the passes below, whatever the number of images, on a network of which about half survives."""
    x, y = images(100)
    spent, added = quick_and_probes(network(), x, y, tmp_path / "ledger", HALF)
    assert added["slopes"] == 2 * FEW * 2 * 3 and added["random search"] <= FEW * QUERIES + FEW
    assert sum(added.values()) < 1900, (spent, added)


@pytest.mark.slow
def test_probes_take_five_hundredths_of_quick_on_a_wide_resnet(tmp_path: Path) -> None:
    """1,000 images on a WRN-10-2 that was trained adversarially for a short time."""
    threat = CASES["plain network"].threat
    model = build("wrn-10-2", num_classes=10, in_channels=1, image_size=8, mean=(0.3053,), std=(0.3760,))
    train, test = load("digits").train, load_test("digits")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(6):
        for index in torch.randperm(len(train), generator=order).split(100):
            a, b = train.batch(index)
            model.eval()
            a = pgd(model, a, b, threat=threat, steps=3, step_size=0.1)
            model.train()
            loss = nn.functional.cross_entropy(model(a), b)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    parts = [test.batch(torch.arange(500)), train.batch(torch.arange(500))]
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    spent, added = quick_and_probes(model.eval(), x, y, tmp_path / "ledger", threat)
    print(f"quick {spent} forwards, probes {added}")
    assert sum(added.values()) <= 0.05 * spent, (spent, added)


# Randomised models.


def test_a_randomised_model_is_refused_and_sent_to_its_suite() -> None:
    model, x, y = linear(30, classes=5)
    noisy = Before(model, lambda x: x + 0.2 * torch.randn_like(x))
    with pytest.raises(UserError, match="--suite rand"):
        evaluate(noisy, x, y, threat=THREAT)


def test_a_randomised_model_is_judged_by_the_majority(tmp_path: Path) -> None:
    model, x, y = linear(20, classes=5)
    noisy = Before(model, lambda x: x + 0.03 * torch.randn_like(x))
    book, file = tmp_path / "ledger.sqlite", tmp_path / "evaluation.json"
    state = torch.get_rng_state()
    result = evaluate(noisy, x, y, threat=THREAT, suite="rand", ledger=book, effort=Effort(steps=5))
    assert torch.equal(torch.get_rng_state(), state)
    assert result.identity["suite"]["draws"] == 20 and not result.raised
    exact = evaluate(model, x, y, threat=THREAT)
    assert abs(result.worst.k - exact.worst.k) <= 2 and abs(result.clean.k - exact.clean.k) <= 2
    result.save(file)
    assert verify(file, book, noisy, x).passed


def test_the_majority_decides_and_the_mean_leads() -> None:
    class Coin(nn.Module):
        """Says class 0 loudly in a quarter of the calls, else class 1 quietly."""

        def forward(self, x: Tensor) -> Tensor:
            loud = (torch.rand(len(x), 1) < 0.25).float()
            return loud * torch.tensor([[50.0, 0.0]]) + (1 - loud) * torch.tensor([[0.0, 0.1]]) + x[:, :1]

    model = Majority(Coin(), 40)
    x = torch.zeros(8, 1, requires_grad=True)
    logits = model(x)
    assert (logits.argmax(1) == 1).all()
    assert torch.equal(model(x.detach()), model(x.detach())) and not torch.equal(model(x.detach()), logits)
    (grad,) = torch.autograd.grad(Majority(nn.Linear(1, 2), 3)(x)[:, 0].sum(), x)
    assert (grad != 0).all()


def test_a_model_without_gradients_is_sent_to_black_box() -> None:
    model, x, y = linear(12, classes=5)
    with pytest.raises(UserError, match="--suite black-box"):
        evaluate(Before(model, lambda x: x.detach()), x, y, threat=THREAT)
    wide = ThreatModel(norm="linf", eps=0.4)
    found = evaluate(Before(model, lambda x: x.detach()), x, y, threat=wide, suite="black-box")
    assert found.worst.k < found.clean.k and any("--suite black-box" in flag for flag in found.flags)
