"""Recipes: a name for each training run, and the typed config behind it."""

from __future__ import annotations

import difflib

from advsphere.config import Config
from advsphere.errors import UserError
from advsphere.recipes import small

RECIPES: dict[str, Config] = {config.recipe: config for config in small.RECIPES}


def recipe(name: str) -> Config:
    """The config of that name. Raises UserError with the nearest names where there is none."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"no recipe is called {name!r}; {hint}`advsphere recipes` lists them all")
    return RECIPES[name]
