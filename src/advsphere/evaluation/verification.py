"""Verify a finished evaluation from its files, without trusting any printed number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advsphere.classifier import Classifier, frozen
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.checks import device_of, images_of
from advsphere.evaluation.engine import context_of
from advsphere.evaluation.judge import Verdict, exact_float32, judge_attack
from advsphere.evaluation.ledger import CLEAN, Ledger
from advsphere.evaluation.results import FORMAT, Evaluation
from advsphere.evaluation.rows import Finding
from advsphere.evaluation.specs import AttackSpec
from advsphere.evaluation.suites import FIRST_LOOK, Effort, anytime, attacks_of
from advsphere.files import content_checksum, differences, read_json, some
from advsphere.identity import answer_alike, data_checksum, model_answers, model_record
from advsphere.losses import margin
from advsphere.machine import low_precision
from advsphere.rng import Rng, derived_seed, permutation
from advsphere.threat import ThreatModel

_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def threat_of(book: Ledger) -> ThreatModel:
    threat = book.identity["threat"]
    low, high = threat["bounds"]
    return ThreatModel(norm=threat["norm"], eps=threat["eps"], bounds=(low, high))


def specs_of(
    book: Ledger, model: nn.Module, images: Images, suite: Sequence[AttackSpec] | None = None
) -> tuple[AttackSpec, ...]:
    """The attacks of the evaluation of this model and these images, with the recorded settings.

    `suite` holds the attacks if the evaluation was given a list. Raises UserError if their settings are not the
    recorded ones.
    """
    identity = book.identity
    if suite is None:
        if identity["suite"]["name"] == "own":
            raise UserError("this evaluation ran a list of attacks; give them as suite=")
        options = {field.name: identity["suite"][field.name] for field in fields(Effort)}
        context, _ = context_of(model, images, threat_of(book), Effort(**options), identity["suite"]["head"])
        suite = attacks_of(identity["suite"]["name"], context)
    elif FIRST_LOOK in book.attacks and FIRST_LOOK not in [spec.name for spec in suite]:
        suite = anytime(suite, threat_of(book))  # as `evaluate` did with a budget
    if changed := differences(book.attacks, {spec.name: spec.settings for spec in suite}):
        raise UserError(f"the attacks are not those of the evaluation: {some(changed)}; use the same version")
    return tuple(suite)


def another_model(book: Ledger, model: nn.Module) -> list[str]:
    """The differences between this model and the evaluated one, one line each."""
    claimed = {key: value for key, value in book.identity["model"].items() if key not in ("scale", "type")}
    found = model_record(model)
    changed = [str(change) for change in differences(claimed, {key: found.get(key) for key in claimed})]
    with exact_float32():
        answers = model_answers(model, book.identity["data"]["shape"])
    if book.answers is not None and not answer_alike(book.answers, answers):
        changed.append("it answers differently on the same images")
    return changed


def judge_again(
    book: Ledger, model: nn.Module, images: Images, spec: AttackSpec, examples: Tensor, precision: str | None = None
) -> Verdict:
    """Run an attack on these examples, (B,) int64, with the recorded random numbers, and in the recorded precision
    unless another one is given.
    """
    identity, device = book.identity, device_of(model)
    x, y = (part.to(device) for part in images.batch(examples))
    rng = Rng(identity["seed"], examples.to(device))
    return judge_attack(model, spec, threat_of(book), x, y, rng, dtype=_PRECISIONS[precision or identity["search"]])


_ROUNDING = 1e-4
"""A margin below this share of the largest logit may have the other sign on another machine."""

_ALLOWED_FLIPS = 0.02


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        findings: One finding for each check.
    """

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no finding failed."""
        return all(f.status != "failed" for f in self.findings)

    def __str__(self) -> str:
        lines = [f"{f.status:>6}  {f.check}: {f.detail}" for f in self.findings]
        return "\n".join([*lines, "verified" if self.passed else "NOT verified"])


def verify(
    evaluation: Path | str,
    ledger: Path | str,
    model: nn.Module,
    images: Images | Tensor,
    labels: Tensor | None = None,
    *,
    suite: Sequence[AttackSpec] | None = None,
    share: float = 0.05,
    at_least: int = 20,
    seed: int | None = None,
) -> Verification:
    """Check an evaluation's file against its ledger, and the ledger against the model and the images.

    Every printed number is computed again from the ledger. Every clean and every stored adversarial image is predicted
    again, and checked against the ball. A sample of the resisted examples is attacked again with the same random
    numbers. Rounding in different batches may flip a few: one, or 2 %, is noted, more is a failure.

    Args:
        evaluation: The file evaluation.json.
        ledger: The file ledger.sqlite.
        model: The model that was evaluated.
        images: The images that were evaluated.
        labels: (N,) int64, with a tensor of images; by default those in the ledger.
        suite: The attacks, if the evaluation was given a list.
        share: Share of the resisted examples that is attacked again.
        at_least: Smallest number of examples to attack again.
        seed: Seed of this sample; by default derived from the ledger's checksum.

    Returns:
        The findings.

    Raises:
        UserError: If a file is missing, damaged or of another kind.
    """
    evaluation, ledger = Path(evaluation), Path(ledger)
    written = read_json(evaluation, FORMAT)
    with Ledger.read(ledger) as book, exact_float32():
        if labels is None and not isinstance(images, Images):
            labels = torch.tensor(book.labels)
        evidence = _Evidence(model, images_of(images, labels), book)
        found = [_file(written), _numbers(written, book), _statuses(book), evidence.same_model()]
        found.append(evidence.same_images())
        if found[-1].status != "failed":
            specs = specs_of(book, model, evidence.images, suite)
            found += [evidence.clean_again(), *(evidence.stored_again(name) for name in book.attacks)]
            found.append(evidence.resisted_again(specs, share, at_least, seed))
    return Verification(tuple(found))


def _file(written: dict[str, Any]) -> Finding:
    if written.get("checksum") != content_checksum(written):
        return Finding("file", "failed", "the evaluation's file was changed after it was written")
    return Finding("file", "ok", "the evaluation's file is as it was written")


def _numbers(written: dict[str, Any], book: Ledger) -> Finding:
    try:
        findings = [Finding(**f) for f in written["findings"]]
        expected = Evaluation.of(book, findings).to_dict()
        missing = [sum(row["unreached"] for row in data["attacks"]) for data in (expected, written)]
    except (KeyError, TypeError, UserError) as error:
        return Finding("numbers", "failed", f"the ledger can't give the printed numbers: {error}")
    wrong = [d for d in differences(written, expected) if d.path != "checksum"]
    if wrong:
        later = "; the ledger was continued after they were printed: run the same evaluation again"
        cure = later if missing[0] < missing[1] else ""
        return Finding("numbers", "failed", f"these printed numbers differ from the ledger: {some(wrong)}{cure}")
    return Finding("numbers", "ok", f"all {len(expected['attacks']) + 2} rows follow from the ledger")


def _statuses(book: Ledger) -> Finding:
    if [cell.example for cell in book.cells(CLEAN)] != list(range(len(book.labels))):
        return Finding("statuses", "failed", "the predicted clean images are not the examples of the ledger")
    odd = []
    for name, settings in book.attacks.items():
        fooled = {
            cell.example
            for before in (CLEAN, *settings.get("after", []))
            for cell in book.cells(before)
            if cell.status == "fooled"
        }
        cells = book.cells(name)
        odd += [f"{name} on {c.example}" for c in cells if (c.status == "not_run") != (c.example in fooled)]
    if odd:
        return Finding("statuses", "failed", f"skipped without reason, or run on images fooled before: {some(odd)}")
    return Finding("statuses", "ok", "every attack was run on every image that no earlier attack had fooled")


@dataclass(frozen=True)
class _Evidence:
    """A ledger, and the model and images to check it against."""

    model: nn.Module
    images: Images
    book: Ledger

    def same_model(self) -> Finding:
        if changed := another_model(self.book, self.model):
            edited = all(line.startswith("classes.") for line in changed)  # with the same weights and answers
            says = "its source file was changed afterwards" if edited else "another model"
            return Finding("model", "noted" if edited else "failed", f"{says}: {some(changed)}")
        return Finding("model", "ok", f"the model that was evaluated ({self.book.identity['model']['checksum'][:12]})")

    def same_images(self) -> Finding:
        claimed = self.book.identity["data"]
        found = data_checksum(self.images, self.book.identity["batch_size"])
        if claimed["checksum"] != found or self.images.labels.tolist() != self.book.labels:
            return Finding("images", "failed", f"other images or labels than the {claimed['n']} that were evaluated")
        return Finding("images", "ok", f"the {claimed['n']} images that were evaluated")

    @property
    def threat(self) -> ThreatModel:
        return threat_of(self.book)

    def clean_again(self) -> Finding:
        status = [cell.status == "fooled" for cell in self.book.cells(CLEAN)]
        unlike: list[str] = []
        with frozen(self.model) as exact:
            for index in self._batches(range(len(status))):
                x, y = self._load(index)
                wrong, close = _misclassified(exact, x, y)
                said = torch.tensor([status[i] for i in index.tolist()], device=x.device)
                unlike += [str(i) for i in index[((wrong != said) & ~close).cpu()].tolist()]
        if unlike:
            return Finding(CLEAN, "failed", f"the ledger has {len(unlike)} predictions wrong: images {some(unlike)}")
        return Finding(CLEAN, "ok", f"all {len(status)} predictions are as recorded")

    def stored_again(self, name: str) -> Finding:
        """Whether every stored image is misclassified, at the recorded distance, and in the ball if it counts."""
        labels = self.book.labels
        shown = {c.example: c for c in self.book.cells(name) if c.prediction not in (None, labels[c.example])}
        bad: list[str] = []
        near = 0
        with frozen(self.model) as exact:
            for index in self._batches(list(shown)):
                try:
                    stored = [self.book.adversarial(name, i) for i in index.tolist()]
                except UserError as error:
                    return Finding(name, "failed", str(error))
                if any(x is None for x in stored):
                    return Finding(name, "failed", "an image is recorded as fooling the model, but is not stored")
                x, y = self._load(index)
                x_adv = torch.stack([s for s in stored if s is not None]).to(x.device)
                cells = [shown[i] for i in index.tolist()]
                outside = ~self.threat.contains(x_adv, x).cpu() & torch.tensor([c.status == "fooled" for c in cells])
                said = torch.tensor([c.distance or 0.0 for c in cells])
                elsewhere = (self.threat.distance(x_adv, x).cpu() - said).abs() > 1e-5 * said + 1e-7
                wrong, close = (flags.cpu() for flags in _misclassified(exact, x_adv, y))
                near += int((~wrong & close).sum())
                faults = {"outside the ball": outside, "not at the recorded distance": elsewhere}
                for says, which in (faults | {"not misclassified": ~wrong & ~close}).items():
                    bad += [f"image {i} is {says}" for i in index[which].tolist()]
        if bad:
            return Finding(name, "failed", f"{len(bad)} of {len(shown)} stored images prove nothing: {some(bad)}")
        detail = f"all {len(shown)} stored images are misclassified, and in the ball if they count as fooled"
        if near:
            return Finding(name, "noted", f"{detail}, {near} only up to rounding")
        return Finding(name, "ok", detail)

    def resisted_again(self, specs: Sequence[AttackSpec], share: float, at_least: int, seed: int | None) -> Finding:
        """Attack a sample of the resisted examples again, with the same random numbers. A search in a precision that
        this device only emulates, about ten times slower, is repeated in float32.
        """
        recorded = self.book.identity["search"]
        emulated = recorded != "float32" and low_precision(device_of(self.model)) is None
        counted = ("resisted", "invalid")
        cells = [(name, c.example) for name in self.book.attacks for c in self.book.cells(name) if c.status in counted]
        count = min(len(cells), max(at_least, math.ceil(share * len(cells))))
        address = derived_seed(self.book.checksum()) if seed is None else seed
        chosen = [cells[i] for i in permutation(len(cells), seed=address, epoch=0, purpose="verify")[:count].tolist()]
        flipped: list[str] = []
        for spec in specs:
            for index in self._batches(sorted(i for name, i in chosen if name == spec.name)):
                verdict = judge_again(
                    self.book, self.model, self.images, spec, index, "float32" if emulated else recorded
                )
                flipped += [f"{spec.name} on {i}" for i in index[verdict.fooled.cpu()].tolist()]
        detail = f"{len(flipped)} of {count} resisted cells were fooled on a second run"
        if emulated:
            detail += f", in float32 because this device computes {recorded} slowly"
        if len(flipped) > max(1, _ALLOWED_FLIPS * count):
            return Finding("resisted", "failed", f"{detail}: {some(flipped)}")
        return Finding("resisted", "noted" if flipped else "ok", detail + (f": {some(flipped)}" if flipped else ""))

    def _load(self, index: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.images.batch(index)
        return x.to(device_of(self.model)), y.to(device_of(self.model))

    def _batches(self, examples: Sequence[int]) -> list[Tensor]:
        """The examples in the evaluation's batches, so that the same machine computes the same bits."""
        size = self.book.identity["batch_size"]
        batches: dict[int, list[int]] = {}
        for i in examples:
            batches.setdefault(i // size, []).append(i)
        return [torch.tensor(batch) for batch in batches.values()]


@torch.no_grad()
def _misclassified(exact: Classifier, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(misclassified, too close to the boundary to be the same on another machine), (B,) bool each."""
    logits = exact(x)
    lead = margin(logits, y)
    close = lead.abs() <= _ROUNDING * logits.abs().amax(1)
    return ~(lead <= 0) | logits.isnan().any(1), close
