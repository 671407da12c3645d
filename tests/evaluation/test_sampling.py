"""A certainty: a search on every image, the proofs of absence on a sample of what is left, and what that bounds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from advsphere.attacks import Guides, apgd, apgd_targeted, pgd, square
from advsphere.classifier import fooled, split
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec, Effort, Evaluation, Ledger, SuiteContext, evaluate, verify
from advsphere.evaluation.cascades import arranged, pursued
from advsphere.evaluation.engine import prepare
from advsphere.evaluation.sampling import usual_certainty
from advsphere.evaluation.specs import kind_of, loss_of
from advsphere.evaluation.suites import attacks_of
from advsphere.files import content_checksum
from advsphere.losses import margin
from advsphere.rng import Rng, permutation
from tests.evaluation.cases import THREAT, Fused, Known, change, forge, linear, pgd_spec
from tests.evaluation.cases import robust as exactly_robust

KNOWN = linear(120, wrong=12)
"""Two classes, so that a strong search finds everything there is."""


def specs(*, strong: bool = False) -> list[AttackSpec]:
    """A weak search and two proofs. With `strong` the search finds what there is."""
    return [
        pgd_spec("search", steps=40 if strong else 1, step_size=THREAT.eps / (4 if strong else 12)),
        AttackSpec("APGD-T", partial(apgd_targeted, threat=THREAT, steps=5, targets=1), proof=True),
        AttackSpec("Square", partial(square, threat=THREAT, queries=20), proof=True),
    ]


def run(certainty: float | None, known: Known = KNOWN, *, strong: bool = False, **options: Any) -> Evaluation:
    given = {"threat": THREAT, "suite": specs(strong=strong), "batch_size": 7, "precision": "float32"} | options
    return evaluate(*known, certainty=certainty, **given)


def robust(result: Evaluation) -> set[int]:
    return {i for i, outcome in enumerate(result.worst.outcomes) if outcome == "1"}


def test_without_a_certainty_everything_runs_on_every_image_as_before() -> None:
    result = run(None)
    assert result.bound is None and "bound" not in result.to_dict() and "certainty" not in result.identity["suite"]
    assert all("proof" not in row.settings for row in result.attacks)


def test_a_sample_of_the_survivors_bounds_the_rest(tmp_path: Path) -> None:
    result = run(10, strong=True, ledger=tmp_path / "ledger.sqlite")
    bound = result.bound
    assert bound is not None and bound.fell == 0 and 0 < bound.sampled < bound.survivors == result.row("search").k
    assert 0 < bound.most <= 12 and bound.points <= 10 and result.worst.unreached == 0
    with Ledger.read(tmp_path / "ledger.sqlite") as book:
        for name in ("APGD-T", "Square"):
            counts = book.counts(name)
            assert counts["not_sampled"] == bound.survivors - bound.sampled and sum(counts.values()) == 120
            tried = [cell.example for cell in book.cells(name) if cell.status == "resisted"]
            order = permutation(120, seed=0, epoch=0, purpose="sample").tolist()
            order = [i for i in order if result.row("search").outcomes[i] == "1"]
            assert sorted(tried) == sorted(order[: bound.sampled])
    says = result.table(width=300)
    assert f"{bound.sampled} of the {bound.survivors} images that resisted the search" in says
    assert f"at most {bound.points:.2f} points more (95 %)" in says and "forwards an image" in says
    data = result.to_dict()
    assert Evaluation.from_dict(data) == result
    for wrong in ({"survivors": 120}, {"fell": 1}, {"sampled": 120}, {"most": -1}, {"points": 0.0}, {"n": 60}):
        changed = data | {"bound": data["bound"] | wrong}
        with pytest.raises(UserError, match="the bound is not that of its outcomes"):
            Evaluation.from_dict(changed | {"checksum": content_checksum(changed)})


def test_images_that_fall_in_the_sample_let_it_grow_until_it_is_all_of_them() -> None:
    result = run(1)
    bound = result.bound
    assert bound is not None and bound.looks[0][1] > 0 and bound.sampled == bound.survivors and bound.most == 0
    assert [size for size, _ in bound.looks] == sorted({size for size, _ in bound.looks})
    assert "tried all" in str(bound) and robust(result) == robust(run(0))
    assert Evaluation.from_dict(result.to_dict()) == result


@pytest.mark.parametrize("strong", [False, True])
def test_the_whole_run_s_robust_images_are_among_those_of_any_certainty(strong: bool) -> None:
    whole, nothing = run(0, strong=strong), evaluate(*KNOWN, threat=THREAT, suite=cascaded(strong), precision="float32")
    assert robust(whole) == robust(nothing) and whole.bound is not None and whole.bound.most == 0
    for certainty in (2, 5, 20, 90):
        assert robust(run(certainty, strong=strong)) >= robust(whole)


def cascaded(strong: bool) -> tuple[AttackSpec, ...]:
    """What a certainty of 0 runs, as a list of attacks."""
    sampled = arranged(specs(strong=strong), THREAT, certainty=0)
    return tuple(replace(spec, proof=False) for spec in sampled)


def test_an_interrupted_sample_continues_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = run(1, batch_size=25)
    model = Fused(KNOWN.model)
    given: dict[str, Any] = {"threat": THREAT, "suite": specs(), "batch_size": 25, "precision": "float32"}
    path, kills = tmp_path / "killed.sqlite", 0
    while kills < 30:
        model.calls = 60 + 20 * kills
        try:
            result = evaluate(model, *KNOWN[1:], ledger=path, certainty=1, **given)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills > 3 and [row.outcomes for row in result.rows] == [row.outcomes for row in whole.rows]
    assert result.bound == whole.bound and result.worst.forwards == whole.worst.forwards


def test_a_budget_ends_a_sample_without_a_bound_and_the_next_call_continues(tmp_path: Path) -> None:
    given: dict[str, Any] = {"ledger": tmp_path / "ledger.sqlite", "budget": 1e-9, "suite": specs(strong=True)}
    given |= {"known": linear(16, wrong=2)}
    results = [run(10, **given)]
    while results[-1].bound is None:
        assert results[-1].worst.unreached
        results.append(run(10, **given))
    at_once = run(10, **given | {"ledger": None, "budget": 1e9})
    assert robust(results[-1]) == robust(at_once) and results[-1].bound == at_once.bound and len(results) > 10
    assert [row.name for row in at_once.attacks][:3] == ["first look: margin PGD-10", "search", "APGD-T"]


@pytest.fixture(scope="module")
def claim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claim")
    run(10, strong=True, ledger=folder / "ledger.sqlite").save(folder / "evaluation.json")
    return folder


def failed(folder: Path) -> list[str]:
    result = verify(folder / "evaluation.json", folder / "ledger.sqlite", *KNOWN, suite=specs(strong=True), seed=1)
    return [f"{f.check}: {f.detail}" for f in result.findings if f.status == "failed"]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("", ""),
        ("UPDATE cells SET status = 'not_sampled' WHERE attack = 'Square' AND status = 'resisted'", "left out of"),
        ("UPDATE cells SET status = 'resisted' WHERE attack = 'Square' AND status = 'not_sampled'", "run outside"),
        ("DELETE FROM cells WHERE attack = 'Square' AND status = 'not_sampled'", "deleted"),
        ("DELETE FROM cells WHERE attack = 'Square' AND status = 'resisted'", "deleted"),
        ("UPDATE meta SET value = '25' WHERE key = 'seed'", "sample"),
    ],
)
def test_verify_draws_the_sample_again(claim: Path, tmp_path: Path, sql: str, says: str) -> None:
    for name in ("ledger.sqlite", "evaluation.json"):
        (tmp_path / name).write_bytes((claim / name).read_bytes())
    if sql:
        change(tmp_path / "ledger.sqlite", sql)
        with Ledger.read(tmp_path / "ledger.sqlite") as book:
            findings = Evaluation.load(claim / "evaluation.json").findings or ()
            Evaluation.of(book, findings).save(tmp_path / "evaluation.json")
    found = failed(tmp_path)
    assert (not found) if not sql else any(says in one for one in found if one.startswith("pairs")), found


def test_verify_computes_the_bound_again(claim: Path, tmp_path: Path) -> None:
    for name in ("ledger.sqlite", "evaluation.json"):
        (tmp_path / name).write_bytes((claim / name).read_bytes())
    forge(tmp_path / "evaluation.json", bound={"most": 0, "points": 0.0})
    assert any("bound.most" in one for one in failed(tmp_path))


def test_a_suite_says_what_runs_on_the_sample() -> None:
    context = SuiteContext(threat=THREAT)
    names = [(spec.name, spec.proof) for spec in arranged(attacks_of("autoattack", context), THREAT, certainty=0.5)]
    assert names[0] == ("first look: margin PGD-10, APGD-T where close", False)
    assert [proof for _, proof in names[1:]] == [True] * 4
    whole, sampled = attacks_of("autoattack", context), arranged(attacks_of("autoattack", context), THREAT, certainty=1)
    for one, other in zip(whole, sampled[1:], strict=True):
        assert {**one.settings, "after": []} == {**other.settings, "after": []}, "as published"
    context = replace(context, head=split(KNOWN.model).head, guides=Guides(KNOWN.images, KNOWN.labels))
    survival = arranged(attacks_of("survival", context), THREAT, certainty=1)
    assert [spec.name for spec in survival if spec.proof] == ["features", "Square", "AutoAttack"]
    assert not [spec for spec in survival if "first look" in spec.name], "APGD-T searches every image already"
    assert all(spec.after == tuple(s.name for s in survival[:i]) for i, spec in enumerate(survival) if spec.proof)
    black_box = arranged(attacks_of("black-box", context), THREAT, certainty=1)
    assert [(spec.name, spec.proof) for spec in black_box] == [("Square", False), ("RayS", True)]


@pytest.mark.parametrize("close", [0.0, 0.6, 1.0])
def test_a_search_goes_on_only_where_it_came_close(close: float) -> None:
    known = linear(120, classes=4)
    short = partial(pgd, threat=THREAT, steps=1, step_size=THREAT.eps / 3, loss=margin)
    further = partial(apgd, threat=THREAT, steps=20, loss=margin, until_fooled=True)
    rng = Rng(0, torch.arange(120))
    before = short(known.model, *known[1:], start="clean", rng=rng)
    after = pursued(*known, attack=short, then=further, close=close, start="clean", rng=rng)
    with torch.no_grad():
        left, whole = (margin(known.model(x), known.labels) for x in (before, known.images))
        fell = fooled(known.model(after), known.labels)
    went_on = (left < 0) & (left > close * whole)
    assert after[~went_on].equal(before[~went_on]) and THREAT.contains(after, known.images).all()
    assert went_on.sum() in {0.0: [0], 0.6: range(5, 100), 1.0: [int((left < 0).sum())]}[close]
    assert (~fell).equal(exactly_robust(known, THREAT) | ((left < 0) & ~went_on))


def test_the_standard_attacks_pass_their_checks_with_a_certainty() -> None:
    """Preflight runs each of them."""
    plan = prepare(*linear(20, classes=4), threat=THREAT, suite="autoattack", certainty=1, precision="float32")
    search = plan.specs[0].settings
    further = search["then"]
    assert kind_of(search) == "iterative" and loss_of(search) == "margin" and "unknown" not in str(search)
    names = [one["name"] for one in (search["attack"], further["attack"], further["then"])]
    assert names == ["pgd", "apgd_targeted", "apgd"]


def test_what_has_no_certainty_is_refused() -> None:
    with pytest.raises(UserError, match="no attack of this suite"):
        evaluate(*KNOWN, threat=THREAT, suite="quick", certainty=1)
    cases: list[tuple[Any, str]] = [(one, "give points of accuracy, such as 0.5") for one in (-1, 100, float("nan"))]
    cases += [(one, "give a number or one of 'usual', 'paired'") for one in (True, "high", [1])]
    for wrong, cure in cases:
        with pytest.raises(UserError, match=f"certainty is .*; {cure}"):
            run(wrong)


def test_the_usual_certainty_is_a_fifth_of_half_the_interval() -> None:
    assert [usual_certainty(n) for n in (10_000, 1000, 250)] == [0.2, 0.62, 1.2]
    assert [usual_certainty(n, paired=True) for n in (10_000, 1000, 250)] == [0.098, 0.31, 0.62]
    for suite, expected in ((specs(), usual_certainty(120)), ([pgd_spec()], None), ("quick", None)):
        plan = prepare(*KNOWN, threat=THREAT, suite=suite, certainty="usual", effort=Effort())  # type: ignore[arg-type]
        assert plan.identity["suite"].get("certainty") == expected
