"""An evaluation as it is shown: a table for a terminal, a table for a notebook, and one line."""

from __future__ import annotations

import html
import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from advsphere.evaluation.rows import Row
from advsphere.threat import radius

if TYPE_CHECKING:
    from rich.console import Console

    from advsphere.evaluation.results import Evaluation

NO_VERDICT = "not a verdict"
"""Printed instead of an accuracy if a sign of gradient masking shows that the attacks fail on the model."""


def title(evaluation: Evaluation) -> str:
    stands = evaluation.refuted(evaluation.worst) is None
    says = "robust accuracy, an upper bound" if stands else "no verdict on robust accuracy"
    return f"{says}: {_threat(evaluation)}"


def line(evaluation: Evaluation) -> str:
    """Model, threat model, number of images, clean and robust accuracy."""
    model, clean, worst = evaluation.identity["model"].get("type", "a model"), evaluation.clean, evaluation.worst
    accuracy, interval = _accuracy(evaluation, worst, " to ")
    robust = f"at most {accuracy} ({interval})" if interval else accuracy
    return (
        f"<Evaluation of {model}: {_threat(evaluation)}, n = {clean.n}, clean accuracy {100 * clean.accuracy:.1f} %, "
        f"robust accuracy {robust}>"
    )


def text(evaluation: Evaluation, width: int) -> str:
    """The rows, and below them the strongest attack, flags and signs of gradient masking."""
    from rich.table import Table

    table = Table(title=title(evaluation), title_justify="left")
    for i, heading in enumerate(_headings(evaluation)):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for row in evaluation.rows:
        table.add_row(*_cells(evaluation, row), style="bold" if row is evaluation.worst else None)
    console = plain_console(width)
    with console.capture() as printed:
        console.print(table)
        for line in _below(evaluation):
            wrapped = textwrap.wrap(line, width, subsequent_indent="    ", break_on_hyphens=False)
            console.print("\n".join(wrapped), soft_wrap=True)
    return printed.get()


def plain_console(width: int) -> Console:
    """A console to capture plain text. Without `force_jupyter`, rich would show the text in a notebook by itself."""
    from rich.console import Console

    out = io.StringIO()
    return Console(
        file=out, width=width, highlight=False, markup=False, emoji=False, force_jupyter=False, color_system=None
    )


def notebook(evaluation: Evaluation) -> str:
    rows = [_cells(evaluation, row) for row in evaluation.rows]
    return html_table(title(evaluation), _headings(evaluation), rows, _below(evaluation))


def html_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], below: Sequence[str]) -> str:
    """A table for a notebook, with its last row in bold and lines below it. It sets no colours, so it fits the light
    and the dark theme.
    """
    left, right = 'style="text-align: left; {}"', 'style="text-align: right; white-space: nowrap; {}"'

    def row_of(cells: Sequence[str], tag: str, weight: str) -> str:
        first, *rest = map(html.escape, cells)
        numbers = "".join(f"<{tag} {right.format(weight)}>{cell}</{tag}>" for cell in rest)
        return f"<tr><th {left.format(weight)}>{first}</th>{numbers}</tr>"

    weights = [*["font-weight: normal"] * (len(rows) - 1), "font-weight: bold"]
    body = "".join(row_of(row, "td", weight) for row, weight in zip(rows, weights, strict=True))
    lines = "".join(f"<div>{html.escape(line)}</div>" for line in below)
    return (
        f'<div style="max-width: 60em; overflow-x: auto"><div><b>{html.escape(title)}</b></div>'
        f"<table><thead>{row_of(headings, 'th', 'font-weight: bold')}</thead><tbody>{body}</tbody></table>{lines}</div>"
    )


def _threat(evaluation: Evaluation) -> str:
    threat = evaluation.identity["threat"]
    return f"{threat['norm']}, eps = {radius(threat['eps'])}"


def _accuracy(evaluation: Evaluation, row: Row, dash: str) -> tuple[str, str]:
    """An accuracy in percent and its interval; no numbers if a sign of gradient masking refutes them."""
    if evaluation.refuted(row):
        return NO_VERDICT, ""
    low, high = row.interval
    return f"{100 * row.accuracy:.1f} %", f"{100 * low:.1f}{dash}{100 * high:.1f}"


def _headings(evaluation: Evaluation) -> list[str]:
    medians = any(row.median is not None for row in evaluation.rows)
    return ["", "accuracy", "95 % interval", "k / n", *["median norm"] * medians, "seconds"]


def _cells(evaluation: Evaluation, row: Row) -> list[str]:
    columns = len(_headings(evaluation))
    if not row.ran:
        return [row.name, "not run", *[""] * (columns - 2)]
    median = ["" if row.median is None else f"{row.median:.3g}"] * (columns - 5)
    return [row.name, *_accuracy(evaluation, row, " - "), f"{row.k} / {row.n}", *median, f"{row.seconds:.1f}"]


def _below(evaluation: Evaluation) -> list[str]:
    best = evaluation.strongest
    stands = evaluation.refuted(evaluation.worst) is None  # where the attacks fail, the best of them says nothing
    lines = [f"strongest: {best}"] if stands and best is not None else []
    lines += [f"! {flag}" for flag in evaluation.flags]
    for sign in evaluation.raised:
        lines += [f"! sign of gradient masking: {sign.check}", f"    {sign.detail}", f"    -> {sign.advice}"]
    return [*lines, evaluation.looked_for]
