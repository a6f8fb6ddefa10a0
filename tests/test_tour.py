"""The notebook docs/tour.ipynb runs from top to bottom in a kernel of its own, and shows what it says.

`jupyter execute --inplace docs/tour.ipynb` writes its outputs again; leave out what goes to the standard error.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from lmms import LAUNCHERS_OWN

MOST_BYTES = 300_000
"""Of the notebook as it is stored, outputs included."""


@pytest.fixture(scope="module")
def stored(repository: Path) -> Any:
    nbformat = pytest.importorskip("nbformat", reason="nbformat comes with the dev extra")
    notebook = nbformat.read(repository / "docs" / "tour.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


def outputs(notebook: Any, kind: str) -> list[str]:
    """The data of that kind that the cells show, and what they print for "stdout" and "stderr"."""
    found = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    streams = [output.text for output in found if output.get("name") == kind]
    return streams + [output.data[kind] for output in found if kind in output.get("data", ())]


def test_it_is_stored_small_with_its_outputs_and_without_a_path(stored: Any, repository: Path) -> None:
    assert (repository / "docs" / "tour.ipynb").stat().st_size < MOST_BYTES
    assert len(stored.cells) <= 10 and outputs(stored, "image/png") and not outputs(stored, "stderr")
    texts = [cell.source for cell in stored.cells] + outputs(stored, "text/html") + outputs(stored, "stdout")
    assert not [text for text in texts if re.search(r"/(?:root|home|tmp|Users)/", text)]
    assert all(cell.execution_count for cell in stored.cells if cell.cell_type == "code")


def test_its_links_are_pages(stored: Any, repository: Path) -> None:
    links = [link for cell in stored.cells for link in re.findall(r"\]\(([^)]+)\)", cell.source)]
    assert links and all((repository / "docs" / link).is_file() for link in links)


@pytest.mark.slow
def test_every_cell_runs_and_is_quiet(
    stored: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient comes with the dev extra")
    pytest.importorskip("ipykernel", reason="ipykernel comes with the dev extra")
    # A kernel of this interpreter and this checkout, whatever is installed for the user.
    kernel = tmp_path / "share" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "test", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    # Other tests leave some of a launcher's variables behind, with which a run would look for other ranks.
    for name in LAUNCHERS_OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")]))
    nbclient.NotebookClient(stored, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    # transformers shows a bar while it loads weights.
    noise = [text for text in outputs(stored, "stderr") if text.strip() and "Loading weights" not in text]
    assert noise == []
    pages = outputs(stored, "text/html")
    assert re.search(r"asking before 48/48 .* · adapting 4/4 .* · asking after 48/48", " ".join(pages))
    tables = [page for page in pages if "<table" in page]
    assert len(outputs(stored, "image/png")) == 2 and len(tables) == 3 and "maj_at_n" in tables[-1]
    assert (tmp_path / "adapted-digits" / "README.md").is_file()
