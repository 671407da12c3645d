"""A hook of mkdocs: links that leave docs/ lead to the repository, and the pictures of the results come along."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pictures in results/, which pages show."""
    for picture in sorted((ROOT / "results" / "pictures").glob("*.png")):
        files.append(File.generated(config, f"results/pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Rewrite the relative links of a page."""
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join("docs", folder, match[1]))
        if place.startswith("results/pictures/"):
            return f"]({posixpath.relpath(place, folder or '.')}"
        return match[0] if place.startswith("docs/") else f"]({config.repo_url.rstrip('/')}/blob/main/{place}"

    return re.sub(r"\]\((\.\./[^)#\s]*)", replaced, markdown)
