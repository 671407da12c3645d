"""Forged evaluations, each with the checks of `verify` that fail. Run `python -m tests.evaluation.forgeries` to write
their table into docs/guarantees.md.

A forger changes the ledger, writes evaluation.json anew so that all numbers and checksums fit, and publishes both. The
model and the images are the verifier's.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advsphere.data import ImageSet
from advsphere.evaluation import Effort, Evaluation, Ledger, Verification, evaluate, verify
from advsphere.files import packed
from advsphere.reproduce.results import write_between
from tests.evaluation.cases import THREAT, Known, change, forge, linear

PAGE = Path(__file__).parents[2] / "docs" / "guarantees.md"
SHORT = Effort(steps=20)
MARKERS = {"begin": "<!-- forgeries -->", "end": "<!-- /forgeries -->"}


@dataclass
class Claim:
    """An evaluation on disk, with the model and the images that a verifier has."""

    known: Known
    folder: Path

    @property
    def json(self) -> Path:
        return self.folder / "evaluation.json"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.sqlite"

    def verify(self, **options: object) -> Verification:
        settings = {"model": self.known.model, "images": self.known.images} | options
        if isinstance(settings["images"], Tensor):
            settings = {"labels": self.known.labels} | settings
        return verify(self.json, self.ledger, **settings)  # type: ignore[arg-type]

    def write_again(self) -> None:
        """The numbers that a changed ledger gives, with checksums that fit."""
        before = Evaluation.load(self.json)
        with Ledger.read(self.ledger) as book:
            Evaluation.of(book, before.findings or ()).save(self.json)

    def sql(self, *statements: str) -> None:
        for statement in statements:
            change(self.ledger, statement)

    def copied(self, folder: Path) -> Claim:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Claim(KNOWN[self.folder.name](), folder)


class Rounded(nn.Module):
    """Rounds pixels to steps, so that no gradient passes."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 32).round() / 32


def plain() -> Known:
    return linear(classes=3, n=120, wrong=12)


def masked() -> Known:
    known = plain()
    return Known(nn.Sequential(Rounded(), known.model).eval(), known.images, known.labels)


KNOWN: dict[str, Callable[[], Known]] = {"plain": plain, "masked": masked, "in turn": plain}


def honest(kind: str, folder: Path) -> Claim:
    """An honest evaluation: of a linear model, of one that masks its gradient, or with attacks that run in turn."""
    claim = Claim(KNOWN[kind](), folder / kind)
    claim.folder.mkdir()
    effort = replace(SHORT, cascade=kind == "in turn")
    settings: dict[str, Any] = {"threat": THREAT, "batch_size": 64, "precision": "float32", "effort": effort}
    evaluate(*claim.known, ledger=claim.ledger, **settings).save(claim.json)
    return claim


@dataclass(frozen=True)
class Forgery:
    """`apply` changes the files of a claim, and may return another model or other images that the verifier has.

    `caught` names checks that fail, perhaps with others; none if nothing fails, and `why` says why.
    """

    says: str
    apply: Callable[[Claim], Mapping[str, object] | None]
    caught: tuple[str, ...]
    why: str = ""
    of: str = "plain"
    fits: bool = True

    def tried(self, honest: Claim, folder: Path) -> Verification:
        claim = honest.copied(folder)
        options = self.apply(claim) or {}
        if self.fits:
            claim.write_again()
        return claim.verify(**({"share": 0.3, "seed": 0} | dict(options)))


LABEL = "(SELECT label FROM examples WHERE examples.example = cells.example)"
CLEARED = f"x_adv = NULL, prediction = {LABEL}"
ROBUST = "status = 'resisted' AND attack = 'PGD-20'"


def sql(*statements: str) -> Callable[[Claim], None]:
    return lambda claim: claim.sql(*statements)


def store(claim: Claim, where: str, image: Callable[[Tensor, int], Tensor]) -> None:
    """Claim that cells are fooled, by an image made from the clean one and the label."""
    with Ledger.read(claim.ledger) as book:
        threat = THREAT
        cells = [(name, c.example) for name in book.attacks for c in book.cells(name) if c.status == "resisted"]
        labels = book.labels
    for name, i in cells if where == "all" else [(name, i) for name, i in cells if name == where]:
        x = claim.known.images[i]
        x_adv = image(x, labels[i])
        distance = float(threat.distance(x_adv[None], x[None])[0])
        change(
            claim.ledger,
            "UPDATE cells SET status = 'fooled', x_adv = ?, prediction = ?, distance = ? "
            "WHERE attack = ? AND example = ?", packed(x_adv), (labels[i] + 1) % 3, distance, name, i,
        )  # fmt: skip


def swap_images(claim: Claim) -> None:
    """Exchange the images and outcomes of two fooled examples of one attack."""
    with Ledger.read(claim.ledger) as book:
        i, j = [c.example for c in book.cells("PGD-20") if c.status == "fooled"][:2]
    for a, b in ((i, -1), (j, i), (-1, j)):
        claim.sql(f"UPDATE cells SET example = {b} WHERE attack = 'PGD-20' AND example = {a}")


def settings(claim: Claim, **changed: Any) -> None:
    """Change the settings of all attacks that have them, and the threat."""
    with Ledger.read(claim.ledger) as book:
        attacks, threat = book.attacks, book.identity["threat"]
    if "eps" in changed:
        change(claim.ledger, "UPDATE meta SET value = ? WHERE key = 'threat'", _json(threat | changed))
    for name, given in attacks.items():
        bound = given | {"threat": given["threat"] | changed} if "eps" in changed else given | changed
        if bound.get("step_size") and "eps" in changed:
            bound["step_size"] = changed["eps"] / 4
        change(claim.ledger, "UPDATE attacks SET settings = ? WHERE name = ?", _json(bound), name)


def another_weights(claim: Claim) -> Mapping[str, object]:
    """The ledger of one model with the checksum of another, and without the answers of the first."""
    from advsphere.identity import model_record

    other = plain().model
    with torch.no_grad():
        other[1].weight.mul_(torch.linspace(0.5, 1.5, 9))  # type: ignore[index, operator]
    record = model_record(other) | {"scale": 1.0}
    change(claim.ledger, "UPDATE meta SET value = ? WHERE key = 'model'", _json(record))
    claim.sql("UPDATE meta SET value = 'null' WHERE key = 'answers'")
    return {"model": other}


def entries(**changed: Any) -> Callable[[Claim], None]:
    return lambda claim: forge(claim.json, **changed)


def invent(claim: Claim) -> None:
    found = json.loads(claim.json.read_text())["findings"]
    forge(claim.json, findings=[*found, {"check": "certificate", "status": "ok", "detail": "robust at 16/255"}])


def hide(claim: Claim) -> None:
    """Turn every warning of preflight into a good word."""
    found = json.loads(claim.json.read_text())["findings"]
    better = [f | {"status": "ok", "detail": "as it should be"} for f in found]
    forge(claim.json, findings=better, flags=[])


def hide_signs(claim: Claim) -> None:
    found = json.loads(claim.json.read_text())["signs"]
    forge(claim.json, signs=[sign | {"status": "absent", "advice": ""} for sign in found])


def kinder_words(claim: Claim) -> None:
    found = json.loads(claim.json.read_text())["findings"]
    forge(claim.json, findings=[f | {"detail": f["detail"] + ", which is splendid"} for f in found])


def leave_out(claim: Claim) -> None:
    """Half of the images, as if the others had never been there."""
    with Ledger.read(claim.ledger) as book:
        data = book.identity["data"]
    claim.sql("DELETE FROM cells WHERE example >= 64", "DELETE FROM batches WHERE batch = 1")
    claim.sql("DELETE FROM examples WHERE example >= 64")
    change(claim.ledger, "UPDATE meta SET value = ? WHERE key = 'data'", _json(data | {"n": 64}))


def repeat_images(claim: Claim) -> Mapping[str, object]:
    """An evaluation of ten easy images, each of them twelve times, if the verifier takes the images from the forger."""
    with Ledger.read(claim.ledger) as book:
        easy = torch.tensor([i for i, c in enumerate(book.outcomes()) if c == "1"][:10]).repeat(12)
    images, labels = claim.known.images[easy], claim.known.labels[easy]
    claim.ledger.unlink()
    evaluate(claim.known.model, images, labels, threat=THREAT, batch_size=64, precision="float32", effort=SHORT,
             ledger=claim.ledger).save(claim.json)  # fmt: skip
    return {"images": ImageSet(images, labels, tuple("abc"))}


def other_numbers(claim: Claim) -> None:
    """The file of another evaluation, of a smaller ball."""
    with tempfile.TemporaryDirectory() as folder:
        evaluate(*claim.known, threat=replace(THREAT, eps=0.02), batch_size=64, precision="float32",
                 effort=SHORT, ledger=Path(folder) / "ledger.sqlite").save(claim.json)  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


COPIED = "SELECT 'PGD-20', example, status, prediction, distance, x_adv FROM cells WHERE attack = 'FGSM'"
FORGERIES = (
    Forgery("half of the robust cells of an attack are set to fooled, without an image",
            sql(f"UPDATE cells SET status = 'fooled' WHERE {ROBUST} AND example % 2"), ("PGD-20",)),
    Forgery("robust cells are set to fooled, and the clean image is stored as evidence",
            lambda claim: store(claim, "PGD-20", lambda x, y: x), ("PGD-20",)),
    Forgery("robust cells are set to fooled, by an image outside the ball",
            lambda claim: store(claim, "PGD-20", lambda x, y: 1 - x), ("PGD-20",)),
    Forgery("all fooled cells are deleted",
            sql("DELETE FROM cells WHERE status = 'fooled' AND attack != 'clean'"), ("pairs",)),
    Forgery("all fooled cells are deleted, and the records of the batches too",
            sql("DELETE FROM cells WHERE status = 'fooled' AND attack != 'clean'",
                "DELETE FROM batches WHERE attack != 'clean'"), ("pairs",)),
    Forgery("an attack never ran: it has no cells", sql("DELETE FROM cells WHERE attack = 'PGD-20'"), ("pairs",)),
    Forgery("an attack never ran: it has neither cells nor batches",
            sql("DELETE FROM cells WHERE attack = 'PGD-20'", "DELETE FROM batches WHERE attack = 'PGD-20'"),
            ("pairs",)),
    Forgery("an attack never ran: its cells and images are copied from another attack",
            sql("DELETE FROM cells WHERE attack = 'PGD-20'", f"INSERT INTO cells {COPIED}"), ("fooled",),
            "on another machine, or after a search in bfloat16, it is only noted that other images are found"),
    Forgery("an attack never ran, and is left out of the list of a named suite",
            sql("DELETE FROM cells WHERE attack = 'PGD-20'", "DELETE FROM batches WHERE attack = 'PGD-20'",
                "DELETE FROM attacks WHERE name = 'PGD-20'"), ("attacks",)),
    Forgery("an attack is left out of the list, and its cells stay",
            sql("DELETE FROM attacks WHERE name = 'PGD-20'"), ("attacks", "pairs")),
    Forgery("fooled cells count as not run",
            sql("UPDATE cells SET status = 'not_run', x_adv = NULL, prediction = NULL WHERE attack = 'PGD-20' "
                "AND status = 'fooled' AND example % 2"), ("pairs",)),
    Forgery("fooled cells have a status of their own",
            sql("UPDATE cells SET status = 'spared', x_adv = NULL, prediction = NULL WHERE attack = 'PGD-20' "
                "AND status = 'fooled'"), ("pairs",)),
    Forgery("fooled cells count as resisted, and their images stay",
            sql("UPDATE cells SET status = 'resisted' WHERE status = 'fooled' AND attack = 'PGD-20'"),
            ("PGD-20", "resisted")),
    Forgery("fooled cells count as invalid, and their images stay",
            sql("UPDATE cells SET status = 'invalid' WHERE status = 'fooled' AND attack = 'PGD-20'"),
            ("PGD-20", "resisted")),
    Forgery("a third of all fooled cells count as resisted, and their images are deleted",
            sql(f"UPDATE cells SET status = 'resisted', {CLEARED} WHERE status = 'fooled' AND attack != 'clean' "
                "AND example % 3 = 0"), ("resisted",), "by the sample, with the probability that the finding states"),
    Forgery("one fooled cell counts as resisted, and its image is deleted",
            sql(f"UPDATE cells SET status = 'resisted', {CLEARED} WHERE (attack, example) = (SELECT attack, example "
                "FROM cells WHERE status = 'fooled' AND attack = 'FGSM' LIMIT 1)"), (),
            "one cell in a sample may be rounding; it moves an accuracy by less than its interval"),
    Forgery("two examples of an attack exchange their outcomes and images", swap_images, ("PGD-20",)),
    Forgery("the recorded distances are smaller",
            sql("UPDATE cells SET distance = distance / 2 WHERE status = 'fooled' AND attack = 'PGD-20'"),
            ("PGD-20",)),
    Forgery("misclassified clean images count as right",
            sql(f"UPDATE cells SET status = 'resisted', prediction = {LABEL} WHERE attack = 'clean'",
                f"UPDATE cells SET status = 'resisted', prediction = {LABEL} WHERE status = 'not_run'"),
            ("clean", "resisted")),
    Forgery("clean images have another predicted class",
            sql("UPDATE cells SET prediction = 2 - prediction WHERE attack = 'clean' AND status = 'fooled'"),
            ("clean",)),
    Forgery("the labels are exchanged", sql("UPDATE examples SET label = 2 - label"), ("images",)),
    Forgery("half of the images are left out", leave_out, ("images",)),
    Forgery("easy images are repeated, and the verifier takes the images from the forger", repeat_images, (),
            "the check of the clean images notes how many repeat another one; take the images from their source",
            fits=False),
    Forgery("the threat has a larger eps than was attacked", partial(settings, eps=0.2), ("fooled", "resisted")),
    Forgery("the threat has a smaller eps than was attacked", partial(settings, eps=0.05),
            ("FGSM", "PGD-20", "margin PGD-20", "fooled")),
    Forgery("an attack has more steps than were run", partial(settings, steps=1000), ("attacks",)),
    Forgery("the seed is another one", sql("UPDATE meta SET value = '1' WHERE key = 'seed'"), ("fooled", "signs"),
            "where random numbers matter, and as for copied cells"),
    Forgery("the ledger is of another model, under the checksum of the claimed one", another_weights,
            ("FGSM", "PGD-20", "clean", "fooled", "margin PGD-20", "resisted", "signs")),
    Forgery("rows of an attack that is not listed are added",
            sql("INSERT INTO cells SELECT 'AutoAttack', example, status, prediction, distance, NULL FROM cells "
                "WHERE attack = 'PGD-20'"), ("pairs",)),
    Forgery("a printed number is changed, and the checksum fits", entries(worst={"k": 100}),
            ("numbers",), fits=False),
    Forgery("a printed interval is changed, and the checksum fits", entries(clean={"low": 0.99}),
            ("numbers",), fits=False),
    Forgery("the numbers are those of another evaluation", other_numbers, ("numbers",), fits=False),
    Forgery("findings of preflight are invented", invent, ("findings",), fits=False),
    Forgery("warnings of preflight are hidden", hide, ("findings", "sentences"), of="masked", fits=False),
    Forgery("signs of gradient masking are hidden in the file", hide_signs, ("signs",), of="masked", fits=False),
    Forgery("the probes for gradient masking have other results",
            sql("UPDATE probes SET value = json_set(value, '$.log_odds', 0, '$.cross_entropy', 0) "
                "WHERE name = 'gradients'"), ("signs",), of="masked"),
    Forgery("the probes for gradient masking are deleted", sql("DELETE FROM probes"), ("signs",), of="masked"),
    Forgery("sentences in the file are worded more kindly", kinder_words, (),
            "a sentence repeats values, which are compared; another wording is noted and shown", fits=False),
    Forgery("the last attacks of a run with a budget are cut off",
            sql("DELETE FROM cells WHERE attack = 'margin PGD-20'",
            "DELETE FROM batches WHERE attack = 'margin PGD-20'"), (),
            "a shorter budget would have ended so; the file and `verify` print the number of missing images",
            "in turn"),
    Forgery("an attack in the middle of a run with a budget is cut out",
            sql("DELETE FROM cells WHERE attack = 'PGD-20'", "DELETE FROM batches WHERE attack = 'PGD-20'"),
            ("pairs",), of="in turn"),
    Forgery("the attacks took less time", sql("UPDATE batches SET seconds = seconds / 10"), (),
            "time leaves no evidence; no accuracy depends on it"),
    Forgery("the attacks took fewer forwards", sql("UPDATE batches SET forwards = forwards / 10"), (),
            "only a whole second run could tell; no accuracy depends on it"),
    Forgery("the machine, the versions or the commit are others",
            sql("UPDATE environments SET value = replace(value, '\"commit\"', '\"theirs\"')"), (),
            "nothing in a file proves where it was computed; the outcomes are checked here, whatever it says"),
)  # fmt: skip


def as_expected(forgery: Forgery, found: Verification) -> bool:
    failed = {f.check for f in found.findings if f.status == "failed"}
    return {*forgery.caught} <= failed if forgery.caught else not failed


def table(found: Mapping[str, Verification]) -> str:
    """The forgeries, and the checks that caught them, as Markdown."""
    lines = ["| what is forged | caught by | why not, or how far |", "|---|---|---|"]
    for forgery in FORGERIES:
        by = ", ".join(forgery.caught) if as_expected(forgery, found[forgery.says]) else "UNEXPECTED"
        by = by or "**not caught**"
        lines.append(f"| {forgery.says} | {by} | {forgery.why} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        base = {kind: honest(kind, Path(folder)) for kind in KNOWN}
        for number, forgery in enumerate(FORGERIES):
            found[forgery.says] = result = forgery.tried(base[forgery.of], Path(folder) / str(number))
            if not as_expected(forgery, result):
                print(f"{forgery.says}: expected {forgery.caught}, found\n{result}\n")
    write_between(PAGE, table(found), **MARKERS)


if __name__ == "__main__":
    main()
