"""Plan the jobs of one or several tables: a graph of jobs, in order of priority."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from advsphere.data import load
from advsphere.errors import UserError
from advsphere.files import write_atomically
from advsphere.reproduce import jobs
from advsphere.reproduce.budgets import DRAWN, Budget
from advsphere.reproduce.groups import preferred
from advsphere.reproduce.jobs import Job
from advsphere.reproduce.tables import HEADLINE, Data, Method, Table
from advsphere.runs.config import Config


@dataclass(frozen=True, kw_only=True)
class Places:
    """The folder of runs, and the folder of Table 4's images, by default one in $ADVSPHERE_DATA."""

    runs: Path
    images: Path | None = None

    def of(self, config: Config, budget: Budget) -> Path | None:
        """The folder of images that a config needs, or None. Raises UserError if it is missing."""
        if config.data.name != "imagefolder":
            return None
        if budget.folder == DRAWN:
            return digits_as_photos(self.runs / DRAWN)
        found = self.images or Path(os.environ.get("ADVSPHERE_DATA", "data")) / budget.folder
        if not found.is_dir():
            raise UserError(
                f"Table 4 needs a folder with train/<class>/ and val/<class>/, and {found} does not exist; use --images"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Jobs in order of priority, each after the jobs it needs, with their budget, tables and places."""

    jobs: tuple[Job, ...]
    budget: Budget
    tables: tuple[Table, ...]
    places: Places

    @property
    def open(self) -> tuple[Job, ...]:
        """The jobs that are not done."""
        return tuple(job for job in self.jobs if not job.done)


def plan(
    tables: Sequence[Table],
    budget: Budget,
    places: Places,
    *,
    weight_decays: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
) -> Plan:
    """Plan the jobs of tables. A job that two tables need is listed once.

    Every method is measured at the first weight decay of the grid. At each further one its first seed is trained. If
    held-out images prefer that training, a later plan adds the other seeds, the attacks, and the plain partner. Later
    seeds never change which jobs are planned.

    Args:
        tables: The tables.
        budget: The budget.
        places: The folders of runs and images.
        weight_decays: Use only these weight decays of the budget's grid.
        seeds: Use only these of the budget's seeds.
        methods: Use only methods with these names.

    Returns:
        The plan.

    Raises:
        UserError: If the tables and the budget lack a weight decay, seed or method, or a recipe or a folder of images
            is missing.
    """
    methods_there = sorted({method.name for table in tables for method in table.methods})
    _among(methods_there, methods, "a method of these tables")
    _among(sorted({*budget.seeds, *budget.headline_seeds}), seeds, f"a seed of budget {budget.name}")
    decays = sorted({*chain(*budget.weight_decays.values())}, reverse=True)
    _among(decays, weight_decays, f"a weight decay of budget {budget.name}")
    found: dict[str, Job] = {}
    first = sorted(tables, key=lambda table: table.suite != "survival")
    grids = budget.weight_decays if weight_decays is None else dict.fromkeys(budget.weight_decays, tuple(weight_decays))
    for place in range(max(map(len, grids.values()))):
        asked = _Asked(budget=budget, places=places, grids=grids, place=place, seeds=seeds)
        # The headline pair comes first, and its survival suite comes before its other tables.
        wanted = [(table, [method for method in table.methods if method in HEADLINE]) for table in first]
        wanted += [(table, list(budget.methods(table))) for table in tables]
        for table, of_table in wanted:
            for job in asked.jobs(table, [method for method in of_table if methods is None or method.name in methods]):
                found.setdefault(job.name, job)
    return Plan(jobs=tuple(found.values()), budget=budget, tables=tuple(tables), places=places)


def _among(there: Sequence[object], asked: Sequence[object] | None, what: str) -> None:
    for one in asked or ():
        if one not in there:
            raise UserError(f"{one} is not {what}; choose from {', '.join(map(str, there))}")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The settings that the jobs at one place in the grids of weight decays share."""

    budget: Budget
    places: Places
    grids: Mapping[Data, tuple[float, ...]]
    place: int
    seeds: Sequence[int] | None

    def jobs(self, table: Table, methods: Sequence[Method]) -> Iterator[Job]:
        """The jobs of a table, pair by pair and seed by seed, so that finished pairs can be compared early."""
        for plain in dict.fromkeys(method.plain for method in methods):
            if table.measure == "corruptions" and plain.data not in self.budget.corruptible:
                continue
            if self.place >= len(self.grids[plain.data]):
                continue
            family = [method for method in methods if method.plain == plain]
            chosen = {method for method in family if self._chosen(method)}
            if chosen and plain in family:  # there is no pair without it
                chosen.add(plain)
            own = {method: self._seeds(method)[: None if method in chosen else 1] for method in family}
            for seed in sorted({seed for seeds in own.values() for seed in seeds}):
                trained = {method: self._train(method, seed) for method, seeds in own.items() if seed in seeds}
                yield from trained.values()
                for method in trained:
                    if method in chosen:
                        yield from self._measure(table, method, trained)

    def _seeds(self, method: Method) -> list[int]:
        return [seed for seed in self.budget.seeds_of(method) if self.seeds is None or seed in self.seeds]

    def _chosen(self, method: Method) -> bool:
        """Whether a method is measured at this weight decay: at the first always, at others if its first seed is
        better there.
        """
        grid = self.grids[method.data]
        tried = {
            decay: {seed: robust}
            for seed in self._seeds(method)[:1]
            for place, decay in enumerate(grid)
            if (robust := jobs.validated(self._train(method, seed, place))) is not None
        }
        return self.place == 0 or grid[self.place] == preferred(tried)

    def _train(self, method: Method, seed: int, place: int | None = None) -> Job:
        weight_decay = self.grids[method.data][self.place if place is None else place]
        config = self.budget.config(method, weight_decay=weight_decay, seed=seed)
        return jobs.training(config, self.places.runs, data_root=self.places.of(config, self.budget))

    def _measure(self, table: Table, method: Method, trained: Mapping[Method, Job]) -> Iterator[Job]:
        """The jobs that measure one run for a table."""
        job, size = trained[method], self.budget.size
        where = self.places.of(job.config, self.budget)
        if table.measure == "attacks":
            yield jobs.evaluation(job, table.suite, size(table.suite), data_root=where)
        elif table.measure == "corruptions":
            yield jobs.corruption(job, size("corruptions"), data_root=where)
        elif job.config.training.seed == self.budget.seeds[0] and self.place == 0:
            if method.variant:  # a pair is diagnosed once
                yield jobs.diagnosis(job, trained.get(method.plain), size("inside"), data_root=where)
            elif len(table.methods) == 1:
                yield jobs.diagnosis(job, None, size("inside"), data_root=where)


PHOTOS, _TEST, _SIDE = 240, 40, 32


def digits_as_photos(folder: Path) -> Path:
    """Write the first digits into train/<class>/ and val/<class>/, enlarged and as RGB, unless they exist already.
    Returns the folder.
    """
    done = folder / "complete"
    if not done.exists():
        data = load("digits")
        for part, images in (("train", data.train.first(PHOTOS)), ("val", data.test.first(_TEST))):
            pixels, labels = images.batch(torch.arange(len(images)))
            for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
                path = folder / part / f"digit-{label}" / f"{number:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(_png(image))
        write_atomically(done, b"")
    return folder


def _png(image: Tensor) -> bytes:
    """An image (1, H, W) in [0, 1] as a PNG file."""
    out, grey = io.BytesIO(), Image.fromarray((255 * image[0]).round().byte().numpy())
    grey.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()
