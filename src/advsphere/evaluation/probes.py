"""Measurements on a few images that show whether the attacks of an evaluation can be believed.

Each is deterministic: it depends on the model, the images, the threat, the seed and, for two of them, on the attacks
and on the images that they left. `masking` turns the results into signs. Sources: finite differences and large radii,
Athalye et al. 2018 (arXiv 1802.00420) and Carlini et al. 2019 (arXiv 1902.06705); planted examples, Zimmermann et al.
2022 (arXiv 2206.13991); random search, Croce et al. 2022 (AutoAttack's flag for Square, flags_doc.md of its code).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.attacks import pgd, square
from advsphere.calling import NetworkError
from advsphere.classifier import Classifier, fooled, input_gradient, split
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.checks import loaded
from advsphere.evaluation.ledger import CLEAN, Ledger
from advsphere.evaluation.majority import Majority
from advsphere.evaluation.specs import AttackSpec, kind_of
from advsphere.losses import Loss, log_odds
from advsphere.memory import Parts, with_frozen
from advsphere.rng import Rng, permutation
from advsphere.threat import ThreatModel

SAMPLE, FEW = 100, 16
"""Images of a probe. A hundred distinguish a share of 4 % from chance; a few are enough to see whether most fail."""
STEPS = 20
QUERIES = 64
STRIDES = (0.03, 0.25)
"""Steps of the finite differences, in radii: one along which a network is almost linear, and the usual step of PGD."""
KNOWN = 0.9
"""Score at which a planted example counts as found; that of the example itself is 1."""


class Subject(NamedTuple):
    """What a probe measures: a model, `classify` in float32, on images x (B, C, H, W) with labels y (B,)."""

    model: nn.Module
    classify: Parts
    threat: ThreatModel
    x: Tensor
    y: Tensor
    rng: Rng
    attacks: Sequence[AttackSpec]
    head: str | None


class Probe(NamedTuple):
    """A measurement on at most `most` correctly classified images, or on images that resisted every attack."""

    measure: Callable[[Subject], dict[str, Any]]
    most: int
    resisted: bool = False


def probes_of(
    book: Ledger, model: nn.Module, images: Images, attacks: Sequence[AttackSpec], names: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure probes by name, for a model and images with the ledger of their evaluation by these attacks.

    A probe of the images that resisted also says how many these were, because a continued evaluation leaves fewer.
    """
    identity = book.identity
    threat = ThreatModel(**identity["threat"] | {"bounds": tuple(identity["threat"]["bounds"])})
    for name in names:
        measure, most, resisted = PROBES[name]
        outcomes = book.outcomes() if resisted else book.outcomes(CLEAN)
        index = sample(outcomes, seed=identity["seed"], most=min(most, identity["batch_size"]))
        x, y = loaded(model, images, index)
        rng = Rng(identity["seed"], index.to(x.device))
        subject = Subject(model, Parts(model), threat, x, y, rng, attacks, identity["suite"].get("head"))
        found = with_frozen(model, partial(_measured, measure, subject))
        yield name, found | ({"resisted": outcomes.count("1")} if resisted else {})


def _measured(measure: Callable[[Subject], dict[str, Any]], subject: Subject, classify: Parts) -> dict[str, Any]:
    return measure(subject._replace(classify=classify))


def missing(book: Ledger) -> list[str]:
    """The probes that a ledger lacks, or whose images are no longer those that resisted."""
    known, left = book.probes, book.outcomes().count("1")
    return [name for name, one in PROBES.items() if name not in known or known[name].get("resisted", left) != left]


def sample(outcomes: str, *, seed: int, most: int) -> Tensor:
    """(n,) int64, in order: a random sample of at most `most` examples with the outcome "1"."""
    order = permutation(len(outcomes), seed=seed, epoch=0, purpose="probes").tolist()
    return torch.tensor(sorted([i for i in order if outcomes[i] == "1"][:most]), dtype=torch.int64)


def gradients(s: Subject) -> dict[str, Any]:
    """Count the images without a usable gradient (zero, denormal or not finite), for softmax cross-entropy in float32,
    which other libraries ascend, and for log-odds, which ours ascends.
    """
    losses: dict[str, Loss] = {"cross_entropy": partial(F.cross_entropy, reduction="none"), "log_odds": log_odds}
    return {"n": len(s.x)} | {name: _without_gradient(s, loss) for name, loss in losses.items()}


def large_radius(s: Subject) -> dict[str, Any]:
    """Count the images that resist a short PGD in a ball that is large enough to contain uniform grey.

    For D values in [0, 1] its radius is 0.5 in linf, 0.5 sqrt(D) in l2 and 0.5 D in l1. Only the n images on which grey
    itself fools the model are counted, so every image that resists is a failure of the search. PGD starts at the clean
    image, because random noise of this size fools a network without any gradient. `left`, the number of images that
    resist, is None if PGD can't run.
    """
    low, high = s.threat.bounds
    grey = torch.full_like(s.x[:1], (low + high) / 2)
    with torch.no_grad():
        open_to_grey = s.classify(grey).argmax(1) != s.y
    x, y = s.x[open_to_grey], s.y[open_to_grey]
    values = x[0].numel() if len(x) else 0
    eps = (high - low) / 2 * {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values)}[s.threat.norm]
    found: dict[str, Any] = {"n": len(x), "left": 0, "eps": eps, "steps": STEPS}
    if not len(x):
        return found
    ball = ThreatModel(norm=s.threat.norm, eps=eps, bounds=s.threat.bounds)
    stop = not isinstance(s.model, Majority)  # a success of some calls may be chance
    try:
        x_adv = pgd(s.classify, x, y, threat=ball, steps=STEPS, step_size=eps / 4, start="clean", until_fooled=stop)
    except NetworkError:  # no gradient reaches the images
        return found | {"left": None}
    with torch.no_grad():
        return found | {"left": int((~fooled(s.classify(x_adv), y)).sum())}


def slopes(s: Subject) -> dict[str, Any]:
    """Compare gradients with finite differences along the step that an attack would take.

    At each image and at a random point of its ball, the log-odds have to rise by half of what the gradient promises,
    in one of two steps of different length. Otherwise the gradient is false there. A kink of a ReLU within a step bends
    the rise by far less. The rise is computed in float64 from the logits.
    """

    def answers(x: Tensor) -> tuple[Tensor, Tensor]:
        """Always where a gradient is taken, because a randomised model draws other numbers elsewhere."""
        try:
            return input_gradient(s.classify, x, s.y, lambda z, y: log_odds(z.double(), y))[1:]
        except NetworkError:  # no gradient reaches the images
            with torch.no_grad():
                logits = s.classify(x)
            return log_odds(logits.double(), s.y), torch.zeros_like(x)

    found = {"n": 2 * len(s.x), "false": 0}
    for start in (s.x, s.threat.sample(s.x, s.rng)) if len(s.x) else ():
        values, grad = answers(start)
        rises = torch.zeros_like(s.y, dtype=torch.bool)
        for stride in STRIDES:
            stepped = s.threat.project(start + stride * s.threat.eps * s.threat.ascent(grad, start), s.x)
            promised = (grad.double() * (stepped.double() - start.double())).flatten(1).sum(1)
            rises |= (promised > 0) & (answers(stepped)[0] - values >= promised / 2)
        found["false"] += int((~rises).sum())
    return found


def planted(s: Subject) -> dict[str, Any]:
    """Plant an adversarial example near each image, and count how many each iterative attack misses.

    Source: the binarization test of Zimmermann et al. 2022 (arXiv 2206.13991). It keeps the network up to the features
    before its head (all of it if the head is not known) and puts a binary classifier behind it, of which a known point
    of the ball is an adversarial example: the image with coarse patches brighter or darker by eps. Differs from the
    paper: the classifier is the difference of the two features, without training, and is used only if random noise does
    not fool it. Attacks that need the real head are not tried, nor those on a randomised model, whose calls differ in
    their features.
    """
    found: dict[str, Any] = {"n": 0, "missed": {}}
    tried = [
        spec
        for spec in s.attacks
        if kind_of(spec.settings) == "iterative"
        and not {"head", "view", "guides"} & {*spec.settings}
        and not isinstance(s.model, Majority)
    ]
    found["missed"] = {spec.name: 0 for spec in tried}
    features = _features(s)
    with torch.no_grad():
        known = _patches(s)
        origin, end = features(s.x), features(known)
        direction = (end - origin) / (end - origin).square().sum(1, keepdim=True).clamp(min=1e-300)
        highest = torch.zeros(len(s.x), dtype=torch.float64, device=s.x.device)
        for i in range(FEW):
            noise = s.threat.sample(s.x, s.rng.at(restart=i + 1))
            if i % 2:
                noise = s.threat.project(s.x + s.threat.eps * (noise - s.x).sign(), s.x)
            highest = torch.maximum(highest, ((features(noise) - origin) * direction).sum(1))
        usable = ((end - origin) * direction).sum(1).isclose(torch.ones_like(highest)) & (highest < KNOWN)
    for i in usable.nonzero().squeeze(1).tolist() if tried else ():
        found["n"] += 1
        one = slice(i, i + 1)

        def binary(x: Tensor, one: slice = one) -> Tensor:
            score = ((features(x) - origin[one]) * direction[one]).sum(1) - KNOWN
            return torch.stack([-score, score], 1).float()

        label = torch.zeros_like(s.y[one])
        for spec in tried:
            try:
                x_adv = spec.attack(binary, s.x[one].clone(), label, rng=s.rng.take(one))
            except NetworkError:  # no gradient reaches the images
                found["missed"][spec.name] += 1
                continue
            with torch.no_grad():
                hit = fooled(binary(x_adv), label) & s.threat.contains(x_adv, s.x[one])
            found["missed"][spec.name] += int(~hit)
    return found


def random_search(s: Subject) -> dict[str, Any]:
    """Count the images that resisted every attack and are fooled by a short Square attack, which needs no gradient."""
    found: dict[str, Any] = {"n": len(s.x), "fooled": 0, "queries": QUERIES}
    if not len(s.x) or s.x.dim() != 4:
        return found
    x_adv = square(s.classify, s.x, s.y, threat=s.threat, queries=QUERIES, rng=s.rng.at(restart=1))
    with torch.no_grad():
        return found | {"fooled": int((fooled(s.classify(x_adv), s.y) & s.threat.contains(x_adv, s.x)).sum())}


PROBES: dict[str, Probe] = {
    "gradients": Probe(gradients, SAMPLE),
    "large radius": Probe(large_radius, SAMPLE),
    "slopes": Probe(slopes, 2 * FEW),
    "planted": Probe(planted, FEW),
    "random search": Probe(random_search, FEW, resisted=True),
}


def _without_gradient(s: Subject, loss: Loss) -> int:
    try:
        _, _, grad = input_gradient(s.classify, s.x, s.y, loss)
    except NetworkError:  # no gradient reaches the images
        return len(s.x)
    largest = grad.flatten(1).abs().amax(1)
    return int((~((largest >= torch.finfo(grad.dtype).tiny) & largest.isfinite())).sum())


def _features(s: Subject) -> Callable[[Tensor], Tensor]:
    """What enters the head, (B, D) in float64; the logits if the head is not known."""
    inner: Classifier | None = None
    with suppress(UserError), torch.no_grad():
        found = split(s.model, s.head).features
        found(s.x[:1])
        inner = found
    return lambda x: s.classify(x, inner).double().flatten(1)


def _patches(s: Subject) -> Tensor:
    """The images with four by four patches, each channel of each brighter or darker by eps at random, in the ball."""
    signs = s.rng.uniform((s.x.shape[1], 4, 4), "patches").sub(0.5).sign()
    pattern = F.interpolate(signs, size=s.x.shape[2:], mode="nearest").to(s.x)
    return s.threat.project(s.x + s.threat.eps * pattern, s.x)
