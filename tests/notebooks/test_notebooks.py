"""The notebooks run from top to bottom, and are paired with sources that say the same."""

from pathlib import Path

import jax
import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def test_there_is_a_notebook():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_says_what_its_source_says_and_holds_no_output(name):
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    source = jupytext.read(FOLDER / f"{name}.py")
    cells = [(cell.cell_type, cell.source.strip()) for cell in book.cells]
    assert cells == [(cell.cell_type, cell.source.strip()) for cell in source.cells]
    assert not any(cell.get("outputs") for cell in book.cells)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq")  # jupyter_client's, not ours
def test_the_notebook_runs(name, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
