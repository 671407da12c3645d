"""The tables by name: the methods to train, how to measure each, and the column of the paper (Pang et al. 2020, arXiv
2002.08619) for each attack.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

from advsphere import named
from advsphere.analysis.feature_normalization import PAPER as TABLE_7_CELLS
from advsphere.errors import UserError

Numbers = dict[str, dict[str, float]]
"""The paper's numbers in %, as printed: by row, then by column."""

NETWORKS = {
    "torchvision:resnet50": "ResNet-50",
    "torchvision:resnet152": "ResNet-152",
    "torchvision:wide_resnet50_2": "WRN-50-2",
    "torchvision:wide_resnet101_2": "WRN-101-2",
    "wrn-34-10": "WRN-34-10",
    "wrn-34-20": "WRN-34-20",
}
"""The paper's names of our networks."""

_WHITE_BOX = ("clean", "PGD-20", "PGD-500", "MIM-20", "FGSM", "DeepFool", "C&W", "FeaAtt.", "FAB")
_CORRUPTIONS = (
    "mCA", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast",
    "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip


def _rows(columns: tuple[str, ...], rows: dict[str, tuple[float, ...]]) -> Numbers:
    return {name: dict(zip(columns, values, strict=True)) for name, values in rows.items()}


TABLE_2 = _rows(
    _WHITE_BOX,
    {
        "PGD-AT": (86.75, 53.97, 51.63, 55.08, 59.70, 57.26, 84.00, 52.38, 51.23),
        "PGD-AT+HE": (86.19, 59.36, 57.59, 60.19, 63.77, 61.56, 84.07, 52.88, 54.45),
        "ALP": (87.18, 52.29, 50.13, 53.35, 58.99, 59.40, 84.96, 49.55, 50.54),
        "ALP+HE": (89.91, 57.69, 51.78, 58.63, 65.08, 65.19, 87.86, 48.64, 51.86),
        "TRADES": (84.62, 56.48, 54.84, 57.14, 61.02, 60.70, 81.13, 55.09, 53.58),
        "TRADES+HE": (84.88, 62.02, 60.75, 62.71, 65.69, 60.48, 81.44, 58.13, 53.50),
    },
)
TABLE_3 = _rows(
    ("epochs", "clean", "PGD-50", "minutes"),
    {
        "FastAT": (30, 83.80, 46.40, 11.38),
        "FastAT+HE": (30, 82.58, 52.55, 11.48),
        "FastAT+m-HE": (30, 83.14, 53.49, 11.49),
        "FreeAT": (10, 77.21, 46.14, 15.78),
        "FreeAT+HE": (10, 76.85, 50.98, 15.87),
        "FreeAT+m-HE": (10, 77.59, 51.85, 15.91),
    },
)
TABLE_4 = _rows(
    ("clean", "PGD-10", "PGD-50"),
    {
        "ResNet-50 FreeAT": (60.28, 32.13, 31.39),
        "ResNet-50 FreeAT+HE": (61.83, 40.22, 39.85),
        "ResNet-152 FreeAT": (65.20, 36.97, 35.87),
        "ResNet-152 FreeAT+HE": (65.41, 43.24, 42.60),
        "WRN-50-2 FreeAT": (64.18, 36.24, 35.38),
        "WRN-50-2 FreeAT+HE": (65.28, 43.83, 43.47),
        "WRN-101-2 FreeAT": (66.15, 39.35, 38.23),
        "WRN-101-2 FreeAT+HE": (66.37, 45.35, 45.04),
    },
)
TABLE_5 = _rows(
    _CORRUPTIONS,
    {
        "PGD-AT": (77.23, 81.84, 79.69, 77.62, 80.88, 81.32, 77.95, 61.70, 84.05, 44.55, 80.79, 84.76, 84.35),
        "PGD-AT+HE": (77.29, 81.86, 79.45, 78.17, 80.87, 80.77, 77.98, 62.45, 83.67, 45.11, 80.69, 84.16, 84.10),
        "ALP": (77.73, 81.94, 80.31, 78.23, 80.97, 81.74, 79.26, 61.51, 84.88, 45.86, 80.91, 85.09, 84.68),
        "ALP+HE": (80.55, 80.87, 85.23, 81.26, 84.43, 85.14, 83.89, 68.83, 88.33, 50.74, 84.44, 87.44, 87.28),
        "TRADES": (75.36, 79.84, 77.72, 76.34, 78.66, 79.52, 76.94, 59.68, 82.06, 43.80, 78.53, 82.65, 82.31),
        "TRADES+HE": (75.78, 80.55, 77.61, 77.26, 79.62, 79.23, 76.53, 61.39, 82.33, 45.04, 79.29, 82.50, 82.40),
        "FreeAT": (28.22, 19.15, 26.63, 25.75, 28.25, 23.03, 23.47, 3.71, 45.18, 5.40, 41.76, 48.78, 52.55),
        "FreeAT+HE": (30.04, 21.16, 29.28, 28.08, 30.76, 26.62, 28.35, 5.34, 49.88, 7.03, 44.72, 51.17, 55.05),
    },
)
"""The rows of FreeAT are for ImageNet-C, the others for CIFAR-10-C."""
TABLE_6 = _rows(
    ("clean", "RayS", "AutoAttack"),
    {"WRN-34-10 PGD-AT+HE": (86.25, 57.8, 53.16), "WRN-34-20 PGD-AT+HE": (85.14, 59.0, 53.74)},
)
TABLE_7: Numbers = {
    "standard training" + ", FN in the attack" * fn: {f"PGD-{k}": TABLE_7_CELLS[k, fn] for k in (1, 2)}
    for fn in (False, True)
}


Data = Literal["cifar10", "imagenet"]
Variant = Literal["", "HE", "m-HE", "HE, no FN", "HE, no WN", "HE, no AM", "HE, s = 5", "HE, s = 30", "HE, m = 0.4"]
Measure = Literal["attacks", "corruptions", "FN in the attack", "gradients", "perturbations"]

OBJECTIVES = {
    "standard": "standard training",
    "pgd-at": "PGD-AT",
    "alp": "ALP",
    "trades": "TRADES",
    "fastat": "FastAT",
    "freeat": "FreeAT",
}
"""The paper's names of objectives, by the end of a recipe's name."""

ABLATION: dict[Variant, Mapping[str, float | bool]] = {
    "HE, no FN": {"normalize_features": False},
    "HE, no WN": {"normalize_weights": False},
    "HE, no AM": {"margin": 0.0},
    "HE, s = 5": {"scale": 5.0},
    "HE, s = 30": {"scale": 30.0},
    "HE, m = 0.4": {"margin": 0.4},
}
"""The setting in which each ablation differs from HE with s = 15 and m = 0.2."""


@dataclass(frozen=True)
class Method:
    """An objective, plain or with HE.

    Attributes:
        objective: The end of its recipes' names, such as "pgd-at"; or a user-defined one as `package.module:Class`.
        variant: "" for the plain objective, "HE", "m-HE" or an ablation of HE.
        data: The paper's data set for training; the budget decides which images stand for it.
        network: The paper's name of the network, if a table has rows of several networks and the budget trains them.
        like: For a user-defined objective, the objective whose recipes and epochs it uses.
    """

    objective: str
    variant: Variant = ""
    data: Data = "cifar10"
    network: str = ""
    like: str = "pgd-at"

    @property
    def name(self) -> str:
        """The method's name in the paper's tables."""
        objective = OBJECTIVES.get(self.objective, self.objective.rpartition(":")[2])
        return objective + (f"+{self.variant}" if self.variant else "")

    @property
    def plain(self) -> Method:
        """The objective without HE."""
        return replace(self, variant="")

    @property
    def baselines(self) -> tuple[Method, ...]:
        """The methods with which it is compared: the plain one and, for variants of HE, also HE."""
        return tuple(replace(self, variant=base) for base in _BASELINES.get(self.variant, ("", "HE")))


_BASELINES: Mapping[Variant, tuple[Variant, ...]] = {"": (), "HE": ("",)}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Methods, how they are measured, and the paper's numbers beside ours.

    Attributes:
        name: The table's name on the command line and the name of its page.
        title: The page's heading.
        methods: The methods to train and measure.
        measure: The measurement of each run.
        suite: The suite of attacks, if `measure` is "attacks".
        also_suites: Further suites whose stored results are shown; no plan runs them.
        columns: The paper's column for each of our attacks.
        headlines: The attacks whose gain is compared with the worst case; the first that was run counts.
        paper: The paper's numbers.
        network: The paper's network whose numbers are shown if the paper has several networks, but not ours.
        also: Further methods that are shown if results are stored; no plan trains them.
        required: Show the table only if one of these methods is present.
        introduction: The first paragraph of the page; by default one on attacks.
    """

    name: str
    title: str
    methods: tuple[Method, ...]
    measure: Measure = "attacks"
    suite: str = ""
    also_suites: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    headlines: tuple[str, ...] = ()
    paper: Numbers = field(default_factory=dict)
    network: str = ""
    also: tuple[Method, ...] = ()
    required: tuple[Method, ...] = ()
    introduction: str = ""

    @property
    def shown_methods(self) -> tuple[Method, ...]:
        """Its methods, then the further methods that are shown."""
        return (*self.methods, *self.also)

    @property
    def pairs(self) -> tuple[tuple[Method, Method], ...]:
        """(baseline, method) for each shown method and each of its baselines that is also shown."""
        shown = self.shown_methods
        return tuple((base, method) for method in shown for base in method.baselines if base in shown)

    def printed(self, method: str, network: str = "") -> Mapping[str, float]:
        """The paper's row of a method, in %, by column.

        Args:
            method: The method's name.
            network: Our network. Its row is preferred to the row of the table's network.

        Returns:
            The numbers by column; empty if the paper has no such row.
        """
        names = (f"{NETWORKS.get(network, '')} {method}", f"{self.network} {method}".strip())
        return next((self.paper[name] for name in names if name in self.paper), {})


def _methods(objectives: tuple[str, ...], variants: tuple[Variant, ...], data: Data = "cifar10") -> tuple[Method, ...]:
    return tuple(Method(objective, variant, data) for objective, variant in product(objectives, variants))


def _bare(*names: str) -> dict[str, str]:
    """The paper's columns for our attacks "(s = 1)": the official evaluators attack bare cosines."""
    return {f"{name} (s = 1)": name for name in names}


_PAIR = _methods(("fastat",), ("", "HE"))
_IMAGENET = _methods(("freeat",), ("", "HE"), "imagenet")
_PGD_AT = _methods(("pgd-at",), ("", "HE"))
_ABLATED = tuple(Method("fastat", variant) for variant in ABLATION)
_SAME = {name: name for name in ("clean", "DeepFool", "C&W", "FeaAtt.", "FAB")}
_PGD_50 = {"clean": "clean", **_bare("PGD-50")}

TABLES = {
    table.name: table
    for table in (
        Table(
            name="table3",
            title="Table 3: FastAT and FreeAT with HE and m-HE",
            methods=_methods(("fastat", "freeat"), ("", "HE", "m-HE")),
            suite="paper",
            columns=_PGD_50,
            headlines=("PGD-50 (s = 1)",),
            paper=TABLE_3,
        ),
        Table(
            name="table2",
            title="Table 2: six defences under eight attacks",
            methods=_methods(("pgd-at", "trades", "alp"), ("", "HE")),
            suite="table2",
            columns=_SAME | _bare("PGD-20", "PGD-500", "MIM-20", "FGSM"),
            headlines=("PGD-20 (s = 1)",),
            paper=TABLE_2,
            also=_PAIR,
        ),
        Table(
            name="survival",
            title="What survives the worst attack",
            methods=_PAIR,
            also=_methods(("pgd-at", "trades", "alp", "freeat"), ("", "HE")),
            suite="survival",
            headlines=("PGD-50 (s = 1)",),
        ),
        Table(
            name="ablation",
            title="FN, WN, AM, s and m, one at a time",
            methods=(*_PAIR, *_ABLATED),
            suite="paper",
            headlines=("PGD-50 (s = 1)",),
            required=_ABLATED,
        ),
        Table(
            name="table4",
            title="Table 4: FreeAT on ImageNet",
            methods=_IMAGENET,
            suite="table4",
            columns={"clean": "clean", **_bare("PGD-10", "PGD-50")},
            headlines=("PGD-50 (s = 1)",),
            paper=TABLE_4,
            network="ResNet-50",
        ),
        Table(
            name="table5",
            title="Table 5: common corruptions",
            methods=_methods(("pgd-at", "alp", "trades", "fastat"), ("", "HE")) + _IMAGENET,
            measure="corruptions",
            paper=TABLE_5,
            introduction="Accuracy in %, averaged over five severities. mCA is the mean over corruptions, with its "
            "95 % interval; below it is the paper's mCA, for its own, larger networks. The corruptions are generated, "
            "not read from the published files. A difference is the mean over seeds. With one or two seeds its "
            "interval covers images only and holds for these checkpoints; with three or more it holds for the method.",
        ),
        Table(
            name="table6",
            title="Table 6: RayS and AutoAttack",
            methods=_methods(("pgd-at",), ("", "HE")),
            suite="table6",
            also_suites=("autoattack",),
            columns={"clean": "clean", "RayS": "RayS", "AutoAttack: + Square": "AutoAttack"},
            headlines=("RayS", "AutoAttack: APGD-CE"),
            paper=TABLE_6,
            network="WRN-34-10",
            also=(*_PAIR, *_IMAGENET),
        ),
        Table(
            name="table7",
            title="Table 7: FN in the attack on a standardly trained network",
            methods=(Method("standard"),),
            measure="FN in the attack",
            paper=TABLE_7,
            also=(*_PAIR, *_PGD_AT),
            introduction="Accuracy in % of the unchanged network under one and two steps of PGD, with and without FN "
            "in the attack. The radius and the step are inferred (docs/fidelity.md). The paper's network is "
            "a WRN-34-10.",
        ),
        Table(
            name="gradients",
            title="Gradient norms of each layer on adversarial images, relative to clean ones",
            methods=_PAIR,
            also=_PGD_AT,
            measure="gradients",
            introduction="The norm of the loss's gradient in each layer on adversarial images, divided by that on "
            "clean images. The paper shows it for its claim that FN learns better from hard adversarial examples.",
        ),
        Table(
            name="perturbations",
            title="Perturbations crafted with and without FN",
            methods=_PAIR,
            also=_PGD_AT,
            measure="perturbations",
            introduction="Clean images, and perturbations crafted with and without FN in the attack.",
        ),
    )
}
"""The tables in the order in which a plan for all of them runs."""

HEADLINE = _PAIR
"""The pair that has more seeds than other pairs."""


def table(name: str) -> Table:
    """The table of that name, or a user-defined one.

    Args:
        name: One of TABLES, or `package.module:object`.

    Returns:
        The table.

    Raises:
        UserError: If there is no such table. The message names the nearest one.
    """
    if named.is_name(name):
        found = named.load(name)
        if not isinstance(found, Table):
            raise UserError(f"{name} is a {type(found).__name__}, not a Table of advsphere.reproduce.tables")
        return found
    if name not in TABLES:
        near = difflib.get_close_matches(name, TABLES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(TABLES)}, or package.module:object"
        raise UserError(f"no table is called {name!r}; {hint}")
    return TABLES[name]
