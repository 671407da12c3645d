"""The evidence in a ledger, checked against the model and the images: predictions, adversarial images, attacks."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.checks import device_of, loaded
from advsphere.evaluation.judge import classes_of
from advsphere.evaluation.ledger import CLEAN, Ledger, Status
from advsphere.evaluation.recorded import another_model, judge_again, threat_of
from advsphere.evaluation.rows import Finding
from advsphere.evaluation.specs import AttackSpec
from advsphere.files import some
from advsphere.identity import data_checksum
from advsphere.looks import at_most
from advsphere.machine import low_precision
from advsphere.memory import leading_part, with_frozen
from advsphere.provenance import environment
from advsphere.rng import permutation

_ROUNDING = 1e-4
"""Two logits that differ by less than this share of the largest one may change places on another machine."""

_ALLOWED_FLIPS = 0.02
_ALLOWED_MISSES = 0.1
"""Shares of the cells that are attacked again whose outcome rounding may change: to fooled, and to resisted."""

_ALIKE = 0.1
"""Two adversarial images are of one search if their mean difference is below this share of the mean perturbation."""

_FEW = 5
"""Fooled cells of each attack that are attacked again."""

_MACHINE = ("torch", "device", "processor", "cpu_capability")


@dataclass(frozen=True)
class Evidence:
    """A ledger, and the model and images to check it against. Every method returns the finding of one check."""

    model: nn.Module
    images: Images
    book: Ledger

    def same_model(self) -> Finding:
        checksum = self.book.identity["model"]["checksum"][:12]
        if changed := another_model(self.book, self.model):
            edited = all(line.startswith("classes.") for line in changed)  # with the same weights and answers
            if edited:
                return Finding("model", "noted", f"its source file was changed afterwards: {some(changed)}")
            says = f"another model than the one that was measured: {some(changed)}"
            return Finding("model", "failed", f"{says}; after more training, evaluate it again")
        if self.book.answers is None:
            detail = f"its weights are those that were measured ({checksum}); the ledger has no answers of its code"
            return Finding("model", "noted", detail)
        return Finding("model", "ok", f"the model that was measured ({checksum})")

    def same_images(self) -> Finding:
        claimed = self.book.identity["data"]
        found = data_checksum(self.images, self.book.identity["batch_size"])
        counted = claimed["n"] == len(self.images) == len(self.book.labels)
        if claimed["checksum"] != found or not counted or self.images.labels.tolist() != self.book.labels:
            return Finding("images", "failed", f"other images or labels than the {claimed['n']} that were evaluated")
        return Finding("images", "ok", f"the {claimed['n']} images that were evaluated")

    def clean_again(self) -> Finding:
        cells = self.book.cells(CLEAN)
        unlike: list[int] = []
        pixels = set[int]()
        for index in self._batches(range(len(cells))):
            x, y = loaded(self.model, self.images, index)
            view = _Look.at(self.model, x, y)
            pixels |= {hash(one.contiguous().numpy().tobytes()) for one in x.cpu()}
            fooled = torch.tensor([cells[i].status == "fooled" for i in index.tolist()])
            said = torch.tensor([_class(cells[i].prediction) for i in index.tolist()])
            unlike += index[((view.wrong != fooled) & ~view.close) | view.contradicts(said)].tolist()
        if unlike:
            return Finding(CLEAN, "failed", f"the ledger has {len(unlike)} predictions wrong: images {some(unlike)}")
        detail = f"all {len(cells)} predictions are as recorded"
        if repeated := len(cells) - len(pixels):
            return Finding(CLEAN, "noted", f"{detail}; {repeated} images repeat another one, but count again")
        return Finding(CLEAN, "ok", detail)

    def stored_again(self, name: str) -> Finding:
        """Whether every fooled image is stored, and every stored image is predicted and counted as it should be."""
        labels = self.book.labels
        cells = {cell.example: cell for cell in self.book.cells(name)}
        stored = self.book.pictured(name) & cells.keys()
        bad: list[str] = []
        for i, cell in cells.items():
            elsewhere = cell.prediction not in (None, labels[i])
            if i not in stored and (cell.status == "fooled" or elsewhere):
                bad.append(f"image {i} counts as fooled, but its adversarial image is not stored")
            elif cell.status == "fooled" and not elsewhere:
                bad.append(f"image {i} counts as fooled, but is predicted as its label")
            elif i in stored and (not elsewhere or cell.status not in ("fooled", "resisted")):
                bad.append(f"image {i} has a stored image, but counts as {cell.status}")
        near = 0
        for index in self._batches(sorted(stored)):
            try:
                x_adv = torch.stack([x for i in index.tolist() if (x := self.book.adversarial(name, i)) is not None])
            except UserError as error:
                return Finding(name, "failed", str(error))
            faults, rounded = self._faults(index, x_adv, [cells[i].status for i in index.tolist()], {
                "distance": torch.tensor([cells[i].distance or 0.0 for i in index.tolist()]),
                "class": torch.tensor([_class(cells[i].prediction) for i in index.tolist()]),
            })  # fmt: skip
            near += rounded
            for says, which in faults.items():
                bad += [f"image {i} {says}" for i in index[which].tolist()]
        if bad:
            return Finding(name, "failed", f"{len(bad)} cells contradict their evidence: {some(bad)}")
        fooled = sum(cell.status == "fooled" for cell in cells.values())
        detail = (
            f"{fooled} images are fooled, and each is stored, misclassified and in the ball"
            if fooled
            else "fooled none"
        )
        if outside := len(stored) - fooled:
            detail += f"; {outside} more are outside the ball"
        if near:
            return Finding(name, "noted", f"{detail}, {near} only up to rounding")
        return Finding(name, "ok", detail)

    def _faults(
        self, index: Tensor, x_adv: Tensor, status: Sequence[Status], said: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], int]:
        """What is wrong with stored images, (B,) bool each, and how many are misclassified only up to rounding."""
        threat = threat_of(self.book)
        x, y = loaded(self.model, self.images, index)
        x_adv = x_adv.to(x.device)
        view, distance = _Look.at(self.model, x_adv, y), threat.distance(x_adv, x).cpu()
        inside, counts = threat.contains(x_adv, x).cpu(), torch.tensor([s == "fooled" for s in status])
        elsewhere = (distance - said["distance"]).abs() > 1e-5 * said["distance"] + 1e-7
        within = threat.within_bounds(x_adv).cpu() & (distance <= threat.eps * (1 - 1e-5))
        faults = {
            "is outside the ball": ~inside & counts,
            "is not at the recorded distance": elsewhere,
            "is not misclassified": ~view.wrong & ~view.close,
            "is not predicted as recorded": view.wrong & view.contradicts(said["class"]),
            "fools the model inside the ball, but counts as resisted": within & view.wrong & ~view.close & ~counts,
        }
        return faults, int((~view.wrong & view.close).sum())

    def attacked_again(
        self, specs: Sequence[AttackSpec], share: float, at_least: int, seed: int | None
    ) -> Iterator[Finding]:
        """Attack samples of the cells again with the same random numbers: of those that resisted, and that were fooled.

        The samples are drawn with fresh entropy, so whoever wrote the ledger could not know them.
        """
        seed = secrets.randbelow(2**32) if seed is None else seed
        slow = self._precision != self.book.identity["search"]
        how = f" (drawn with --seed {seed})" + (", in float32 as this device emulates bfloat16" if slow else "")
        resisted = self._cells("resisted", "invalid")
        wanted = max(at_least, math.ceil(share * len(resisted)))
        yield self._resisted(specs, _drawn(resisted, wanted, seed, "resisted"), len(resisted), how)
        fooled = self._cells("fooled")
        each = [_drawn([cell for cell in fooled if cell[0] == name], _FEW, seed, name) for name in self.book.attacks]
        yield self._fooled(specs, [cell for drawn in each for cell in drawn], len(fooled), how)

    def _cells(self, *status: Status) -> list[_Pair]:
        return [(name, c.example) for name in self.book.attacks for c in self.book.cells(name) if c.status in status]

    def _resisted(self, specs: Sequence[AttackSpec], chosen: Sequence[_Pair], total: int, how: str) -> Finding:
        flips = [pair for pair, _, fooled in self._rerun(specs, chosen) if fooled]
        allowed = max(1, math.floor(_ALLOWED_FLIPS * len(chosen)))
        named = f" ({some([f'{attack} on {i}' for attack, i in flips])})" if flips else ""
        detail = f"{len(flips)} of {len(chosen)} resisted cells, of {total}, were fooled on a second run{how}{named}"
        if chosen:
            sizes = sorted({min(total, max(allowed + 1, math.ceil(part * total))) for part in (0.01, 0.05, 0.2)})
            power = [f"{k} forged: {100 * (1 - at_most(allowed, len(chosen), total, k)):z.0f} %" for k in sizes]
            detail += f"; up to {allowed} may be rounding; the chance of more, with {', '.join(power)}"
        return Finding("resisted", "failed" if len(flips) > allowed else "noted" if flips else "ok", detail)

    def _fooled(self, specs: Sequence[AttackSpec], chosen: Sequence[_Pair], total: int, how: str) -> Finding:
        """Whether the attacks find the same images. A ledger with images of another attack or seed differs in most."""
        misses, unlike, compared = 0, Counter[str](), Counter[str]()
        for (attack, i), found, fooled in self._rerun(specs, chosen):
            misses += not fooled
            try:
                kept = self.book.adversarial(attack, i)
            except UserError:
                kept = None  # `stored_again` says that it is damaged
            if fooled and kept is not None:
                x = self.images.batch(torch.tensor([i]))[0][0].cpu()
                compared[attack] += 1
                unlike[attack] += _mean(found - kept) > _ALIKE * _mean(kept - x)
        others = [attack for attack in compared if compared[attack] > 2 and unlike[attack] > compared[attack] / 2]
        detail = f"{len(chosen) - misses} of {len(chosen)} fooled cells, of {total}, were fooled on a second run{how}"
        detail += f"; other images than are stored: {unlike.total()}" + (
            f", most of {', '.join(others)}" if others else ""
        )
        now = environment(device_of(self.model))
        here = any(all(one.get(key) == now[key] for key in _MACHINE) for one in self.book.environments)
        exact = here and self.book.identity["search"] == "float32"  # low precision depends on the batch too
        if misses > max(1, _ALLOWED_MISSES * len(chosen)) or (others and exact):
            return Finding(
                "fooled", "failed", f"{detail}; these cells are not of this attack, these settings and this seed"
            )
        return Finding("fooled", "noted" if others else "ok", detail)

    def _rerun(self, specs: Sequence[AttackSpec], chosen: Sequence[_Pair]) -> Iterator[tuple[_Pair, Tensor, bool]]:
        """Each cell with the image that the attack finds now, and whether it fools the model."""
        for spec in specs:
            for index in self._batches(sorted(i for name, i in chosen if name == spec.name)):
                attack = partial(judge_again, self.book, self.model, self.images, spec, precision=self._precision)
                while len(index):
                    verdict = leading_part(attack, index)
                    part, index = index[: len(verdict.x_adv)].tolist(), index[len(verdict.x_adv) :]
                    for i, x_adv, fooled in zip(part, verdict.x_adv.cpu(), verdict.fooled.tolist(), strict=True):
                        yield (spec.name, i), x_adv, fooled

    @property
    def _precision(self) -> str:
        """The recorded precision of the search, or float32 where the device would take ten times as long for it."""
        recorded: str = self.book.identity["search"]
        return recorded if low_precision(device_of(self.model)) else "float32"

    def _batches(self, examples: Sequence[int]) -> list[Tensor]:
        """The examples in the evaluation's batches, so that the same machine computes the same bits."""
        size = self.book.identity["batch_size"]
        batches: dict[int, list[int]] = {}
        for i in examples:
            batches.setdefault(i // size, []).append(i)
        return [torch.tensor(batch) for batch in batches.values()]


_Pair = tuple[str, int]
"""An attack and an example."""


def _drawn(cells: Sequence[_Pair], most: int, seed: int, purpose: str) -> list[_Pair]:
    order = permutation(len(cells), seed=seed, epoch=0, purpose=f"verify {purpose}")[:most]
    return sorted(cells[i] for i in order.tolist())


@dataclass(frozen=True)
class _Look:
    """Predictions of a batch on the CPU. `close` marks the images whose label rounding may turn into another class."""

    logits: Tensor
    classes: Tensor
    wrong: Tensor
    close: Tensor

    @classmethod
    @torch.no_grad()
    def at(cls, model: nn.Module, x: Tensor, y: Tensor) -> _Look:
        logits, y = with_frozen(model, lambda exact: exact(x).cpu()), y.cpu()
        own = logits.gather(1, y[:, None]).squeeze(1)
        other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        close = (other - own).abs() <= _ROUNDING * logits.abs().amax(1)
        classes = classes_of(logits)
        return cls(logits, classes, ~(other < own) | (classes < 0), close)

    def contradicts(self, said: Tensor) -> Tensor:
        """Whether a recorded class (B,) is not the predicted one, and not as likely up to rounding; (B,) bool."""
        known = (said >= 0) & (said < self.logits.shape[1])
        theirs = self.logits.gather(1, said.clamp(0, self.logits.shape[1] - 1)[:, None]).squeeze(1)
        near = known & (self.logits.amax(1) - theirs <= _ROUNDING * self.logits.abs().amax(1))
        return (said != self.classes) & ~near


def _class(prediction: Any) -> int:
    return -2 if prediction is None else int(prediction)


def _mean(x: Tensor) -> float:
    return float(x.abs().mean())
