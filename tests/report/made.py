"""Evaluations with numbers that are known, for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from advsphere.analysis.angles import AngleSample, Spread
from advsphere.analysis.classwise import by_class
from advsphere.analysis.curves import Curve
from advsphere.analysis.gradients import RECORD, LayerGradients
from advsphere.analysis.perturbations import Picture
from advsphere.corruption.result import CorruptionCell, CorruptionRecord
from advsphere.evaluation import WORST, Evaluation, Finding, Row, Sign
from advsphere.report.collect import ModelReport, Pictures

N = 200
COUNTS = {"clean": 190, "FGSM": 150, "PGD-20": 121, WORST: 119}
SETTINGS = {"name": "pgd", "steps": 20, "step_size": 0.05, "restarts": 1, "until_fooled": True, "decay": None}


def outcomes(k: int, *, shift: int = 0, n: int = N) -> str:
    """k times "1" among n; shift moves them along, so that two columns can differ."""
    column = "1" * k + "0" * (n - k)
    return column[-shift:] + column[:-shift] if shift else column


def row(name: str, column: str, settings: Mapping[str, Any] | None = None) -> Row:
    return Row(
        name=name,
        outcomes=column,
        settings=settings or {},
        invalid=0,
        unreached=0,
        median=None,
        seconds=1.25,
        forwards=4321,
    )


def evaluation(
    counts: Mapping[str, int] = COUNTS, *, shift: int = 0, model: str = "m" * 64, eps: float = 0.2, **changes: Any
) -> Evaluation:
    rows = [row(name, outcomes(k, shift=shift), SETTINGS) for name, k in counts.items()]
    found = Evaluation(
        clean=rows[0],
        attacks=tuple(rows[1:-1]),
        worst=rows[-1],
        identity={
            "model": {"type": "PixelClassifier", "checksum": model, "scale": 15.0},
            "data": {"name": "digits", "checksum": "d" * 64, "n": N, "shape": [1, 8, 8]},
            "threat": {"norm": "linf", "eps": eps, "bounds": [0.0, 1.0]},
            "suite": {"name": "quick", "head": None, "restarts": 1, "steps": None, "guides": 100, "cascade": False},
            "attacks": {r.name: r.settings for r in rows[1:-1]},
            "seed": 17,
            "batch_size": 250,
            "search": "float32",
        },
        environments=({"advsphere": "0.1.0", "torch": "2.11.0", "processor": "a processor", "threads": 4},),
        ledger="f" * 64,
        findings=(Finding("labels", "ok", "0 to 9 for 10 outputs"),),
        signs=(
            Sign("one step beats many", "absent", "none of 200"),
            Sign("weak at s = 1", "unjudged", "no attack was run at s = 1"),
        ),
    )
    return dataclasses.replace(found, **changes)


def curve(model: str = "m" * 64) -> Curve:
    """A quarter of the examples is lost at each of four radii."""
    return Curve(
        norm="linf",
        at=(0.0, 0.1, 0.2, 0.3),
        broken=tuple(i % 4 + 1 for i in range(N)),
        of=N,
        steps=20,
        seed=0,
        model=model,
        data="d" * 64,
    )


def spread(model: str = "m" * 64, by: float = 0.0) -> Spread:
    """Margins from -20 to 29 degrees clean, and 15 less under attack; angles from 40 to 64. `by` moves them all."""
    margins, angles = [i % 50 - 20.0 + by for i in range(N)], [40.0 + i % 25 - by for i in range(N)]
    return Spread(
        clean=AngleSample(angle=tuple(angles), margin=tuple(margins)),
        adversarial=AngleSample(angle=tuple(v + 5 for v in angles), margin=tuple(v - 15 for v in margins)),
        of=N,
        steps=10,
        seed=0,
        model=model,
        data="d" * 64,
    )


def corruption(by: int = 0, *, names: tuple[str, ...] = ("fog", "contrast", "spatter"), data: str = "d") -> Any:
    """180 of 200 right clean; 120 under the first corruption at severity 1, 10 fewer at each next one, and 20 fewer
    under each next corruption; `by` more everywhere.
    """
    cells = tuple(
        CorruptionCell(corruption=name, severity=s, outcomes=outcomes(130 - 20 * i - 10 * s + by))
        for i, name in enumerate(names)
        for s in range(1, 6)
    )
    source = {"kind": "generated", "table": "CIFAR-10-C", "frost": "procedural", "names": list(names)}
    identity = {"model": {"checksum": "m" * 64}, "data": {"checksum": data * 64}, "corruptions": source}
    clean = CorruptionCell(corruption="clean", severity=0, outcomes=outcomes(180))
    return CorruptionRecord(identity=identity, clean=clean, cells=cells)


GRADIENTS = LayerGradients(
    layers=("a", "b", "c"), kinds=("conv", "norm", "linear"), clean=(1.0, 2.0, 0.0), adversarial=(1.5, 4.0, 0.0)
)
METRICS = [{"epoch": epoch, f"{RECORD}a": 1.0 + epoch, f"{RECORD}b": 2.0 + epoch} for epoch in (1, 2, 3)]


def model(name: str, evaluation_: Evaluation | None = None, **changes: Any) -> ModelReport:
    return ModelReport(name=name, evaluation=evaluation_ or evaluation(), **changes)


def pair(first: str = "PGD-AT", second: str = "PGD-AT+HE", *, examples: int = 0) -> list[ModelReport]:
    """Two models with everything that a report shows, and so many pictures; the second is better under every attack."""
    better = {"clean": 190, "FGSM": 170, "PGD-20": 150, WORST: 149}
    training = {"recipe": "plain", "sphere": None, "training": {"epochs": 20, "seed": 0}}
    sphere = {"recipe": "plain-he", "sphere": {"scale": 15.0, "margin": 0.2}, "training": {"epochs": 20, "seed": 0}}
    labels, classes = [i % 3 for i in range(N)], ("cat", "dog", "fish & chips")
    return [
        model(
            name,
            found,
            curve=curve(),
            spread=spread(by=by),
            classes=by_class(found, labels, classes),
            gradients=GRADIENTS,
            corruption=corruption(int(2 * by)),
            metrics=METRICS,
            training=context,
            pictures=pictures(examples),
        )
        for name, found, context, by in (
            (first, evaluation(), training, 0.0),
            (second, evaluation(better), sphere, 5.0),
        )
    ]


def picture(example: int = 7, prediction: str = "3") -> Picture:
    clean = torch.linspace(0, 1, 64).view(1, 8, 8)
    return Picture(
        example=example, label="5", prediction=prediction, clean=clean, adversarial=(clean + 0.2).clamp(0, 1)
    )


def pictures(count: int) -> Pictures:
    return Pictures("PGD-20", [picture(7 + 2 * i) for i in range(count)])


COMMANDS = [("Check it", "advsphere verify runs/a")]
