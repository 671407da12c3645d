"""Checks before any attack that robust accuracy means something for this model, images and labels.

If the numbers would be wrong, a check raises an error that names the cause and the cure, or fixes the problem and
reports it. The checks follow Carlini et al. 2019 (arXiv 1902.06705) and AutoAttack, and add other common mistakes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advsphere.attacks import Attack
from advsphere.calling import NetworkError
from advsphere.classifier import Classifier, fooled, frozen, input_gradient
from advsphere.data import Images, ImageSet, Source, from_dataset
from advsphere.data.images import tensor_of
from advsphere.errors import UserError, out_of_memory
from advsphere.evaluation.majority import Majority
from advsphere.evaluation.rows import Finding
from advsphere.evaluation.specs import AttackSpec
from advsphere.files import some
from advsphere.identity import unknowns
from advsphere.losses import is_soft, log_odds
from advsphere.memory import with_frozen
from advsphere.rng import Rng, permutation
from advsphere.stats import more_than
from advsphere.threat import ThreatModel
from advsphere.typed import typed

Pixels = Tensor | np.ndarray
"""A batch as a tensor or an array."""

LARGEST = 250
LARGER = 8
"""On a GPU, a batch is at most this many times as large, if it fits."""
MEMORY_SHARE = 0.5
"""Share of a GPU's free memory for the gradient of one batch."""
MOST_VALUES = 2**22
"""Pixel values in a batch. Activations that deep networks keep for the gradient then take a few GiB at most."""

ENOUGH = 100
"""Drawn images from which on an accuracy has to exceed chance by more than the chance of the draw."""

_TOLERANCE = 1e-3
"""Tolerated difference between two predictions of one image, relative to the largest logit. Rounding is far smaller."""


@typed
def preflight(
    model: nn.Module,
    images: Source | Pixels,
    labels: Pixels | None = None,
    *,
    batch_size: int | None = None,
    attacks: Sequence[AttackSpec] = (),
) -> tuple[Finding, ...]:
    """Check model, images and labels on a batch drawn from all images, and the attacks at eps = 0.

    Args:
        model: The model, as in `evaluate`.
        images: The images, as in `evaluate`.
        labels: Class numbers (N,), with a tensor or array of images.
        batch_size: Number of images to draw; by default as in `evaluate`.
        attacks: The attacks to check. None of them may change the images at eps = 0.

    Returns:
        One finding for each check: "ok", "fixed" (a model in train mode) or "noted" (readers of the numbers must know).

    Raises:
        UserError: If images lie outside [0, 1]; if the model can't take them, returns probabilities, NaN or another
            shape, or its logits change between calls or with the rest of the batch; if labels don't map to its outputs;
            if an attack can't run on the model, or changes images or predictions at eps = 0.
    """
    images = images_of(images, labels)
    if batch_size is None:
        batch_size = usual_batch_size(images.shape)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"the batch size is {batch_size!r}; it must be at least 1")
    order = permutation(len(images), seed=0, epoch=0, purpose="preflight")
    ids = order[:batch_size].sort().values
    x, y = loaded(model, images, ids)

    def checked(classify: Classifier) -> list[Finding]:
        logits = _logits(classify, x)
        found = [_outputs(logits), _labels(images.labels, logits.shape[1]), _repeatable(classify, x, logits, model)]
        seen, rest = [(logits, y)], order[batch_size:LARGEST]
        if len(rest) and bool(fooled(logits, y).all()):  # with many classes, a small batch may have none right
            for more in rest.split(batch_size):
                x_more, y_more = loaded(model, images, more)
                seen.append((_logits(classify, x_more), y_more))
        found += [_clean_accuracy(*map(torch.cat, zip(*seen, strict=True))), _gradient(classify, x, y)]
        right = (~fooled(logits, y)).nonzero().squeeze(1)[:4]
        for spec in attacks if len(right) else ():
            found += _at_eps_zero(classify, spec, x[right], y[right], Rng(0, ids.to(x.device)[right]))
        return found

    return (_images(x), _mode(model), *with_frozen(model, checked))


def usual_batch_size(shape: Sequence[int]) -> int:
    """The default batch size for images of this shape (C, H, W): 250, and 27 at 224 pixels."""
    return max(1, min(LARGEST, MOST_VALUES // math.prod(shape)))


def fitting_batch_size(model: nn.Module, shape: Sequence[int]) -> int:
    """The default batch size: on a CPU the usual one. On a GPU it is doubled, up to `LARGER` times as many images, as
    long as a gradient of the model takes no more than its share of the free memory.
    """
    size, device = usual_batch_size(shape), device_of(model)
    if device.type != "cuda":
        return size
    most, few = LARGER * size, min(size, 32)
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with frozen(model) as classify:
            y = torch.zeros(few, dtype=torch.long, device=device)
            input_gradient(classify, torch.full((few, *shape), 0.5, device=device), y, log_odds)
    except RuntimeError:  # no gradient reaches the images, or not even these fit
        return size
    of_one = (torch.cuda.max_memory_allocated(device) - held) / few
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held
    while size < most and 2 * size * of_one <= MEMORY_SHARE * free:
        size *= 2
    return size


def images_of(images: Source | Pixels, labels: Pixels | None) -> Images:
    """Make an image set. Raises UserError for pixels outside [0, 1] and for labels that are not class numbers."""
    if not isinstance(images, Tensor | np.ndarray):
        if labels is not None:
            raise UserError("a data set holds its own labels; leave out the second argument")
        found = from_dataset(images)
        if is_soft(found.labels):
            raise UserError(f"{found.name}: an evaluation needs class numbers, not soft labels: use labels.argmax(1)")
        return found
    if labels is None:
        raise UserError("images need their labels: give an (N,) tensor or array of class numbers, or a data set")
    images, labels = tensor_of(images), tensor_of(labels)
    if is_soft(labels):
        raise UserError("an evaluation needs class numbers, not soft labels: use labels.argmax(1)")
    labels = labels if labels.is_floating_point() else labels.long()
    # An image set needs the names of all classes, but only the model knows their number, and it runs later.
    highest = int(labels.max()) if labels.numel() else 0
    return ImageSet(images, labels, tuple(map(str, range(min(max(highest, 0), 100_000) + 1))))


def incomplete(identity: Mapping[str, Any]) -> list[Finding]:
    """A finding if something of the model or the attacks could not be recorded."""
    said = "the record of model and attacks is incomplete, so this evaluation can't be resumed: "
    return [Finding("identity", "noted", said + some(unknown))] if (unknown := [*unknowns(identity)]) else []


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's weights. Raises UserError if the model is no module."""
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}; wrap it in a torch.nn.Module")
    return next((t.device for t in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def loaded(model: nn.Module, images: Images, index: Tensor) -> tuple[Tensor, Tensor]:
    """The images and labels at these positions (B,), on the model's device."""
    device, (x, y) = device_of(model), images.batch(index)
    return x.to(device), y.to(device)


def _images(x: Tensor) -> Finding:
    low, high = (float(v) for v in torch.aminmax(x))
    if 0 < high <= 1.5 / 255:
        raise UserError(f"the brightest pixel is {high:.4g}: the images were divided by 255 twice; divide them once")
    return Finding("images", "ok", f"pixels between {low:.3g} and {high:.3g}, normalised by the model if at all")


def _mode(model: nn.Module) -> Finding:
    if any(getattr(module, "training", False) for module in model.modules()):
        return Finding("mode", "fixed", "the model was in train mode; it is evaluated in eval mode and then restored")
    return Finding("mode", "ok", "eval mode")


@torch.no_grad()
def _logits(classify: Classifier, x: Tensor) -> Tensor:
    return classify(x)


def _outputs(logits: Tensor) -> Finding:
    broken = int((~logits.isfinite()).any(1).sum())
    if broken:
        raise UserError(
            f"the model returns NaN or infinite logits for {broken} of {len(logits)} clean images; "
            "check its weights and its input normalisation"
        )
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
        raise UserError(
            "the model returns probabilities (every row is positive and sums to 1); return the logits before the "
            "softmax, because gradients of probabilities vanish and make any model look robust"
        )
    return Finding("outputs", "ok", f"{logits.shape[1]} logits between {logits.min():.3g} and {logits.max():.3g}")


def _labels(labels: Tensor, classes: int) -> Finding:
    low, high = (int(v) for v in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise UserError(
            f"labels go from {low} to {high}, but the model has {classes} outputs; "
            f"labels are 0..{classes - 1}, in the order of the outputs"
        )
    return Finding("labels", "ok", f"{low} to {high} for {classes} outputs")


def _repeatable(classify: Classifier, x: Tensor, logits: Tensor, model: nn.Module) -> Finding:
    allowed = _TOLERANCE * float(logits.abs().max())
    twice = float((_logits(classify, x) - logits).abs().max())
    if not twice <= allowed:
        raise UserError(
            f"the model returns different logits for the same images in each call (they differ by {twice:.2g}); "
            "switch off its randomness, or evaluate the majority of its answers with --suite rand, for which it has to "
            "draw from torch's generator"
        )
    if isinstance(model, Majority):
        detail = f"a randomised model is judged by most of {model.draws} calls; another batch size draws other numbers"
        return Finding("repeatable", "ok", detail)
    alone = max(float((_logits(classify, x[i : i + 1]) - logits[i]).abs().max()) for i in range(min(4, len(x))))
    if not alone <= allowed:
        raise UserError(
            f"the model returns different logits for an image alone and in a batch (they differ by {alone:.2g}), also "
            "in eval mode; let its normalisation use running statistics (track_running_stats=True), and evaluate a "
            "dynamically quantised network before it is quantised"
        )
    return Finding("repeatable", "ok", "the same logits in two calls, and alone or in a batch")


def _clean_accuracy(logits: Tensor, y: Tensor) -> Finding:
    n, classes = logits.shape
    counts = torch.zeros(classes, classes, device=y.device)
    counts.index_put_((y, logits.argmax(1)), torch.ones(n, device=y.device), accumulate=True)
    right = int(counts.trace())
    present = counts.sum(1).nonzero().squeeze(1)
    usual = counts.argmax(1)[present]
    renamed = int(counts.amax(1).sum()) if len(usual.unique()) == len(usual) else right
    share = f"{right} of {n} drawn images are classified as labelled"
    if n >= 5 * len(present) and len(present) > 1 and renamed >= 0.6 * n and renamed - right >= 0.4 * n:
        names = ", ".join(f"{a} as {b}" for a, b in zip(present.tolist(), usual.tolist(), strict=True) if a != b)
        raise UserError(
            f"labels don't map to the model's outputs: {share}, but {renamed} if classes were renamed (it predicts "
            f"{names[:60]}); number the classes in the order in which the model was trained"
        )
    cure = (
        "check the order of the classes, and that the input normalisation is inside the model (--mean and --std, or "
        "advsphere.classifier.PixelClassifier)"
    )
    if right == 0 and n >= 20:
        raise UserError(f"{share}; {cure}")
    if right <= n / classes or (n >= ENOUGH and not more_than(right, n, 1 / classes)):
        return Finding("clean accuracy", "noted", f"{share}, no better than chance: there is nothing to defend; {cure}")
    return Finding("clean accuracy", "ok", share)


def _gradient(classify: Classifier, x: Tensor, y: Tensor) -> Finding:
    try:
        _, _, grad = input_gradient(classify, x, y, log_odds)
    except NetworkError as error:
        return Finding("gradient", "noted", str(error))
    dead = int((~(grad.flatten(1).abs().amax(1) > 0)).sum())
    if dead:
        detail = f"the gradient is zero or NaN on {dead} of {len(x)} drawn images: gradient attacks fail there"
        return Finding("gradient", "noted", detail)
    return Finding("gradient", "ok", "it is not zero on any drawn image")


def _at_eps_zero(classify: Classifier, spec: AttackSpec, x: Tensor, y: Tensor, rng: Rng) -> list[Finding]:
    attack = _harmless(spec.attack)
    if attack is None:
        return []
    try:
        x_adv = attack(classify, x.clone(), y, rng=rng)  # a copy, which a careless attack may change
    except UserError as error:
        raise UserError(f"{spec.name}: {error}") from error
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise UserError(
            f"{spec.name} can't attack this model ({error}); use attacks that need no gradient (--suite black-box), or "
            "make the model differentiable (no argmax, detach or no_grad inside)"
        ) from error
    with torch.no_grad():
        moved = not bool(ThreatModel(norm="linf", eps=0.0).contains(x_adv, x).all())
        changed = bool((fooled(classify(x_adv), y) & ~fooled(classify(x), y)).any())
    if moved or changed:
        raise UserError(
            f"{spec.name} at eps = 0 changes the {'images' if moved else 'predictions'}; it leaves its ball"
        )
    return [Finding(f"{spec.name} at eps = 0", "ok", "images and predictions do not change")]


FEW = {"steps": 2, "queries": 2, "rounds": 1, "tries": 1, "targets": 1}
"""Settings that keep an attack short in the check at eps = 0."""


def _harmless(attack: Attack) -> partial[Tensor] | None:
    """A short run of the attack at eps = 0; None if the attack has no radius to set."""
    if not isinstance(attack, partial):
        return None
    settings = inspect.signature(attack.func).parameters
    short: dict[str, Any] = {name: value for name, value in FEW.items() if name in settings}
    threat, ascent = attack.keywords.get("threat"), attack.keywords.get("ascent")
    if isinstance(threat, ThreatModel):
        return partial(attack, threat=replace(threat, eps=0.0), **short)
    if ascent is not None and (gentle := _harmless(ascent)) is not None:
        return partial(attack, ascent=gentle)
    return partial(attack, eps=0.0, **short) if "eps" in settings else None
