"""Command lines: a line that is parsed gives the settings that its words name, or one clear message."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from fractions import Fraction
from itertools import takewhile
from pathlib import Path
from typing import Any
from unittest import mock

from advsphere import cli
from advsphere.errors import UserError
from tests.campaign.artefact import Artefact
from tests.campaign.mutations import words

LINES = {
    "train": "digits-trades-he --out runs/x --epochs 3 --lr 0.1 --threat.eps 0.2 --sphere.scale 10 --objective.steps 4 "
    "--no-fold --data.validation 20 --resume",
    "evaluate": "runs/x --suite quick -n 10 --eps 8/255 --seed 1 --budget 10m --batch-size 50 --precision float32",
    "corruptions": "runs/x --extra --seed 2 --n 20 --batch-size 10 --out there",
    "reproduce": "table3 table2 --budget cpu --jobs 2 --seeds 0 1 --weight-decay 5e-4 --only plan",
    "compare": "runs/x runs/y --suite survival --n 100",
    "verify": "runs/x/evaluations/quick --share 0.1 --seed 3",
    "show": "runs/x/evaluations/quick 7",
}
"""Each with values that differ from the defaults."""


class Parsed(Exception):
    """The settings that a line gives, instead of doing what it says."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__("parsed")
        self.settings = settings


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """The settings of nested dataclasses by their dotted paths."""
    if not is_dataclass(value):
        return {path: value}
    found = {f"{path}.kind".strip("."): type(value).__name__}
    for field in fields(value):
        found |= flat(getattr(value, field.name), f"{path}.{field.name}".strip("."))
    return found


def parsed(line: list[str]) -> dict[str, Any]:
    """The settings of a line by their paths. Raises UserError with the message of a line that is refused."""
    try:
        module = importlib.import_module(f"advsphere.cli.{line[0]}") if line and line[0] in LINES else None
    except ImportError as error:
        raise UserError(str(error)) from error
    shown = io.StringIO()

    def stop(*arguments: Any, **options: Any) -> Any:
        raise Parsed(flat(arguments[0]) | {"folder": str(arguments[1]), "resume": options["resume"]})

    def settled(kind: type[Any], *arguments: Any, **options: Any) -> Any:
        raise Parsed(flat(parse(kind, *arguments, **options)))

    parse = vars(module)["parse"] if module else None
    replaced = {"train": stop} if line[:1] == ["train"] else {"parse": settled}
    # The user's words may ask for another device, or for trust; neither may outlive the case.
    with contextlib.ExitStack() as held:
        held.enter_context(mock.patch.dict("os.environ"))
        held.enter_context(contextlib.redirect_stdout(shown))
        held.enter_context(contextlib.redirect_stderr(shown))
        if module:
            held.enter_context(mock.patch.multiple(module, **replaced))
        try:
            status: object = cli.main(line)
        except Parsed as found:
            return {key.removeprefix("subject."): value for key, value in found.settings.items()}
        except SystemExit as asked:
            status = asked.code
    said = " ".join(shown.getvalue().split())
    if "Traceback" in said or not said:
        raise AssertionError(f"status {status}: {said[-800:]}")
    if status == 0:
        return {"shown": said[:40]}
    raise UserError(said)


def _line(path: Path) -> list[str]:
    line: list[str] = json.loads(path.read_bytes())
    return line


def _make(folder: Path) -> None:
    for name, line in LINES.items():
        (folder / f"{name}.json").write_text(json.dumps([name, *line.split()]))


def read_line(name: str, folder: Path) -> Any:
    return {key: repr(value) for key, value in parsed(_line(folder / f"{name}.json")).items()}


def _changed(rng: Any, content: bytes) -> bytes:
    line = json.loads(content)
    return json.dumps(words(rng, line, [word for word in line if word.startswith("-")] + ["--he", "--help"])).encode()


def _parses(content: bytes) -> object:
    return parsed(json.loads(content))


def same(text: str, value: str) -> bool:
    """Whether a word stands for a value, given as Python writes it."""
    if text in (value, value.strip("'")) or value in (repr(text), f"PosixPath('{Path(text)}')"):
        return True
    if text and (time := re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text)):
        hours, minutes, seconds = (float(part or 0) for part in time.groups())
        return str(3600 * hours + 60 * minutes + seconds) == value
    with contextlib.suppress(ValueError, ZeroDivisionError, OverflowError):
        return float(Fraction(text)) == float(value)
    with contextlib.suppress(ValueError):
        return repr(float(text)) == repr(float(value))
    return False


def _as_named(path: Path, found: Any, valid: Any) -> bool:
    """Each setting that is other than in the valid line has the value that the line now names, or its default."""
    line = _line(path)
    if "shown" in found:
        return bool({"-h", "--help", "--version"} & {*line}) or len(line) < 2
    plain = read_plain(line)
    for key in found.keys() | valid.keys():
        value = found.get(key)
        if value in (valid.get(key), plain.get(key)) or (not plain and value in ("None", "()")):
            continue  # a line without what the command needs is refused only after it was parsed
        named = [word.partition("=")[0].lstrip("-").replace("_", "-") for word in line]
        flag, last = key.replace("_", "-"), key.rpartition(".")[2].replace("_", "-")
        after = [i for i, name in enumerate(named) if name in (flag, f"training.{flag}", last, f"no-{last}", flag[:1])]
        texts = [line[i].partition("=")[2] or " ".join(line[i + 1 : i + 2]) for i in after]
        plainly = line.index("--") if "--" in line else len(line)  # after it, all words are free
        free = [word for i, word in enumerate(line) if i and (i > plainly or not word.startswith("--"))]
        if not (
            any(same(text, str(value)) for text in (*texts, *free)) or (after and value in ("True", "False", "()"))
        ):
            several = str(value).startswith("(") and all(
                any(same(text, one.strip()) for text in free) for one in str(value).strip("(),").split(",")
            )
            if not (several or key in DERIVED):
                return False
    return True


DERIVED = {"recipe", "folder", "objective.threat.eps", "objective.threat.norm", "objective.threat.bounds", "notes"}
"""Settings that follow from the recipe's name or from other flags."""


def read_plain(line: list[str]) -> dict[str, str]:
    """The defaults: the settings of the line's command, and of its recipe, without any flag."""
    with contextlib.suppress(UserError, AssertionError):
        kept = [*takewhile(lambda word: not word.startswith("-"), line[1:])] + ["--he"] * ("--he" in line)
        return {key: repr(value) for key, value in parsed([line[0], *kept]).items()}
    return {}


def _artefact(name: str) -> Artefact:
    def read(folder: Path) -> Any:
        return read_line(name, folder)

    return Artefact(_make, (f"{name}.json",), read, _parses, (_changed,), _as_named, 0.08)


COMMAND_LINES = {f"command line of {name}": _artefact(name) for name in LINES}
