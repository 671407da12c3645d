"""Small damages of valid files: of their bytes, of their text, of their values."""

from __future__ import annotations

import copy
import json
import random
import re
import sqlite3
from collections.abc import Callable
from typing import Any

from advsphere.files import content_checksum

Change = Callable[[random.Random, bytes], bytes]

NUMBERS = ("0", "-1", "1e999", "-0.0", ".nan", "NaN", "1" + "0" * 30, "1_000", "0x10", "1e-400", "1/0", "8/255", "٣")
WORDS: tuple[str, ...] = (
    "",
    "null",
    "~",
    "true",
    "[red]",
    "[/]",
    "..",
    "\u202e",
    "é" * 40,
    "!!python/object:os.system",
    "&a",
    "*a",
)
WORDS += ("2001-01-01", "[[[[", "{", "os:system", "ftp://a/b", "\x00", "\n", "-", "--help", "NFKC:ﬁ", "%s", "{0}")
VALUES: tuple[Any, ...] = (None, True, 0, -1, 2**70, 1e308, 0.5, float("nan"), float("inf"), "", "[red]", [], {}, [[]])
VALUES += ("2" * 5000, {"": None}, "os:system", [1, "a", None], -(2**31), "\ud800")


def bits(rng: random.Random, content: bytes) -> bytes:
    """One to four bits are flipped."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def places(rng: random.Random, content: bytes) -> bytes:
    """A stretch is cut out, repeated, moved, filled with zeros or noise, or all after it is missing."""
    a = rng.randrange(len(content) + 1)
    size = min(len(content) - a, rng.choice((1, 2, 4, 16, 64, 512, 4096)))
    before, inside, after = content[:a], content[a : a + size], content[a + size :]
    how = rng.randrange(7)
    if how == 0:
        return before + after
    if how == 1:
        return before + inside + inside + after
    if how == 2:
        return before + bytes(size) + after
    if how == 3:
        return before + rng.randbytes(size) + after
    if how == 4:
        return before
    if how == 5:
        return after + before + inside
    b = rng.randrange(len(content) + 1)
    return before + content[b : b + size] + after


def text(rng: random.Random, content: bytes) -> bytes:
    """A number or a word is another one, or lines are missing, repeated, exchanged or moved in."""
    decoded = content.decode("utf-8", "replace")
    how = rng.randrange(6)
    if how < 3:
        found = [*re.finditer(r"-?\d[\d.e+-]*" if how < 2 else r"[A-Za-z_]\w*", decoded)]
        if not found:
            return places(rng, content)
        one = rng.choice(found)
        near = [m.group() for m in found]
        new = rng.choice(NUMBERS if how < 2 else WORDS) if rng.random() < 0.6 else rng.choice(near)
        if how < 2 and rng.random() < 0.4:
            new = str(rng.choice((1, 2, 3, 7, 0.1, 0.25, 12)))
        return (decoded[: one.start()] + new + decoded[one.end() :]).encode("utf-8", "surrogatepass")
    lines = decoded.splitlines(keepends=True)
    if len(lines) < 2:
        return places(rng, content)
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    if how == 3:
        del lines[i]
    elif how == 4:
        lines.insert(j, lines[i])
    else:
        lines[i] = rng.choice((" ", "  ", "\t", "- ", "# ", ": ")) + lines[i]
    return "".join(lines).encode()


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as (its container, its key)."""
    found, left = [], [value]
    while left:
        one = left.pop()
        keys = [*one] if isinstance(one, dict) else [*range(len(one))] if isinstance(one, list) else []
        for key in keys:
            found.append((one, key))
            left.append(one[key])
    return found


def changed_value(rng: random.Random, value: Any) -> Any:
    """A JSON value of which one place is another value, missing, renamed, or that of another place."""
    value = copy.deepcopy(value)
    spots = _spots(value)
    if not spots:
        return rng.choice(VALUES)
    container, key = rng.choice(spots)
    how = rng.randrange(5)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container, dict):
        container[rng.choice((key + "x", "kind", "", "name"))] = container.pop(key)
    elif how == 2:
        other, place = rng.choice(spots)
        container[key] = copy.deepcopy(other[place])
    elif how == 3 and isinstance(container[key], int | float) and not isinstance(container[key], bool):
        container[key] = container[key] * rng.choice((2, -1, 0.5)) + rng.choice((0, 1))
    else:
        container[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def values(rng: random.Random, content: bytes) -> bytes:
    """One value of a JSON file, or of one line of JSON lines, is another."""
    lines = content.splitlines(keepends=True)
    try:
        return dumped(changed_value(rng, json.loads(content)))
    except ValueError:
        i = rng.randrange(len(lines)) if lines else 0
    try:
        lines[i] = dumped(changed_value(rng, json.loads(lines[i]))) + b"\n"
    except (ValueError, IndexError):
        return places(rng, content)
    return b"".join(lines)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def forged(rng: random.Random, content: bytes) -> bytes:
    """As `values`, but the checksum in the file fits again, as it does for whoever wrote such a file on purpose."""
    try:
        whole = json.loads(content)
        changed = changed_value(rng, whole)
        if isinstance(changed, dict) and "checksum" in changed:
            changed["checksum"] = content_checksum(changed)
        return dumped(changed)
    except (ValueError, TypeError, UnicodeEncodeError):
        return values(rng, content)


def rows(rng: random.Random, content: bytes) -> bytes:
    """One row of a table of a SQLite file is changed or deleted; the file itself is sound."""
    db = sqlite3.connect(":memory:")
    db.deserialize(content)
    try:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = rng.choice(tables)
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        row = "rowid = (SELECT rowid FROM {0} ORDER BY rowid LIMIT 1 OFFSET {1})"
        (count,) = db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
        where = row.format(table, rng.randrange(max(1, count)))
        column = rng.choice(columns)
        how = rng.randrange(4)
        if how == 0:
            db.execute(f"DELETE FROM {table} WHERE {where}")
        elif how == 1:
            (other,) = db.execute(f"SELECT {column} FROM {table} ORDER BY rowid DESC LIMIT 1").fetchone() or (None,)
            db.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE {where}", (other,))
        elif how == 2:
            (old,) = db.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone() or (None,)
            new = bits(rng, old if isinstance(old, bytes) else str(old).encode())
            new_value: Any = new if isinstance(old, bytes) else new.decode("utf-8", "replace")
            db.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE {where}", (new_value,))
        else:
            value = rng.choice((0, -1, 2**62, 0.5, "", "fooled", "resisted", b"", b"x\x9c", "[red]", "{}"))
            db.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE {where}", (value,))
        db.commit()
    except (sqlite3.Error, TypeError):  # a column that must be unique, or not null
        db.rollback()
    changed = db.serialize()
    db.close()
    return changed


def words(rng: random.Random, line: list[str], flags: list[str]) -> list[str]:
    """A command line of which one word is missing, repeated, moved, another flag or another value."""
    line = [*line]
    i = rng.randrange(len(line))
    how = rng.randrange(6)
    if how == 0:
        del line[i]
    elif how == 1:
        line.insert(i, rng.choice(line))
    elif how == 2:
        line[i] = rng.choice((*NUMBERS, *WORDS, "2", "0.25", "1e-3", "8/255"))
    elif how == 3:
        line[i:i] = [rng.choice(flags), rng.choice(("1", "0.5", "None", *NUMBERS))]
    elif how == 4:
        line[i] = text(rng, line[i].encode()).decode("utf-8", "replace")
    else:
        line.append(rng.choice(flags))
    return [word.replace("\x00", "") for word in line]
