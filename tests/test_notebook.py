"""Proves that docs/demo.ipynb runs from top to bottom: its cells here on few stories, and all of it in Jupyter."""

import gzip
import json
import os
import shutil

import matplotlib
import pytest
from helpers import ROOT

matplotlib.use("Agg")
NOTEBOOK = ROOT / "docs/demo.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def few_stories(tmp_path, monkeypatch):
    """A clone with little text in it, in which a notebook finds itself."""
    (tmp_path / "data").mkdir()
    for part, stories in (("train", 400), ("valid", 30)):
        text = gzip.decompress((ROOT / f"data/tinystories-{part}.txt.gz").read_bytes()).decode()
        few = "<|endoftext|>".join(text.split("<|endoftext|>")[:stories])
        (tmp_path / f"data/tinystories-{part}.txt.gz").write_bytes(gzip.compress(few.encode()))
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    monkeypatch.setenv("STEPS", "4")
    return tmp_path


def test_it_is_ten_cells_without_outputs():
    assert len(CELLS) == 10
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)


@pytest.mark.filterwarnings("ignore")
def test_its_cells_run(few_stories, monkeypatch, capsys):
    import matplotlib.pyplot as plt

    shown, variables = [], {}
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    with plt.rc_context():
        for cell in CELLS:
            exec("".join(cell["source"]), variables)
    assert [len(figure.axes) for figure in shown] == [1, 1, 3]
    plt.close("all")
    diary = variables["diary"]
    assert len(diary.training) == 4
    assert list(diary.validation) == [1, 2, 3, 4]
    assert diary.validation[4] < diary.validation[1] < variables["first_loss"]
    assert (few_stories / "data/notebook/train.bin").is_file()
    heads, queries, keys = variables["weights"]["last"].shape
    assert (heads, queries, keys) == (2, 8, 8)
    assert "temperature 0.8: The little dog" in capsys.readouterr().out


@pytest.mark.slow
def test_it_runs_in_jupyter(tmp_path, monkeypatch):
    """On all of the stories, for a few steps; with SCREENSHOTS=FOLDER, what it shows is kept there."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    (tmp_path / "data").mkdir()
    for part in ("train", "valid"):
        shutil.copy(ROOT / f"data/tinystories-{part}.txt.gz", tmp_path / "data")
    monkeypatch.setenv("STEPS", os.environ.get("STEPS", "40"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    if folder := os.environ.get("SCREENSHOTS"):
        nbformat.write(notebook, os.path.join(folder, "demo.ipynb"))
