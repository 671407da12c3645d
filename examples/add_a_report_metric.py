"""Add a metric to the report: how well the confidence of a network matches its accuracy, clean and under noise.

    advsphere report runs/mine --section add_a_report_metric:calibration

A section is a function of the models of a report, the baseline first. It returns HTML, or None if it has nothing to
show. `table` makes a table like the others on the page.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from advsphere.classifier import frozen
from advsphere.report import ModelReport, section, table
from advsphere.report.collect import Source


@section("Calibration", order=65)
def calibration(models: Sequence[ModelReport]) -> str | None:
    """The expected calibration error of each model in percentage points."""
    sources = {model.name: model.source for model in models if model.source is not None}
    if not sources:
        return None
    rows = [[name, f"{error(source):.1f}", f"{error(source, noise=0.1):.1f}"] for name, source in sources.items()]
    return table("Expected calibration error (10 bins), in points.", ["model", "clean", "Gaussian noise of 0.1"], rows)


def error(source: Source, noise: float = 0.0, bins: int = 10) -> float:
    """The mean gap between confidence and accuracy (Guo et al., ICML 2017, equation 3), in points."""
    x, y = source.images.batch(torch.arange(len(source.images)))
    generator = torch.Generator().manual_seed(0)
    x = (x + noise * torch.randn(x.shape, generator=generator).to(x)).clamp(0, 1)
    with frozen(source.network) as classify, torch.no_grad():
        confidence, predicted = torch.cat([classify(part) for part in x.split(250)]).softmax(1).max(1)
    gap = (predicted == y).double() - confidence.double()
    bin_ = (confidence * bins).long().clamp(max=bins - 1)
    return 100 * sum(gap[bin_ == i].sum().abs().item() for i in range(bins)) / len(y)


if __name__ == "__main__":
    from advsphere.cli import main

    for recipe in ("digits-standard", "digits-fastat"):
        main(["train", recipe, "--epochs", "2", "--out", f"runs/{recipe}"])
        main(["evaluate", f"runs/{recipe}", "--n", "100", "--steps", "2"])
    main(["report", "runs/digits-standard", "runs/digits-fastat"])  # --section is not needed: this file registered it
