from __future__ import annotations

import io
import itertools
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from advsphere.attacks import deepfool, fgsm
from advsphere.classifier import PixelClassifier
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.evaluation import CLEAN, AttackSpec, Effort, Evaluation, Ledger, Progress, evaluate, verify
from advsphere.evaluation.cascades import cascade
from advsphere.evaluation.probes import PROBES
from advsphere.evaluation.progress import progress_bar
from advsphere.hypersphere import attach_head
from advsphere.threat import ThreatModel
from tests.evaluation.cases import (
    FEW,
    SHAPE,
    THREAT,
    Fused,
    change,
    do_nothing,
    leave_the_ball,
    linear,
    pgd_spec,
    robust,
)
from tests.laws import assert_same_state, global_randomness_untouched, state_of


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.1, 0.3])
def test_finds_the_exact_robust_accuracy_of_a_linear_model(eps: float) -> None:
    known, threat = linear(200, wrong=20), ThreatModel(norm="linf", eps=eps)
    exact = robust(known, threat)
    result = evaluate(*known, threat=threat, suite="quick", batch_size=64)
    assert result.clean.k == 180 and result.clean.n == 200
    for row in (*result.attacks, result.worst):
        assert [c == "1" for c in row.outcomes] == exact.tolist(), row.name
    assert result.flags == ()


def test_the_worst_case_is_taken_for_each_example() -> None:
    known = linear(classes=4)

    def half(remainder: int) -> AttackSpec:
        """Finds what there is to find, but for every other example."""
        attack = pgd_spec().attack

        def some(model, x, y, /, *, rng=None):  # type: ignore[no-untyped-def]
            x_adv = attack(model, x, y, rng=rng)
            skipped = rng.ids % 2 != remainder
            x_adv[skipped] = x[skipped]
            return x_adv

        return AttackSpec(f"half {remainder}", some)

    result = evaluate(*known, threat=THREAT, suite=[half(0), half(1)])
    even, odd = result.attacks
    both = evaluate(*known, threat=THREAT, suite=[pgd_spec()]).worst
    assert result.worst.outcomes == both.outcomes
    assert result.worst.k < min(even.k, odd.k) < (even.k + odd.k) / 2 + 1


def test_statuses_add_up(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    result = evaluate(*linear(), threat=THREAT, ledger=path, batch_size=16)
    with Ledger.read(path) as book:
        assert book.counts(CLEAN) == {"fooled": 6, "resisted": 54}
        for row in result.attacks:
            counts = book.counts(row.name)
            assert sum(counts.values()) == row.n == 60 and counts["not_run"] == 6
            assert row.k == counts["resisted"] == book.outcomes(row.name).count("1")
            cells = book.cells(row.name)
            fooled = [c for c in cells if c.status == "fooled"]
            assert len(fooled) == 54 - row.k > 0
            for cell in fooled:
                assert book.adversarial(row.name, cell.example) is not None
                assert cell.prediction != book.labels[cell.example]
                assert cell.distance is not None and cell.distance <= THREAT.eps + 1e-6
        assert book.worst_case() == (result.worst.k, 60)


def test_an_attack_that_leaves_the_ball_has_not_succeeded_and_is_flagged() -> None:
    result = evaluate(*linear(), threat=THREAT, suite=[AttackSpec("cheat", leave_the_ball), pgd_spec()])
    cheat, honest = result.attacks
    assert cheat.invalid == 54 and cheat.outcomes == result.clean.outcomes
    assert result.flags == ("cheat: 54 results left the ball or the pixel range; counted as resisted",)
    assert "! cheat: 54 results" in result.table()
    assert result.worst.outcomes == honest.outcomes and honest.invalid == 0


def test_an_attack_that_lies_is_found_out() -> None:
    result = evaluate(*linear(), threat=THREAT, suite=[AttackSpec("nothing", do_nothing)])
    assert result.attacks[0].outcomes == result.clean.outcomes
    assert [flag.partition(",")[0] for flag in result.flags] == ["not a verdict: random search finds more"]


def run(model: Fused, path: Path | None = None) -> Evaluation:
    _, images, labels = linear()
    return evaluate(model, images, labels, threat=THREAT, suite=FEW, batch_size=16, ledger=path)


def calls_of(path: Path | None = None) -> int:
    model = Fused(linear().model)
    run(model, path)
    return model.seen


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8, 0.99])
def test_an_interrupted_evaluation_goes_on_and_ends_the_same(share: float, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.sqlite", tmp_path / "cut.sqlite"
    calls = calls_of(whole)
    model = Fused(linear().model)
    model.calls = int(share * calls)
    with pytest.raises(KeyboardInterrupt):
        run(model, cut)
    with Ledger.read(cut) as book:
        finished = sum(len(book.done(name)) for name in (CLEAN, *book.attacks)) + len(book.probes)
    assert 0 < finished < 12 + len(PROBES)
    model.calls, model.seen = None, 0
    resumed = run(model, cut)
    assert model.seen < calls
    with Ledger.read(whole) as one, Ledger.read(cut) as other:
        assert one.checksum() == other.checksum() == resumed.ledger
        assert one.outcomes() == other.outcomes() == resumed.worst.outcomes
    # A third time there is nothing left to do.
    assert run(model, cut) == resumed


def test_a_ledger_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    known, path = linear(), tmp_path / "ledger.sqlite"
    evaluate(*known, threat=THREAT, ledger=path)
    for changed, named in [
        ({"threat": ThreatModel(norm="linf", eps=0.2)}, "threat.eps"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"batch_size": 10}, "batch_size"),
        ({"suite": "paper"}, "suite.name: quick -> paper"),
        ({"effort": Effort(restarts=2)}, "suite.restarts: 1 -> 2"),
        ({"labels": known.labels.roll(1)}, "data.checksum"),
        ({"images": known.images.clamp(max=0.9)}, "data.checksum"),
    ]:
        settings = {"model": known.model, "images": known.images, "labels": known.labels, "threat": THREAT} | changed
        with pytest.raises(UserError, match=named):
            evaluate(**settings, ledger=path)  # type: ignore[arg-type]


def test_results_do_not_depend_on_the_batches() -> None:
    known = linear(classes=4)
    outcomes = [
        [row.outcomes for row in evaluate(*known, threat=THREAT, suite=FEW, batch_size=size).rows]
        for size in (7, 60, 250)
    ]
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_more_steps_of_the_same_attack_never_help_the_defender() -> None:
    """PGD-100 walks the path of PGD-20 and goes on."""
    known = linear(100, classes=5)
    for eps in (0.02, 0.05, 0.1):
        result = evaluate(*known, threat=ThreatModel(norm="linf", eps=eps))
        short, long = result.row("PGD-20").outcomes, result.row("PGD-100").outcomes
        assert all(b <= a for a, b in zip(short, long, strict=True))


def test_model_and_global_randomness_are_left_as_they_were() -> None:
    known = linear()
    model = nn.Sequential(known.model, nn.Dropout(0.5)).train()
    known.model.eval()
    before = state_of(model)
    with global_randomness_untouched():
        result = evaluate(model, known.images, known.labels, threat=THREAT, suite=FEW)
    assert_same_state(before, state_of(model))
    assert model.training and not model[0].training
    assert result.clean.k == 54 and any(f.status == "fixed" for f in result.findings)


def test_takes_a_set_of_images_as_well() -> None:
    model, images, labels = linear()
    pixels = (images * 255).round().to(torch.uint8)
    named = ImageSet(pixels, labels, ("a", "b"), name="few")
    by_set = evaluate(model, named, threat=THREAT, suite=FEW)
    by_tensor = evaluate(model, pixels.float() / 255, labels, threat=THREAT, suite=FEW)
    assert by_set.identity["data"]["name"] == "few"
    assert [r.outcomes for r in by_set.rows] == [r.outcomes for r in by_tensor.rows]
    assert by_set.identity["data"]["checksum"] == by_tensor.identity["data"]["checksum"]


def test_the_scale_of_a_hypersphere_head_reaches_the_suite() -> None:
    model, images, _ = linear()
    attach_head(model, scale=12.0)
    labels = model(images).argmax(1)
    result = evaluate(model, images, labels, threat=THREAT, suite="paper")
    assert result.identity["model"]["scale"] == 12.0
    assert result.attacks[0].settings["loss"] == {"factor": 1 / 12, "loss": "log_odds", "name": "at_scale"}


def test_a_network_without_a_linear_head_is_attacked_as_it_is() -> None:
    model, images, labels = linear()
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    with torch.no_grad():
        plain[0].weight.copy_(model[1].weight.view(2, *SHAPE))  # type: ignore[index]
        plain[0].bias.copy_(model[1].bias)  # type: ignore[index]
    result = evaluate(plain, images, labels, threat=THREAT)
    assert result.identity["model"]["scale"] == 1.0
    assert any("no linear layer" in f.detail for f in result.findings) and result.flags == ()
    with pytest.raises(UserError, match="'fc' is no linear layer"):
        evaluate(plain, images, labels, threat=THREAT, head="fc")


def test_names_and_restarts_of_own_attacks() -> None:
    known = linear()
    for suite, message in [
        ([pgd_spec("a"), pgd_spec("a")], "'a' is used twice"),
        ([pgd_spec("clean")], "'clean' is used twice or reserved"),
        ([pgd_spec("worst case")], "reserved"),
        ([pgd_spec(threat=ThreatModel(norm="linf", eps=0.05))], r"eps=0\.05.*bind the same one"),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate(*known, threat=THREAT, suite=suite)
    with pytest.raises(UserError, match="restarts=n"):
        evaluate(*known, threat=THREAT, suite=[pgd_spec()], effort=Effort(restarts=2))


def test_preflight_comes_first(tmp_path: Path) -> None:
    model, images, labels = linear()
    with pytest.raises(UserError, match="probabilities"):
        evaluate(nn.Sequential(model, nn.Softmax(1)), images, labels, threat=THREAT, ledger=tmp_path / "ledger.sqlite")
    assert not list(tmp_path.iterdir())


def test_what_no_evaluation_can_be_of_is_refused() -> None:
    model, images, labels = linear()
    with pytest.raises(UserError, match="eps is 0, so there is nothing to attack"):
        evaluate(model, images, labels, threat=ThreatModel(norm="linf", eps=0.0))
    with pytest.raises(UserError, match="did you mean eps / 255"):
        evaluate(model, images, labels, threat=ThreatModel(norm="linf", eps=8))
    with pytest.raises(UserError, match=r"threat is 0.1; give an object of ThreatModel \(such as ThreatModel\(norm='l"):
        evaluate(model, images, labels, threat=0.1)
    with pytest.raises(UserError, match="budget is '10m'; give a number"):
        evaluate(model, images, labels, threat=THREAT, budget="10m")
    with pytest.raises(UserError, match="precision is 'fp16'; give one of 'auto', 'float32', 'bfloat16'"):
        evaluate(model, images, labels, threat=THREAT, precision="fp16")
    for suite in (fgsm, [fgsm]):
        with pytest.raises(UserError, match=r"suite is .*; give a string or several: each an object of AttackSpec"):
            evaluate(model, images, labels, threat=THREAT, suite=suite)
    with pytest.raises(UserError, match="bounds are 0 to 255"):
        evaluate(model, images, labels, threat=ThreatModel(norm="linf", eps=8, bounds=(0, 255)))
    with pytest.raises(UserError, match="function; wrap it in a"):
        evaluate(lambda x: model(x), images, labels, threat=THREAT)  # type: ignore[arg-type]


def test_says_how_far_it_is() -> None:
    seen: list[Progress] = []
    result = evaluate(*linear(), threat=THREAT, suite=FEW, batch_size=25, on_progress=seen.append)
    assert [(p.attack, p.done) for p in seen[:4]] == [(CLEAN, 25), (CLEAN, 50), (CLEAN, 60), ("PGD-5", 25)]
    for row in result.rows[:-1]:
        assert [p.robust for p in seen if p.attack == row.name][-1] == row.k
    assert seen[0].images_per_second > 0 and f"{100 * seen[0].robust / 25:.1f} %" in str(seen[0])


def test_the_bar_is_whole_in_80_columns() -> None:
    console = Console(file=(out := io.StringIO()), width=80, force_terminal=True, color_system=None)
    with progress_bar(console=console) as show:
        for done in (4000, 9000):  # as for a sample that grows
            known = {"done": done, "total": done + 1000, "robust": 5, "seconds": 1, "images": done}
            show(Progress(attack="AutoAttack: APGD-T, 10 steps", **known))
    shown = out.getvalue()
    assert all(part in shown for part in ("APGD-T, 10 steps", "9000/10000", "0.1 % (0.0 - 0.1)")) and "…" not in shown


def test_the_bar_shows_every_attack(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(console=Console(), transient=False, disable=False) as show:
        result = evaluate(*linear(), threat=THREAT, suite=FEW, on_progress=show)
    out = capsys.readouterr().out
    assert all(row.name in out for row in result.rows[:-1]) and "60/60" in out


class Noting(nn.Module):
    """Notes for each call whether it computes in low precision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.low: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.low.append(torch.is_autocast_enabled("cpu"))
        logits: Tensor = self.model(x)
        return logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_a_search_in_low_precision_is_recorded_and_reaches_the_same_verdict(
    dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advsphere.evaluation.engine.low_precision", lambda device, model: dtype)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in conv.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    model = Noting(PixelClassifier(conv, mean=[0.5], std=[0.25]).eval())
    images = linear(200).images
    labels, threat = model(images).argmax(1), ThreatModel(norm="linf", eps=0.03)
    few = [pgd_spec(threat=threat, steps=5)]
    full = evaluate(model, images, labels, threat=threat, suite=few, precision="float32")
    assert full.identity["search"] == "float32" and not any(model.low)
    low = evaluate(model, images, labels, threat=threat, suite=few)
    assert 0 < full.worst.k < 200 and abs(low.worst.k - full.worst.k) <= 4
    if dtype is None:
        assert low.identity["search"] == "float32" and not any(model.low)
    else:
        assert low.identity["search"] == "bfloat16"
        assert sum(model.low) >= 6  # every step of the search, and the look at its last iterate


def test_a_slow_precision_is_said_and_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advsphere.evaluation.engine.advice", lambda dtype, device: f"{dtype} is slow here")
    known = linear()
    with pytest.warns(UserWarning, match="bfloat16 is slow here"):
        result = evaluate(known.model, known.images, known.labels, threat=THREAT, suite=FEW, precision="bfloat16")
    assert not any("slow" in finding.detail for finding in result.findings)


class ThroughNumpy(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.conv, self.model = nn.Conv2d(1, 1, 1), model

    def forward(self, x: Tensor) -> Tensor:
        self.conv(x).detach().numpy()  # has no bfloat16
        logits: Tensor = self.model(x)
        return logits


class Large(nn.Module):
    """Its activations do not fit into the memory."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        logits: Tensor = self.inner(x)
        return logits


def test_a_lack_of_memory_is_not_read_as_a_lack_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advsphere.evaluation.engine.low_precision", lambda device, model: torch.bfloat16)
    known = linear()
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(Large(known.model), known.images, known.labels, threat=THREAT, suite=FEW)


def test_a_model_that_knows_no_bfloat16_is_searched_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advsphere.evaluation.engine.low_precision", lambda device, model: torch.bfloat16)
    known = linear()
    model = ThroughNumpy(known.model)
    result = evaluate(model, known.images, known.labels, threat=THREAT, suite=FEW)
    assert result.identity["search"] == "float32" and result.worst.k < result.clean.k
    assert any(f.check == "precision" and "searched in float32" in f.detail for f in result.findings)
    with pytest.raises(UserError, match="--precision float32"):
        evaluate(model, known.images, known.labels, threat=THREAT, suite=FEW, precision="bfloat16")


def test_what_was_not_reached_counts_as_robust_and_is_said(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    whole = run(Fused(linear().model), path)
    late = "attack = 'margin PGD-5' OR attack = 'PGD-5' AND"  # as if it had ended in the middle of the first attack
    change(path, f"DELETE FROM cells WHERE {late} example >= 32")
    change(path, f"DELETE FROM batches WHERE {late} batch >= 2")
    with Ledger.read(path) as book:
        part = Evaluation.of(book)
    first, last = part.attacks
    assert 0 < first.unreached < first.k and last.unreached == last.k and part.worst.k > whole.worst.k  # type: ignore[operator]
    assert first.ran and not last.ran and part.worst.unreached == part.worst.k
    assert f"PGD-5: {first.unreached} images not reached in time; counted as resisted" in part.flags
    assert "not run, because the time was over: margin PGD-5" in part.flags
    assert re.search(r"margin PGD-5\W+not run", part.table())
    assert all(a <= b for a, b in zip(whole.worst.outcomes, part.worst.outcomes, strict=True))


def test_a_ledger_without_the_clean_images_is_no_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    run(linear().model, path)
    change(path, "DELETE FROM cells WHERE attack = 'clean' AND example = 3")
    with Ledger.read(path) as book, pytest.raises(UserError, match="1 of 60 clean images are missing"):
        Evaluation.of(book)


def test_a_cascade_reaches_the_same_verdict_with_less() -> None:
    known = linear(100, classes=5)
    full = evaluate(*known, threat=THREAT, suite=FEW)
    chained = evaluate(*known, threat=THREAT, suite=cascade(FEW))
    assert chained.worst.outcomes == full.worst.outcomes == chained.attacks[-1].outcomes
    assert chained.attacks[0] == replace(full.attacks[0], seconds=chained.attacks[0].seconds)
    assert chained.worst.forwards < full.worst.forwards
    with pytest.raises(UserError, match="comes after 'PGD-5', which is not among"):
        evaluate(*known, threat=THREAT, suite=cascade(FEW)[1:])


def test_a_budget_is_kept_and_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks with every look at it, so that each call ends in the middle of a batch."""
    ticks = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(ticks)))
    known, path = linear(100, classes=5), tmp_path / "ledger.sqlite"
    given = {"threat": THREAT, "suite": FEW, "batch_size": 16, "ledger": path}
    results = [evaluate(*known, budget=60.0, **given) for _ in range(6)]  # type: ignore[arg-type]
    unreached = [result.worst.unreached for result in results]
    assert unreached[0] > 0 and unreached == sorted(unreached, reverse=True) and unreached[-1] == 0
    assert [r.worst.k for r in results] == sorted((r.worst.k for r in results), reverse=True)
    enough = evaluate(*known, threat=THREAT, suite=FEW, effort=Effort(cascade=True))
    assert results[-1].worst.outcomes == enough.worst.outcomes


def test_minimal_norms_are_judged_by_the_radius_and_kept(tmp_path: Path) -> None:
    """On a linear model DeepFool's norms are the distances of the boundary, so half of them are below their median."""
    known, path = linear(100), tmp_path / "ledger.sqlite"
    spec = AttackSpec("DeepFool", partial(deepfool, norm="linf", overshoot=1e-3), minimal=True)
    result = evaluate(*known, threat=THREAT, suite=[spec, pgd_spec()], ledger=path, precision="float32")
    found = result.row("DeepFool")
    assert found.invalid == 0 and found.outcomes == result.row("PGD").outcomes and result.row("PGD").median is None
    assert found.median is not None
    at_median = ThreatModel(norm="linf", eps=found.median * 1.001)
    tried = result.clean.k
    left = evaluate(*known, threat=at_median, suite=[pgd_spec(threat=at_median)], precision="float32").worst.k
    assert abs(left - tried / 2) <= 1
    with Ledger.read(path) as book:
        far = [c for c in book.cells("DeepFool") if c.status == "resisted"]
        assert far and all(c.distance > THREAT.eps for c in far)  # type: ignore[operator]
        assert all(book.adversarial("DeepFool", c.example) is not None for c in far)


@pytest.mark.parametrize("suite", ["survival", "adaptive"])
def test_images_of_one_class_are_attacked_by_all_but_the_feature_attack(suite: str) -> None:
    model, images, labels = linear(40)
    only = labels == 0
    result = evaluate(model, images[only], labels[only], threat=THREAT, suite=suite, effort=Effort(steps=2))
    assert "features" not in [row.name for row in result.rows] and len(result.rows) > 4
    assert [finding.detail for finding in result.findings if finding.check == "guides"] == [
        "all are of class 0: no suite attacks features, which takes images of two classes"
    ]


def test_paths_may_be_text(tmp_path: Path) -> None:
    known, ledger, saved = linear(), f"{tmp_path}/ledger.sqlite", f"{tmp_path}/evaluation.json"
    result = evaluate(*known, threat=THREAT, suite=FEW, ledger=ledger)
    result.save(saved)
    assert Evaluation.load(saved).rows == result.rows
    assert verify(saved, ledger, *known, suite=FEW).passed
    with Ledger.read(ledger) as book:
        assert len(book.outcomes(CLEAN)) == 60


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_scripted_network_is_evaluated_and_has_no_features_to_attack() -> None:
    model, images, labels = linear()
    scripted = torch.jit.script(model)
    outcomes = [evaluate(m, images, labels, threat=THREAT, suite=FEW).rows[-1].outcomes for m in (model, scripted)]
    assert outcomes[0] == outcomes[1]
    with pytest.raises(UserError, match=r"before torch\.jit\.script"):
        evaluate(scripted, images, labels, threat=THREAT, suite="adaptive")
