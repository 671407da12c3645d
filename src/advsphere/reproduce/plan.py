"""The plan of one table or of several: a graph of jobs, in the order in which they are worth having."""

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
from advsphere.reproduce.tables import HEADLINE, Arm, Data, Table
from advsphere.runs.config import Config

# FOLDED photos: The embedded digits as a folder of colour images, so that what needs such a folder can be tried
# FOLDED photos: anywhere.

PHOTOS, _TEST, _SIDE = 240, 40, 32


def digits_as_photos(folder: Path) -> Path:
    """Write the first digits as train/<class>/ and val/<class>/, enlarged and in three equal colours; returns the
    folder. What is there already is kept.
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
    """(1, H, W) in [0, 1] as a file."""
    out, grey = io.BytesIO(), Image.fromarray((255 * image[0]).round().byte().numpy())
    grey.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


_IMAGES = {"digits": 1237, "cifar10": 49_000, DRAWN: PHOTOS, "tiny-imagenet-40": 19_000, "imagenet": 1_280_000}
"""Training images, about."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """runs: where runs are kept. images: the folder of Table 4's images; without it $ADVSPHERE_DATA is looked at."""

    runs: Path
    images: Path | None = None

    def of(self, config: Config, budget: Budget) -> Path | None:
        """What has to be named for a config's data: a folder of images. Raises UserError where it is missing."""
        if config.data.name != "imagefolder":
            return None
        if budget.folder == DRAWN:
            return digits_as_photos(self.runs / DRAWN)
        found = self.images or Path(os.environ.get("ADVSPHERE_DATA", "data")) / budget.folder
        if not found.is_dir():
            raise UserError(
                f"Table 4 is of a folder with train/<class>/ and val/<class>/: no {found}; name it: --images"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Plan:
    """jobs: every one after those it needs, in order of priority. budget, tables: what it is for."""

    jobs: tuple[Job, ...]
    budget: Budget
    tables: tuple[Table, ...]
    places: Places

    @property
    def open(self) -> tuple[Job, ...]:
        """Those that are not done."""
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
    """The jobs of these tables; a job that two of them need is there once. weight_decays, seeds, methods: those of the
    budget and the tables by default. Raises UserError for what they have not, and where a recipe or a folder of images
    is missing.

    Every arm is measured at the first weight decay. At each further one its first seed is trained; the other seeds are,
    and all are attacked, where held-out training images prefer that training, and those of its plain partner too: a
    plan made then has more jobs. What the other seeds say changes no plan, so that no job leaves it again.
    """
    methods_there = sorted({arm.name for table in tables for arm in table.arms})
    _among(methods_there, methods, "a method of these tables")
    _among(sorted({*budget.seeds, *budget.headline_seeds}), seeds, f"a seed of budget {budget.name}")
    decays = sorted({*chain(*budget.weight_decays.values())}, reverse=True)
    _among(decays, weight_decays, f"a weight decay of budget {budget.name}")
    found: dict[str, Job] = {}
    first = sorted(tables, key=lambda table: table.suite != "survival")
    grids = budget.weight_decays if weight_decays is None else dict.fromkeys(budget.weight_decays, tuple(weight_decays))
    for place in range(max(map(len, grids.values()))):
        asked = _Asked(budget=budget, places=places, grids=grids, place=place, seeds=seeds)
        # The headline's pair before all else, and what survives of its gain.
        wanted = [(table, [arm for arm in table.arms if arm in HEADLINE]) for table in first]
        wanted += [(table, list(budget.arms(table))) for table in tables]
        for table, arms in wanted:
            for job in asked.jobs(table, [arm for arm in arms if methods is None or arm.name in methods]):
                found.setdefault(job.name, job)
    return Plan(jobs=tuple(found.values()), budget=budget, tables=tuple(tables), places=places)


def _among(there: Sequence[object], asked: Sequence[object] | None, what: str) -> None:
    for one in asked or ():
        if one not in there:
            raise UserError(f"{one} is not {what}; there are {', '.join(map(str, there))}")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What all jobs of one place in the grids of weight decays share."""

    budget: Budget
    places: Places
    grids: Mapping[Data, tuple[float, ...]]
    place: int
    seeds: Sequence[int] | None

    def jobs(self, table: Table, arms: Sequence[Arm]) -> Iterator[Job]:
        """Pair by pair and seed by seed, so that what is finished can be compared already."""
        for plain in dict.fromkeys(arm.plain for arm in arms):
            if table.measure == "corruptions" and plain.data not in self.budget.corruptible:
                continue
            if self.place >= len(self.grids[plain.data]):
                continue
            family = [arm for arm in arms if arm.plain == plain]
            chosen = {arm for arm in family if self._chosen(arm)}
            if chosen and plain in family:  # there is no pair without it
                chosen.add(plain)
            own = {arm: self._asked(arm)[: None if arm in chosen else 1] for arm in family}
            for seed in sorted({seed for seeds in own.values() for seed in seeds}):
                trained = {arm: self._train(arm, seed) for arm, seeds in own.items() if seed in seeds}
                yield from trained.values()
                for arm in trained:
                    if arm in chosen:
                        yield from self._measure(table, arm, trained)

    def _asked(self, arm: Arm) -> list[int]:
        return [seed for seed in self.budget.seeds_of(arm) if self.seeds is None or seed in self.seeds]

    def _chosen(self, arm: Arm) -> bool:
        """Whether it is at its best at this weight decay, as its first seed tells; at the first one, always."""
        grid = self.grids[arm.data]
        tried = {
            decay: {seed: robust}
            for seed in self._asked(arm)[:1]
            for place, decay in enumerate(grid)
            if (robust := jobs.validated(self._train(arm, seed, place))) is not None
        }
        return self.place == 0 or grid[self.place] == preferred(tried)

    def _train(self, arm: Arm, seed: int, place: int | None = None) -> Job:
        weight_decay = self.grids[arm.data][self.place if place is None else place]
        config = self.budget.config(arm, weight_decay=weight_decay, seed=seed)
        images = _IMAGES[self.budget.folder if config.data.name == "imagefolder" else config.data.name]
        return jobs.training(config, self.places.runs, images=images, data_root=self.places.of(config, self.budget))

    def _measure(self, table: Table, arm: Arm, trained: Mapping[Arm, Job]) -> Iterator[Job]:
        """What a table asks of one run."""
        job, effort = trained[arm], self.budget.effort
        where = self.places.of(job.config, self.budget)
        if table.measure == "attacks":
            yield jobs.evaluation(job, table.suite, effort(table.suite), data_root=where)
        elif table.measure == "corruptions":
            yield jobs.corruption(job, effort("corruptions"), data_root=where)
        elif job.config.training.seed == self.budget.seeds[0] and self.place == 0:
            if arm.variant:  # a pair is looked at once
                yield jobs.diagnosis(job, trained.get(arm.plain), effort("inside"), data_root=where)
            elif len(table.arms) == 1:
                yield jobs.diagnosis(job, None, effort("inside"), data_root=where)
