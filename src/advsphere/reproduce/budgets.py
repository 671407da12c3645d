"""Budgets for a table: its networks, their training, and the number of images for evaluation. Both arms of a pair
always get the same budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from advsphere.hypersphere import HypersphereConfig
from advsphere.named import is_name
from advsphere.recipes import recipe
from advsphere.reproduce.tables import ABLATION, HEADLINE, Data, Method, Table
from advsphere.runs.config import Config, objective_like

WEIGHT_DECAYS: Mapping[Data, tuple[float, ...]] = {"cifar10": (5e-4, 2e-4), "imagenet": (5e-4, 2e-4)}
"""The grid of every arm, in the order of measurement. Weight decay alone moves robust accuracy by several points."""

DRAWN = "digits-as-photos"
_ENDINGS = {"": "", "HE": "-he", "m-HE": "-m-he"}
PAPERS_SPHERE = HypersphereConfig(scale=15.0, margin=0.2)


@dataclass(frozen=True, kw_only=True)
class SuiteSize:
    """The number of test images (None for all), the feature attack's guides, and the steps (None for the suite's)."""

    n: int | None = None
    guides: int = 100
    steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The cost of a plan.

    Attributes:
        name: The budget's name on the command line.
        scale: A description in one sentence.
        cifar10: The recipe of a method on CIFAR-10; "{}" stands for the objective and -he.
        imagenet: The recipe of a method on ImageNet.
        data_name: The name of the images in results, by data.
        networks: By table, the networks of its rows in the paper, each with its recipe; other tables have one network.
        network: A network that replaces the recipe's, by data.
        epochs: A number of epochs that replaces the recipe's, by data and objective.
        seeds: The seeds of each method.
        headline_seeds: The seeds of the headline pair.
        weight_decays: The grid of every method, in the order of measurement.
        sizes: Images and effort, by suite and by "corruptions" and "inside".
        validation: A number of held-out images that replaces the recipe's, by data.
        corruptible: The data whose images are large enough to corrupt.
        folder: The folder of images that stand for ImageNet; DRAWN for digits drawn as photos.
        together: Run the jobs inside this process, because each takes less time than Python takes to start.
    """

    name: str
    scale: str
    cifar10: str
    imagenet: str
    data_name: Mapping[str, str]
    networks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    network: Mapping[str, str] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1)
    headline_seeds: tuple[int, ...] = (0, 1, 2)
    weight_decays: Mapping[Data, tuple[float, ...]] = field(default_factory=lambda: WEIGHT_DECAYS)
    sizes: Mapping[str, SuiteSize] = field(default_factory=dict)
    validation: Mapping[str, int] = field(default_factory=dict)
    corruptible: tuple[Data, ...] = ("cifar10", "imagenet")
    folder: str = "tiny-imagenet-40"
    together: bool = False

    def config(self, method: Method, *, weight_decay: float, seed: int) -> Config:
        """The config of a method, without the folder of its images. Raises UserError for an unknown recipe."""
        ablated = method.variant in ABLATION
        recipes = {name: which for of_table in self.networks.values() for name, which in of_table.items()}
        named = recipes.get(method.network, getattr(self, method.data))
        user_defined = is_name(method.objective)
        objective = method.like if user_defined else method.objective
        base = recipe(named.format(objective + _ENDINGS["HE" if ablated else method.variant]))
        if user_defined:
            base = replace(base, objective=objective_like(method.objective, base))
        config = replace(
            base,
            data=replace(base.data, validation=self.validation.get(method.data, base.data.validation)),
            model=replace(base.model, name=self.network.get(method.data, base.model.name)),
            training=replace(
                base.training,
                epochs=self.epochs.get(f"{method.data} {objective}", base.training.epochs),
                weight_decay=weight_decay,
                seed=seed,
            ),
        )
        return replace(config, sphere=replace(PAPERS_SPHERE, **ABLATION[method.variant])) if ablated else config  # type: ignore[arg-type]

    def methods(self, table: Table) -> tuple[Method, ...]:
        """The methods to train for a table, on each of its networks."""
        networks = self.networks.get(table.name, ("",))
        return tuple(replace(method, network=network) for network in networks for method in table.methods)

    def seeds_of(self, method: Method) -> tuple[int, ...]:
        """The seeds of a method; the headline pair has more."""
        return self.headline_seeds if method in HEADLINE else self.seeds

    def size(self, suite: str) -> SuiteSize:
        """The size of a suite; by default all test images."""
        return self.sizes.get(suite, SuiteSize())


_JPEG = {"cifar10": "CIFAR-10 (JPEG)", "imagenet": "Tiny ImageNet, 40 classes"}

BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(
            name="smoke",
            scale="the embedded digits stand for all images; shows only that everything works",
            cifar10="digits-{}",
            imagenet="tiny-imagenet-{}",
            data_name={"cifar10": "digits", "imagenet": "digits as photos"},
            network={"imagenet": "small-cnn"},
            validation={"imagenet": 40},
            corruptible=("imagenet",),
            epochs={
                f"cifar10 {objective}": 1 for objective in ("standard", "pgd-at", "alp", "trades", "fastat", "freeat")
            }
            | {"imagenet freeat": 1},
            seeds=(0,),
            headline_seeds=(0,),
            weight_decays={"cifar10": (5e-4,), "imagenet": (5e-4,)},
            sizes={
                "survival": SuiteSize(n=8, guides=1, steps=3),
                "paper": SuiteSize(n=40, steps=10),
                "table2": SuiteSize(n=10, guides=1, steps=5),
                "table4": SuiteSize(n=40, steps=10),
                "table6": SuiteSize(n=2, steps=3),
                "corruptions": SuiteSize(n=10),
                "inside": SuiteSize(n=40),
            },
            folder=DRAWN,
            together=True,
        ),
        Budget(
            name="cpu",
            scale="small networks and few epochs, an hour or two per table on four CPU cores",
            cifar10="cifar10-small-{}",
            imagenet="tiny-imagenet-{}",
            data_name=_JPEG,
            network={"cifar10": "wrn-10-1", "imagenet": "wrn-10-1"},
            epochs={"cifar10 standard": 3, "cifar10 fastat": 5, "cifar10 freeat": 2, "imagenet freeat": 3}
            | {f"cifar10 {objective}": 2 for objective in ("pgd-at", "alp", "trades")},
            sizes={
                "survival": SuiteSize(n=250, guides=5),
                "paper": SuiteSize(n=500),
                "table2": SuiteSize(n=250, guides=5),
                "table4": SuiteSize(n=500),
                "table6": SuiteSize(n=100),
                "corruptions": SuiteSize(n=500),
                "inside": SuiteSize(n=200),
            },
        ),
        Budget(
            name="gpu",
            scale="PreActResNet-18 and a tenth of the paper's epochs: about half an hour a table on one GPU",
            cifar10="cifar10-small-{}",
            imagenet="tiny-imagenet-{}",
            data_name={"cifar10": "CIFAR-10", "imagenet": "Tiny ImageNet, 40 classes"},
            network={"cifar10": "preactresnet-18"},
            epochs={"cifar10 standard": 10, "cifar10 fastat": 30, "cifar10 freeat": 10, "imagenet freeat": 15}
            | {f"cifar10 {objective}": 5 for objective in ("pgd-at", "alp", "trades")},
            sizes={name: SuiteSize(n=1000) for name in ("survival", "paper", "table2", "table4", "table6", "inside")},
        ),
        Budget(
            name="full",
            scale="the paper's own recipes and networks, on all test images",
            cifar10="cifar10-{}",
            imagenet="imagenet-{}",
            networks={
                "table4": {
                    "ResNet-50": "imagenet-{}",
                    "ResNet-152": "imagenet-{}-resnet152",
                    "WRN-50-2": "imagenet-{}-wrn50-2",
                    "WRN-101-2": "imagenet-{}-wrn101-2",
                },
                "table6": {"WRN-34-10": "cifar10-{}-s10", "WRN-34-20": "cifar10-{}-s10-wrn-34-20"},
            },
            data_name={"cifar10": "CIFAR-10", "imagenet": "ImageNet"},
            weight_decays={**WEIGHT_DECAYS, "imagenet": (1e-4, *WEIGHT_DECAYS["imagenet"])},  # its recipes' own first
            folder="imagenet",
            seeds=(0, 1, 2),
        ),
    )
}
