"""What a plan consists of: every job an ordinary command, every pair of equal confounders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from advsphere.cli.arguments import parse
from advsphere.cli.evaluate import Options as Evaluate
from advsphere.cli.train import Options as Train
from advsphere.comparison.confounders import confounders
from advsphere.errors import UserError
from advsphere.objectives import ALP
from advsphere.recipes import TABLES as RECIPES
from advsphere.recipes import recipe
from advsphere.reproduce import tables as paper
from advsphere.reproduce.budgets import BUDGETS, Budget
from advsphere.reproduce.jobs import Job, run_name
from advsphere.reproduce.plan import Places, Plan, plan
from advsphere.reproduce.tables import TABLES, Method, table
from advsphere.runs.config import Config

FEW = ("cpu", "full")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    images = tmp_path_factory.mktemp("images")
    return Places(runs=tmp_path_factory.mktemp("plan") / "runs", images=images)


def everything(name: str, places: Places) -> Plan:
    return plan(list(TABLES.values()), BUDGETS[name], places)


@pytest.mark.parametrize("name", BUDGETS)
def test_each_job_is_there_once_and_after_those_it_needs(name: str, places: Places) -> None:
    jobs = everything(name, places).jobs
    for number, job in enumerate(jobs):
        assert {*job.after} <= {earlier.name for earlier in jobs[:number]}
    assert len({job.name for job in jobs}) == len({job.made for job in jobs}) == len(jobs)
    assert len({job.made.parent for job in jobs}) == len(jobs), "no two jobs write into one folder"


@pytest.mark.parametrize("name", BUDGETS)
def test_within_a_pair_nothing_but_the_sphere_differs(name: str) -> None:
    """ALP's beta weighs logits, which on its sphere are 20 times the cosines that are paired."""

    def compared(config: Config) -> Config:
        objective, sphere = config.objective, config.sphere
        if isinstance(objective, ALP) and sphere is not None and sphere.scale == 20:
            return replace(config, objective=replace(objective, beta=objective.beta * sphere.scale**2))
        return config

    one = BUDGETS[name]
    pairs = {pair for found in TABLES.values() for pair in found.pairs}
    pairs |= {(arm.plain, arm) for found in TABLES.values() for arm in one.methods(found) if arm.variant}
    for pair in pairs:
        for decay in one.weight_decays[pair[0].data]:
            plain, sphere = (compared(one.config(arm, weight_decay=decay, seed=1)) for arm in pair)
            assert confounders([plain], [sphere]) == [] and plain.sphere != sphere.sphere
            assert sphere.sphere is not None and (plain.sphere is None) == (pair[0].variant == "")
            assert plain.training.weight_decay == decay and plain.training.seed == 1


def test_the_headlines_pair_is_measured_first_seed_by_seed_at_the_first_weight_decay(places: Places) -> None:
    jobs = everything("cpu", places).jobs
    kinds = [(job.command[0], job.config.sphere is not None, job.config.training.seed) for job in jobs[:12]]
    one = [("train", False), ("train", True), ("evaluate", False), ("evaluate", True)]
    assert kinds == [(*kind, seed) for seed in (0, 1, 2) for kind in one]
    assert all("survival" in job.command for job in jobs[:12] if job.command[0] == "evaluate")
    decays = [job.config.training.weight_decay for job in jobs]
    assert decays == sorted(decays, reverse=True)


def test_tables_share_runs_and_a_run_is_another_for_another_config(places: Places) -> None:
    def trained(*names: str) -> set[str]:
        found = plan([table(name) for name in names], BUDGETS["cpu"], places)
        return {job.name for job in found.jobs if job.command[0] == "train"}

    assert trained("table2") < trained("table2", "table5") and trained("table6") < trained("table2")
    jobs = [job for job in everything("cpu", places).jobs if job.command[0] == "train"]
    assert len({repr(job.config) for job in jobs}) == len({run_name(job.config) for job in jobs}) == len(jobs)


@pytest.mark.parametrize("name", FEW)
def test_the_command_of_a_training_job_says_its_config(name: str, places: Places) -> None:
    jobs = everything(name, places).jobs
    found = {(job.config.recipe, job.config.sphere): job for job in jobs if job.command[0] == "train"}
    for job in found.values():
        _, named, *rest = job.command
        typed = parse(Train, rest, prog="", default=Train(config=recipe(named)))
        assert replace(typed.config, data=replace(typed.config.data, root=None)) == job.config
        assert typed.resume and typed.out == job.made.parent


def test_the_command_of_an_attack_says_its_effort(places: Places) -> None:
    job = next(job for job in everything("cpu", places).jobs if "table2" in job.command)
    typed = parse(Evaluate, job.command[1:], prog="")
    assert (typed.suite, typed.subject.n, typed.effort.guides) == ("table2", 250, 5)
    assert typed.out == job.made.parent and typed.subject.run == job.made.parents[2]


@pytest.mark.parametrize("name", ["smoke", "cpu", "gpu"])
def test_a_smaller_budget_has_one_network_a_table(name: str) -> None:
    assert all(BUDGETS[name].methods(one) == one.methods for one in TABLES.values())


@pytest.mark.parametrize("name", ["table4", "table6"])
def test_the_full_budget_trains_each_row_of_the_papers_with_its_own_recipe(name: str) -> None:
    full = BUDGETS["full"]
    made = {arm: full.config(arm, weight_decay=5e-4, seed=0) for arm in full.methods(TABLES[name])}
    assert {f"{arm.network} {arm.name}" for arm in made} >= TABLES[name].paper.keys()
    assert all(paper.NETWORKS[config.model.name] == arm.network for arm, config in made.items())
    listed = {config.recipe for config in RECIPES[f"Table {name[-1]}"] if not config.recipe.endswith("resnet50")}
    assert {config.recipe for config in made.values()} >= listed


def test_networks_come_one_after_the_other_each_pair_by_itself(places: Places) -> None:
    jobs = plan([table("table6")], BUDGETS["full"], places, seeds=[0], weight_decays=[5e-4]).jobs
    assert [(job.command[0], job.config.recipe.removeprefix("cifar10-pgd-at")) for job in jobs] == [
        (kind, f"{ending}-s10{network}")
        for network in ("", "-wrn-34-20")
        for kind in ("train", "evaluate")
        for ending in ("", "-he")
    ]


def test_a_plan_can_be_of_some_seeds_one_weight_decay_and_some_methods(places: Places) -> None:
    asked = {"weight_decays": (2e-4,), "seeds": (1,), "methods": ("FastAT", "FreeAT+m-HE")}
    part = plan([table("table3")], BUDGETS["cpu"], places, **asked)
    assert {(job.config.training.seed, job.config.training.weight_decay) for job in part.jobs} == {(1, 2e-4)}
    assert {job.command[0] for job in part.jobs} == {"train", "evaluate"}
    assert {job.config.recipe for job in part.jobs} == {"cifar10-small-fastat", "cifar10-small-freeat-m-he"}


def trained(job: Job, robust: float) -> None:
    job.made.parent.mkdir(parents=True, exist_ok=True)
    epochs = [{"epoch": epoch + 1, "robust": robust - 0.1 * (epoch > 0)} for epoch in range(job.epochs or 0)]
    job.made.write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    (job.made.parent / "best.safetensors").touch()


def test_a_further_weight_decay_is_measured_where_held_out_images_prefer_it(tmp_path: Path) -> None:
    def planned() -> dict[tuple[str, float, int, bool], Job]:
        found = plan([table("table2")], BUDGETS["cpu"], Places(runs=tmp_path), methods=["TRADES", "TRADES+HE"])
        return {
            (job.command[0], job.config.training.weight_decay, job.config.training.seed, job.config.sphere is None): job
            for job in found.jobs
        }

    first = planned()
    assert {key[:3] for key in first if key[1] == 2e-4} == {("train", 2e-4, 0)}, "one seed tells, and is not attacked"
    assert {key[:3] for key in first if key[1] == 5e-4} == {
        (kind, 5e-4, seed) for kind in ("train", "evaluate") for seed in (0, 1)
    }
    for (_, decay, seed, plain), job in first.items():
        if job.command[0] == "train":
            trained(job, 0.3 + 0.1 * (decay == 2e-4 and plain) + 0.5 * (decay == 5e-4 and seed == 1))
    then = planned()
    more = {key for key in then.keys() - first.keys()}
    assert more == {("evaluate", 2e-4, 0, True), ("train", 2e-4, 1, True), ("evaluate", 2e-4, 1, True)}
    trained(then["train", 2e-4, 1, True], 0.1)
    assert planned().keys() == then.keys(), "no job leaves the plan, also where both seeds together say otherwise"


def test_where_a_method_is_measured_its_plain_partner_is_too(tmp_path: Path) -> None:
    """Held-out images prefer 2e-4 for TRADES+HE alone."""

    def at_the_second(kind: str) -> set[tuple[bool, int]]:
        found = plan([table("table2")], BUDGETS["cpu"], Places(runs=tmp_path), methods=["TRADES", "TRADES+HE"])
        for job in found.jobs:
            if job.command[0] == "train":
                better = job.config.sphere is not None and job.config.training.weight_decay == 2e-4
                trained(job, 0.4 if better else 0.3)
        return {
            (job.config.sphere is None, job.config.training.seed)
            for job in found.jobs
            if job.command[0] == kind and job.config.training.weight_decay == 2e-4
        }

    assert at_the_second("evaluate") == set()
    assert at_the_second("evaluate") == {(plain, seed) for plain in (True, False) for seed in (0, 1)}


def test_what_is_done_is_known_by_its_file(places: Places, tmp_path: Path) -> None:
    job = everything("cpu", Places(runs=tmp_path, images=places.images)).jobs[0]
    job.made.parent.mkdir(parents=True)
    job.made.write_text('{"epoch": 1}\n' * 4)
    assert not job.done, "4 of 5 epochs"
    job.made.write_text('{"epoch": 1}\n' * 5)
    assert not job.done, "no checkpoint"
    begun = job.made.parent / ".last.safetensors.host.123"
    for file in (begun, job.made.parent / "best.safetensors"):
        file.touch()
    assert not job.done, "the last checkpoint was begun, and never written"
    begun.unlink()
    assert job.done


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: table("tabel3"), "did you mean table3"),
        (lambda: plan([table("table4")], BUDGETS["cpu"], Places(runs=Path("r"), images=Path("nowhere"))), "--images"),
        (
            lambda: plan([table("table3")], BUDGETS["cpu"], Places(runs=Path("r")), methods=["PGD-AT"]),
            "choose from FastAT",
        ),
    ],
)
def test_a_mistake_gets_a_hint(ask, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ask()


def test_an_ablation_changes_one_setting_of_the_sphere() -> None:
    one: Budget = BUDGETS["cpu"]
    sphere = one.config(Method("fastat", "HE"), weight_decay=5e-4, seed=0).sphere
    for arm in TABLES["ablation"].methods[2:]:
        changed = one.config(arm, weight_decay=5e-4, seed=0).sphere
        assert sphere is not None and changed is not None
        assert sum(getattr(sphere, key) != getattr(changed, key) for key in vars(sphere)) == 1
