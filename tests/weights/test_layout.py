"""Folders of diffusers in their layouts: shards, variants, checkpoints, and what may be missing."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_array_equal

import ddpm_jax
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.diffusion.schedule import cosine, linear
from ddpm_jax.training import warm_start
from ddpm_jax.weights import layout
from wrapped_models import (
    FOLDER, MODEL, SHAPE, assert_is, from_state_dict, params, quietly, refused, weights,
)

WEIGHTS = "diffusion_pytorch_model"


def read(source, **keywords):
    return ddpm_jax.from_pretrained(source, **({"scheduler": {}} | keywords))


def test_shards_are_read_by_their_index(tmp_path):
    assert_is(read(FOLDER / "shards"), "model")
    index = FOLDER / "shards" / f"{WEIGHTS}.safetensors.index.json"
    assert_is(from_state_dict(index), "model")
    folder = tmp_path / "own names"
    folder.mkdir()
    state = weights()
    parts = {"b.safetensors": sorted(state)[::2], "a.safetensors": sorted(state)[1::2]}
    for name, names in parts.items():
        safetensors.numpy.save_file({n: state[n] for n in names}, folder / name)
    shutil.copy(FOLDER / "shards" / "config.json", folder)
    path = folder / index.name

    def write(places):
        path.write_text(json.dumps({"metadata": {}, "weight_map": places}))

    write({n: name for name, names in parts.items() for n in names})
    assert_is(read(folder), "model")
    (folder / "a.safetensors").unlink()
    refused("a.safetensors is damaged, missing", read, folder)
    for name in ("../own names/b.safetensors", "/etc/passwd", "..", 3):
        write({"conv_in.bias": name})
        refused("is no (file beside it|index of shards)", read, folder)
    for text in ("{", "[]", "{}", '{"weight_map": 3}', "[" * 100_000):
        path.write_text(text)
        refused("is no index of shards", read, folder)


def test_variants(tmp_path):
    assert_is(read(FOLDER / "half"), "half")
    assert_is(read(FOLDER / "half", variant="fp16"), "half")
    folder = tmp_path / "both"
    shutil.copytree(FOLDER / "half", folder)
    plain = FOLDER / "checkpoint-500" / "unet" / f"{WEIGHTS}.safetensors"
    shutil.copy(plain, folder / "unet")
    assert_is(read(folder), "model")
    assert_is(read(folder, variant="fp16"), "half")
    refused("variant='bf16' has no weights of that variant; there are: '', 'fp16'", read, folder,
            variant="bf16")
    index = f"{WEIGHTS}.safetensors.index"
    for names, variant, chosen in (
        ([f"{WEIGHTS}.fp16.safetensors", f"{WEIGHTS}.bf16.safetensors"], None, 0),
        ([f"{WEIGHTS}.fp16.bin", f"{WEIGHTS}.fp16.safetensors"], None, 1),
        ([f"{WEIGHTS}.fp16-00001-of-00002.safetensors", f"{index}.fp16.json"], "fp16", 1),
        ([f"{WEIGHTS}-00001-of-00002.fp16.safetensors", f"{index}.fp16.json"], None, 1),
        ([f"{WEIGHTS}-00001-of-00002.bin", f"{WEIGHTS}.bin.index.json"], None, 1),
        ([f"{WEIGHTS}.bin", f"{WEIGHTS}.safetensors"], None, 1),
        ([f"{WEIGHTS}.non_ema.safetensors", f"{WEIGHTS}.safetensors"], None, 1),
        ([f"{WEIGHTS}.non_ema.safetensors"], None, 0),
        (["model.safetensors", "optimizer.bin"], None, 0),
    ):
        found = layout.find(["config.json", *names], variant)
        assert found == layout.Layout("config.json", "", names[chosen], "")
    names = ["config.json", *(f"{WEIGHTS}.{variant}.bin" for variant in ("a", "b"))]
    refused("several variants, 'a', 'b'; choose one and write variant='a'", layout.find, names)


def test_a_checkpoint_of_a_trainer(tmp_path):
    trained, lines = quietly(read, FOLDER / "checkpoint-500")
    assert_is(trained, "average")
    assert lines == [
        f"{FOLDER / 'checkpoint-500'} holds a model and its running average: the average, "
        "unet_ema, is taken; for the model itself name its folder unet."
    ]
    trained, lines = quietly(read, FOLDER / "checkpoint-500" / "unet")
    assert_is(trained, "model")
    for name, wanted in (("unet", "model"), ("unet_ema", "average")):
        shutil.copytree(FOLDER / "checkpoint-500" / name, tmp_path / name / name)
        trained, more = quietly(read, tmp_path / name)
        assert_is(trained, wanted)
        lines += more
    assert lines == []
    pipeline = tmp_path / "pipeline"  # Says itself that its model is in unet/.
    shutil.copytree(FOLDER / "checkpoint-500", pipeline)
    (pipeline / "model_index.json").write_text("{}")
    assert_is(read(pipeline), "model")
    for step in (500, 1500):
        (tmp_path / "runs" / f"checkpoint-{step}").mkdir(parents=True)
    refused("is a trainer's folder of checkpoints; write .*checkpoint-1500", read,
            tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    refused("has no unet/config.json and no config.json", read, tmp_path / "empty")


def test_a_scheduler_that_is_missing_is_given(tmp_path):
    folder = FOLDER / "shards"
    refused("has no scheduler/scheduler_config.json and .* write scheduler={}",
            ddpm_jax.from_pretrained, folder)
    trained = read(folder)
    assert trained.diffusion == Parameterization("eps", "fixed_small")
    assert_array_equal(trained.schedule.beta, linear(1000).beta)
    settings = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 20,
                "prediction_type": "v_prediction", "clip_sample": True}
    (tmp_path / "scheduler").mkdir()
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(settings))
    for scheduler in (settings, path, tmp_path / "scheduler", str(tmp_path)):
        trained = read(folder, scheduler=scheduler)
        assert trained.diffusion.mean == "v"
        assert_array_equal(trained.schedule.beta, cosine(20).beta)
    refused("scheduler={'beta_schedul': 'linear'} is no setting of a scheduler; write 'beta_sch",
            read, folder, scheduler={"beta_schedul": "linear"})
    refused("cannot be read as JSON", read, folder, scheduler=tmp_path / "none")


def test_a_size_that_is_missing_is_given(tmp_path):
    folder = tmp_path / "sizeless"
    shutil.copytree(FOLDER / "shards", folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"sample_size": None}))
    refused("sample_size=null does not tell the size of its images; write image_size=32", read,
            folder)
    for size, shape in ((8, SHAPE), ((8, 12), (8, 12, 1)), ([16, 8], (16, 8, 1)), (8.0, SHAPE)):
        trained = read(folder, image_size=size)
        assert trained.image_shape == shape
        assert_is(trained, "model")
    for size, message in ((8.5, r"image_size\[0\]=8.5"), (0, r"image_size\[0\]=0"),
                          ((8,), r"image_size=\(8,\)"), ((8, 8, 1), "height and width"),
                          ("8", r"image_size\[0\]='8'"), (7, "height=7 does not divide")):
        refused(message, read, folder, image_size=size)
    path.write_text(json.dumps(settings | {"sample_size": [8, 12]}))
    assert read(folder).image_shape == (8, 12, 1)


def test_training_starts_from_such_folders(tmp_path):
    """Neither a scheduler nor a size is needed for that: the config has them."""
    folder = tmp_path / "sizeless"
    shutil.copytree(FOLDER / "checkpoint-500" / "unet", folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": None}))
    found = warm_start.params(str(folder), MODEL, SHAPE)
    jax.tree.map(assert_array_equal, found, params())
    found, lines = quietly(warm_start.params, str(FOLDER / "checkpoint-500"), MODEL, SHAPE)
    jax.tree.map(assert_array_equal, found, params("unet_ema"))
    assert len(lines) == 1


@pytest.mark.parametrize("outputs", [1, 2])
def test_training_starts_from_a_network_with_a_variance(tmp_path, outputs):
    model = MODEL.clone(out_channels=outputs)
    trained = ddpm_jax.Trained(
        params(), MODEL, linear(10), Parameterization(), SHAPE)
    widened = params() | {"conv_out": {
        name: np.repeat(x, outputs, axis=-1) for name, x in params()["conv_out"].items()}}
    variance = "fixed_large" if outputs == 1 else "learned_range"
    trained = trained.replace(
        params=widened, model=model, diffusion=Parameterization("eps", variance))
    ddpm_jax.save_pretrained(trained, tmp_path / "saved")
    shutil.rmtree(tmp_path / "saved" / "scheduler")
    found = warm_start.params(str(tmp_path / "saved"), model, SHAPE)
    jax.tree.map(assert_array_equal, found, widened)
