"""Many damaged files, each read in this process: what a case is, how it is judged, and how batches of them are run."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from advsphere.errors import UserError
from tests.campaign.artefact import Artefact
from tests.campaign.artefacts import ARTEFACTS, Mismatch
from tests.campaign.machine import forked
from tests.campaign.record import GOOD, Record, scratch

PART = "fuzz"
BATCH = 250
SECONDS = 5.0
"""Processor time after which a case counts as a hang."""
ROOM = 2 * 2**30
"""Bytes that a case may take."""


class Hang(BaseException):
    """A case took too long."""


class Verdict(NamedTuple):
    """`right`, `refused`, or what went wrong; `said` is the error, `given` that another meaning was read as written."""

    outcome: str
    said: str = ""
    given: bool = False


def judged(artefact: Artefact, folder: Path, path: Path, valid: Any) -> Verdict:
    """Read the folder, in which the file at `path` is damaged, and compare with the outcome of the valid files."""
    signal.signal(signal.SIGPROF, _hang)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    printed: list[str] = []
    try:
        with mock.patch("sys.unraisablehook", lambda lost: printed.append(repr(lost.exc_value))):
            verdict = _read(artefact, folder, path, valid)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return Verdict("traceback of an error while an object was deleted", printed[0]) if printed else verdict


def _read(artefact: Artefact, folder: Path, path: Path, valid: Any) -> Verdict:
    try:
        found = artefact.read(folder)
    except UserError as error:
        text = str(error)
        return Verdict("refused" if text.strip() and "\n" not in text else "not one line", text)
    except Mismatch as error:
        return Verdict("refused", str(error))
    except Hang:
        return Verdict("hang", traceback.format_exc(limit=-3))
    except Exception as error:
        return Verdict(f"traceback of {type(error).__name__}", traceback.format_exc(limit=-4))
    if found == valid or repr(found) == repr(valid):
        return Verdict("right")
    with suppress(Exception):
        if artefact.given(path, found, valid):
            return Verdict("right", given=True)
    return Verdict("wrong", f"{found!r:.600}")


def _hang(*_: object) -> None:
    raise Hang


def damaged(artefact: Artefact, name: str, number: int, valid: Path) -> tuple[str, bytes]:
    """The file that case `number` damages, and its new content. It depends on nothing else."""
    rng = random.Random(f"{name} {number}")
    file = artefact.files[number % len(artefact.files)]
    content = (valid / file).read_bytes()
    changed = content
    for _ in range(20):
        changed = rng.choice(artefact.changes)(rng, changed)
        if changed != content and rng.random() < 0.85:
            break
    return file, changed


def parses(artefact: Artefact, content: bytes) -> bool:
    """Whether an independent reader of the format accepts it."""
    try:
        artefact.parses(content)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | Hang):
            raise
        return False
    return True


def attempt(record: Record, cases: int, first: int | None = None) -> None:
    """So many cases, shared out by weight over the first kinds of files, by default over all. It writes a line for each
    batch, and one for each kind of fault in it.
    """
    chosen = dict([*ARTEFACTS.items()][:first])
    total = sum(artefact.weight for artefact in chosen.values())
    with tempfile.TemporaryDirectory(dir=scratch() or None) as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        for name, artefact in chosen.items():
            count = max(1, round(cases * artefact.weight / total))
            valid = Path(place, name.replace(" ", "-"))
            for begin in range(0, count, BATCH):
                case = f"{name} {begin}"
                if record.due(PART, case):
                    if not valid.exists():
                        valid.mkdir()
                        made = forked(lambda: artefact.make(valid))  # noqa: B023
                        assert made.status == 0, made.said
                    _batch(record, name, artefact, valid, case, [*range(begin, min(begin + BATCH, count))])


def _batch(record: Record, name: str, artefact: Artefact, valid: Path, case: str, numbers: list[int]) -> None:
    """Run cases in a fork. If one ends it, it is noted, and those after it are run in another fork."""
    counts: Counter[str] = Counter()
    faults: dict[str, dict[str, Any]] = {}
    left = numbers
    while left:
        log = valid.with_suffix(".log")
        log.unlink(missing_ok=True)
        ended = forked(lambda: _run(name, artefact, valid, left, log), seconds=900)  # noqa: B023
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        for line in lines:
            counts["cases"] += 1
            counts["parsed"] += line["parsed"]
            counts["given"] += line["given"]
            counts[line["outcome"] if line["outcome"] in GOOD else "faults"] += 1
            if line["outcome"] not in GOOD:
                faults.setdefault(_kind(line), line)
        left = left[len(lines) :]
        if ended.status and left:
            counts["cases"] += 1
            counts["faults"] += 1
            line = {"number": left[0], "outcome": f"status {ended.status}", "said": ended.said[-1500:]}
            faults.setdefault(_kind(line), line)
            left = left[1:]
        elif left:
            raise AssertionError(f"{name}: it ended early: {ended.said}")
    for line in faults.values():
        found = {"number": line["number"], "said": line["said"][-1500:]}
        record.add(PART, f"{name} {line['number']} fault", line["outcome"], **found)
        file, content = damaged(artefact, name, line["number"], valid)
        kept = record.path.parent / "found" / folder_of(name) / f"{line['number']}@{Path(file).name}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(content)
    record.add(PART, case, "right", **{key: counts[key] for key in ("cases", "parsed", *GOOD, "given", "faults")})


def folder_of(name: str) -> str:
    """The folder of a kind of file, for those that were found."""
    return name.replace(",", "").replace(" ", "-")


def _kind(line: dict[str, Any]) -> str:
    """What makes two faults the same: the outcome, and for a traceback the place in the code."""
    places = [part for part in line["said"].splitlines() if part.strip().startswith("File ")]
    return line["outcome"] + (places[-1] if places else "")


def _run(name: str, artefact: Artefact, valid: Path, numbers: list[int], log: Path) -> None:
    warnings.simplefilter("ignore")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    folder = valid.with_suffix(".case")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(valid, folder)
    outcome = artefact.read(valid)
    with log.open("a", buffering=1) as file:
        for number in numbers:
            which, content = damaged(artefact, name, number, valid)
            path = folder / which
            path.write_bytes(content)
            verdict = judged(artefact, folder, path, outcome)
            line: dict[str, Any] = {"number": number, "parsed": parses(artefact, content), **verdict._asdict()}
            if verdict.outcome in GOOD:
                line["said"] = ""
            file.write(json.dumps(line) + "\n")
            shutil.copyfile(valid / which, path)
