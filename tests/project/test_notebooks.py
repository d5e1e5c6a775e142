"""The notebooks run from top to bottom, each in its own kernel."""

import base64
import io
import os
import pathlib
import re
import sys
import types
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.network.trained import Trained
from nonzero import nonzero_params, tiny_unet

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
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
        done[name] = execute(read(name), folder, {"SMALL = False": "SMALL = True"})
    return done, folder


def execute(notebook, folder, parameters_changed):
    """Runs all cells of a notebook in a folder, with other parameters; the notebook.

    On one device: eight compile longer.
    """
    cell = parameters(notebook)
    for line, other in parameters_changed.items():
        assert cell.source.count(line) == 1
        cell.source = cell.source.replace(line, other)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute(env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"})
    return notebook


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def printed(notebook):
    return "".join(o.text for o in outputs(notebook) if o.output_type == "stream")


def pictures(notebook, kind="image/png"):
    """The pictures shown, as Pillow opens them."""
    data = (o.get("data", {}).get(kind) for o in outputs(notebook))
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in data if png]


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
    text = printed(done["train"])
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
    bits = re.search(r"([\d.]+) \+- [\d.]+ bits/dim, 4 images", printed(done["sample"]))
    assert 0 < float(bits[1]) < 20


def test_published_weights_need_no_workdir(tmp_path):
    model = tiny_unet(channel_multipliers=(1,), attention_resolutions=(), num_groups=4)
    trained = Trained(nonzero_params(model), model, schedule_lib.linear(20, 1e-3, 0.3),
                      Parameterization(), (8, 8, 1))
    ddpm_jax.save_pretrained(trained, tmp_path / "published")
    notebook = read("sample")
    slow = ("sampler=", "trajectory=", "bits_per_dim")  # The same for every model.
    notebook.cells = [c for c in notebook.cells if not any(name in c.source for name in slow)]
    execute(notebook, tmp_path, {
        "SMALL = False": "SMALL = True", "MODEL = WORKDIR": 'MODEL = "published"'})
    drawn, between = pictures(notebook)
    assert between.size == (11 * 66 + 2, 3 * 66 + 2)


@pytest.mark.parametrize("name", NAMES)
def test_drives_and_buckets_are_described_and_opened(name):
    notebook = read(name)
    before = notebook.cells[:notebook.cells.index(parameters(notebook))]
    text = "".join(cell.source for cell in before)
    cell, = (c for c in notebook.cells if "google.colab" in c.source)
    for path in ("/content/drive/MyDrive/first", "gs://bucket/first"):
        assert path in text
        colab = types.SimpleNamespace(auth=mock.Mock(), drive=mock.Mock())
        with mock.patch.dict(sys.modules, {"google.colab": colab}):
            exec(cell.source, {"WORKDIR": path, "sys": sys})
        assert colab.drive.mount.called == path.startswith("/content")
        assert colab.auth.authenticate_user.called == path.startswith("gs:")
