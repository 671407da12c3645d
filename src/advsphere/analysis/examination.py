"""Everything that `diagnose` looks at in one network, in one go and on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from advsphere.analysis.angles import Angles, HeadParts, measure, split_head
from advsphere.analysis.curves import Curve, StepsCurve, accuracy_against_eps, accuracy_against_steps
from advsphere.analysis.feature_normalization import FewSteps, few_steps
from advsphere.analysis.gradients import LayerGradients, layer_gradients
from advsphere.analysis.hard_examples import Crafted, Hardness, check_count, craft, hardness
from advsphere.analysis.perturbations import Picture, both_ways, first_right
from advsphere.analysis.surface import Surface, loss_surface
from advsphere.classifier import find_head
from advsphere.data import Images
from advsphere.evaluation import preflight
from advsphere.hypersphere import AngularMargin, HypersphereHead
from advsphere.losses import Loss, cross_entropy
from advsphere.threat import ThreatModel

GRADIENTS, HARD, CURVES, SURFACES = 256, 500, 250, 4
"""How many images are enough: for the layers' gradients, for each example's own gradient, for the curves against eps
and steps, which take most of the time, and for slices of the surface.
"""

STAGES = ("craft", "gradients", "hardness", "few steps", "Table 7", "eps", "steps", "surface", "pictures")


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """What is examined.

    name: what figures and sentences call it. head: the head's name, where it can't be told. margin: the m that it was
    trained with, for the gradients of its own criterion. states: the same network at other times of its training, by
    name, for the gradients over training. metrics: what its run logged, with the ratios of each epoch if recorded.
    """

    name: str
    model: nn.Module
    head: str | None = None
    margin: float = 0.0
    states: Mapping[str, nn.Module] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, float]] = ()

    def criterion(self, model: nn.Module) -> Loss:
        """What a state of it was trained to minimise: cross-entropy, with the margin where there is one."""
        head = model.get_submodule(find_head(model, self.head))
        return AngularMargin(head, self.margin) if isinstance(head, HypersphereHead) and self.margin else cross_entropy


@dataclass(frozen=True, eq=False, kw_only=True)
class Examination:
    """What was found out about one network. first_steps: few steps of the threat's own size; table7: those of the
    paper's Table 7. pictures: with FN on the attack's path and without.
    """

    network: Network
    anatomy: HeadParts
    crafted: Crafted
    clean: Angles
    adversarial: Angles
    gradients: Mapping[str, LayerGradients]
    hardness: Hardness
    first_steps: FewSteps
    table7: FewSteps
    eps: Curve
    steps: StepsCurve
    surface: Surface
    pictures: Mapping[str, tuple[Picture, ...]]


def examine(
    network: Network,
    images: Images,
    *,
    threat: ThreatModel,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Examination:
    """Look at all of it. on_progress: told (one of STAGES, done, total). Raises UserError like `preflight` does,
    and for fewer than ten images, before anything is crafted.

    The model is put back as it was; its gradients are left alone.
    """
    model, told = network.model, {stage: partial(on_progress, stage) for stage in STAGES}
    check_count(len(images))
    preflight(model, images, batch_size=batch_size)
    anatomy = split_head(model, images, head=network.head, batch_size=batch_size)
    crafted = craft(model, images, threat=threat, seed=seed, batch_size=batch_size, on_progress=told["craft"])
    clean, adversarial = (
        measure(anatomy, x, crafted.y, images.classes, batch_size=batch_size) for x in (crafted.x, crafted.x_adv)
    )
    gradients = _gradients(network, images.few(GRADIENTS), threat, seed, told["gradients"])
    first_steps = few_steps(
        anatomy,
        images,
        threat=threat,
        step_size=threat.eps / 4,
        factors=(0.5, 1.0, 2.0),
        seed=seed,
        batch_size=batch_size,
        on_progress=told["few steps"],
    )
    table7 = few_steps(anatomy, images, seed=seed, batch_size=batch_size, on_progress=told["Table 7"])
    eps = accuracy_against_eps(
        model, images, threat=threat, most=CURVES, seed=seed, batch_size=batch_size, on_progress=told["eps"]
    )
    steps = accuracy_against_steps(
        model, images, threat=threat, most=CURVES, seed=seed, batch_size=batch_size, on_progress=told["steps"]
    )
    return Examination(
        network=network,
        anatomy=anatomy,
        crafted=crafted,
        clean=clean,
        adversarial=adversarial,
        gradients=gradients,
        hardness=hardness(anatomy, crafted.few(HARD), on_progress=told["hardness"]),
        first_steps=first_steps,
        table7=table7,
        eps=eps,
        steps=steps,
        surface=_surface(model, crafted, clean, seed, batch_size, told["surface"]),
        pictures=_pictures(anatomy, images, clean, threat, seed, told["pictures"]),
    )


def _gradients(
    network: Network, images: Images, threat: ThreatModel, seed: int, told: Callable[[int, int], None]
) -> dict[str, LayerGradients]:
    """Of each state by the criterion that it was trained by; of the judged one also without a margin, which makes clean
    images hard as well.
    """
    views = [(state, model, network.criterion(model)) for state, model in network.states.items()]
    if network.margin:
        views.append(("as judged, m = 0", network.model, cross_entropy))
    views.append(("as judged", network.model, network.criterion(network.model)))
    found = {}
    for i, (state, model, criterion) in enumerate(views, 1):
        found[state] = layer_gradients(model, images, threat=threat, criterion=criterion, head=network.head, seed=seed)
        told(i, len(views))
    return found


def _surface(
    model: nn.Module, crafted: Crafted, clean: Angles, seed: int, batch_size: int, told: Callable[[int, int], None]
) -> Surface:
    examples = first_right(clean, SURFACES) or tuple(range(min(SURFACES, len(crafted.y))))
    found = loss_surface(model, crafted, examples, seed=seed, batch_size=batch_size)
    told(1, 1)
    return found


def _pictures(
    anatomy: HeadParts, images: Images, clean: Angles, threat: ThreatModel, seed: int, told: Callable[[int, int], None]
) -> dict[str, tuple[Picture, ...]]:
    examples = first_right(clean) or (0,)
    found = both_ways(anatomy, images, examples, threat=threat, seed=seed)
    told(1, 1)
    return found
