"""What a finished run says about its network besides accuracy: collapses, robust overfitting, and chance."""

from __future__ import annotations

from pathlib import Path

from advsphere.runs.folder import held_out, read_classes, read_collapses, read_config
from advsphere.stats import more_than, wilson
from advsphere.training import read_metrics


def warnings_of(folder: Path) -> list[str]:
    """What a user of a run's networks must know.

    Args:
        folder: The run's folder.

    Returns:
        A sentence for each collapse and what the guard did, one if the last network is less robust than the best (Rice
        et al. 2020, arXiv 2002.11569), and one if the last network is no better than chance.

    Raises:
        UserError: If a file of the run is missing or damaged.
    """
    config, classes = read_config(folder), read_classes(folder)
    found = [str(collapse) for collapse in read_collapses(folder)]
    validated = [metrics for metrics in read_metrics(folder) if {"clean", "robust"} <= metrics.keys()]
    if not validated:
        return found
    last, n = validated[-1], held_out(folder)
    best = max(validated, key=lambda metrics: (metrics["robust"], metrics["epoch"]))
    if config.objective.chosen_by == "robust" and wilson(round(n * last["robust"]), n)[1] < best["robust"]:
        found.append(
            f"robust overfitting: {best['robust']:.1%} of the held-out images resist PGD-10 after epoch "
            f"{best['epoch']:.0f}, and {last['robust']:.1%} after the last one; use best.safetensors"
        )
    if classes and not more_than(round(n * last["clean"]), n, 1 / len(classes)):
        found.append(
            f"the last network is at chance level: {last['clean']:.1%} of the held-out images are right, and guessing "
            f"among {len(classes)} classes gives {1 / len(classes):.1%}"
        )
    return found
