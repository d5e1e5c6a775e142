"""The notebooks from top to bottom, in kernels of their own."""

import base64
import io
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
NAMES = ("train", "sample")  # In this order: the second loads what the first has trained.


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def parameters(notebook):
    cell, = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    return cell


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebooks after all cells ran with SMALL, and the folder that they ran in."""
    folder, done = tmp_path_factory.mktemp("notebooks"), {}
    for name in NAMES:
        notebook = read(name)
        cell = parameters(notebook)
        assert cell.source.count("SMALL = False") == 1
        cell.source = cell.source.replace("SMALL = False", "SMALL = True")
        nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
        ).execute()
        done[name] = notebook
    return done, folder


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def said(notebook):
    return "".join(o.text for o in outputs(notebook) if o.output_type == "stream")


def pictures(notebook, kind="image/png"):
    """The pictures shown, as Pillow opens them."""
    found = (o.get("data", {}).get(kind) for o in outputs(notebook))
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found if data]


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_committed_without_outputs(name):
    for cell in read(name).cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_jax_stays_as_it_is(name):
    install, = (c.source for c in read(name).cells if '"pip"' in c.source)
    assert '"-c", "keep.txt"' in install and "--upgrade" not in install
    assert '("jax", "jaxlib", "libtpu")' in install


def test_training(executed):
    done, folder = executed
    text = said(done["train"])
    assert "1,497 images of 8x8x1" in text and "40 steps" in text
    assert "done: 40 steps" in text
    curve, last_grid, samples = pictures(done["train"])
    for picture in (curve, last_grid, samples):
        assert np.asarray(picture.convert("L")).std() > 10
    saved = folder / "runs" / "notebook" / "samples" / "step_00000040.png"
    np.testing.assert_array_equal(np.asarray(last_grid), np.asarray(Image.open(saved)))


def test_sampling(executed):
    done, _ = executed
    drawn, fast, between = pictures(done["sample"])
    assert drawn.size == fast.size == (134, 134)  # 2 by 2 tiles of 64, borders of 2
    assert between.size == (11 * 66 + 2, 3 * 66 + 2)
    gif, = pictures(done["sample"], "image/gif")
    assert gif.n_frames == 20
    bits = re.search(r"([\d.]+) \+- [\d.]+ bits/dim, 4 images", said(done["sample"]))
    assert 0 < float(bits[1]) < 20
