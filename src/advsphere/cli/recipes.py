"""`advsphere recipes`: what can be trained by name."""

from __future__ import annotations

HELP = """usage: advsphere recipes [WORD]

Lists the recipes, all or those whose name holds WORD. Train one with `advsphere train RECIPE`."""
