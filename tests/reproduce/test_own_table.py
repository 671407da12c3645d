"""Tables of the user's own, with their own objectives, are planned and shown like the paper's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from advsphere.errors import UserError
from advsphere.objectives import PGDAT
from advsphere.recipes import recipe
from advsphere.reproduce import pages
from advsphere.reproduce.budgets import BUDGETS
from advsphere.reproduce.groups import groups, method_name
from advsphere.reproduce.plan import Places, plan
from advsphere.reproduce.tables import TABLES, Method, Table, table
from tests.reproduce.made import PLAIN, SPHERE, stored


@dataclass(frozen=True, kw_only=True)
class MART(PGDAT):
    """An objective that advsphere does not know."""

    beta: float = 5.0


OWN = Table(
    name="own",
    title="MART with HE",
    methods=(Method(f"{__name__}:MART"), Method(f"{__name__}:MART", "HE")),
    suite="paper",
    headlines=("PGD-50 (s = 1)",),
)


def test_a_table_is_found_by_its_name() -> None:
    assert table(f"{__name__}:OWN") is OWN
    with pytest.raises(UserError, match="is a MART, not a Table"):
        table(f"{__name__}:A_MART")
    with pytest.raises(UserError, match="or package"):
        table("nothing")


A_MART = MART(threat=recipe("digits-pgd-at").threat, steps=1, step_size=0.1)


def test_its_methods_are_planned_with_the_users_objective(tmp_path: Path) -> None:
    assert [method.name for method in OWN.methods] == ["MART", "MART+HE"]
    found = plan([OWN], BUDGETS["cpu"], Places(runs=tmp_path), seeds=[0], weight_decays=[5e-4])
    assert [job.command[0] for job in found.jobs] == ["train", "train", "evaluate", "evaluate"]
    job = found.jobs[1]
    assert isinstance(job.config.objective, MART) and job.config.sphere is not None
    assert job.config.training.epochs == BUDGETS["cpu"].epochs["cifar10 pgd-at"]
    assert job.command[1] == "cifar10-small-pgd-at-he" and f"{__name__}:MART" in job.command
    assert not {":", "/"} & set(found.jobs[2].made.parent.name)


def test_its_stored_results_are_shown(tmp_path: Path) -> None:
    results = [stored("small-pgd-at", PLAIN, objective="MART"), stored("small-pgd-at-he", SPHERE, objective="MART")]
    assert [method_name(one.run) for one in results] == ["MART", "MART+HE"]
    assert groups(results, OWN, suite="paper") and not groups(results, TABLES["table2"], suite="paper")
    written = pages.write({Path("results/own.jsonl"): results}, tmp_path, more=[OWN])
    assert tmp_path / "own.md" in written
    text = (tmp_path / "own.md").read_text()
    assert "**MART+HE** minus MART" in text and "## wrn-10-1 on toys" in text
