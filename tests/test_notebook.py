"""`launch/quickstart.ipynb` runs from top to bottom in a fresh kernel, and what is stored in it is fit to be read."""

import json
import os

import pytest

from tests.conftest import REPOSITORY, xla_flags

nbformat = pytest.importorskip("nbformat", reason="the notebook is read by the extra `test`")
nbclient = pytest.importorskip("nbclient", reason="the notebook is run by the extra `test`")
pytest.importorskip("ipykernel", reason="the notebook is run by the extra `test`")

NOTEBOOK = REPOSITORY / "launch" / "quickstart.ipynb"


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(notebook):
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def test_what_is_stored():
    assert NOTEBOOK.stat().st_size < 300_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert not [
        output for output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"
    ]
    text = json.dumps(notebook)
    assert not [place for place in ("/tmp/", "/home/", "/root/", "/work/", "site-packages") if place in text]


@pytest.mark.long
def test_it_runs(tmp_path):
    """Without the tests' eight devices; programs that were compiled before are kept."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = printed(notebook)
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(1),
        "PYTHONPATH": str(REPOSITORY),
        "IPYTHONDIR": str(tmp_path),
    }
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)  # a cell that fails is a CellExecutionError
    now = printed(notebook)
    assert now.splitlines()[:2] == stored.splitlines()[:2]  # who owns what is the same on every machine
    assert "round 20" in now
