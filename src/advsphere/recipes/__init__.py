"""Recipes: named training configs, one for each trained row of the paper's tables, and more for small machines."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from advsphere.errors import UserError
from advsphere.hypersphere import m_he
from advsphere.recipes import cifar10, imagenet, small, speedrun
from advsphere.runs.config import Config, title_of
from advsphere.typed import typed

OURS = "ours"
TABLES: dict[str, list[Config]] = {
    OURS: [*small.RECIPES, *cifar10.RECIPES, *imagenet.RECIPES, *speedrun.RECIPES],
    **dict(sorted((cifar10.TABLES | imagenet.TABLES).items())),
}
"""The recipes by the table of the paper to which their results belong."""
RECIPES: dict[str, Config] = {config.recipe: config for configs in TABLES.values() for config in configs}


class Listing(NamedTuple):
    """A line of `advsphere recipes`: the table ("Table 2", or "ours"), a summary in one line, and the config."""

    table: str
    summary: str
    config: Config


@typed
def recipe(name: str) -> Config:
    """The config of a recipe.

    Args:
        name: Such as "digits-pgd-at-he"; `advsphere recipes` lists them.

    Returns:
        The config.

    Raises:
        UserError: If there is no such recipe. The message gives the nearest names.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"no recipe is called {name!r}; {hint}`advsphere recipes` lists them all")
    return RECIPES[name]


def plain(name: str) -> str:
    """The name of the plain partner of a recipe with HE: its name without -he or -m-he."""
    return re.sub(r"(-m)?-he(?=-|$)", "", name)


def describe() -> list[Listing]:
    """Every recipe, in the order of the tables."""
    return [Listing(table, summary(config), config) for table, configs in TABLES.items() for config in configs]


def method(config: Config) -> str:
    """The paper's name for a training method: "PGD-AT", "TRADES+HE", "FastAT+m-HE (our reading)"."""
    name, sphere = title_of(config.objective), config.sphere
    if sphere is None:
        return name
    return f"{name}+m-HE (our reading)" if sphere == m_he(sphere) else f"{name}+HE"


def summary(config: Config) -> str:
    """A config in one line: method, network, data, epochs and weight decay."""
    training, sphere = config.training, config.sphere
    on_sphere = "" if sphere is None else f", s = {sphere.scale:g}, m = {sphere.margin:g}"
    replays = f" of {config.objective.replays} replays" if config.objective.replays > 1 else ""
    return (
        f"{method(config)}{on_sphere}: {config.model.name} on {config.data.name}, {training.epochs} epochs{replays}, "
        f"weight decay {training.weight_decay:g}"
    )
