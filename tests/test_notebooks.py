"""The notebooks of the documentation run as they stand.

python -m tests.test_notebooks   # run them, and keep what they show
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def run(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook in a folder. A cell that fails raises an error with its traceback."""
    book = nbformat.read(notebook, as_version=4)
    own = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where the command `advsphere` is
    plain = {"PATH": own, "NO_COLOR": "1", "IPYTHONDIR": str(folder / ".ipython"), "TQDM_DISABLE": "1"}
    with patch.dict(os.environ, plain):
        NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # the times
        if "outputs" in cell:
            bar = {"text/plain": ""}  # what a bar leaves, if it was there long enough to be shown
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and o.get("data") != bar]
    return book


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_the_page_shows(notebook: Path, tmp_path: Path) -> None:
    def shown(book: nbformat.NotebookNode) -> list[set[str]]:
        """The kinds of outputs of each cell. Their numbers depend on the machine, and text may come in pieces."""
        return [{kind for out in cell.get("outputs", ()) for kind in out.get("data", ["text"])} for cell in book.cells]

    assert shown(run(notebook, tmp_path)) == shown(nbformat.read(notebook, as_version=4))


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(run(path, Path(folder)), path)
