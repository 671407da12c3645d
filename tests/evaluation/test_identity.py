"""Two things that give different results have different records, and an evaluation takes over nothing from another."""

from __future__ import annotations

import copy
import importlib
import json
import linecache
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import attack_kind, pgd
from advsphere.classifier import Classifier
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec, Evaluation, Ledger, evaluate, verify
from advsphere.evaluation.specs import kind_of
from advsphere.identity import (
    answer_alike,
    data_checksum,
    describe,
    model_answers,
    model_checksum,
    model_record,
    unknowns,
)
from advsphere.rng import Rng
from tests.evaluation.cases import FEW, SHAPE, THREAT, Known, change, linear, pgd_spec


def test_a_model_is_known_by_all_its_weights_and_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = model_checksum(model)
    assert model_checksum(model.to(memory_format=torch.channels_last)) == before  # type: ignore[call-overload]
    assert model_checksum(model.train().requires_grad_(False)) == before
    running = model[1].running_mean
    assert running is not None
    running[2] += 1e-6
    moved = model_checksum(model)
    model[0].weight.data[0, 1, 2, 0] += 1e-6  # type: ignore[index, operator, union-attr]
    assert len({before, moved, model_checksum(model), model_checksum(model.double())}) == 4


def test_the_same_numbers_in_another_shape_are_another_model() -> None:
    wide, high = nn.Linear(2, 4, bias=False), nn.Linear(4, 2, bias=False)
    high.weight.data = wide.weight.data.view(2, 4)
    assert model_checksum(wide) != model_checksum(high)


def test_data_is_known_by_pixels_labels_and_order_whatever_the_batch() -> None:
    _, images, labels = linear()

    def checksum(x: torch.Tensor, y: torch.Tensor, size: int = 250) -> str:
        return data_checksum(ImageSet(x, y, ("a", "b")), size)

    before = checksum(images, labels)
    assert checksum(images, labels, 7) == before
    other = images.clone()
    other[3, 0, 1, 1] += 1e-6
    relabelled = labels.clone()
    relabelled[5] = 1 - labels[5]
    changed = {checksum(other, labels), checksum(images, relabelled), checksum(images.flip(0), labels.flip(0))}
    assert len(changed | {before, checksum(images[:50], labels[:50])}) == 5


class Shifted(nn.Module):
    """A model whose normalisation is a plain attribute."""

    def __init__(self, model: nn.Module, mean: float = 0.0) -> None:
        super().__init__()
        self.model, self.mean = model, mean

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x - self.mean)
        return logits


class Switched(Shifted):
    """The same logits with another gradient."""

    def forward(self, x: Tensor) -> Tensor:
        weak = 0.1 * x
        return super().forward(x if self.mean == 0 else weak + (x - weak).detach() + self.mean)


@pytest.mark.parametrize("kind", [Shifted, Switched])
def test_models_that_differ_in_a_plain_attribute_answer_otherwise(kind: type[Shifted]) -> None:
    model = linear().model
    records = [(model_record(m), model_answers(m, SHAPE)) for m in (kind(model), kind(model, 0.2))]
    assert records[0][0] == records[1][0] and not answer_alike(records[0][1], records[1][1])
    if kind is Switched:
        logits = [torch.tensor(answers["logits"]) for _, answers in records]
        assert torch.allclose(logits[0], logits[1], atol=1e-5)


def test_rounding_is_no_other_answer() -> None:
    answers = json.loads(json.dumps(model_answers(linear(classes=3).model, SHAPE)))
    elsewhere = copy.deepcopy(answers)
    elsewhere["logits"] = [[v * (1 + 1e-5) for v in row] for row in answers["logits"]]
    elsewhere["slopes"][0] *= 3  # a gradient on the other side of a kink
    assert answer_alike(answers, elsewhere)
    elsewhere["logits"][0][0] += 0.1
    assert not answer_alike(answers, elsewhere)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_a_quantised_model_is_known_by_its_packed_weights() -> None:
    def quantised(factor: float) -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
        with torch.no_grad():
            model[1].weight.copy_(torch.linspace(-1, 1, 18).view(2, 9) * factor)  # type: ignore[operator]
            model[1].bias.zero_()  # type: ignore[operator]
        found: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        return found

    assert model_checksum(quantised(1)) == model_checksum(quantised(1)) != model_checksum(quantised(2))


def module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the user's, written and imported."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module(name)


ATTACK = """
from functools import partial
from advsphere.attacks import attack_kind, pgd

@attack_kind("iterative")
def attack(model, x, y, /, *, rng=None, steps={steps}, threat=None):
    return pgd(model, x, y, threat=threat, steps=steps, step_size=threat.eps / {steps}, rng=rng)
"""


def test_attacks_of_one_name_are_two_attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, path = linear(), tmp_path / "ledger.sqlite"

    def spec(steps: int) -> AttackSpec:
        found = module(tmp_path, f"mine{steps}", ATTACK.format(steps=steps), monkeypatch)
        return AttackSpec("mine", partial(found.attack, threat=THREAT))

    weak, strong = spec(1), spec(5)
    assert weak.settings["name"] == strong.settings["name"] == "attack"
    assert weak.settings["defined_in"] == "mine1" and len(weak.settings["source"]) == 64
    assert (kind_of(weak.settings), kind_of(strong.settings)) == ("one-step", "iterative")
    evaluate(*known, threat=THREAT, suite=[weak], ledger=path)
    with pytest.raises(UserError, match=r"attacks\.mine\.defined_in: mine1 -> mine5"):
        evaluate(*known, threat=THREAT, suite=[strong], ledger=path)
    edited = module(tmp_path, "mine1", ATTACK.format(steps=1) + "# edited", monkeypatch)
    with pytest.raises(UserError, match=r"attacks\.mine\.source"):
        evaluate(*known, threat=THREAT, suite=[AttackSpec("mine", partial(edited.attack, threat=THREAT))], ledger=path)


class Stronger:
    """An attack with settings that is no function."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        return pgd(model, x, y, threat=THREAT, steps=self.steps, step_size=0.1, rng=rng)

    def method(self, model: Classifier, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        return self(model, x, y, rng=rng)


def made(steps: int) -> Callable[..., Tensor]:
    @torch.no_grad()
    @attack_kind("black-box")
    def attack(model: Classifier, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        return x + steps

    return attack


def with_default(steps: int) -> Callable[..., Tensor]:
    def attack(model: Classifier, x: Tensor, y: Tensor, /, *, rng: Rng | None = None, steps: int = steps) -> Tensor:
        return x + steps

    return attack


@pytest.mark.parametrize("make", [Stronger, made, with_default, lambda n: Stronger(n).method])
def test_whatever_an_attack_is_made_from_is_in_its_record(make: Callable[[int], Any]) -> None:
    assert describe(make(1)) == describe(make(1)) != describe(make(2))
    assert not [*unknowns(describe(make(1)))] and describe(make(1))["defined_in"] == __name__
    if make is made:
        assert kind_of(AttackSpec("a", make(1)).settings) == "black-box"


def test_an_argument_may_have_the_name_of_an_entry() -> None:
    def attack(model: Classifier, x: Tensor, y: Tensor, /, *, source: int, name: str = "a") -> Tensor:
        return x

    assert describe(partial(attack, source=1)) != describe(partial(attack, source=2))
    assert len(describe(partial(attack, source=1))["source"]) == 64


def test_what_holds_itself_ends() -> None:
    attack = Stronger(1)
    attack.steps = attack  # type: ignore[assignment]
    assert "holds itself" in next(unknowns(describe(attack)))


def clean(result: Evaluation) -> int:
    return result.clean.k


def test_the_numbers_of_another_model_never_come_back(tmp_path: Path) -> None:
    known, path = linear(), tmp_path / "ledger.sqlite"
    first = evaluate(Shifted(known.model, 0.9), known.images, known.labels, threat=THREAT, suite=FEW, ledger=path)
    kept = path.read_bytes()
    for _ in range(2):  # the second time it goes on with its own
        again = evaluate(Shifted(known.model), known.images, known.labels, threat=THREAT, suite=FEW, ledger=path)
        assert clean(again) == 54 != clean(first) and path.read_bytes() == kept
        (noted,) = [f for f in again.findings if f.check == "ledger"]
        (beside,) = [p for p in tmp_path.glob("*.sqlite") if p != path]
        assert noted.status == "noted" and beside.name in noted.detail and noted.detail in again.flags
    third = Shifted(known.model, 0.5)
    assert clean(evaluate(third, known.images, known.labels, threat=THREAT, suite=FEW, ledger=path)) != 54
    assert len([*tmp_path.glob("*.sqlite")]) == 3
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        evaluate(third, known.images, known.labels, threat=THREAT, suite=FEW, ledger=path, seed=1)


def test_what_can_not_be_recorded_is_evaluated_anew(tmp_path: Path) -> None:
    known, path = linear(), tmp_path / "ledger.sqlite"
    spec = AttackSpec("lambda", lambda model, x, y, /, *, rng=None: x.clone())
    first, second = (evaluate(*known, threat=THREAT, suite=[spec], ledger=path) for _ in range(2))
    assert first.identity["anew"] != second.identity["anew"] and len([*tmp_path.glob("*.sqlite")]) == 2
    assert any("<lambda>: a lambda has no name" in flag and "can't be resumed" in flag for flag in first.flags)
    first.save(tmp_path / "evaluation.json")
    checked = verify(tmp_path / "evaluation.json", path, *known, suite=[spec])
    assert checked.passed and not [f for f in checked.findings if f.check == "sentences" and f.status != "ok"]

    space: dict[str, Any] = {"nn": nn, "__name__": "nowhere"}
    exec("class Own(nn.Module):\n    def forward(self, x):\n        return self.net(x)", space)
    own = space["Own"]()
    own.net = known.model
    assert "Own: no source file of it is found" in next(unknowns(model_record(own)))


def test_what_a_cell_of_a_notebook_defines_is_told_by_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(cell: str) -> tuple[Any, Any]:
        linecache.cache["cell.py"] = (len(cell), None, cell.splitlines(keepends=True), "cell.py")
        space: dict[str, Any] = {"nn": nn, "__name__": "notebook"}
        exec(compile(cell, "cell.py", "exec"), space)
        return model_record(space["Own"]()), describe(space["attack"])

    monkeypatch.setitem(sys.modules, "notebook", ModuleType("notebook"))  # without a file, as in a kernel
    monkeypatch.setattr(linecache, "cache", {})
    cell = (
        "class Own(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 2, bias=False)\n"
        "        self.weight.data.fill_(1)\ndef attack(model, x, y, *, rng):\n    return x\n"
    )
    first, again, other = run(cell), run(cell), run(cell.replace("return x", "return 1 - x"))
    assert first == again and not [*unknowns(list(first))]
    assert first[0] != other[0] and first[1] != other[1]


def test_so_is_what_it_uses_from_other_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "notebook", ModuleType("notebook"))
    monkeypatch.setattr(linecache, "cache", {})
    space: dict[str, Any] = {"nn": nn, "__name__": "notebook"}

    def run(cell: str) -> None:
        name = f"cell {len(linecache.cache)}"  # a new one each time, as in a kernel
        linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        exec(compile(cell, name, "exec"), space)

    def identity() -> tuple[Any, Any]:
        return model_record(space["Net"]()), describe(space["attack"])

    far = "def far(x):\n    return {} * x\n"
    step = "class Step:\n    def __call__(self, x):\n        return [far(v) for v in x]\nstep = Step()\n"
    run(far.format(1))
    run(step)
    run("def other():\n    return 0\n")
    run("class Net(nn.Identity):\n    @property\n    def shift(self):\n        return step([1])\n")
    run("def attack(model, x, y, *, rng):\n    return step(x)\n")
    first = identity()
    run(far.format(1))
    run("def other():\n    return 1\n")
    assert identity() == first
    run(far.format(2))
    assert all(now != then for now, then in zip(identity(), first, strict=True))
    run(far.format(1))
    run(step + "\n")
    assert all(now != then for now, then in zip(identity(), first, strict=True))


def test_verify_tells_another_model_from_an_edited_file(tmp_path: Path) -> None:
    known = Known(Shifted(linear().model), *linear()[1:])
    path, written = tmp_path / "ledger.sqlite", tmp_path / "evaluation.json"
    evaluate(*known, threat=THREAT, suite=[pgd_spec()], ledger=path).save(written)
    assert verify(written, path, *known, suite=[pgd_spec()]).passed
    other = verify(written, path, Shifted(known.model.model, 0.05), *known[1:], suite=[pgd_spec()])  # type: ignore[arg-type]
    assert "answers differently" in next(f.detail for f in other.findings if f.check == "model")
    with Ledger.read(path) as book:
        model = book.identity["model"]
    edited = model | {"classes": {name: "0" * 64 for name in model["classes"]}}
    change(path, "UPDATE meta SET value = ? WHERE key = 'model'", json.dumps(edited, sort_keys=True))
    with Ledger.read(path) as book:
        Evaluation.of(book).save(written)
    result = verify(written, path, *known, suite=[pgd_spec()])
    assert result.passed and "changed afterwards" in next(f.detail for f in result.findings if f.check == "model")
