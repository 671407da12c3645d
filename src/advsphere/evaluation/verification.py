"""Verify a finished evaluation from its files, without trusting any printed number.

`_file` and the functions after it compare the file with the ledger; `evidence.py` checks the ledger against the model
and the images. docs/guarantees.md lists the forgeries that were tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from advsphere.data import Source
from advsphere.errors import UserError
from advsphere.evaluation.checks import Pixels, device_of, images_of, incomplete, preflight
from advsphere.evaluation.engine import context_of
from advsphere.evaluation.evidence import Evidence
from advsphere.evaluation.judge import exact_float32
from advsphere.evaluation.ledger import CLEAN, Ledger, Status
from advsphere.evaluation.majority import as_judged
from advsphere.evaluation.masking import signs
from advsphere.evaluation.probes import PROBES, probes_of
from advsphere.evaluation.recorded import OtherAttacksError, effort_of, may_be_cut, require_whole, specs_of, threat_of
from advsphere.evaluation.results import FORMAT, Evaluation
from advsphere.evaluation.rows import Finding, Sign
from advsphere.evaluation.sampling import SEARCH, Sampling
from advsphere.evaluation.specs import AttackSpec
from advsphere.files import canonical, content_checksum, content_errors, differences, read_json, some
from advsphere.typed import typed

_AGAIN = "run the same evaluation again, which repeats no finished attack and writes the file anew"


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

    def __repr__(self) -> str:
        failed = [f.check for f in self.findings if f.status == "failed"]
        says = f"NOT verified, failed: {', '.join(failed)}" if failed else "verified"
        return f"<Verification: {len(self.findings)} checks, {says}>"

    def __str__(self) -> str:
        return "\n".join([*map(str, self.findings), "verified" if self.passed else "NOT verified"])


@typed
def verify(
    evaluation: Path | str,
    ledger: Path | str,
    model: nn.Module,
    images: Source | Pixels,
    labels: Pixels | None = None,
    *,
    suite: Sequence[AttackSpec] | None = None,
    share: float = 0.05,
    at_least: int = 20,
    seed: int | None = None,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> Verification:
    """Check an evaluation's file against its ledger, and the ledger against the model and the images.

    Every printed number is computed again from the ledger. Every pair of an attack and an image has to be in it, unless
    a budget ended before. Every clean and every stored adversarial image is predicted again, and checked against the
    ball. The findings of preflight and the probes for gradient masking are computed again. A sample of the resisted
    examples, and some fooled ones, are attacked again with the same random numbers. Rounding in different batches may
    flip a few: one, or 2 %, is noted, more is a failure. docs/guarantees.md says what this proves.

    Args:
        evaluation: The file evaluation.json.
        ledger: The file ledger.sqlite.
        model: The model that was evaluated.
        images: The images that were evaluated, as in `evaluate`.
        labels: (N,), with a tensor or array of images; by default those in the ledger.
        suite: The attacks, if the evaluation was given a list.
        share: Share of the resisted examples that is attacked again.
        at_least: Smallest number of examples to attack again.
        seed: Seed of this sample; by default it is drawn anew, and the finding names it.
        on_finding: Called with each finding as soon as it is made.

    Returns:
        The findings.

    Raises:
        UserError: If a file is missing, damaged or of another kind, if the evaluation is continued meanwhile, or if
            `share` is none.
    """
    if not 0 <= share <= 1:
        raise UserError(f"share is {share:g}; give a share of the resisted examples, such as 0.05")
    evaluation, ledger = Path(evaluation), Path(ledger)
    written = read_json(evaluation, FORMAT)
    with Ledger.read(ledger) as book, exact_float32():
        before = book.version
        require_whole(book)
        if labels is None and isinstance(images, Pixels):
            labels = torch.tensor(book.labels)
        device_of(model)  # raises UserError if it is no module
        model = as_judged(model, book.identity["suite"].get("draws", 0))
        evidence = Evidence(model, images_of(images, labels), book)
        found = list[Finding]()
        for finding in _made(written, evidence, suite, share, at_least, seed):
            found.append(finding)
            on_finding(finding)
        if book.version != before:
            raise UserError(f"the evaluation in {ledger} was continued while it was read; verify it when it has ended")
    return Verification(tuple(found))


def _made(
    written: dict[str, Any],
    evidence: Evidence,
    suite: Sequence[AttackSpec] | None,
    share: float,
    at_least: int,
    seed: int | None,
) -> Iterator[Finding]:
    """The findings, in the order in which they are made. Another model, other images or stray rows end the checks."""
    book = evidence.book
    with content_errors(book.path):
        found = [_file(written), _numbers(written, book), _pairs(book)]
    yield from found
    yield (model := evidence.same_model())
    yield (images := evidence.same_images())
    if "failed" in (model.status, images.status):
        return
    try:
        specs = specs_of(book, evidence.model, evidence.images, suite)
    except OtherAttacksError as error:
        yield Finding("attacks", "failed", str(error))
        return
    if book.strays:  # their images may not be there to be looked at
        return
    yield evidence.clean_again()
    yield from (evidence.stored_again(name) for name in book.attacks)
    yield from _checks(written, evidence, specs)
    yield from evidence.attacked_again(specs, share, at_least, seed)


def _file(written: dict[str, Any]) -> Finding:
    if written.get("checksum") != content_checksum(written):
        return Finding("file", "failed", "the evaluation's file was changed after it was written")
    return Finding("file", "ok", "the evaluation's file is as it was written")


_SENTENCES = ("note", "flags", "signs", "findings", "checksum")
"""Entries that other checks compare. Their sentences may read otherwise in another version."""


def _numbers(written: dict[str, Any], book: Ledger) -> Finding:
    try:
        expected = Evaluation.of(book).to_dict()
        missing = [sum(row["unreached"] for row in data["attacks"]) for data in (expected, written)]
    except (KeyError, TypeError, UserError) as error:
        return Finding("numbers", "failed", f"the ledger can't give the printed numbers: {error}")
    theirs, ours = ({k: v for k, v in data.items() if k not in _SENTENCES} for data in (written, expected))
    wrong = differences(theirs, ours)
    if wrong:
        later = f"; the ledger was continued after they were printed: {_AGAIN}"
        cure = later if missing[0] < missing[1] else ""
        return Finding("numbers", "failed", f"these printed numbers differ from the ledger: {some(wrong)}{cure}")
    return Finding("numbers", "ok", f"all {len(expected['attacks']) + 2} rows follow from the ledger")


def _pairs(book: Ledger) -> Finding:
    """Whether there is a cell for each pair of an attack and an image, except where a budget ended.

    Each process runs the attacks in order on its batches, and later calls continue in that order. So after a budget,
    the attacks that an image has seen are the first ones of the list.
    """
    n, size = len(book.labels), book.identity["batch_size"]
    if book.strays:
        return Finding("pairs", "failed", f"{book.strays} rows belong to no attack or image of this evaluation")
    if [cell.example for cell in book.cells(CLEAN)] != list(range(n)):
        return Finding("pairs", "failed", "the predicted clean images are not the images of the ledger")
    odd: list[str] = []
    known = get_args(Status)
    late: dict[str, int] = {}
    fooled = {CLEAN: {cell.example for cell in book.cells(CLEAN) if cell.status == "fooled"}}
    cut: set[int] = set()
    sampling = Sampling(book)
    units, others = _units(sampling, size)
    for name, settings in book.attacks.items():
        cells, done = {cell.example: cell.status for cell in book.cells(name)}, book.done(name)
        fooled[name] = {i for i, status in cells.items() if status == "fooled"}
        before = set().union(*(fooled.get(other, set()) for other in (CLEAN, *settings.get("after", []))))
        odd += [f"{name} on {i} was skipped without reason, or run on an image fooled before"
                for i, status in cells.items() if (status == "not_run") != (i in before)]  # fmt: skip
        odd += [f"{name} on {i} has the status {status!r}" for i, status in cells.items() if status not in known]
        missing = {*range(n)} - cells.keys()
        drawn = name in sampling.proofs and sampling.certainty is not None
        outside = others if drawn else set()
        odd += [f"{name} on {i} was {'run outside' if i in outside else 'left out of'} the sample without reason"
                for i, status in cells.items() if (status == "not_sampled") != (i in outside)]  # fmt: skip
        odd += [f"{name} on {i} was deleted" for i in sorted(missing)
                if (units.get(i, n) if drawn else i // size) in done]  # fmt: skip
        odd += [f"{name} on {i} is there, but an earlier attack is not" for i in sorted(cut & cells.keys())]
        cut |= missing
        if left := len(missing - before):
            late[name] = left
    counts = ", ".join(f"{name}: {count}" for name, count in late.items())
    if cut and not may_be_cut(book):
        odd = [says for says in odd if "earlier attack" not in says]
    if odd:
        return Finding("pairs", "failed", f"{len(odd)} pairs of an attack and an image are wrong: {some(odd)}")
    if cut and not may_be_cut(book):
        detail = (
            f"images are missing, though there was no budget ({counts}); run the same evaluation again to complete it"
        )
        return Finding("pairs", "failed", detail)
    if late:
        return Finding("pairs", "noted", f"the budget ended before these attacks reached every image: {counts}")
    return Finding("pairs", "ok", f"each of {len(book.attacks)} attacks has an outcome for each of {n} images")


def _units(sampling: Sampling, size: int) -> tuple[dict[int, int], set[int]]:
    """The batch of each image in the sample, and the images that resisted the search and are outside it."""
    if sampling.certainty is None or sampling.part() == SEARCH:
        return {}, set()
    sample, order = sampling.sample(), sampling.order()
    chunks = sampling.chunks(len(sample), size)
    return {i: batch for batch, chunk in chunks.items() for i in chunk}, {*order} - sample


def _checks(written: Mapping[str, Any], evidence: Evidence, specs: Sequence[AttackSpec]) -> list[Finding]:
    """Findings of preflight and signs of gradient masking: their statuses, and then their sentences."""
    book, model, images = evidence.book, evidence.model, evidence.images
    try:
        with content_errors("the file"):
            claimed = [Finding(**f) for f in written["findings"] or ()], [Sign(**s) for s in written["signs"] or ()]
            said = _said(written)
        expected = Evaluation.of(book)
    except UserError as error:
        return [Finding("findings", "failed", str(error))]
    try:
        findings = [*preflight(model, images, batch_size=book.identity["batch_size"], attacks=specs)]
    except UserError as error:
        return [Finding("findings", "failed", f"preflight refuses this model: {error}")]
    findings += context_of(model, images, threat_of(book), effort_of(book), book.identity["suite"].get("head"))[1]
    findings += incomplete(book.identity)
    again = probes_of(book, model, images, specs, list(PROBES))
    probes = {name: json.loads(canonical(value)) for name, value in again}  # in the order in which the ledger keeps it
    expected = replace(expected, findings=tuple(findings))
    expected = replace(expected, signs=signs(expected.attacks, probes, book.identity["model"]["scale"]))
    return [
        _findings(claimed[0], findings),
        _signs(claimed[1], expected.signs or (), book.probes, probes),
        _sentences(said, expected),
    ]


_BY_CHANCE = ("precision", "head", "ledger", "guides")
"""Findings that depend on the machine, on an option, or on the files that were there."""


def _findings(said: Sequence[Finding], again: Sequence[Finding]) -> Finding:
    """No finding that readers must know ("noted") may be hidden. A mode that was fixed is as good as a right one."""
    claimed, found = {f.check: f for f in said}, {f.check: f for f in again}
    wrong = [f"{f.check} has the status {f.status!r}" for f in said if f.status not in ("ok", "fixed", "noted")]
    wrong += [f"{check} is invented" for check in claimed if check not in found and check not in _BY_CHANCE]
    warned = [f.check for f in said if f.status == "noted"]
    wrong += [f"{f.check} is hidden: {f.detail}" for f in again if f.status == "noted" and f.check not in warned]
    if len(claimed) < len(said):
        wrong.append("one check has two findings")
    if wrong:
        return Finding("findings", "failed", f"preflight finds something else: {some(wrong)}; {_AGAIN}")
    return Finding("findings", "ok", f"{len(found)} findings of preflight were made again")


def _signs(
    said: Sequence[Sign], again: Sequence[Sign], stored: Mapping[str, Any], probes: Mapping[str, Any]
) -> Finding:
    wrong = [f"{name}: {some(differences(stored[name], probes[name]))}" for name in stored
             if name in probes and not _alike(stored[name], probes[name])]  # fmt: skip
    claimed, found = {sign.check: sign.status for sign in said}, {sign.check: sign.status for sign in again}
    wrong += [f"the sign {check!r} is invented" for check in claimed if check not in found]
    wrong += [f"{check} is {status}, not {claimed[check]}" for check, status in found.items()
              if claimed.get(check, status) != status]  # fmt: skip
    wrong += [f"{check} is raised, but missing" for check in found if check not in claimed and found[check] == "raised"]
    if wrong:
        return Finding("signs", "failed", f"the signs of gradient masking are others: {some(wrong)}; {_AGAIN}")
    later = [name for name in probes if name not in stored] + [name for name in stored if name not in probes]
    if later:
        return Finding("signs", "noted", f"no sign is hidden; another version measured: {', '.join(later)}")
    return Finding("signs", "ok", f"{len(found)} signs of gradient masking are as printed, from {len(probes)} probes")


def _alike(said: Any, found: Any, n: int = 100) -> bool:
    """Whether two results of a probe agree up to rounding: counts by 2 % of the images, or one of them."""
    if isinstance(said, Mapping) and isinstance(found, Mapping):
        n = found.get("n", n)
        return said.keys() == found.keys() and all(_alike(said[key], found[key], n) for key in said)
    if isinstance(said, int | float) and isinstance(found, int | float):
        whole = isinstance(said, int) and isinstance(found, int)
        return abs(said - found) <= (max(1, 0.02 * n) if whole else 0.01 * max(abs(said), abs(found)))
    return bool(said == found)


def _said(written: Mapping[str, Any]) -> dict[str, Any]:
    """The sentences of an evaluation's JSON data."""
    return {
        "flags": list(written["flags"]),
        "findings": {f["check"]: f["detail"] for f in written["findings"] or ()},
        "signs": {s["check"]: [s["detail"], s["advice"]] for s in written["signs"] or ()},
    }


def _sentences(theirs: Mapping[str, Any], expected: Evaluation) -> Finding:
    """Sentences repeat values that were compared already, so another wording is shown and does not fail."""
    ours = _said(expected.to_dict())
    others = [
        change for change in differences(theirs, ours) if change.path not in ("findings.mode", "findings.identity")
    ]
    if len(theirs["flags"]) < len(ours["flags"]):
        hidden = [flag for flag in ours["flags"] if flag not in theirs["flags"]]
        return Finding("sentences", "failed", f"the file does not say: {some(hidden)}; {_AGAIN}")
    if others:
        return Finding("sentences", "noted", f"{len(others)} read otherwise now (theirs -> ours): {some(others)}")
    return Finding("sentences", "ok", "every sentence of the file is the one that its values give")
