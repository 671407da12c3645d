"""What public objects show in a notebook: one short line each, a small table for a result, and all names in `dir`."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import advsphere as adv
from advsphere.comparison.gain import measure_gains
from advsphere.data import Dataset, ImageSet, from_dataset, image_folder
from advsphere.data.encoded import View
from advsphere.data.folders import scan_folder
from advsphere.evaluation import Ledger, Progress, Sign
from advsphere.evaluation.progress import progress_bar
from advsphere.evaluation.verification import Verification
from tests.report.made import evaluation

MASKED = Sign("attacks fail", "raised", "at eps 1", "use black-box", refutes="every attack")
THREAT = adv.ThreatModel(norm="linf", eps=0.1)
PIXELS = ImageSet(torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 1]), ("a", "b"), "zeros")


class Cells(HTMLParser):
    """The rows of all tables, and the tags that are open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.open, self.tags = list[list[str]](), list[str](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_an_evaluation_in_a_line() -> None:
    found = evaluation()
    low, high = (f"{100 * share:.1f}" for share in found.worst.interval)
    assert repr(found) == (
        "<Evaluation of PixelClassifier: linf, eps = 0.2, n = 200, clean accuracy 95.0 %, "
        f"robust accuracy at most 59.5 % ({low} to {high})>"
    )
    assert repr(found.worst) == (f"<Row worst case: accuracy 59.5 %, 95 % interval {low} to {high}, k / n = 119 / 200>")
    masked = repr(replace(found, signs=(MASKED,)))
    assert masked.endswith("clean accuracy 95.0 %, robust accuracy not a verdict>") and "59.5" not in masked


def test_an_evaluation_in_a_notebook_has_the_numbers_of_its_table() -> None:
    for found in (evaluation(), replace(evaluation(), signs=(MASKED,)), evaluation({"clean": 190, "a < b": 9, "w": 9})):
        text = found._repr_html_()
        shown = Cells(text)
        assert not shown.open and "script" not in shown.tags and "style" not in shown.tags
        assert not re.search(r"color|background", text)  # those of the notebook's theme stay
        assert shown.rows[0] == ["", "accuracy", "95 % interval", "k / n", "seconds"]
        assert [row[0] for row in shown.rows[1:]] == [row.name for row in found.rows]
        printed = found.table(width=200)
        for row in shown.rows[1:]:
            (line,) = (one for one in printed.splitlines() if row[0] in one and row[3] in one)
            assert all(cell in line for cell in row)


def test_a_table_is_text_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = evaluation().table()
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert evaluation().table() == printed


def test_bars_in_a_notebook_are_text_that_is_written_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, now = list[str](), [0.0]
    handle = SimpleNamespace(display=lambda data, raw: shown.append(data["text/plain"]))
    handle.update = handle.display
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(DisplayHandle=lambda: handle))
    monkeypatch.setattr("advsphere.bars.time.monotonic", lambda: now[0])
    with progress_bar() as show:
        for done in range(6):
            show(Progress(attack="PGD", done=done, total=5, robust=done, seconds=1.0, images=done))
            now[0] += 0.8
    assert [line.split("/")[0][-1:] for line in shown] == ["3", "4", "5", ""] and "PGD" in shown[0]
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a notebook
    with progress_bar():
        print("the user's own line")
    assert len(shown) == 4  # nothing of short work
    assert capsys.readouterr().out == "the user's own line\n"


def test_a_mistake_in_a_notebook_shows_the_users_lines_and_the_message() -> None:
    network = "class Net(Linear):\n    def forward(self, x):\n        return x.view(7)\n"
    cell = network + "adv.fgsm(Net(8, 2), *given, threat=threat)"
    given = PIXELS.pixels, PIXELS.labels
    with pytest.raises(adv.UserError) as caught:
        exec(compile(cell, "<cell>", "exec"), {"adv": adv, "Linear": torch.nn.Linear, "given": given, "threat": THREAT})
    *lines, message = (line.split("\n")[0] for line in caught.value._render_traceback_())
    assert lines[-2:] == ["a cell, line 4, in <module>", "a cell, line 3, in forward"] and len(lines) == 3
    assert message.startswith("NetworkError: the model can't take 3 images of shape (1, 8, 8): RuntimeError: shape")


def test_code_that_a_dataclass_wrote_is_none_of_the_user() -> None:
    with pytest.raises(adv.UserError) as caught:
        adv.ThreatModel(norm="l3", eps=1)
    (line,) = caught.value._render_traceback_()[:-1]
    assert line.startswith(__file__)


def test_a_comparison_in_a_notebook() -> None:
    other = evaluation({"clean": 188, "FGSM": 160, "PGD-20": 140, "worst case": 135}, model="n" * 64, shift=5)
    gains = measure_gains([evaluation()], [other])
    shown = Cells(gains._repr_html_())
    assert not shown.open and [row[0] for row in shown.rows[1:]] == [gain.name for gain in gains.gains]
    assert shown.rows[-1][1:4] == ["59.5", "67.5", "+8.0"]
    assert gains.sentence in gains._repr_html_().replace("&#x27;", "'")
    assert repr(gains) == f"<Gains: {gains.verdict}; 200 images, 1 and 1 seeds>"


def test_data_sets_in_a_line(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "x.png")
    assert repr(PIXELS) == "<ImageSet zeros: 3 images 1 x 8 x 8, 2 classes>"
    folder = f"{tmp_path.name}: 2 images 3 x 8 x 8, 2 classes>"
    assert repr(scan_folder(tmp_path, View(8, 8))) == f"<FolderImages {folder}"
    assert repr(image_folder(tmp_path, 8)) == f"<ImageSet {folder}"
    assert repr(Dataset(PIXELS, PIXELS)) == f"Dataset(train={PIXELS!r}, test={PIXELS!r}, note='')"
    assert len(repr(from_dataset((PIXELS.pixels, PIXELS.labels)))) < 80


def test_a_ledger_and_a_verification_in_a_line(tmp_path: Path) -> None:
    nothing = {"identity": {"attacks": {}}, "labels": [0], "environment": {}}
    assert repr(Ledger.create_or_resume(None, **nothing)) == "<Ledger in memory>"
    book = Ledger.create_or_resume(tmp_path / "a.sqlite", **nothing)
    book.close()
    assert repr(book) == f"<Ledger {tmp_path / 'a.sqlite'}>"
    passed = Verification(tuple(evaluation().findings or ()))
    assert repr(passed) == f"<Verification: {len(passed.findings)} checks, verified>"
    failed = Verification((replace(passed.findings[0], check="model", status="failed"),))
    assert repr(failed) == "<Verification: 1 checks, NOT verified, failed: model>"


def test_dir_lists_all_names_and_each_is_there() -> None:
    assert {"auto_attack", "apgd", "load", "train", "evaluation", "__version__"} <= {*dir(adv)}
    for name in dir(adv):
        assert getattr(adv, name) is not None


def test_documented_modules_need_no_import_of_their_own() -> None:
    code = (
        "import advsphere as adv; print(adv.evaluation.Ledger.__name__, adv.attacks.fab.__name__, 'threat' in dir(adv))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Ledger fab True\n"
