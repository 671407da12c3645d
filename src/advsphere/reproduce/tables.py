"""The tables by name: which methods are trained, how each is measured, and which of our rows stands beside which of the
paper's columns.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

from advsphere.errors import UserError
from advsphere.reproduce import paper

Data = Literal["cifar10", "imagenet"]
Variant = Literal["", "HE", "m-HE", "HE, no FN", "HE, no WN", "HE, no AM", "HE, s = 5", "HE, s = 30", "HE, m = 0.4"]
Measure = Literal["attacks", "corruptions", "inside"]

OBJECTIVES = {
    "standard": "standard training",
    "pgd-at": "PGD-AT",
    "alp": "ALP",
    "trades": "TRADES",
    "fastat": "FastAT",
    "freeat": "FreeAT",
}
"""The paper's names, by the end of a recipe's."""

ABLATION: dict[Variant, Mapping[str, float | bool]] = {
    "HE, no FN": {"normalize_features": False},
    "HE, no WN": {"normalize_weights": False},
    "HE, no AM": {"margin": 0.0},
    "HE, s = 5": {"scale": 5.0},
    "HE, s = 30": {"scale": 30.0},
    "HE, m = 0.4": {"margin": 0.4},
}
"""What differs from HE with s = 15 and m = 0.2, one setting at a time."""


@dataclass(frozen=True)
class Arm:
    """A method: an objective, plain or on the sphere. network: the paper's name of it, where a table has rows of
    several and the budget trains them.
    """

    objective: str
    variant: Variant = ""
    data: Data = "cifar10"
    network: str = ""

    @property
    def name(self) -> str:
        """As the paper's tables call it."""
        return OBJECTIVES[self.objective] + (f"+{self.variant}" if self.variant else "")

    @property
    def plain(self) -> Arm:
        """The objective without the sphere."""
        return replace(self, variant="")

    @property
    def baselines(self) -> tuple[Arm, ...]:
        """What it is compared with: the plain one, and HE where it is something else that was made of it."""
        return tuple(replace(self, variant=base) for base in _BASELINES.get(self.variant, ("", "HE")))


_BASELINES: Mapping[Variant, tuple[Variant, ...]] = {"": (), "HE": ("",)}


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a table consists of. suite: of attacks, where those are the measure. shown: further suites, whose rows are
    shown where they are there; none of them is planned. columns: our attack -> the paper's column. headlines: the
    attack whose gain is to survive, the first of these that there is. paper: its numbers. network: of the paper's row
    that stands beside ours, where it has several and none of our network. also: methods that the paper's table lacks,
    shown where rows are there. about: arms of which one must be there, if the table is about them alone.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    measure: Measure = "attacks"
    suite: str = ""
    shown: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    headlines: tuple[str, ...] = ()
    paper: paper.Numbers = field(default_factory=dict)
    network: str = ""
    also: tuple[Arm, ...] = ()
    about: tuple[Arm, ...] = ()

    @property
    def pairs(self) -> tuple[tuple[Arm, Arm], ...]:
        """(baseline, method), wherever both are there: each arm on the sphere beside the plain one, and beside HE."""
        shown = (*self.arms, *self.also)
        return tuple((base, arm) for arm in shown for base in arm.baselines if base in shown)

    def printed(self, method: str, network: str = "") -> Mapping[str, float]:
        """The paper's row of a method, in %, by column: that of our network where it has it, else that of its own;
        empty where there is none.
        """
        names = (f"{paper.NETWORKS.get(network, '')} {method}", f"{self.network} {method}".strip())
        return next((self.paper[name] for name in names if name in self.paper), {})


def _arms(objectives: tuple[str, ...], variants: tuple[Variant, ...], data: Data = "cifar10") -> tuple[Arm, ...]:
    return tuple(Arm(objective, variant, data) for objective, variant in product(objectives, variants))


def _bare(*names: str) -> dict[str, str]:
    """The official evaluators attack bare cosines, so the paper's columns are ours "(s = 1)"."""
    return {f"{name} (s = 1)": name for name in names}


_PAIR = _arms(("fastat",), ("", "HE"))
_IMAGENET = _arms(("freeat",), ("", "HE"), "imagenet")
_PGD_AT = _arms(("pgd-at",), ("", "HE"))
_ABLATED = tuple(Arm("fastat", variant) for variant in ABLATION)
_SAME = {name: name for name in ("clean", "DeepFool", "C&W", "FeaAtt.", "FAB")}
_PGD_50 = {"clean": "clean", **_bare("PGD-50")}

TABLES = {
    table.name: table
    for table in (
        Table(
            name="table3",
            title="Table 3: FastAT and FreeAT with HE and m-HE",
            arms=_arms(("fastat", "freeat"), ("", "HE", "m-HE")),
            suite="paper",
            columns=_PGD_50,
            headlines=("PGD-50 (s = 1)",),
            paper=paper.TABLE_3,
        ),
        Table(
            name="table2",
            title="Table 2: six defences under eight attacks",
            arms=_arms(("pgd-at", "trades", "alp"), ("", "HE")),
            suite="table2",
            columns=_SAME | _bare("PGD-20", "PGD-500", "MIM-20", "FGSM"),
            headlines=("PGD-20 (s = 1)",),
            paper=paper.TABLE_2,
            also=_PAIR,
        ),
        Table(
            name="survival",
            title="What survives the worst attack",
            arms=_PAIR,
            also=_arms(("pgd-at", "trades", "alp", "freeat"), ("", "HE")),
            suite="survival",
            headlines=("PGD-50 (s = 1)",),
        ),
        Table(
            name="ablation",
            title="FN, WN, AM, s and m, one at a time",
            arms=(*_PAIR, *_ABLATED),
            suite="paper",
            headlines=("PGD-50 (s = 1)",),
            about=_ABLATED,
        ),
        Table(
            name="table4",
            title="Table 4: FreeAT on ImageNet",
            arms=_IMAGENET,
            suite="table4",
            columns={"clean": "clean", **_bare("PGD-10", "PGD-50")},
            headlines=("PGD-50 (s = 1)",),
            paper=paper.TABLE_4,
            network="ResNet-50",
        ),
        Table(
            name="table5",
            title="Table 5: common corruptions",
            arms=_arms(("pgd-at", "alp", "trades", "fastat"), ("", "HE")) + _IMAGENET,
            measure="corruptions",
            paper=paper.TABLE_5,
        ),
        Table(
            name="table6",
            title="Table 6: RayS and AutoAttack",
            arms=_arms(("pgd-at",), ("", "HE")),
            suite="table6",
            shown=("autoattack",),
            columns={"clean": "clean", "RayS": "RayS", "AutoAttack: + Square": "AutoAttack"},
            headlines=("RayS", "AutoAttack: APGD-CE"),
            paper=paper.TABLE_6,
            network="WRN-34-10",
            also=(*_PAIR, *_IMAGENET),
        ),
        Table(
            name="table7",
            title="Table 7: FN in the attack on a standardly trained network",
            arms=(Arm("standard"),),
            measure="inside",
            paper=paper.TABLE_7,
            also=(*_PAIR, *_PGD_AT),
        ),
        Table(
            name="gradients",
            title="How much louder adversarial images speak in the gradients of each layer",
            arms=_PAIR,
            also=_PGD_AT,
            measure="inside",
        ),
        Table(
            name="perturbations",
            title="Perturbations crafted with and without FN",
            arms=_PAIR,
            also=_PGD_AT,
            measure="inside",
        ),
    )
}
"""In the order in which a plan for all of them measures."""

HEADLINE = _PAIR
"""The pair that gets three seeds."""


def table(name: str) -> Table:
    """The table of that name. Raises UserError with the nearest one where there is none."""
    if name not in TABLES:
        near = difflib.get_close_matches(name, TABLES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TABLES)}"
        raise UserError(f"no table is called {name!r}; {hint}")
    return TABLES[name]
