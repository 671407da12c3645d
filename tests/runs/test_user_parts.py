"""Parts of the user's own: passed from Python as objects, and named in configs and on the command line."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advsphere
from advsphere import named, provenance
from advsphere.cli import main
from advsphere.data import Dataset, ImageSet
from advsphere.errors import UserError
from advsphere.files import tensor_checksum
from advsphere.hypersphere import HypersphereConfig, attach_head
from advsphere.losses import cross_entropy
from advsphere.objectives import PGDAT, TRADES, FreeAT, Losses, Standard
from advsphere.recipes import recipe
from advsphere.runs.config import GivenObjective, objective_like, title_of
from advsphere.runs.folder import load_run, read_config
from advsphere.runs.train import train
from advsphere.threat import ThreatModel
from advsphere.training import Stopped, Trainer, TrainSettings
from tests.training.tiny import assert_same_run, left_behind, stopping_after

THREAT = ThreatModel(norm="linf", eps=0.1)
MODULE = """
from dataclasses import dataclass
import torch
from torch import nn
from advsphere.objectives import PGDAT

@dataclass(frozen=True, kw_only=True)
class Own(PGDAT):
    beta: float = 2.0

    def loss(self, model, x, x_adv, y, *, criterion):
        found = super().loss(model, x, x_adv, y, criterion=criterion)
        return found._replace(total=self.beta * found.total)

def net(num_classes, in_channels, width=8):
    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, num_classes))

def adam(weights):
    return torch.optim.Adam(weights, lr=0.01)

class Blobs:
    classes = ["dark", "bright"]

    def __init__(self, n, shift=0.0):
        self.n, self.shift = n, shift

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return (torch.rand(1, 8, 8, generator=generator) / 2 + self.shift + 0.4 * (i % 2)).clamp(0, 1), i % 2

def blobs(n=40, shift=0.0):
    return Blobs(n, shift), Blobs(20, shift)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "commit", lambda: "0123456789ab")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's, found in the current folder; each test has another."""
    monkeypatch.chdir(tmp_path)
    name = f"own_{tensor_checksum({}, str(tmp_path))[:12]}"
    Path(f"{name}.py").write_text(MODULE)
    return name


def pixels(n: int = 60) -> tuple[Tensor, Tensor]:
    """Two classes of grey 8x8 images."""
    y = torch.arange(n) % 2
    return (torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 2 + 0.4 * y[:, None, None, None]), y


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def quick(folder: Path, **parts: Any) -> nn.Module:
    """A run of two epochs on tensors."""
    chosen = {"data": pixels(), "model": net(), "objective": PGDAT(threat=THREAT, steps=2, step_size=0.05)}
    return train(folder=folder, **{**chosen, "epochs": 2, "batch_size": 16, "lr": 0.02, **parts})


# From Python.


def test_objects_are_trained_resumed_and_read_back(tmp_path: Path) -> None:
    parts = {"optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.01)}
    quick(tmp_path / "at once", **parts)
    with pytest.raises(Stopped):
        quick(tmp_path / "resumed", stop=stopping_after(4), **parts)
    model = quick(tmp_path / "resumed", resume=True, **parts)
    assert_same_run(tmp_path / "at once", tmp_path / "resumed")
    config = read_config(tmp_path / "resumed")
    assert config.data.name.startswith("given: tensors (train part), 54 images of 1x8x8, SHA-256 ")
    assert config.model.name == "given: Sequential" and config.training.optimizer == "given: a function"
    assert config.threat == THREAT, "the objective's"
    run = load_run(tmp_path / "resumed", "last", model=net(), test=pixels(20))
    x, _ = run.test.batch(torch.arange(20))
    assert torch.equal(run.model(x), model.eval()(x)) and run.test.classes == ("0", "1")


def test_what_was_given_and_is_needed_again_is_asked_for(tmp_path: Path) -> None:
    quick(tmp_path)
    with pytest.raises(UserError, match=r"images were passed from Python .*load_run\(folder, test=\.\.\.\)"):
        load_run(tmp_path)
    with pytest.raises(UserError, match=r"network was passed from Python .*--model package.module:function --weights"):
        load_run(tmp_path, test=pixels())
    assert advsphere.load(tmp_path, model=net()).shape == (1, 8, 8), "needs no images"
    with pytest.raises(UserError, match=r"images were passed from Python"):
        train(read_config(tmp_path), tmp_path, resume=True, model=net())
    x, y = pixels()
    with pytest.raises(UserError, match=r"data.name: given: .* -> given: "):
        quick(tmp_path, data=(1 - x, y), resume=True)


def test_a_local_objective_is_described_and_asked_for(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Local(PGDAT):
        strength: float = 3.0

    objective = Local(threat=THREAT, steps=1, step_size=0.1)
    quick(tmp_path, objective=objective, model="small-cnn")
    config = read_config(tmp_path)
    assert isinstance(config.objective, GivenObjective) and title_of(config.objective) == "Local"
    assert "strength=3.0" in config.objective.description and config.objective.threat == THREAT
    before = left_behind(tmp_path)
    quick(tmp_path, objective=objective, model="small-cnn", resume=True)
    with pytest.raises(UserError, match=r"strength=3.0.* -> .*strength=4.0"):
        quick(tmp_path, objective=replace(objective, strength=4.0), model="small-cnn", resume=True)
    assert left_behind(tmp_path) == before


def test_data_of_every_kind(tmp_path: Path) -> None:
    x, y = pixels()
    ours = ImageSet(x, y, ("dark", "bright"))
    kinds: dict[str, Any] = {
        "tensors": (x, y),
        "set": ours,
        "data set": Dataset(ours.take(torch.arange(40)), ours.take(torch.arange(40, 60))),
        "map-style": torch.utils.data.TensorDataset(x, y),
        "pair": (torch.utils.data.TensorDataset(x, y), (x[:20], y[:20])),
        "mapping": {"train": (x, y), "validation": (x[:20], y[:20])},
    }
    for name, data in kinds.items():
        quick(tmp_path / name, data=data, objective=Standard(), epochs=1)
        assert read_config(tmp_path / name).data.name.startswith("given: ")
    with pytest.raises(UserError, match="differ in their classes"):
        quick(tmp_path / "other", data=((x, y), ours))
    with pytest.raises(UserError, match="no map-style data set"):
        quick(tmp_path / "none", data=3)
    assert not (tmp_path / "none").exists()


class Viewing(nn.Module):
    """Flattens by `view`, which takes contiguous activations only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.body(x).relu()
        return self.fc(z.view(len(z), -1))


def test_a_given_network_that_flattens_by_view_is_trained(tmp_path: Path) -> None:
    assert not quick(tmp_path, model=Viewing()).training, "ready to be attacked"
    assert (tmp_path / "last.safetensors").exists()


def test_a_head_of_a_given_network_is_put_on_the_sphere(tmp_path: Path) -> None:
    model = quick(tmp_path, sphere=HypersphereConfig())
    assert model.get_submodule("3").scale == 15.0
    run = load_run(tmp_path, "last", model=net(), test=pixels())
    x, _ = run.test.batch(torch.arange(9))
    assert torch.equal(run.model(x), model.eval()(x))


def test_a_network_that_does_not_fit_the_images_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for model, said in (
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
            "but there are 2 classes, 0 to 1: give it 2 outputs, or name",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), "give it 2 outputs, or number the labels from 0"),
        (nn.Sequential(nn.Flatten(), nn.Linear(63, 2)), "does not take images of shape"),
        (lambda num_classes: num_classes, "returned a int, not a torch.nn.Module"),
    ):
        with pytest.raises(UserError, match=said):
            quick(tmp_path / "run", model=model)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock"}
    with pytest.raises(UserError, match=r"no setting epoch \(did you mean epochs"):
        quick(tmp_path / "run", epoch=3)
    with pytest.raises(UserError, match="objective is the class Standard; give an object of Objective"):
        quick(tmp_path / "run", objective=Standard)
    with pytest.raises(UserError, match=r"optimizer is .*; give a function or a class"):
        quick(tmp_path / "run", optimizer=torch.optim.Adam(net().parameters()))


def test_objectives_that_are_none_are_told_what_they_lack(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bare(PGDAT):
        each: bool = False

        def loss(self, model, x, x_adv, y, *, criterion):
            values = criterion(model(x_adv), y)
            return Losses(values) if self.each else values.mean()

    for objective in (Bare(steps=1), Bare(steps=1, each=True)):
        with pytest.raises(UserError, match=r"Bare.loss has to return objectives.Losses\(total\), where total"):
            quick(tmp_path, objective=objective)
    with pytest.raises(UserError, match=r"objective is .*; give an object of Objective"):
        quick(tmp_path, objective=lambda model, x, y: None)
    with pytest.raises(UserError, match="objective is the class PGDAT; give an object of Objective"):
        Trainer(net(), PGDAT, cross_entropy, pixels(), settings=TrainSettings(), folder=tmp_path)
    with pytest.raises(UserError, match=r"lr_schedule is 'cosine'; give an object of Constant"):
        quick(tmp_path, lr_schedule="cosine")
    with pytest.raises(
        UserError, match=r"config is 'digits-pgd-at'; give an object of Config \(such as advsphere.recipe"
    ):
        train("digits-pgd-at", tmp_path)


def test_an_interrupt_in_a_notebook_writes_a_checkpoint_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Interrupting(PGDAT):
        def craft(self, model, x, y, context):
            os.kill(os.getpid(), signal.SIGINT)
            return x

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with pytest.raises(Stopped) as stopped:
        quick(tmp_path, objective=Interrupting())
    assert (tmp_path / "last.safetensors").exists() and signal.getsignal(signal.SIGINT) is before
    assert stopped.value._render_traceback_()[-1].endswith("continue with --resume (in Python resume=True)")
    printed = capsys.readouterr()
    assert "Interrupting on 49 images" in printed.out and "the checkpoint is being written" in printed.err


def test_a_head_without_a_margin_is_noted(tmp_path: Path) -> None:
    said = list[str]()
    quick(tmp_path, model=attach_head(net(), scale=5.0), epochs=1, on_start=lambda trainer, notes: said.extend(notes))
    assert any("a hypersphere head, but no margin; sphere=HypersphereConfig() adds one" in line for line in said)


def test_one_threat_model_for_training_and_validation_unless_two_are_given(tmp_path: Path) -> None:
    def note(trainer: object, notes: list[str]) -> None:
        said.extend(notes)
        raise Stopped

    for parts, trained, judged in (
        ({"threat": ThreatModel(norm="linf", eps=0.3)}, 0.1, 0.3),
        ({}, 0.1, 0.1),
        ({"objective": Standard(), "threat": ThreatModel(norm="linf", eps=0.3)}, None, 0.3),
    ):
        said: list[str] = []
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(Stopped):
            quick(folder, on_start=note, **parts)
        config = read_config(folder)
        assert (getattr(getattr(config.objective, "threat", None), "eps", None), config.threat.eps) == (trained, judged)
        told = [line for line in said if line.startswith("trained against")]
        assert bool(told) == (trained not in (None, judged))
    assert told == []


# By name.


def command(module: str, *more: str) -> list[str]:
    return [
        *("train", "digits-trades", "--objective", f"{module}:Own", "--data.name", f"{module}:blobs"),
        *("--data.arguments", "{n: 50}", "--data.validation", "10", "--model.name", f"{module}:net"),
        *("--model.arguments", "{width: 4}", "--optimizer", "torch.optim:Adam", "--objective.steps", "2"),
        *("--epochs", "2", "--lr", "0.01", "--threat.eps", "0.1", "--out", "run", *more),
    ]


def test_named_parts_reach_every_command(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(module)) == 0
    config = read_config(Path("run"))
    assert config.data.arguments == {"n": 50} and config.model.arguments == {"width": 4}
    assert type(config.objective).__name__ == "Own" and config.objective.beta == 2.0, "not that of TRADES"
    assert config.objective.step_size == 0.05 and config.objective.threat == config.threat, (
        "of the recipe, and --threat"
    )
    assert json.loads(Path("run/classes.json").read_text()) == ["dark", "bright"]
    sources = json.loads(Path("run/provenance.json").read_text())["sources"]
    assert set(sources) == {f"{module}:{part}" for part in ("blobs", "net", "Own")} and len(set(sources.values())) == 1
    assert main([*command(module)[:-1], "sphere", "--he"]) == 0
    for verb in (
        ["evaluate", "run", "--n", "10"],
        ["evaluate", "sphere", "--n", "10"],
        ["verify", "run"],
        ["show", "run"],
        ["report", "run", "sphere", "--suite", "quick", "--out", "page.html"],
        ["diagnose", "sphere", "--baseline", "run", "--n", "10"],
    ):
        assert main(verb) == 0, verb
    shown = capsys.readouterr().out
    assert "Own on 40 images" in shown and "verified" in shown
    page = Path("page.html").read_text()
    assert f"{module}:Own" in page and f"--objective {module}:Own" in page and "Own+HE" in page


def test_a_named_function_makes_the_optimizer(module: str, tmp_path: Path) -> None:
    quick(tmp_path / "named", optimizer=f"{module}:adam")
    quick(tmp_path / "passed", optimizer=named.load(f"{module}:adam"), resume=True)
    assert_same_run(tmp_path / "named", tmp_path / "passed")
    assert read_config(tmp_path / "passed").training.optimizer == f"{module}:adam"


def test_a_resume_with_another_source_is_refused(module: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(command(module)) == 0
    assert main(command(module, "--resume")) == 0
    with Path(f"{module}.py").open("a") as file:
        file.write("# changed\n")
    before = left_behind(Path("run"))
    assert main(command(module, "--resume")) == 1
    assert "the source file has changed since the run in run started" in "".join(capfd.readouterr())
    assert left_behind(Path("run")) == before


def test_a_config_file_is_trained(module: str) -> None:
    Path("mine.yaml").write_text(
        f"recipe: mine\ndata: {{name: '{module}:blobs', validation: 10}}\nmodel: {{name: '{module}:net'}}\n"
        f"objective: {{kind: '{module}:Own', steps: 1, beta: 3}}\ntraining: {{epochs: 1}}\n"
    )
    assert main(["train", "mine.yaml", "--lr", "0.05"]) == 0
    config = read_config(Path("runs/mine"))
    assert config.objective.beta == 3.0 and config.training.lr == 0.05
    assert main(["train", "nowhere.yaml"]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--objective", "TRADE"], "did you mean TRADES"),
        (["--objective", "nowhere:Mine"], "nowhere:Mine: No module named 'nowhere'"),
        (["--objective", "torch:Tensor"], "not a dataclass derived from advsphere.objectives.Objective"),
        (["--model.name", "torch.nn:nothing"], "no attribute 'nothing'"),
        (["--data.name", "torch:get_num_threads"], "torch:get_num_threads is no map-style data set"),
        (["--optimizer", "adam"], "adam"),
    ],
)
def test_a_name_that_leads_nowhere_is_said_in_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits-pgd-at", *words, "--out", "run"]) == 1
    shown = "".join(capfd.readouterr())
    assert said in shown and "Traceback" not in shown
    assert not Path("run").exists() or {path.name for path in Path("run").iterdir()} <= {".lock"}


def test_an_objective_takes_over_what_both_have_from_one_class() -> None:
    config = replace(recipe("digits-pgd-at"), objective=PGDAT(threat=THREAT, steps=3, step_size=0.2, start="uniform"))
    assert objective_like("TRADES", config) == TRADES(threat=THREAT, steps=3, step_size=0.2, start="uniform")
    weighed = replace(config, objective=TRADES(beta=9.0))
    assert objective_like("ALP", weighed).beta == 0.5, "each has a beta of its own"
    assert objective_like("FreeAT", config) == FreeAT(threat=THREAT)
    assert objective_like("Standard", config) == Standard()
    standard = recipe("digits-standard")
    assert objective_like("PGDAT", standard) == PGDAT(threat=standard.threat)
    with pytest.raises(UserError, match="give each field a default"):
        objective_like("advsphere.runs.config:GivenObjective", standard)


# Classes.


def test_images_are_matched_to_the_run_s_classes_by_name(tmp_path: Path) -> None:
    x, y = pixels()
    data = Dataset(ImageSet(x, y, ("cat", "dog")), ImageSet(x[:20], y[:20], ("cat", "dog")))
    quick(tmp_path, data=data)
    order = y.argsort(stable=True)
    sorted_ = ImageSet(x[order], y[order], ("cat", "dog"))
    run = load_run(tmp_path, model=net(), test=sorted_)
    # The same folder with the names so that dogs come first.
    renamed = ImageSet(torch.cat([x[y == 1], x[y == 0]]), torch.tensor([0] * 30 + [1] * 30), ("dog", "cat"))
    again = load_run(tmp_path, model=net(), test=renamed).test
    assert again.classes == ("cat", "dog")
    assert torch.equal(again.labels, run.test.labels) and torch.equal(again.pixels, run.test.pixels)
    few = load_run(tmp_path, model=net(), test=ImageSet(x[y == 1], torch.zeros(30).long(), ("dog",))).test
    assert few.labels.tolist() == [1] * 30
    with pytest.raises(UserError, match=r"not trained on: bird; it knows cat, dog"):
        load_run(tmp_path, model=net(), test=replace(renamed, classes=("bird", "cat")))
    numbered = ImageSet(x, y, ("0", "1"))
    assert torch.equal(load_run(tmp_path, model=net(), test=numbered).test.labels, y), "shards have no names"
    (tmp_path / "classes.json").unlink()
    assert load_run(tmp_path, model=net(), test=renamed).test.classes == ("dog", "cat"), "a run of an earlier version"
