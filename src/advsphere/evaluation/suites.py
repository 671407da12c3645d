"""Named suites of attacks. A suite is a function from a `SuiteContext` to attacks, registered by `@suite(rank=...)`.

Steps are eps / 4 long unless a table says otherwise: 2/255 at 8/255, the usual step for 10 to 100 steps (Madry et al.
2018; Wong et al. 2020 for PGD-50). The step is proportional to eps so that a suite is equivalent at any radius. On
adversarially trained digits networks eps / 4 fooled more images than eps / 10 and 2.5 eps / steps. All attacks keep
their best iterate, stop at the first success, and ascend losses that never saturate. PGD in `survival` ascends
cross-entropy instead, because the gain under such attacks is in question. The cheapest attacks run first.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from advsphere.attacks import (
    Cosines,
    Guides,
    apgd,
    cw,
    deepfool,
    fab,
    feature_attack,
    fgsm,
    mim,
    pgd,
    rays,
    surrogate,
)
from advsphere.attacks.ensemble import dlr_or_margin, stages
from advsphere.errors import UserError
from advsphere.evaluation.cascades import cascade
from advsphere.evaluation.specs import AttackSpec
from advsphere.identity import home
from advsphere.losses import Loss, at_scale, cross_entropy, log_odds, margin
from advsphere.named import is_name, load
from advsphere.threat import ThreatModel
from advsphere.typed import require_types


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The effort of a named suite.

    Attributes:
        restarts: Number of runs of every attack with a random start; the worst case counts.
        steps: Number of steps of the iterative attacks, instead of the suite's own numbers.
        guides: Number of images of other classes that the feature attack tries to approach for each example.
        cascade: Run a short first attack, then each attack only on the images that resisted the earlier ones. This
            finds the same worst case sooner, but each attack's row is cumulative.

    Raises:
        UserError: If a number is below 1, or a value of another type.
    """

    restarts: int = 1
    steps: int | None = None
    guides: int = 100
    cascade: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("restarts", "steps", "guides"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, but it must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class SuiteContext:
    """The information that a suite gets about the model and the evaluation.

    Attributes:
        threat: The threat model.
        scale: The head's s, 1.0 for a plain head.
        head: The last linear layer; None if it is not known.
        guides: Images for the feature attack; None if there are no images of at least two classes.
        effort: The effort that the user asked for.
    """

    threat: ThreatModel
    scale: float = 1.0
    head: nn.Module | None = None
    guides: Guides | None = None
    effort: Effort = Effort()

    def steps(self, usual: int) -> int:
        """The number of steps that the user asked for, or the suite's own.

        Args:
            usual: The suite's own number.

        Returns:
            A number of steps.
        """
        return self.effort.steps or usual

    @property
    def known_head(self) -> nn.Module:
        """The head, for attacks on what enters it. Raises UserError if it is not known."""
        if self.head is None:
            raise UserError(
                "this suite attacks the features before the last linear layer, but that layer is not known; "
                "name it (--head), or use another suite"
            )
        return self.head

    @property
    def with_head(self) -> dict[str, Any]:
        """Head and guides, for attacks on features. Raises UserError if there are none."""
        if self.guides is None and self.head is not None:
            raise UserError("a feature attack needs images of at least two classes; use another suite or more images")
        return {"head": self.known_head, "guides": self.guides}


Suite = Callable[[SuiteContext], Sequence[AttackSpec]]

SUITES: dict[str, Suite] = {}
"""The registered suites by name."""


def suite(*, rank: float, draws: int = 0) -> Callable[[Suite], Suite]:
    """Register a suite under its function's name; a user-defined suite is called `package.module:name`.

    Args:
        rank: Strength of the suite. Reports show the evaluation of the highest rank. The suites of advsphere have
            10 (quick), 20 (paper), 30 (table4), 35 (black-box), 40 (adaptive), 45 (rand), 50 (table2),
            60 (autoattack), 70 (table6) and 80 (survival).
        draws: For randomised models: the model answers the class that most of so many calls answer.

    Returns:
        A decorator that registers the function and returns it.
    """

    def register(function: Suite) -> Suite:
        vars(function)["rank"], vars(function)["draws"] = rank, draws
        SUITES[_name_of(function)] = function
        return function

    return register


def find_suite(name: str) -> tuple[dict[str, Any], Suite]:
    """Find a suite by name. Returns its record, with its name, its draws if it has any, and the rank of a user-defined
    suite (0 unless declared), and its function. Raises UserError with the nearest known name if there is none.
    """
    if name not in SUITES and not is_name(name):
        near = difflib.get_close_matches(name, SUITES, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(SUITES)}, or package.module:function"
        )
        raise UserError(f"there is no suite called {name!r}; {hint}")
    function: Suite = SUITES[name] if name in SUITES else load(name)
    known: dict[str, Any] = {"rank": getattr(function, "rank", 0)} if is_name(name) else {}
    known |= {"draws": draws} if (draws := getattr(function, "draws", 0)) else {}
    return {"name": name} | known, function


def rank_of(record: Mapping[str, Any]) -> float:
    """The rank of the suite in an evaluation's record; 0 for a list of attacks."""
    known = SUITES.get(record["name"])
    rank: float = record.get("rank", getattr(known, "rank", 0))
    return rank


def attacks_of(name: str, context: SuiteContext) -> tuple[AttackSpec, ...]:
    """The attacks that a suite lists; `cascades.arranged` puts them in order. Attacks that `effort.steps` makes equal
    are listed once. Raises UserError if there is no such suite, if it needs more than the context has, or if it returns
    anything but attacks.
    """
    found = find_suite(name)[1](context)
    if not isinstance(found, Sequence) or not all(isinstance(spec, AttackSpec) for spec in found):
        raise UserError(f"the suite {name} must return a list of AttackSpec; see docs/extending.md")
    specs = {spec.name: spec for spec in found}
    return tuple(specs.values())


def _name_of(function: Suite) -> str:
    module = home(function)
    return (
        function.__name__.replace("_", "-") if module.startswith("advsphere.") else f"{module}:{function.__qualname__}"
    )


@suite(rank=10)
def quick(context: SuiteContext) -> list[AttackSpec]:
    """FGSM, PGD-20, PGD-100 and PGD-100 on the margin loss: enough to see whether robustness improves at all."""
    return [
        AttackSpec("FGSM", partial(fgsm, threat=context.threat)),
        _pgd(context, 20),
        _pgd(context, 100),
        _pgd(context, 100, label="margin PGD", loss=margin),
    ]


@suite(rank=20)
def paper(context: SuiteContext) -> list[AttackSpec]:
    """PGD-50 on bare cosines (s = 1), as the paper's official evaluators attack, on the model's own logits, and on the
    margin loss.

    Step size and number of steps are those of the FastAT code; use `restarts=10` for its 10 restarts. With a plain head
    the first two attacks are one.
    """
    return [*_at_both_scales(context, _pgd(context, 50)), _pgd(context, 50, label="margin PGD", loss=margin)]


@suite(rank=50)
def table2(context: SuiteContext) -> list[AttackSpec]:
    """The columns of the paper's Table 2, each over all examples, the cheapest first.

    For a head with a scale, attacks on cross-entropy are run twice: on bare cosines (s = 1), as the official
    evaluators do, and on the model's own logits. The step size is the paper's 0.003 at eps 0.031, proportional to eps.
    """
    threat, restarts = context.threat, context.effort.restarts
    step = threat.eps * 0.003 / 0.031
    reach: dict[str, Any] = {"norm": threat.norm, "bounds": threat.bounds}

    steps = context.steps(20)
    momentum = partial(mim, threat=threat, steps=steps, step_size=step, until_fooled=True, keep="best")
    return [
        *_at_both_scales(
            context, AttackSpec("FGSM", partial(fgsm, threat=threat), note="no code: one step from the clean image")
        ),
        *_at_both_scales(
            context, AttackSpec(f"MIM-{steps}", momentum, note="no code: decay 1.0, from the clean image")
        ),
        *_at_both_scales(context, _pgd(context, 20, step_size=step)),
        AttackSpec(
            "DeepFool",
            partial(deepfool, **reach, steps=context.steps(50)),
            minimal=True,
            note="no code: in the norm of the threat, 50 steps, overshoot 0.02",
        ),
        AttackSpec(
            "FAB",
            partial(fab, **reach, steps=context.steps(20)),
            restarts,
            minimal=True,
            note="official code calls advertorch's: its 20 steps",
        ),
        *_at_both_scales(context, _pgd(context, 500, step_size=step)),
        AttackSpec(
            "C&W",
            partial(cw, norm="l2", bounds=threat.bounds, steps=context.steps(100)),
            minimal=True,
            note="no code: the paper's 84 % fit an l2 attack that is judged by the radius of the table",
        ),
        *(replace(spec, note="no code: 100 steps of 1/255 to 100 guides") for spec in _feature(context, "FeaAtt.")),
    ]


@suite(rank=30)
def table4(context: SuiteContext) -> list[AttackSpec]:
    """The columns of the paper's Table 4, PGD-10 and PGD-50 from a uniform start, each on bare cosines (s = 1), as in
    the official evaluator, and on the model's own logits. The step is eps / 4, the table's 1/255 at its eps of 4/255.
    """
    return [spec for steps in (10, 50) for spec in _at_both_scales(context, _pgd(context, steps))]


@suite(rank=60)
def autoattack(context: SuiteContext) -> list[AttackSpec]:
    """AutoAttack standard: APGD-CE, APGD-T, FAB-T and Square, each on the images that resisted the earlier ones. The
    last row is AutoAttack's result. With another number of `steps` it is not AutoAttack, and is not named so.
    """
    name = "AutoAttack" if context.effort.steps is None else "short AutoAttack"
    parts = stages(context.threat, steps=context.steps(100))
    names = [f"{name}: {'+ ' * (i > 0)}{part}" for i, part in enumerate(parts)]
    specs = [AttackSpec(name, attack, proof=True) for name, attack in zip(names, parts.values(), strict=True)]
    return list(cascade(specs))


@suite(rank=35)
def black_box(context: SuiteContext) -> list[AttackSpec]:
    """Square and, in linf, RayS, which needs only predicted classes: for gradients that are missing or mislead."""
    threat = context.threat
    specs = [AttackSpec("Square", stages(threat)["Square"], context.effort.restarts)]
    if threat.norm == "linf":
        specs.append(AttackSpec("RayS", partial(rays, bounds=threat.bounds, eps=threat.eps), proof=True))
    return list(cascade(specs))


@suite(rank=45, draws=20)
def rand(context: SuiteContext) -> list[AttackSpec]:
    """For models with random numbers inside: APGD on cross-entropy and on the margin, along the mean gradient of 20
    calls. Predictions are those of most of 20 other calls. The attacks do not stop at a success, which may be chance.
    """
    ascent = partial(apgd, threat=context.threat, steps=context.steps(50), loss=log_odds)
    return [
        AttackSpec("EOT APGD-CE", ascent, context.effort.restarts),
        AttackSpec("EOT APGD margin", partial(ascent, loss=margin), context.effort.restarts),
    ]


@suite(rank=70)
def table6(context: SuiteContext) -> list[AttackSpec]:
    """The columns of the paper's Table 6: AutoAttack, and RayS over all examples with the official 10,000 queries."""
    if context.threat.norm != "linf":
        norm = context.threat.norm
        raise UserError(f"RayS does not support {norm}: it searches the corners of the linf ball; use autoattack")
    boundary = partial(rays, bounds=context.threat.bounds, eps=context.threat.eps)
    note = "the paper does not say how many queries"
    return [*autoattack(context), AttackSpec("RayS", boundary, note=note, proof=True)]


@suite(rank=40)
def adaptive(context: SuiteContext) -> list[AttackSpec]:
    """Attacks designed for heads with bounded cosines, which also work on other heads.

    They are cross-entropy at several scales, the margin of angles, attacks with and without the head's normalisations,
    and attacks on the features. Cross-entropy at a single scale can't establish the robustness of such a head.
    """
    threat, restarts, steps, head = context.threat, context.effort.restarts, context.steps(100), context.known_head
    ascent = partial(pgd, threat=threat, steps=steps, step_size=threat.eps / 4, until_fooled=True, keep="best")
    paths = {
        "CE on cosines, s = 1": (Cosines(head, 1.0), log_odds),
        "CE on cosines, s = 64": (Cosines(head, 64.0), log_odds),
        "CE on cosines, constant norm": (Cosines(head, 64.0, constant_norm=True), log_odds),
        "margin of angles": (Cosines(head, 1.0), margin),
    }
    return [
        AttackSpec("CE", ascent, restarts),
        AttackSpec("margin", partial(ascent, loss=margin), restarts),
        *(
            AttackSpec(name, partial(surrogate, ascent=ascent, view=view, loss=loss), restarts)
            for name, (view, loss) in paths.items()
        ),
        *_feature(context, "features"),
    ]


@suite(rank=80)
def survival(context: SuiteContext) -> list[AttackSpec]:
    """The attacks that an improvement has to survive: cross-entropy at s = 1 and at the head's own scale, in the usual
    form that may saturate, then margin, DLR, targeted, feature and black-box attacks, and AutoAttack with all stages.
    """
    parts, note = stages(context.threat, steps=context.steps(100)), "with FAB-T as its last"
    ratio = partial(apgd, threat=context.threat, steps=context.steps(100), loss=dlr_or_margin, until_fooled=True)
    return [
        *_at_both_scales(context, _pgd(context, 50, loss=cross_entropy)),
        _pgd(context, 50, label="margin PGD", loss=margin),
        AttackSpec("APGD-CE", parts["APGD-CE"]),
        AttackSpec("APGD-DLR", ratio),
        AttackSpec("APGD-T", parts["APGD-T"]),
        *_feature(context, "features"),
        AttackSpec("Square", parts["Square"], proof=True),
        AttackSpec("AutoAttack", parts["FAB-T"], after=("APGD-CE", "APGD-T", "Square"), note=note, proof=True),
    ]


def _at_both_scales(context: SuiteContext, spec: AttackSpec) -> list[AttackSpec]:
    """An attack on cross-entropy of the logits, preceded by one on bare cosines if the head has a scale."""
    if context.scale == 1.0:
        return [spec]
    attack: Callable[..., Tensor] = spec.attack
    bare = partial(attack, loss=at_scale(log_odds, 1 / context.scale))
    return [replace(spec, name=f"{spec.name} (s = 1)", attack=bare), spec]


def _feature(context: SuiteContext, name: str) -> list[AttackSpec]:
    """The feature attack; none if all images are of one class, where there is nothing to guide it."""
    if context.guides is None and context.head is not None:
        return []
    settings = {**context.with_head, "tries": context.effort.guides, "steps": context.steps(100)}
    return [AttackSpec(name, partial(feature_attack, threat=context.threat, **settings), proof=True)]


def _pgd(
    context: SuiteContext, usual: int, *, label: str = "PGD", loss: Loss = log_odds, step_size: float | None = None
) -> AttackSpec:
    steps, size = context.steps(usual), context.threat.eps / 4 if step_size is None else step_size
    attack = partial(pgd, threat=context.threat, steps=steps, step_size=size, loss=loss, until_fooled=True, keep="best")
    return AttackSpec(f"{label}-{steps}", attack, context.effort.restarts)
