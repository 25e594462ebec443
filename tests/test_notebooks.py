"""Every notebook runs, in its own kernel, without an error or a warning on the page."""

import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

import ppl
from ppl.errors import UnsupportedError
from tests.conftest import FAST

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TIMEOUT = 600  # seconds a cell; a notebook is meant to take under 60 in all, or 180 with a model
PROGRESS = r"\r[\w() ,]+: +\d+%\|[^\r\n]*"  # a bar is no complaint
# Warnings are errors inside the kernel, as they are in the test suite.
STRICT = """
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel")
"""


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook as it is stored."""
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def faults(notebook: nbformat.NotebookNode) -> list[str]:
    """List what an executed notebook complains of; errors have stopped it before."""
    texts = [
        re.sub(PROGRESS, "", output.text).strip()
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]
    return [text for text in texts if text]


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook's cells in a fresh kernel, in order; raise if one raises."""
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
    client = nbclient.NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def require_weights(path: Path) -> None:
    """Skip if a notebook reads a model's weights, which are not there and cannot be downloaded."""
    if "ppl.lm.smollm2()" in path.read_text("utf-8"):
        try:
            ppl.lm.smollm2()
        except UnsupportedError as error:
            pytest.skip(f"{path.name} needs the weights of a language model: {error}")


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """Let a kernel started now import the checkout, and keep its files out of the way."""
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures on the page, as a reader sees them
    # Compiled as a reader's is: a notebook runs for longer than it compiles.
    flags = os.environ.get("XLA_FLAGS", "").replace(FAST, "")
    monkeypatch.setenv("XLA_FLAGS", flags.strip())  # a blank would be the name of a file
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs_and_ends_in_asserts(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
    assert notebook.cells[0].source.startswith("# ")
    assert code_cells(notebook)[-1].source.splitlines()[-1].startswith("assert ")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the client's own libraries; the kernel's are errors
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, kernel):
    require_weights(path)
    executed = execute(read(path), kernel)
    assert faults(executed) == []
    assert list(kernel.glob("*.*")) == []  # nothing is left in the reader's folder


def test_without_weights_a_notebook_is_skipped_by_name(monkeypatch):
    def missing():
        raise UnsupportedError("they cannot be had")

    monkeypatch.setattr(ppl.lm, "smollm2", missing)
    with pytest.raises(pytest.skip.Exception, match=r"06_.*ipynb needs the weights.*cannot be had"):
        require_weights(FOLDER / "06_language_model_steps.ipynb")
    require_weights(FOLDER / "05_programmable_vi.ipynb")  # reads none, and runs


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_complaint_on_the_page_is_a_fault(kernel):
    cell = nbformat.v4.new_code_cell(
        "import sys; print('\\rmcmc:   1%| | 9/999 [00:00<?, ?it/s]\\ncareful', file=sys.stderr)"
    )
    assert faults(execute(nbformat.v4.new_notebook(cells=[cell]), kernel)) == ["careful"]


BROKEN = {
    "assertion": "assert 1 == 2",
    "warning": "import warnings; warnings.warn('old')",
    "display": "class Bad:\n    def _repr_html_(self):\n        raise ValueError\nBad()",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_a_broken_notebook_fails(source, kernel):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        execute(notebook, kernel)
