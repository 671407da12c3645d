"""A page in headless Chromium: what a script finds on it, what the console says, whom it asks for something."""

from __future__ import annotations

import base64
import hashlib
import html as escapes
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

needed = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")

_ITS_OWN = ("google.com", "googleapis.com", "gvt1.com", "gstatic.com")
"""Hosts that Chromium itself calls at times, whatever the page."""


@dataclass(frozen=True)
class Seen:
    """found: what the script returned. console: its messages and the page's. asked: addresses that were requested."""

    found: Any
    console: list[str]
    asked: list[str]


def look(html: str, script: str, folder: Path, *, width: int = 1280, flags: tuple[str, ...] = ()) -> Seen:
    """Open a page and run a script, the body of a function, once it is loaded. The page's security policy stays as it
    is, but that this script may run as well.
    """
    code = (
        "addEventListener('load', () => { const out = document.createElement('pre'); out.id = 'found';"
        f"out.textContent = JSON.stringify((() => {{ {script} }})()); document.body.append(out); }});"
    )
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    changed = html.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    changed = changed.replace("</body>", f"<script>{code}</script></body>")
    path, log = folder / "page.html", folder / "net.json"
    path.write_text(changed)
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},2000",
        "--virtual-time-budget=4000",
        "--enable-logging=stderr",
        f"--log-net-log={log}",
        *flags,
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    asked = set(re.findall(r'"url":"((?:https?|wss?|ftp):[^"]*)"', log.read_text()))
    return Seen(
        found=json.loads(escapes.unescape(found)),
        console=[line for line in done.stderr.splitlines() if ":CONSOLE" in line],
        asked=sorted(url for url in asked if not any(own in url.split("/")[2] for own in _ITS_OWN)),
    )
