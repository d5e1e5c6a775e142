"""An exported chain, read where there is nothing but jax."""

import importlib.util
import json
import subprocess
import sys
import zipfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.inference import export as export_lib
from nonzero import SHAPE, TinyNet, nonzero_params, tiny_unet

SAME = dict(rtol=0, atol=2e-5)  # Another program: sums in another order, 6 steps.


def trained_as(model, scale=()):
    return ddpm_jax.Trained(
        nonzero_params(model), model, schedule_lib.linear(6, 1e-2, 0.6),
        process.Parameterization(), SHAPE, vector_scale=scale,
    )


def call(path, rng, n, *given):
    with zipfile.ZipFile(path) as file:
        chain = jax.export.deserialize(bytearray(file.read("chain.bin")))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(rng), jnp.arange(n))
    return chain.call(jax.random.key_data(keys), *given)


def test_the_reader_needs_jax_alone(tmp_path):
    trained = trained_as(TinyNet())
    path = ddpm_jax.export(trained, tmp_path / "chain.zip", 3, platforms="cpu")
    blocked = "import sys\nfor name in ('ddpm_jax', 'flax', 'optax', 'etils', 'ml_collections'):\n"
    program = f"{blocked}    sys.modules[name] = None\n{export_lib.READER}"
    program += "import numpy\nnumpy.save(sys.argv[2], images)\n"
    assert len(export_lib.READER.strip().splitlines()) <= 12
    out = tmp_path / "images.npy"
    subprocess.run([sys.executable, "-c", program, path, out], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(out), ddpm_jax.sample(trained, 0, 3), **SAME)
    with zipfile.ZipFile(path) as file:
        about = json.loads(file.read("about.json"))
        chain = file.read("chain.bin")
    assert about["n"] == 3 and about["num_steps"] == 6 and about["inputs"] == {}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("about.json", json.dumps(about | {"version": 2}))
        file.writestr("chain.bin", chain)
    ended = subprocess.run(
        [sys.executable, "-c", program, path, out], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == "version 2 of the file, and this reads version 1\n"


@pytest.mark.parametrize("settings", [
    dict(sampler="ddim", num_steps=3, eta=0.5), dict(sampler="unipc", num_steps=5),
    dict(sampler="heun", num_steps=5, s_churn=2.0),
])
def test_every_kind_of_sampler(tmp_path, settings):
    trained = trained_as(TinyNet(self_condition=True))
    path = ddpm_jax.export(trained, tmp_path / "chain.zip", 2, platforms=["cpu"], **settings)
    expected = ddpm_jax.sample(trained, 7, 2, **settings)
    np.testing.assert_allclose(call(path, 7, 2), expected, **SAME)


def test_what_a_conditional_model_goes_by(tmp_path):
    model = TinyNet(num_classes=3, vector_size=2, condition_channels=1)
    trained = trained_as(model, scale=((10.0, -3.0), (4.0, 0.5)))
    path = ddpm_jax.export(
        trained, tmp_path / "chain.zip", 2, platforms=("cpu",), guidance=2.0)
    labels, vectors = np.int32([2, 0]), np.float32([[9, -3], [12, -2.5]])
    condition = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)))
    expected = ddpm_jax.sample(
        trained, 3, 2, labels=labels, vectors=vectors, condition=condition, guidance=2.0)
    np.testing.assert_allclose(
        call(path, 3, 2, labels, vectors, condition), expected, rtol=0, atol=1e-4
    )  # Guidance multiplies roundings.
    with zipfile.ZipFile(path) as file:
        assert list(json.loads(file.read("about.json"))["inputs"].items()) == [
            ("labels", [[2], "int32"]), ("vectors", [[2, 2], "float32"]),
            ("condition", [[2, 8, 8, 1], "float32"])]


def test_for_platforms_that_are_not_here(tmp_path):
    """The U-Net has branches by platform."""
    trained = trained_as(tiny_unet())
    path = ddpm_jax.export(trained, tmp_path / "chain.zip", 2, sampler="ddim", num_steps=2)
    with zipfile.ZipFile(path) as file:
        chain = jax.export.deserialize(bytearray(file.read("chain.bin")))
    assert chain.platforms == ("cpu", "cuda", "tpu")
    expected = ddpm_jax.sample(trained, 0, 2, sampler="ddim", num_steps=2)
    np.testing.assert_allclose(call(path, 0, 2), expected, **SAME)


@pytest.mark.parametrize("arguments, says", [
    (dict(platforms=("gpu",)), r"platforms=\['gpu'\] must be some of cpu, cuda, rocm, tpu"),
    (dict(platforms=()), r"platforms=\[\] must be some of"),
    (dict(n=0), "n=0 must be"),
    (dict(guidance=2.0), "guidance=2.0 follows labels or vectors, and this model takes none"),
    (dict(sampler="heun", num_steps=4), "num_steps=4 must be odd"),
    (dict(sampler="fast"), "sampler='fast' is not known"),
])
def test_mistakes(tmp_path, arguments, says):
    path = tmp_path / "chain.zip"
    with pytest.raises(ValueError, match=says) as error:
        ddpm_jax.export(trained_as(TinyNet()), path, **{"n": 2} | arguments)
    assert "\n" not in str(error.value) and not path.exists()


def test_the_package_that_is_missing_is_named(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "flatbuffers" else found(name))
    with pytest.raises(ValueError, match=r'flatbuffers; pip install "ddpm_jax\[export\]"'):
        ddpm_jax.export(trained_as(TinyNet()), tmp_path / "chain.zip", 1)


def test_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written .*; name a file in a folder"):
        ddpm_jax.export(trained_as(TinyNet()), tmp_path / "file" / "x.zip", 1, platforms="cpu",
                        sampler="ddim", num_steps=2)
