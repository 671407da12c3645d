"""The colours of all figures, kept apart so that a page can put its own in their place."""

from __future__ import annotations

INK = "#22262b"
SOFT = "#5b636e"
LINE = "#dcd9d2"
SERIES = ("#1b6ca8", "#b4511f", "#3d7a3d", "#7a4fa3", "#8a6d00", "#57606a")
"""One for each model, in order; told apart also by colour-blind eyes, and never without a marker of its own."""
MARKERS = ("o", "s", "^", "D", "v", "P")
