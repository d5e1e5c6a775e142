"""Models in one file, and those that travel in the package (`embedded.py`)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_array_equal

import ddpm_jax
from ddpm_jax.diffusion import process, rescaled
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.errors import UserError
from ddpm_jax.network.trained import About, Trained
from ddpm_jax.training import warm_start
from ddpm_jax.weights import embedded
from nonzero import SHAPE, TinyNet, nonzero_params, tiny_unet


def model(**fields):
    net = tiny_unet(**fields)
    return Trained(
        nonzero_params(net), net, rescaled.shifted(schedule_lib.cosine(20), 128),
        process.Parameterization("v", "fixed_small"), SHAPE, value_range=(0.0, 65535.0), bins=65536,
        vector_scale=((0.5, 2.0), (0.1, 3.0)) if fields.get("vector_size") else (),
        about=About({"seed": 1}, 77, ("ant", "bee")),
    )


def assert_same(one, other):
    jax.tree.map(assert_array_equal, one.params, other.params)
    for name in ("model", "diffusion", "image_shape", "value_range", "bins", "vector_scale",
                 "step", "class_names"):
        assert getattr(one, name) == getattr(other, name), name
    assert_array_equal(one.schedule.beta, other.schedule.beta)


@pytest.mark.parametrize("fields", [
    {}, {"num_classes": 2, "augment_channels": 3, "self_condition": True},
    {"vector_size": 2, "condition_channels": 1, "num_groups": 2, "norm_eps": 1e-5},
])
def test_a_file_gives_the_model_back(tmp_path, fields):
    trained, path = model(**fields), tmp_path / "model.safetensors"
    ddpm_jax.save_pretrained(trained, path)
    found = ddpm_jax.from_pretrained(path)
    assert_same(found, trained)
    assert found.config is None
    params, net = warm_start.find(str(path), trained.model, SHAPE)
    jax.tree.map(assert_array_equal, params, trained.params)
    assert net == trained.model
    with pytest.raises(UserError, match="names its network itself; write ddpm_jax.from_pretrain"):
        ddpm_jax.from_state_dict(path)


def test_bfloat16_is_half_the_size_and_rounds(tmp_path):
    trained = model()
    for dtype in ("float32", "bfloat16"):
        ddpm_jax.save_pretrained(trained, tmp_path / f"{dtype}.safetensors", dtype=dtype)
    sizes = [(tmp_path / f"{dtype}.safetensors").stat().st_size
             for dtype in ("float32", "bfloat16")]
    assert 1.6 < sizes[0] / sizes[1] < 2
    rounded = trained.replace(params=jax.tree.map(
        lambda x: np.asarray(jnp.bfloat16(x), np.float32), trained.params))
    assert_same(ddpm_jax.from_pretrained(tmp_path / "bfloat16.safetensors"), rounded)


def test_other_files_and_options_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    ddpm_jax.save_pretrained(model(), path)
    for option in ({"null_label": True}, {"scheduler": {}}, {"variant": "fp16"}):
        with pytest.raises(UserError, match="is for models of diffusers, and .*model.safetensors"):
            ddpm_jax.from_pretrained(path, **option)
    for wrong in ({"dtype": "float16"}, {"dtype": 3}):
        with pytest.raises(UserError, match="dtype=.* is not known|dtype=3"):
            ddpm_jax.save_pretrained(model(), path, **wrong)
    with pytest.raises(UserError, match="dtype='bfloat16' is for one file"):
        ddpm_jax.save_pretrained(model(), tmp_path / "folder", dtype="bfloat16")
    with pytest.raises(UserError, match="model is a TinyNet, and such a file is for a UNet"):
        ddpm_jax.save_pretrained(model().replace(model=TinyNet()), path)
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="does not say of which network; write ddpm_jax.from_state"):
        ddpm_jax.from_pretrained(path)
    safetensors.numpy.save_file(
        {"a": np.zeros(3, np.float32)}, path, {"ddpm_jax": json.dumps({"version": 2})})
    with pytest.raises(UserError, match="was written by a later version of this package"):
        ddpm_jax.from_pretrained(path)
    path.write_bytes(b"\x10" + bytes(7) + b"no JSON at all..")
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        ddpm_jax.from_pretrained(path)


def test_the_models_of_the_package():
    assert embedded.names() == ["digits", "fashion-mnist"]
    sizes = [path.stat().st_size for path in embedded.FOLDER.iterdir()]
    assert sum(sizes) < 6e6
    for name, shape in (("digits", (8, 8, 1)), ("fashion-mnist", (28, 28, 1))):
        trained = ddpm_jax.from_pretrained(name)
        assert trained.image_shape == shape and len(trained.class_names) == 10
        card = (embedded.FOLDER / f"{name}.md").read_text()
        assert all(word in card for word in ("python main.py", "Data", "steps", "Figures"))
        assert f"{trained.step:,} steps" in card


def test_the_digits_of_the_package_are_what_they_are_asked_for():
    """By a classifier of nearest means of the training digits, which names 90 % of them."""
    from ddpm_jax.data import loading

    images, labels = loading.digits("train")
    means = np.stack([images[labels == k].mean(axis=0) for k in range(10)]).reshape(10, -1)

    def named(x):
        return np.square(x.reshape(len(x), 1, -1) - means).sum(-1).argmin(-1)

    asked = np.arange(50) % 10
    drawn = ddpm_jax.sample(
        ddpm_jax.from_pretrained("digits"), 0, 50, sampler="dpm_solver_pp", num_steps=10,
        output="uint8")
    assert (named(np.float64(images)) == labels).mean() > 0.85
    assert (named(np.float64(drawn)) == asked).mean() > 0.85  # 0.93 when this was written.


def test_a_folder_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    with pytest.raises(UserError, match="digits: has no unet/config.json"):
        ddpm_jax.from_pretrained("digits")


def test_a_workdir_is_named_as_one(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is the workdir of a run, .*ddpm_jax.load opens it"):
        ddpm_jax.from_pretrained(tmp_path / "run")
