"""One row for each attack that a released package has: ours, and theirs with the same settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from advsphere.attacks import (
    Attack,
    apgd,
    apgd_targeted,
    auto_attack,
    cw,
    deepfool,
    fab,
    fab_targeted,
    fgsm,
    fmn,
    mim,
    pgd,
    square,
)
from advsphere.attacks.fast_minimum_norm import STEP_SIZE
from advsphere.losses import dlr, log_odds
from advsphere.threat import Norm, ThreatModel
from tests.parity.peers import NORMS, ORDERS, Peer, adv_lib, foolbox, official, package, torchattacks


class Budget(NamedTuple):
    """seeds: of what is random. pgd, apgd, fab, cw, ensemble: steps. targets: of APGD-T, FAB-T. queries: Square's."""

    n: int
    seeds: int
    pgd: int
    apgd: int
    targets: int
    fab: int
    queries: int
    cw: int
    ensemble: int


QUICK = Budget(n=100, seeds=2, pgd=10, apgd=30, targets=3, fab=10, queries=200, cw=100, ensemble=10)
FULL = Budget(n=200, seeds=3, pgd=50, apgd=100, targets=9, fab=100, queries=5000, cw=1000, ensemble=100)
"""AutoAttack's published numbers."""

Ours = Callable[[ThreatModel, Budget], Attack]
Theirs = Callable[[Norm, float, Budget], Peer]


class Row(NamedTuple):
    """norms: those that both have. peers: by the package's name."""

    norms: tuple[Norm, ...]
    ours: Ours
    peers: dict[str, Theirs]


def step(eps: float) -> float:
    return eps / 4


DETERMINISTIC: dict[str, Row] = {
    "FGSM": Row(
        ("linf",),
        lambda t, b: partial(fgsm, threat=t),
        {
            "torchattacks": lambda norm, eps, b: torchattacks("FGSM", eps=eps),
            "foolbox": lambda norm, eps, b: foolbox("LinfFastGradientAttack", eps),
        },
    ),
    "PGD from the clean image": Row(
        ("linf", "l2"),
        lambda t, b: partial(pgd, threat=t, steps=b.pgd, step_size=step(t.eps), start="clean"),
        {
            "torchattacks": lambda norm, eps, b: torchattacks(
                {"linf": "PGD", "l2": "PGDL2"}[norm], eps=eps, alpha=step(eps), steps=b.pgd, random_start=False
            ),
            "foolbox": lambda norm, eps, b: foolbox(
                f"{NORMS[norm].upper().replace('INF', 'inf')}ProjectedGradientDescentAttack",
                eps,
                abs_stepsize=step(eps),
                steps=b.pgd,
                random_start=False,
            ),
        },
    ),
    "MIM": Row(  # foolbox's adds up signs of gradients, and is another attack
        ("linf",),
        lambda t, b: partial(mim, threat=t, steps=b.pgd, step_size=step(t.eps)),
        {"torchattacks": lambda norm, eps, b: torchattacks("MIFGSM", eps=eps, alpha=step(eps), steps=b.pgd)},
    ),
    "APGD-CE from the clean image": Row(
        ("linf", "l2"),
        lambda t, b: partial(apgd, threat=t, steps=b.apgd, loss=log_odds, rho=RHO, start="clean"),
        {"official": lambda norm, eps, b: from_the_clean_image("ce", norm, eps, b)},
    ),
    "APGD-DLR from the clean image": Row(
        ("linf", "l2"),
        lambda t, b: partial(apgd, threat=t, steps=b.apgd, loss=dlr, rho=RHO, start="clean"),
        {"official": lambda norm, eps, b: from_the_clean_image("dlr", norm, eps, b)},
    ),
}
RHO = 0.74
"""No number of steps between checkpoints has a whole 74 %: there the paper and the official code differ."""

RANDOM: dict[str, Row] = {
    "PGD": Row(
        ("linf",),
        lambda t, b: partial(pgd, threat=t, steps=b.pgd, step_size=step(t.eps), until_fooled=True),
        {
            # It looks at the iterates before each step, and so never at the last one.
            "adv-lib": lambda norm, eps, b: adv_lib("pgd_linf", ε=eps, steps=b.pgd + 1, absolute_step_size=step(eps))
        },
    ),
    "PGD (sparse)": Row(
        ("l1",),
        lambda t, b: partial(pgd, threat=t, steps=b.pgd, step_size=step(t.eps)),
        {
            "foolbox": lambda norm, eps, b: foolbox(
                "SparseL1DescentAttack", eps, abs_stepsize=step(eps), steps=b.pgd, random_start=True
            )
        },
    ),
    "APGD-CE": Row(
        ("linf", "l2", "l1"),
        lambda t, b: partial(apgd, threat=t, steps=b.apgd, until_fooled=True),
        {
            "official": lambda norm, eps, b: official("autopgd_base", "APGDAttack", norm, eps, n_iter=b.apgd),
            "torchattacks": lambda norm, eps, b: torchattacks("APGD", norm=NORMS[norm], eps=eps, steps=b.apgd),
            "adv-lib": lambda norm, eps, b: adv_lib(
                "apgd", norm=ORDERS[norm], eps=eps, n_iter=b.apgd, loss_function="ce"
            ),
        },
    ),
    "APGD-CE (three radii)": Row(
        ("l1",),
        lambda t, b: partial(apgd, threat=t, steps=b.apgd, multi_eps=True, until_fooled=True),
        {
            "official": lambda norm, eps, b: official(
                "autopgd_base", "APGDAttack", norm, eps, n_iter=b.apgd, use_largereps=True
            )
        },
    ),
    "APGD-DLR": Row(
        ("linf", "l2", "l1"),
        lambda t, b: partial(apgd, threat=t, steps=b.apgd, loss=dlr, until_fooled=True),
        {
            "official": lambda norm, eps, b: official(
                "autopgd_base", "APGDAttack", norm, eps, n_iter=b.apgd, loss="dlr"
            ),
            "torchattacks": lambda norm, eps, b: torchattacks(
                "APGD", norm=NORMS[norm], eps=eps, steps=b.apgd, loss="dlr"
            ),
            "adv-lib": lambda norm, eps, b: adv_lib("apgd", norm=ORDERS[norm], eps=eps, n_iter=b.apgd),
        },
    ),
    "APGD-T": Row(
        ("linf", "l2", "l1"),
        lambda t, b: partial(apgd_targeted, threat=t, steps=b.apgd, targets=b.targets),
        {
            "official": lambda norm, eps, b: official(
                "autopgd_base", "APGDAttack_targeted", norm, eps, n_iter=b.apgd, n_target_classes=b.targets
            ),
            "torchattacks": lambda norm, eps, b: torchattacks(
                "APGDT", norm=NORMS[norm], eps=eps, steps=b.apgd, n_classes=b.targets + 1
            ),
            "adv-lib": lambda norm, eps, b: adv_lib(
                "apgd_targeted", norm=ORDERS[norm], eps=eps, n_iter=b.apgd, num_targets=b.targets
            ),
        },
    ),
    "Square": Row(
        ("linf", "l2", "l1"),
        # The first of our queries is the initial pattern, which theirs does not count.
        lambda t, b: partial(square, threat=t, queries=b.queries + 1, horizon=b.queries),
        {
            "official": lambda norm, eps, b: official(
                "square", "SquareAttack", norm, eps, n_queries=b.queries, resc_schedule=True
            ),
            "torchattacks": lambda norm, eps, b: torchattacks("Square", norm=NORMS[norm], eps=eps, n_queries=b.queries),
        },
    ),
    "AutoAttack": Row(
        ("linf", "l2", "l1"),
        lambda t, b: auto_attack(t, steps=b.ensemble, queries=b.queries),
        {"official": lambda norm, eps, b: official_auto_attack(norm, eps, b)},
    ),
}

MINIMAL: dict[str, Row] = {
    "DeepFool": Row(
        ("linf", "l2"),
        lambda t, b: partial(deepfool, norm=t.norm, steps=50),
        {
            "adv-lib": lambda norm, eps, b: adv_lib("df", norm=ORDERS[norm], steps=50),
            "torchattacks": lambda norm, eps, b: torchattacks("DeepFool", steps=50),
            "foolbox": lambda norm, eps, b: foolbox(f"{'L2' if norm == 'l2' else 'Linf'}DeepFoolAttack", None),
        },
    ),
    "Carlini-Wagner": Row(
        ("linf", "l2"),
        lambda t, b: partial(cw, norm=t.norm, steps=b.cw, **searched(t.norm, b)[0]),
        {
            "adv-lib": lambda norm, eps, b: adv_lib(
                f"carlini_wagner_{norm}", max_iterations=b.cw, **searched(norm, b)[1]
            ),
            "foolbox": lambda norm, eps, b: foolbox("L2CarliniWagnerAttack", None, steps=b.cw, **searched(norm, b)[1]),
            "torchattacks": lambda norm, eps, b: torchattacks("CW", c=1, steps=b.cw),
        },
    ),
    "FMN": Row(
        ("linf", "l2", "l1"),
        lambda t, b: partial(fmn, norm=t.norm, steps=b.cw),
        {
            "adv-lib": lambda norm, eps, b: adv_lib("fmn", norm=ORDERS[norm], steps=b.cw, α_init=STEP_SIZE[norm]),
            "foolbox": lambda norm, eps, b: foolbox(
                {"linf": "LInfFMNAttack", "l2": "L2FMNAttack", "l1": "L1FMNAttack"}[norm],
                None,
                steps=b.cw,
                max_stepsize=STEP_SIZE[norm],
            ),
        },
    ),
    "FAB": Row(
        ("linf", "l2", "l1"),
        lambda t, b: partial(fab, norm=t.norm, steps=b.fab),
        {
            "official": lambda norm, eps, b: walked(norm, b, targeted=False),
            "torchattacks": lambda norm, eps, b: torchattacks("FAB", norm=NORMS[norm], eps=1e3, steps=b.fab),
            "adv-lib": lambda norm, eps, b: adv_lib("fab", norm=ORDERS[norm], n_iter=b.fab),
        },
    ),
    "FAB-T": Row(
        ("linf", "l2", "l1"),
        lambda t, b: partial(fab_targeted, norm=t.norm, steps=b.fab, targets=b.targets),
        {
            "adv-lib": lambda norm, eps, b: adv_lib(
                "fab", norm=ORDERS[norm], n_iter=b.fab, restarts=b.targets, targeted_restarts=True
            ),
            "official": lambda norm, eps, b: walked(norm, b, targeted=True),
            "torchattacks": lambda norm, eps, b: torchattacks(
                "FAB", norm=NORMS[norm], eps=1e3, steps=b.fab, multi_targeted=True, n_classes=b.targets + 1
            ),
        },
    ),
}


def peers_of(name: str, row: Row, norm: Norm) -> dict[str, Theirs]:
    """The packages that have this attack in this norm."""
    lacking = {
        ("APGD-CE", "l1"): {"torchattacks"},
        ("APGD-DLR", "l1"): {"torchattacks"},
        ("APGD-T", "l1"): {"torchattacks"},
        ("Square", "l1"): {"torchattacks"},
        ("FAB", "l1"): {"torchattacks"},  # it accepts the norm and fails
        ("FAB-T", "l1"): {"torchattacks"},
        ("DeepFool", "linf"): {"torchattacks"},
        ("Carlini-Wagner", "linf"): {"torchattacks", "foolbox"},
    }.get((name, norm), set())
    return {peer: make for peer, make in row.peers.items() if peer not in lacking}


def searched(norm: Norm, budget: Budget) -> tuple[dict[str, float], dict[str, float]]:
    """How Carlini-Wagner looks for c, as ours and as the packages call it; in linf at their own settings."""
    if norm == "linf":
        return {}, {}
    rounds = min(9, budget.cw // 25)
    return {"first_c": 0.1, "rounds": rounds}, {"initial_const": 0.1, "binary_search_steps": rounds}


def from_the_clean_image(loss: str, norm: Norm, eps: float, budget: Budget) -> Peer:
    """The official AutoPGD without its random start."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        make = package("pyautoattack.autopgd_base").APGDAttack
        peer = make(model, n_iter=budget.apgd, norm=NORMS[norm], eps=eps, loss=loss, rho=RHO, device="cpu")
        peer.init_hyperparam(x)
        return peer.attack_single_run(x, y, x_init=x)[0]

    return attack


def walked(norm: Norm, budget: Budget, *, targeted: bool) -> Peer:
    """The official FAB, which forgets what is farther than eps: with an eps that nothing is farther than."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        make = package("pyautoattack.fab_pt").FABAttack_PT
        settings = {"n_iter": budget.fab, "targeted": targeted, "n_target_classes": budget.targets}
        return make(model, norm=NORMS[norm], eps=1e3, seed=seed, device="cpu", **settings).perturb(x, y)

    return attack


def official_auto_attack(norm: Norm, eps: float, budget: Budget) -> Peer:
    """The official ensemble `standard`; only with the numbers of `FULL` as published."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        peer = package("pyautoattack").AutoAttack(model, norm=NORMS[norm], eps=eps, seed=seed, device="cpu")
        for one in (peer.apgd, peer.apgd_targeted):
            one.n_iter = one.n_iter_orig = budget.ensemble
            one.n_iter_2, one.n_iter_min, one.size_decr = (
                max(int(part * budget.ensemble), 1) for part in (0.22, 0.06, 0.03)
            )
        peer.fab.n_iter, peer.square.n_queries = budget.ensemble, budget.queries
        published = peer.square.p_selection
        peer.square.p_selection = lambda i: published(i * 5000 // budget.queries)
        peer.logger.disabled = True
        return peer.run_standard_evaluation(x, y, batch_size=len(x))[0]

    return attack
