"""`evaluate`: check the arguments, attack every image, judge the results and compute the numbers from the ledger."""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from advsphere.attacks import Guides
from advsphere.classifier import frozen, split
from advsphere.data import Images, Source
from advsphere.distributed import World
from advsphere.errors import UserError, out_of_memory
from advsphere.evaluation.cascades import arranged
from advsphere.evaluation.checks import Pixels, device_of, fitting_batch_size, images_of, incomplete, loaded, preflight
from advsphere.evaluation.judge import exact_float32
from advsphere.evaluation.ledger import CLEAN
from advsphere.evaluation.majority import as_judged
from advsphere.evaluation.progress import OnProgress, progress_bar
from advsphere.evaluation.results import WORST, Evaluation
from advsphere.evaluation.rows import Finding
from advsphere.evaluation.sampling import certain, usual_certainty
from advsphere.evaluation.specs import AttackSpec
from advsphere.evaluation.suites import Effort, SuiteContext, attacks_of, find_suite
from advsphere.evaluation.work import Plan
from advsphere.identity import data_checksum, describe, model_answers, model_record
from advsphere.machine import advice, low_precision
from advsphere.named import trust
from advsphere.provenance import environment
from advsphere.rng import permutation
from advsphere.threat import ThreatModel
from advsphere.typed import typed

Precision = Literal["auto", "float32", "bfloat16"]
Certainty = float | Literal["usual", "paired"]

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
MOST_GUIDES, MOST_GUIDE_VALUES = 1000, 2**26
"""Limits of the guides for the feature attack: number of images, and of pixel values (445 images of 224 pixels)."""


@typed
def evaluate(
    model: nn.Module,
    images: Source | Pixels,
    labels: Pixels | None = None,
    *,
    threat: ThreatModel,
    suite: str | Sequence[AttackSpec] = "quick",
    seed: int = 0,
    batch_size: int | None = None,
    ledger: Path | str | None = None,
    effort: Effort = Effort(),
    budget: float | None = None,
    certainty: Certainty | None = None,
    head: str | None = None,
    precision: Precision = "auto",
    on_progress: OnProgress | None = None,
    world: World = World(),
) -> Evaluation:
    """Attack a model and measure its accuracy under attack, an upper bound of its robust accuracy.

    Args:
        model: Maps pixels in [0, 1] to logits, with its input normalisation inside. It is evaluated in eval mode and
            restored afterwards.
        images: A tensor or array (N, C, H, W), uint8 or in [0, 1]; or a data set: an `advsphere.data` set, a map-style
            `Dataset` of PyTorch or Hugging Face, or a `DataLoader`, see `advsphere.data.from_dataset`.
        labels: Class numbers (N,), with a tensor or array of images.
        threat: The threat model: norm, radius and bounds.
        suite: A name (`SUITES`), a user-defined suite as `package.module:function`, or a list of attacks.
        seed: Seed of the attacks' random numbers.
        batch_size: Images in a batch. By default 250, fewer for images of more than 74 pixels a side; on a GPU up to 8
            times as many where its memory allows. An existing ledger keeps its own size. Another size changes the
            results by rounding.
        ledger: The file that records every outcome. The same call resumes an interrupted evaluation from it. None keeps
            it in memory. A file with an evaluation of another model is kept, and a new file is written beside it.
        effort: Restarts, steps and so on of a named suite.
        budget: Seconds that the attacks may take. Each attack then tries only images that resisted the earlier ones,
            and images that were not reached count as robust, so the result is the tightest upper bound that the time
            allows. Repeating the call continues for the same time again. Every call finishes at least one image,
            however long that takes. The signs of gradient masking take a few seconds more.
        certainty: Run the attacks that only have to show that nothing is left, such as AutoAttack after a short search,
            on a random sample of the images that resisted the search. The sample grows until at most so many points of
            accuracy could still be lost to them, with 95 % confidence; at 0 it is all of these images. "usual" is a
            fifth of half the 95 % interval of an accuracy of 50 %, for suites with such attacks, and "paired" a tenth,
            for evaluations that are to be compared. None runs every attack on all images. docs/statistics.md explains
            the bound.
        head: The name of the last linear layer, if it can't be found automatically.
        precision: Precision of the search; "auto" is bfloat16 if the machine supports it natively. An image always has
            to fool the model in float32 to count.
        on_progress: Called with the progress after each batch of this process. By default a terminal or a notebook
            shows a bar for each attack.
        world: The processes that share the work. All of them call this with the same arguments, need a ledger path that
            all can access, and get the same result. They divide the work by whole batches, and the merged ledger equals
            that of a single process. Each process has the whole budget; seconds are added up.

    Returns:
        The evaluation.

    Raises:
        UserError: If `preflight` fails, the suite is unknown, or the ledger holds another evaluation of this model.
    """
    plan = prepare(
        model,
        images,
        labels,
        threat=threat,
        suite=suite,
        seed=seed,
        batch_size=batch_size,
        effort=effort,
        budget=budget,
        certainty=certainty,
        head=head,
        precision=precision,
        world=world,
    )
    if slow := advice(plan.dtype, device_of(model)):
        warnings.warn(slow, stacklevel=2)
    own = on_progress is not None or not world.first
    with nullcontext(on_progress) if own else progress_bar() as shown:
        return plan.claim(None if ledger is None else Path(ledger)).run(shown)


def prepare(
    model: nn.Module,
    images: Source | Pixels,
    labels: Pixels | None = None,
    *,
    threat: ThreatModel,
    suite: str | Sequence[AttackSpec],
    seed: int = 0,
    batch_size: int | None = None,
    effort: Effort = Effort(),
    budget: float | None = None,
    certainty: Certainty | None = None,
    head: str | None = None,
    precision: Precision = "auto",
    world: World = World(),
) -> Plan:
    """Check the arguments of `evaluate` without writing anything."""
    if isinstance(suite, str):
        trust([suite])
    images, device = images_of(images, labels), device_of(model)
    if budget is not None:
        seconds: object = budget
        if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise UserError(f"the budget is {budget!r}; give a positive number of seconds")
        effort = replace(effort, cascade=True)
    named: dict[str, Any] = {"name": "own"}
    if isinstance(suite, str):
        named = {**find_suite(suite)[0], "head": head, **asdict(effort)}
    model = as_judged(model, named.get("draws", 0))
    threat.require_unit_pixels()
    if threat.eps == 0:
        raise UserError("eps is 0, so there is nothing to attack; give a radius, such as 8/255")
    if threat.norm == "linf" and threat.eps > threat.bounds[1] - threat.bounds[0]:
        raise UserError(f"eps is {threat.eps:g}, more than the whole range of pixels; did you mean eps / 255?")
    context, notes = context_of(model, images, threat, effort, head)
    specs = _listed(suite, context)
    if certainty == "usual" or certainty == "paired":
        given = usual_certainty(len(images), paired=certainty == "paired")
        certainty = given if any(spec.proof for spec in specs) else None
    if certainty is not None:
        certain(certainty)
        named |= {"certainty": certainty, "cascade": effort.cascade}
    specs = _checked(arranged(specs, threat, anytime=effort.cascade, certainty=certainty), context)
    with exact_float32():
        checked = preflight(model, images, batch_size=batch_size, attacks=specs) if world.first else ()
        checked, fitting = world.from_first((checked, fitting_batch_size(model, images.shape) if world.first else 0))
        sized, batch_size = batch_size is None, fitting if batch_size is None else batch_size
        dtype, found = _search(model, images, precision)
        findings = [*checked, *notes, *found]
        recorded = (data_checksum(images, batch_size), model_answers(model, images.shape)) if world.first else ("", {})
    checksum, answers = world.from_first(recorded)
    identity = {
        "model": model_record(model) | {"scale": context.scale},
        "data": {"name": images.name, "checksum": checksum, "n": len(images), "shape": list(images.shape)},
        "threat": describe(threat),
        "suite": named,
        "attacks": {spec.name: spec.settings for spec in specs},
        "seed": seed,
        "batch_size": batch_size,
        "search": str(dtype or torch.float32).removeprefix("torch."),
    }
    world.require_same(identity, "settings, models or images")
    if unrecorded := incomplete(identity):
        identity["anew"] = world.from_first(secrets.token_hex(8))
        findings += unrecorded
    known = identity, answers, environment(device)
    return Plan(model, images, threat, specs, *known, dtype, budget, tuple(findings), world, sized)


def context_of(
    model: nn.Module, images: Images, threat: ThreatModel, effort: Effort, head: str | None
) -> tuple[SuiteContext, list[Finding]]:
    """The context for a suite. If no linear head is found, adds a finding, or raises UserError if `head` names one."""
    try:
        parts = split(model, head)
    except UserError as error:
        if head is not None:
            raise
        return SuiteContext(threat=threat, effort=effort), [Finding("head", "ok", f"attacked at scale 1: {error}")]
    most = min(MOST_GUIDES, MOST_GUIDE_VALUES // math.prod(images.shape))
    chosen = permutation(len(images), seed=0, epoch=0, purpose="guides")[:most].sort().values
    guides = Guides(*loaded(model, images, chosen))
    context = SuiteContext(threat=threat, scale=parts.scale, head=parts.head, guides=guides, effort=effort)
    if len(guides.labels.unique()) > 1:
        return context, []
    detail = f"all are of class {int(guides.labels[0])}: no suite attacks features, which takes images of two classes"
    return replace(context, guides=None), [Finding("guides", "noted", detail)]


def _search(model: nn.Module, images: Images, precision: Precision) -> tuple[torch.dtype | None, tuple[Finding, ...]]:
    """Choose the precision of the search. "auto" falls back to float32 if the model can't run in bfloat16, for example
    because it passes activations to NumPy. Raises UserError if the user asked for bfloat16.
    """
    dtype = low_precision(device_of(model), model) if precision == "auto" else PRECISIONS[precision]
    if dtype is None:
        return None, ()
    x, _ = loaded(model, images, torch.arange(1))
    try:
        with frozen(model, dtype=dtype, fold=True) as view, torch.no_grad():
            usable = bool(view(x).isfinite().all())
        why = "its logits are not finite"
    except (RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        usable, why = False, str(error)
    if usable:
        return dtype, ()
    if precision != "auto":
        raise UserError(f"the model can't run in {precision} ({why}); search in float32 (--precision float32)")
    return None, (Finding("precision", "ok", f"searched in float32, because the model can't run in bfloat16: {why}"),)


def _listed(suite: str | Sequence[AttackSpec], context: SuiteContext) -> tuple[AttackSpec, ...]:
    if isinstance(suite, str):
        return attacks_of(suite, context)
    if context.effort != Effort(cascade=context.effort.cascade):
        raise UserError("effort applies to named suites only; set AttackSpec(..., restarts=n) for each attack")
    return tuple(suite)


def _checked(specs: tuple[AttackSpec, ...], context: SuiteContext) -> tuple[AttackSpec, ...]:
    names = [spec.name for spec in specs]
    taken = [n for n in {*names} if names.count(n) > 1 or n in (CLEAN, WORST)]
    if taken:
        raise UserError(f"the name {taken[0]!r} is used twice or reserved; give each attack a different name")
    for i, spec in enumerate(specs):
        bound = (
            spec.attack.keywords.get("threat", context.threat) if isinstance(spec.attack, partial) else context.threat
        )
        if bound != context.threat:  # a smaller ball would raise the accuracy unnoticed
            raise UserError(
                f"{spec.name} is bound to {bound}, but this evaluation is of {context.threat}; bind the same one"
            )
        if unknown := [name for name in spec.after if name not in names[:i]]:
            raise UserError(f"{spec.name} comes after {unknown[0]!r}, which is not among the attacks before it")
    return specs
