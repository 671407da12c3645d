"""The sample of an evaluation with a certainty, and what it bounds. All of it follows from the ledger.

The attacks that search run on every image. Those that prove an absence run on a random sample of the images that
resisted the search: its first m in a random order of all images that depends on the seed alone, so a larger sample
contains a smaller one. `looks.looks` says how large it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from advsphere.errors import UserError
from advsphere.evaluation.ledger import CLEAN, Cell, Cost, Ledger
from advsphere.looks import Look, looks, most_with
from advsphere.rng import permutation
from advsphere.stats import CONFIDENCE

SEARCH = 0
"""The size of the sample as long as the search is not over."""


def certain(points: float) -> None:
    """Raise UserError unless it is a possible certainty."""
    if not 0 <= points < 100:
        raise UserError(f"certainty is {points!r}; give points of accuracy, such as 0.5, 'usual' or 'paired'")


def usual_certainty(n: int, *, paired: bool = False) -> float:
    """A fifth of half the 95 % interval of an accuracy of 50 % on n images, in points, to two digits; a tenth if two
    networks are compared, because the interval of a paired difference is shorter and contains the bounds of both.
    """
    return float(f"{100 * 1.96 * 0.5 / math.sqrt(n) / (10 if paired else 5):.2g}")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What the sampled attacks would still take from the robust accuracy, at most.

    Attributes:
        certainty: The most that was allowed, in points.
        survivors: Images that resisted the search.
        sampled: How many of them the sampled attacks tried.
        fell: How many of these they fooled.
        most: How many of the other survivors they would fool, at most.
        n: Number of images.
        confidence: Confidence of the bound.
        looks: The size of the sample and the number of fooled images in it at each look.
    """

    certainty: float
    survivors: int
    sampled: int
    fell: int
    most: int
    n: int
    confidence: float
    looks: tuple[tuple[int, int], ...]

    @property
    def points(self) -> float:
        """The most that they would still take, in points of accuracy."""
        return 100 * self.most / self.n

    def limit(self, error: float) -> int:
        """How many of the other survivors would fall, at most, if that may be false with another probability.

        Args:
            error: Probability that the limit is too low, at most; for `most` it is 1 - `confidence`.

        Returns:
            The number of images. It grows as the error shrinks, up to all others.
        """
        plan = _planned(self.survivors, self.certainty, self.n)
        of_look = next((look.error for look in plan if look.size == self.sampled), 0.0)
        share = of_look * error / (1 - self.confidence)
        return most_with(self.fell, self.sampled, self.survivors, share) - self.fell

    def to_dict(self) -> dict[str, Any]:
        """The bound as JSON data, with the points."""
        return asdict(self) | {"looks": [list(look) for look in self.looks], "points": self.points}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read the data that `to_dict` returned."""
        known = {name: data[name] for name in cls.__dataclass_fields__}
        return cls(**known | {"looks": tuple((size, fell) for size, fell in data["looks"])})

    def __str__(self) -> str:
        tried = f"{self.sampled:,} of the {self.survivors:,} images that resisted the search"
        if self.sampled == self.survivors:
            return f"the attacks that run on a sample tried all {tried}, and fooled {self.fell:,}"
        drawn = f"the attacks that run on a sample tried {tried}, drawn at random, and fooled {self.fell:,}"
        rest = f"on the others they would take at most {self.points:.2f} points more"
        return f"{drawn}; {rest} ({100 * self.confidence:.0f} %)"


class Sampling:
    """The sample in a ledger.

    Attributes:
        certainty: The points that may be left; None for an evaluation without a sample.
        proofs: The attacks that run on the sample.
        search: The attacks that run on all images, and the clean images.
    """

    def __init__(self, book: Ledger) -> None:
        self.book, self.n = book, len(book.labels)
        suite, attacks = book.identity["suite"], book.attacks
        self.certainty: float | None = suite.get("certainty")
        self.proofs = [name for name, settings in attacks.items() if settings.get("proof")]
        self.search = [CLEAN, *(name for name in attacks if name not in self.proofs)]

    def part(self) -> int | None:
        """What is to be done next: the search, or a sample of this size; None if nothing is."""
        if any(len(self._examples(name)) < self.n for name in self.search):
            return SEARCH
        return None if self.certainty is None else self._walked(self.order())[1]

    def order(self) -> list[int]:
        """The images that resisted the search, in the random order in which they are drawn."""
        fooled = self._fooled(self.search)
        order = permutation(self.n, seed=self.book.identity["seed"], epoch=0, purpose="sample").tolist()
        return [i for i in order if i not in fooled]

    def chunks(self, size: int, batch_size: int) -> dict[int, list[int]]:
        """The sample of this size in batches, by the place in the order at which each begins.

        They depend on the plan alone, so neither interruptions nor the number of processes change a batch.
        """
        order, chunks, start = self.order(), dict[int, list[int]](), 0
        for look in self._plan(order):
            if start < look.size <= size:
                chunks |= {i: order[i : min(i + batch_size, look.size)] for i in range(start, look.size, batch_size)}
                start = look.size
        return chunks

    def finish(self) -> None:
        """Once the sample is large enough, record for each of its attacks that the other images were not tried."""
        if self.certainty is None or self.part() is not None:
            return
        resisted = {*self.order()}
        for name in self.proofs:
            others = sorted({*range(self.n)} - {cell.example for cell in self.book.cells(name)})
            cells = [Cell(i, "not_sampled" if i in resisted else "not_run") for i in others]
            if cells:
                self.book.record(name, self.n, cells, Cost(0.0, 0))

    def sample(self) -> set[int]:
        """The images of the sample as far as it has grown, which its attacks have tried or are to try."""
        order = self.order()
        taken, wanted = self._walked(order)
        return {*order[: wanted if wanted is not None else taken[-1][0].size]}

    def bound(self) -> Bound | None:
        """The bound; None without a certainty, and as long as the sample is not complete."""
        if self.certainty is None or self.part() is not None:
            return None
        order = self.order()
        taken, _ = self._walked(order)
        (size, _, error), fell = taken[-1]
        return Bound(
            certainty=self.certainty,
            survivors=len(order),
            sampled=size,
            fell=fell,
            most=most_with(fell, size, len(order), error) - fell,
            n=self.n,
            confidence=CONFIDENCE,
            looks=tuple((look.size, hits) for look, hits in taken),
        )

    def _walked(self, order: list[int]) -> tuple[list[tuple[Look, int]], int | None]:
        """The looks that were taken, with the fooled images at each, and the size of the next one, None after the last.

        A look that found more than its claim allows is followed by the first one that allows as many.
        """
        tried = set.intersection(*(self._examples(name) for name in self.proofs))
        fooled = self._fooled(self.proofs)
        taken: list[tuple[Look, int]] = []
        for look in self._plan(order):
            if taken and look.hits < taken[-1][1]:
                continue
            members = order[: look.size]
            if not tried.issuperset(members):
                return taken, look.size
            taken.append((look, len(fooled.intersection(members))))
            if taken[-1][1] <= look.hits:
                break
        return taken, None

    def _plan(self, order: Sequence[int]) -> Iterator[Look]:
        return _planned(len(order), self.certainty or 0.0, self.n)

    def _examples(self, name: str) -> set[int]:
        return {cell.example for cell in self.book.cells(name) if cell.status != "not_sampled"}

    def _fooled(self, names: Sequence[str]) -> set[int]:
        return {cell.example for name in names for cell in self.book.cells(name) if cell.status == "fooled"}


def _planned(survivors: int, certainty: float, n: int) -> Iterator[Look]:
    return looks(survivors, math.floor(certainty * n / 100 + 1e-9))
