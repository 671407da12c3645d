"""Recipes for small machines: the digits, which take seconds, and CIFAR-10 with WRN-10-2 and 40 classes of
Tiny ImageNet with ResNet-18, which take about an hour on a CPU core or two.

The two recipes of a pair, plain and -he, differ only in the sphere (and in ALP's beta). Weight decay is the same.
"""

from __future__ import annotations

from dataclasses import replace

from advsphere.data import Augment
from advsphere.hypersphere import HypersphereConfig, m_he
from advsphere.objectives import ALP, NFGSM, PGDAT, TRADES, FastAT, FreeAT, Objective, Standard
from advsphere.runs.config import Config, DataSettings, ModelSettings
from advsphere.schedule import Linear
from advsphere.threat import ThreatModel
from advsphere.training import TrainSettings

CYCLIC = Linear(((0.0, 0.0), (0.5, 1.0), (1.0, 0.0)))
DIGITS_EPS = ThreatModel(norm="linf", eps=0.2)
"""At 0.2, standard training keeps almost no accuracy on the 8x8 digits, and adversarial training keeps most of it."""
EPS = ThreatModel(norm="linf", eps=8 / 255)
SMALL_EPS = ThreatModel(norm="linf", eps=4 / 255)


def digits(name: str, objective: Objective) -> Config:
    """The embedded digits with a network of 48,000 weights."""
    return Config(
        recipe=f"digits-{name}",
        objective=objective,
        training=TrainSettings(epochs=20, lr_schedule=CYCLIC),
        threat=DIGITS_EPS,
    )


def cifar10_small(name: str, objective: Objective, epochs: int, lr: float = 0.2) -> Config:
    """CIFAR-10 with WRN-10-2 and the one-cycle schedule of fast_adversarial."""
    return Config(
        recipe=f"cifar10-small-{name}",
        data=DataSettings(name="cifar10", validation=1000),
        model=ModelSettings(name="wrn-10-2"),
        objective=objective,
        training=TrainSettings(epochs=epochs, lr=lr, lr_schedule=CYCLIC, augment=Augment(padding=4, flip=True)),
        threat=EPS,
    )


def tiny_imagenet(name: str, objective: Objective, epochs: int) -> Config:
    """40 classes of Tiny ImageNet at 64 pixels with ResNet-18, with the radius and weight decay of the paper's Table 4.
    --data.root names their folder.
    """
    augment = Augment(padding=8, flip=True)
    return Config(
        recipe=f"tiny-imagenet-{name}",
        data=DataSettings(name="imagefolder", image_size=64, validation=1000),
        model=ModelSettings(name="timm:resnet18"),
        objective=objective,
        training=TrainSettings(epochs=epochs, weight_decay=1e-4, lr_schedule=CYCLIC, augment=augment),
        threat=SMALL_EPS,
    )


def folder(name: str, objective: Objective) -> Config:
    """A folder of your own images at 64 pixels, with timm's ResNet-18. --data.root names the folder."""
    return Config(
        recipe=f"folder-{name}",
        data=DataSettings(name="imagefolder", image_size=64, validation=500),
        model=ModelSettings(name="timm:resnet18"),
        objective=objective,
        training=TrainSettings(epochs=15, lr_schedule=CYCLIC, augment=Augment(padding=4, flip=True)),
        threat=EPS,
    )


def with_he(plain: Config, sphere: HypersphereConfig | None = None) -> Config:
    """The same recipe with HE; s = 15 and m = 0.2 are the defaults of the paper's code."""
    return replace(plain, recipe=f"{plain.recipe}-he", sphere=sphere or HypersphereConfig(scale=15.0, margin=0.2))


def with_m_he(plain: Config) -> Config:
    """The same recipe with m-HE (our reading)."""
    note = "m-HE (our reading): the paper names it but does not define it; here m rises from 0 over half the run"
    return replace(
        plain, recipe=f"{plain.recipe}-m-he", sphere=m_he(HypersphereConfig(scale=15.0, margin=0.2)), notes=(note,)
    )


_FASTAT = FastAT(threat=EPS)
_PGDAT = PGDAT(threat=EPS, step_size=2 / 255, start="uniform")
_S10, _S20 = HypersphereConfig(scale=10.0, margin=0.2), HypersphereConfig(scale=20.0, margin=0.3)
_ALP, _ALP_HE = (ALP(threat=EPS, step_size=2 / 255, start="uniform", beta=beta) for beta in (0.5, 0.5 / _S20.scale**2))
"""Both betas give the same loss, because logits on the sphere are s times the cosines that the paper's code pairs."""
_TINY = tiny_imagenet("freeat", FreeAT(threat=SMALL_EPS, step_size=4 / 255, repeats=4), 6)

PLAIN = [
    digits("standard", Standard()),
    digits("pgd-at", PGDAT(threat=DIGITS_EPS, step_size=0.05, start="uniform")),
    digits("alp", ALP(threat=DIGITS_EPS, step_size=0.05, start="uniform")),
    digits("trades", TRADES(threat=DIGITS_EPS, step_size=0.05)),
    digits("fastat", FastAT(threat=DIGITS_EPS, step_size=0.25)),
    digits("nfgsm", NFGSM(threat=DIGITS_EPS)),
    digits("freeat", FreeAT(threat=DIGITS_EPS, step_size=0.2, repeats=4)),
    cifar10_small("fastat", _FASTAT, 15),
    cifar10_small("nfgsm", NFGSM(threat=EPS), 15),
    cifar10_small("pgd-at", _PGDAT, 7),
    cifar10_small("trades", TRADES(threat=EPS, step_size=2 / 255), 7),
    cifar10_small("freeat", FreeAT(threat=EPS), 4, lr=0.04),
    cifar10_small("standard", Standard(), 15),
    folder("standard", Standard()),
    folder("fastat", _FASTAT),
    folder("nfgsm", NFGSM(threat=EPS)),
    folder("pgd-at", _PGDAT),
    folder("trades", TRADES(threat=EPS, step_size=2 / 255)),
    folder("freeat", FreeAT(threat=EPS, repeats=4)),
]
RECIPES = [variant(plain) for plain in PLAIN for variant in (lambda c: c, with_he, with_m_he)]
RECIPES += [cifar10_small("alp", _ALP, 7), with_he(cifar10_small("alp", _ALP_HE, 7), _S20)]
RECIPES += [folder("alp", _ALP), with_he(folder("alp", _ALP_HE), _S20), _TINY, with_he(_TINY, _S10)]
