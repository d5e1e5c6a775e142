"""`--mode=sample`: its files, their names (`requests.py`) and pictures, and what it refuses."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax.configs import digits, digits_superres, digits_vectors
from ddpm_jax.data import loading, pixels
from ddpm_jax.data.kept import Kept
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.errors import UserError
from ddpm_jax.inference import editing, operators, sample_command, task_inputs
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.samplers import measurement_guide
from ddpm_jax.samplers.settings import Settings
from ddpm_jax.workdir import data_record, pictures, run_folder
from nonzero import TinyNet, nonzero_params

T, TILE, GAP = 12, 64, 16  # 8x8 images are drawn as tiles of 64x64, 2 apart
SETTINGS = Settings("ancestral", 6)


def tiny(channels, **settings):
    model, shape = TinyNet(**settings), (8, 8, channels)
    return ddpm_jax.Trained(
        nonzero_params(model, shape), model, schedule_lib.linear(T, 1e-3, 0.6),
        process.Parameterization(), shape,
    )


MODELS = {1: tiny(1), 3: tiny(3)}


@pytest.fixture
def task(monkeypatch, tmp_path, capsys):
    """(channels, config file, settings) -> the paths, the arrays of the npz, and the output."""
    def run(channels=3, module=digits, **settings):
        monkeypatch.setattr(
            run_folder, "load_step", lambda workdir, weights: (1500, MODELS[channels]))
        config = module.get_config()
        common = {"num_steps": 6, "seed": 5, "variants": 3}
        read = task_inputs.READS.get(settings.get("task", ""), ()) + ("seed",)
        config.sample.update({name: common[name] for name in common if name in read} | settings)
        written = sample_command.run(config, tmp_path / "run")
        with np.load(written[-1]) as npz:
            arrays = dict(npz)
        return written, arrays, capsys.readouterr().out

    return run


def read(path):
    with Image.open(path) as opened:
        array = np.asarray(opened)
    return array if array.ndim == 3 else array[..., None]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Files of 8x8 colour pictures and the pictures themselves, uint8."""
    folder = tmp_path_factory.mktemp("inputs")
    actual = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    for name, picture in zip("abc", actual):
        pictures.save_png(folder / f"{name}.png", picture)
    mask = np.zeros((8, 8, 1), np.uint8)
    mask[:, :4] = 255
    pictures.save_png(folder / "mask.png", mask)
    pictures.save_png(folder / "large.png", np.zeros((16, 12, 3), np.uint8))
    return folder, actual


def files(inputs, names):
    return tuple(str(inputs[0] / f"{name}.png") for name in names)


def tiles(picture, rows, columns, left=0):
    """The images of a block of a picture that starts at pixel `left`, at their own size."""
    return np.stack([[
        picture[2 + r * 66:][:TILE:8, left + 2 + c * 66:][:, :TILE:8] for c in range(columns)
    ] for r in range(rows)])


def assert_block(picture, expected, left=0):
    """The block [rows, columns, 8, 8, c] stands at `left`; returns where the next one starts."""
    rows, columns = expected.shape[:2]
    np.testing.assert_array_equal(tiles(picture, rows, columns, left), expected)
    assert picture.shape[0] == rows * 66 + 2
    return left + columns * 66 + 2 + GAP


def floats(inputs, *places):
    return pixels.to_float(inputs[1][list(places)])


def near(actual, expected):
    """uint8 against float results; at a half float32 may round either way."""
    assert actual.dtype == np.uint8
    assert np.abs(actual.astype(int) - pixels.to_uint8(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("settings, name", [
    (dict(), "ancestral_6"), (dict(guidance=2.5), "ancestral_6_guidance_2.5"),
    (dict(sampler="heun", num_steps=5, guidance=2.0), "heun_5_guidance_2"),
])
def test_new_images(task, monkeypatch, settings, name):
    """Every class in turn, a column each, or the labels that are given."""
    monkeypatch.setitem(MODELS, 1, tiny(1, num_classes=4))
    (png, npz), arrays, printed = task(1, num_images=6, **settings)
    assert png.endswith(f"/run/samples/ema_step_00001500_{name}_seed_5.png")
    assert npz == png.removesuffix("png") + "npz"
    assert printed == f"6 images in {npz}, a grid of them in {png}\n"
    draw = functools.partial(
        ddpm_jax.sample, MODELS[1], 5, 6, output="uint8", **({"num_steps": 6} | settings))
    np.testing.assert_array_equal(arrays["arr_0"], draw())
    picture = tiles(read(png), 2, 4)
    np.testing.assert_array_equal(picture.reshape(8, 8, 8, 1)[:6], draw())
    _, arrays, _ = task(1, num_images=6, labels=(2, 1), **settings)
    np.testing.assert_array_equal(arrays["arr_1"], [2, 1, 2, 1, 2, 1])
    np.testing.assert_array_equal(arrays["arr_0"], draw(labels=arrays["arr_1"]))


@pytest.mark.parametrize("classes, says", [
    (("ant", 1, 2, 3), "classes: 4, numbered 0..3 in the order ant (5 images), 1 (5 images), "
     "2 (5 images), 3 (5 images)\n"), ((0, 1, 2, 3), ""), ((), ""),
])
def test_what_the_numbers_of_the_classes_are(task, monkeypatch, tmp_path, classes, says):
    monkeypatch.setitem(MODELS, 1, tiny(1, num_classes=4))
    data_record.write(Kept(classes, (5,) * len(classes), held_out={}), tmp_path / "run")
    (png, npz), _, printed = task(1, num_images=6)
    assert printed == f"{says}6 images in {npz}, a grid of them in {png}\n"


def test_new_images_as_a_png_each(task, monkeypatch):
    (_, folder, npz), arrays, _ = task(3, num_images=3, pngs=True)
    assert folder == npz.removesuffix(".npz")
    names = sorted(path.name for path in pathlib.Path(folder).iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    for name, image in zip(names, arrays["arr_0"]):
        np.testing.assert_array_equal(read(f"{folder}/{name}"), image)
    monkeypatch.setitem(MODELS, 3, tiny(2))
    with pytest.raises(UserError, match="config.sample.pngs=True needs images of 1, 3 or 4 chan"):
        task(3, num_images=3, pngs=True)


def test_labels_of_new_images_are_those_of_training_data(task, monkeypatch):
    """The `.npz` has the names of the authors of guided diffusion, and can be trained on."""
    monkeypatch.setitem(MODELS, 1, tiny(1, num_classes=4))
    (_, npz), arrays, _ = task(1, num_images=6)
    assert set(arrays) == {"arr_0", "arr_1"}
    source = loading.load("npz", data_dir=npz, labels=True)
    np.testing.assert_array_equal(source.labels[:], arrays["arr_1"])


def test_classes_are_drawn_by_their_names(task, monkeypatch):
    about = trained_lib.About(class_names=("ant", "bee", "cow", "doe"))
    monkeypatch.setitem(MODELS, 1, tiny(1, num_classes=4).replace(about=about))
    _, arrays, _ = task(1, num_images=5, labels=("cow", 1, "ant"))
    np.testing.assert_array_equal(arrays["arr_1"], [2, 1, 0, 2, 1])
    _, strip, _ = task(1, task="strip", variants=2, labels=("cow",))
    _, same, _ = task(1, task="strip", variants=2, labels=(2,))
    np.testing.assert_array_equal(strip["arr_0"], same["arr_0"])
    with pytest.raises(UserError, match="config.sample.labels='cew' is none of the 4 classes: ant"):
        task(1, num_images=2, labels=("cew",))


def test_new_images_guided_by_a_worse_model(task, monkeypatch):
    worse = MODELS[1].replace(params=jax.tree.map(lambda x: 0.6 * x, MODELS[1].params))
    asked = []
    monkeypatch.setattr(run_folder, "load_guide", lambda *given: asked.append(given) or worse)
    _, arrays, _ = task(1, num_images=3, guide_weights="500", guidance=2.0)
    assert [given[0] for given in asked] == ["500"]
    np.testing.assert_array_equal(arrays["arr_0"], ddpm_jax.sample(
        MODELS[1], 5, 3, guide_model=worse, guidance=2.0, num_steps=6, output="uint8"))


def test_new_images_beside_what_they_go_by(task, monkeypatch):
    """The conditions are the first of the test split."""
    monkeypatch.setitem(MODELS, 1, tiny(1, condition_channels=1))
    (png, _), arrays, _ = task(1, digits_superres, num_images=3)
    split = loading.load("digits", split="test", condition="low_resolution", factor=2)
    condition = split.read_condition(np.arange(3))
    np.testing.assert_array_equal(arrays["condition"], condition)
    expected = ddpm_jax.sample(
        MODELS[1], 5, 3, condition=condition, num_steps=6, output="uint8")
    np.testing.assert_array_equal(arrays["arr_0"], expected)
    assert read(png).shape[1] > 2 * 66


def test_new_images_of_vectors(task, monkeypatch):
    """Those of the test split in turn, or those that are given."""
    scale = ((0.1,) * 10 + (0.3,), (0.3,) * 10 + (0.03,))
    monkeypatch.setitem(MODELS, 1, tiny(1, vector_size=11).replace(vector_scale=scale))
    _, arrays, _ = task(1, digits_vectors, num_images=3)
    split = loading.load("digits", split="test", vectors=("label", "ink"))
    np.testing.assert_array_equal(arrays["vectors"], split.vectors[:3])
    draw = functools.partial(ddpm_jax.sample, MODELS[1], 5, 3, num_steps=6, output="uint8")
    np.testing.assert_array_equal(arrays["arr_0"], draw(vectors=split.vectors[:3]))
    own = (tuple(np.eye(11)[2]), tuple(np.eye(11)[3]))
    _, arrays, _ = task(1, digits_vectors, num_images=3, vectors=own, guidance=2.0)
    np.testing.assert_array_equal(arrays["vectors"], np.eye(11)[[2, 3, 2]])
    np.testing.assert_array_equal(
        arrays["arr_0"], draw(vectors=np.eye(11)[[2, 3, 2]], guidance=2.0)
    )
    with pytest.raises(ValueError, match="config.sample.vectors=.* must be vectors of equally"):
        task(1, digits_vectors, num_images=3, vectors=((1, 2), (3,)))
    with pytest.raises(ValueError, match="config.sample.vectors=.*must be 11 finite numbers"):
        task(1, digits_vectors, num_images=3, vectors=((1, 2),))


def test_interpolate(task, inputs):
    (png, npz), arrays, printed = task(
        task="interpolate", inputs=files(inputs, "ab"), strength=(0.0, 0.5))
    assert png.endswith(
        "/run/samples/interpolate_a_b_ema_step_00001500_ancestral_6_seed_5.png")
    assert npz == png.removesuffix("png") + "npz" and png in printed and npz in printed
    assert "after 0, 6 noising steps (a row each):" in printed
    near(arrays["arr_0"], editing.interpolate(
        MODELS[3], 5, floats(inputs, 0), floats(inputs, 1), t=(0, 6), settings=SETTINGS)[0])
    picture = read(png)
    left = assert_block(picture, inputs[1][[0, 0], None])
    left = assert_block(picture, arrays["arr_0"], left)
    assert_block(picture, inputs[1][[1, 1], None], left)
    np.testing.assert_array_equal(arrays["arr_0"][0, [0, -1]], inputs[1][:2])


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])  # The default gives way.
def test_slerp_of_prior_draws(task, sampler):
    (png, _), arrays, _ = task(1, task="slerp", sampler=sampler)
    assert "/slerp_ema_step_00001500_ddim_6_seed_5.png" in png
    x_T = editing.prior(MODELS[1], 5, 6)
    near(arrays["arr_0"], editing.slerp(
        MODELS[1], x_T[::2], x_T[1::2], settings=Settings("ddim", 6)))
    assert_block(read(png), arrays["arr_0"])


def test_slerp_of_pictures(task, inputs):
    (png, _), arrays, _ = task(task="slerp", inputs=files(inputs, "bc"), variants=4)
    settings = Settings("ddim", 6)
    x_T = editing.encode(MODELS[3], floats(inputs, 1, 2), settings=settings)
    near(arrays["arr_0"], editing.slerp(MODELS[3], x_T[:1], x_T[1:], settings=settings))
    picture = read(png)
    left = assert_block(picture, inputs[1][None, 1:2])
    assert_block(picture, inputs[1][None, 2:], assert_block(picture, arrays["arr_0"], left))


def test_reconstruct(task, inputs):
    (png, _), arrays, printed = task(task="reconstruct", inputs=files(inputs, "abc"))
    actual = editing.reconstruct(
        MODELS[3], floats(inputs, 0, 1, 2), settings=Settings("ddim", 6))
    near(arrays["arr_0"], actual)
    error = (((actual - floats(inputs, 0, 1, 2)) / 2) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(arrays["mean_squared_error"], error, rtol=1e-3)
    assert f"mean squared error {error.mean():.2g} in [0, 1]" in printed
    picture = read(png)
    assert_block(picture, arrays["arr_0"][:, None], assert_block(picture, inputs[1][:, None]))


def test_img2img(task, inputs):
    (png, _), arrays, printed = task(
        task="img2img", inputs=files(inputs, "ac"), strength=(0.25, 0.75))
    assert arrays["arr_0"].shape == (2, 2, 3, 8, 8, 3)
    repeated = floats(inputs, 0, 0, 0, 2, 2, 2)
    for row, strength in enumerate((0.25, 0.75)):
        near(arrays["arr_0"][:, row].reshape(6, 8, 8, 3), editing.img2img(
            MODELS[3], 5, repeated, strength=strength, settings=SETTINGS))
    picture = read(png)
    left = assert_block(picture, inputs[1][[0, 0, 2, 2], None])
    assert_block(picture, arrays["arr_0"].reshape(4, 3, 8, 8, 3), left)
    assert "at strength 0.25, 0.75 (a row each)" in printed


def test_each_input_goes_by_its_own_label(task, inputs, monkeypatch):
    """And all variants of it; with guidance."""
    monkeypatch.setitem(MODELS, 3, tiny(3, num_classes=4))
    settings = dataclasses.replace(SETTINGS, guidance=2.0)
    _, arrays, _ = task(
        task="img2img", inputs=files(inputs, "acb"), strength=(0.5,), labels=(3, 1), guidance=2.0)
    near(arrays["arr_0"].reshape(9, 8, 8, 3), editing.img2img(
        MODELS[3], 5, floats(inputs, *[0] * 3, *[2] * 3, *[1] * 3), settings=settings,
        labels=[3] * 3 + [1] * 3 + [3] * 3))
    _, arrays, _ = task(task="reconstruct", inputs=files(inputs, "ab"), labels=(3, 1))
    near(arrays["arr_0"], editing.reconstruct(
        MODELS[3], floats(inputs, 0, 1), labels=(3, 1), settings=Settings("ddim", 6)))
    _, arrays, _ = task(task="interpolate", inputs=files(inputs, "ab"), labels=(2,))
    near(arrays["arr_0"][0], editing.interpolate(
        MODELS[3], 5, floats(inputs, 0), floats(inputs, 1), labels=2, settings=SETTINGS)[0, 0])
    _, arrays, _ = task(task="slerp", inputs=(), labels=(2,), variants=2)
    x_T = editing.prior(MODELS[3], 5, 4)
    near(arrays["arr_0"], editing.slerp(
        MODELS[3], x_T[::2], x_T[1::2], labels=2, settings=Settings("ddim", 6)))


@pytest.mark.parametrize("operator, shape", [
    ("downsample:2", (4, 4, 3)), ("blur:1,grey", (8, 8, 1)), ("mask", (8, 8, 3)),
])
def test_restore(task, inputs, tmp_path, operator, shape):
    small = np.random.default_rng(1).integers(0, 256, (2, *shape), np.uint8)
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for path, picture in zip(paths, small):
        pictures.save_png(path, picture)
    masks = operator == "mask"
    written, arrays, says = task(
        task="restore", inputs=paths, operator=operator, operator_scale=2.0, num_steps=T,
        mask=files(inputs, ["mask"])[0] if masks else "",
    )
    mask = np.broadcast_to(np.arange(8) < 4, (8, 8)) if masks else None
    y = pixels.as_float(small) * (mask[..., None] if masks else 1)
    named = operators.named(operator, (8, 8, 3), mask)
    guide = measurement_guide(named, np.repeat(y, 3, axis=0), 2.0)
    expected = ddpm_jax.sample(MODELS[3], 5, 6, guide=guide)
    near(arrays["arr_0"].reshape(6, 8, 8, 3), expected)
    misfit = np.sqrt(np.square(named(expected) - y.repeat(3, axis=0)).mean((1, 2, 3)))
    np.testing.assert_allclose(arrays["misfit"].ravel(), misfit, rtol=1e-3)
    plain = np.sqrt(np.square(
        named(ddpm_jax.sample(MODELS[3], 5, 6)) - y.repeat(3, axis=0)).mean((1, 2, 3)))
    assert misfit.mean() < 0.8 * plain.mean() and f"what {operator} may have made it of" in says
    picture = read(written[0])
    block = 8 // shape[0]
    shown = pixels.to_uint8(y).repeat(block, 1).repeat(block, 2)
    assert_block(picture, np.broadcast_to(shown, (2, 8, 8, 3))[:, None])


def test_an_operator_of_the_run_is_for_restore_alone(task, inputs, monkeypatch):
    stored = digits.get_config()
    stored.sample.operator = "downsample:2"
    monkeypatch.setattr(run_folder, "stored_config", lambda workdir: stored)
    picture = dict(task="img2img", inputs=files(inputs, "a"))
    _, plain, _ = task(**picture)
    _, arrays, _ = task(**picture, operator="downsample:2")
    np.testing.assert_array_equal(arrays["arr_0"], plain["arr_0"])


def test_inpaint(task, inputs):
    (png, _), arrays, _ = task(
        task="inpaint", inputs=files(inputs, "ab"), mask=files(inputs, ["mask"])[0],
        resamplings=2, jump_length=3)
    known = np.broadcast_to(np.arange(8) < 4, (8, 8))
    near(arrays["arr_0"].reshape(6, 8, 8, 3), editing.inpaint(
        MODELS[3], 5, floats(inputs, 0, 0, 0, 1, 1, 1), known, resamplings=2, jump_length=3,
        settings=SETTINGS))
    for variant in range(3):
        np.testing.assert_array_equal(
            arrays["arr_0"][:, variant][:, known], inputs[1][:2][:, known])
    picture = read(png)
    shown = inputs[1][:2].copy()
    shown[:, ~known] = pictures.GREY
    left = assert_block(picture, np.stack([inputs[1][:2], shown], axis=1))
    assert_block(picture, arrays["arr_0"], left)


def test_colourise(task, inputs):
    (png, _), arrays, _ = task(
        task="colourise", inputs=files(inputs, "ab"), resamplings=2, jump_length=4)
    near(arrays["arr_0"].reshape(6, 8, 8, 3), editing.colourise(
        MODELS[3], 5, floats(inputs, 0, 0, 0, 1, 1, 1), resamplings=2, jump_length=4,
        settings=SETTINGS))
    grey = np.repeat(inputs[1][:2].mean(-1, keepdims=True), 3, axis=-1)
    picture = read(png)
    shown = tiles(picture, 2, 2)
    np.testing.assert_array_equal(shown[:, 0], inputs[1][:2])
    assert np.abs(shown[:, 1] - grey).max() <= 1
    assert_block(picture, arrays["arr_0"], 2 * 66 + 2 + GAP)


def test_diffuse(task, inputs):
    (png, _), arrays, printed = task(task="diffuse", inputs=files(inputs, "ab"))
    t = (0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12)  # 11 from 0 to T
    assert "after 0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12 noising steps" in printed
    near(arrays["arr_0"], editing.diffuse(MODELS[3], 5, floats(inputs, 0, 1), t))
    assert_block(read(png), arrays["arr_0"])


@pytest.mark.parametrize("video", [True, False])
def test_strip(task, monkeypatch, video):
    monkeypatch.setattr(pictures, "HAS_VIDEO", video)
    written, arrays, printed = task(task="strip", sampler="ddim", eta=0.5)
    assert [path.rpartition(".")[2] for path in written] == [
        "png", "gif", *["mp4"] * video, "npz"]
    assert ('pip install -e ".[video]"' in printed) != video
    actual, way = ddpm_jax.sample(
        MODELS[3], 5, 3, sampler="ddim", num_steps=6, eta=0.5, trajectory=range(5, -1, -1))
    near(arrays["arr_0"], actual)
    near(arrays["x_t"], way.x_t)
    near(arrays["x_0"], way.x_0)
    top = read(written[0])[: 2 * 66 + 2]
    assert_block(top, np.stack([arrays["x_t"][:, 0], arrays["x_0"][:, 0]]))


def test_a_long_chain_is_shown_at_twenty_moments(task, monkeypatch):
    monkeypatch.setitem(MODELS, 3, MODELS[3].replace(schedule=schedule_lib.linear(50, 1e-3, 0.3)))
    _, arrays, _ = task(task="strip", num_steps=0, variants=1)
    assert arrays["x_t"].shape == (20, 1, 8, 8, 3)
    assert arrays["calls_left"][[0, -1]].tolist() == [50, 1]


def test_pictures_become_what_the_model_takes(task, inputs):
    """Another size is cropped and resized; colour becomes grey."""
    _, arrays, _ = task(1, task="diffuse", inputs=files(inputs, ["large"]))
    np.testing.assert_array_equal(arrays["arr_0"][:, 0], 0)
    _, arrays, _ = task(1, task="diffuse", inputs=files(inputs, "a"))
    luma = inputs[1][0] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(arrays["arr_0"][0, 0, ..., 0] - luma).max() <= 1


@pytest.mark.parametrize("names, settings, says", [
    ("a", dict(task="redraw"), "config.sample.task='redraw' is not known.*interpolate, slerp"),
    ("a", dict(task=""), "leave task and inputs out"),
    ("a", dict(task="interpolate"), r"has 1 pictures, and task=interpolate takes 2; .*'b.png'\)"),
    ("abc", dict(task="slerp"), "has 3 pictures, and task=slerp takes 0 or 2"),
    ("a", dict(task="strip"), "has 1 pictures, and task=strip takes 0; .*=\"\\(\\)\""),
    ("", dict(task="inpaint"), "has 0 pictures, and task=inpaint takes 1 or more; .*'a.png',"),
    ("a", dict(task="inpaint"),
     "config.sample.mask='' is missing, and task=inpaint needs one: .*=mask.png"),
    ("a", dict(task="img2img", mask="x.png"),
     "mask='x.png' is for task=inpaint, restore, and has no effect with task=img2img; .*mask=\"\""),
    (["gone"], dict(task="img2img"), "config.sample.inputs has '.*gone.png', which does not ex"),
    ("a", dict(task="restore"), "operator='' is missing, and task=restore undoes one: .*sample:2"),
    ("a", dict(task="restore", operator="sharpen"), "config.sample.operator='sharpen' cannot be"),
    ("a", dict(task="restore", operator="mask"), "mask=, the known pixels, is missing"),
    ("a", dict(task="restore", operator="downsample:2"),
     "of 8x8 pixels, and config.sample.operator='downsample:2' makes 4x4 of the model's images"),
    ("a", dict(task="restore", operator="blur:1", mask="masked"), "a mask is given, and no step"),
    ("a", dict(task="restore", operator="blur:1", operator_noise=0.0), "must be at least 1e-06"),
    ("a", dict(task="img2img", operator="blur:1"), "is for task=restore, and has no effect with"),
    ("a", dict(task="inpaint", mask="gone.png"), "config.sample.mask has 'gone.png', which does"),
    ("a", dict(task="inpaint", mask=__file__), "cannot be read"),
    ("a", dict(task="inpaint", mask="large"), "is 16x12, and the images 8x8; draw it in their"),
    ("a", dict(task="img2img", strength=(1.5,)), "config.sample.strength=1.5 must lie"),
    ("a", dict(task="img2img", strength=()), r"strength=\(\) is empty, and task=img2img needs"),
    ("a", dict(task="img2img", grid="9,11", num_steps=0), "config.sample.grid='9,11' asks for"),
    ("a", dict(task="colourise", resamplings=10),
     "config.sample.resamplings=10 has no effect with config.sample.jump_length=10 on a chain of 6 "
     "steps.*; write --config.sample.jump_length=3 or --config.sample.resamplings=1."),
    ("a", dict(task="colourise", jump_length=4),
     "config.sample.jump_length=4 has no effect with config.sample.resamplings=1"),
    ("ab", dict(task="interpolate", strength=(-0.1,)), "strength=-0.1 must lie in 0..1"),
    ("a", dict(task="img2img", sampler="heun", num_steps=5), "sampler='heun' cannot edit"),
    ("a", dict(task="reconstruct", sampler="ddim", eta=1.0), "eta=1.0 does not lead from x_0"),
    ("a", dict(task="reconstruct", sampler="heun", num_steps=5), "'heun' with eta=0.0 does not"),
])
def test_mistakes_are_told_in_one_line(task, inputs, names, settings, says):
    if settings.get("mask") in ("large", "masked"):
        name = settings["mask"].removesuffix("ed")
        settings = settings | {"mask": files(inputs, [name])[0]}
    with pytest.raises(ValueError, match=says) as error:
        task(3, inputs=files(inputs, names), **settings)
    assert "\n" not in str(error.value)


def test_a_grey_model_has_no_colours(task, inputs):
    with pytest.raises(ValueError, match="colourise needs a model of 3 channels.* has 1"):
        task(1, task="colourise", inputs=files(inputs, "a"))


def test_names_of_any_length_are_written(task, inputs, tmp_path):
    names = [tmp_path / f"{letter * 200}.png" for letter in "ab"]
    for path, picture in zip(names, inputs[1]):
        pictures.save_png(path, picture)
    written, _, _ = task(task="interpolate", inputs=tuple(map(str, names)))
    assert all(pathlib.Path(path).exists() for path in written)


def test_no_request_takes_the_results_of_another(task, inputs):
    """Neither do other pictures of the same names; the newest are the latest."""
    asked = [dict(num_images=2), dict(num_images=3), dict(num_images=2, clip=False)]
    found = [task(**each)[0] for each in asked]
    assert [pathlib.Path(png).stem.partition("seed_5")[2] for png, _ in found] == ["", "_2", "_3"]
    contents = [[pathlib.Path(path).read_bytes() for path in each] for each in found]
    assert [task(**each)[0] for each in asked] == found  # The same again is the same.
    assert [[pathlib.Path(path).read_bytes() for path in each] for each in found] == contents
    for (png, _), each in zip(found, asked):
        stored = json.loads(pathlib.Path(png).with_suffix(".json").read_text())
        assert stored["step"] == 1500 and each.items() <= stored["sample"].items()
    folder = pathlib.Path(found[0][0]).parent
    latest = [folder / f"latest.{kind}" for kind in ("png", "npz")]
    assert [path.read_bytes() for path in latest] == contents[2]
    edit = dict(task="diffuse", inputs=files(inputs, "a"))
    (first, _), _, _ = task(**edit)
    other = inputs[0] / "elsewhere" / "a.png"
    pictures.save_png(other, inputs[1][1])
    (second, _), _, _ = task(task="diffuse", inputs=(str(other),))
    assert second == first.replace(".png", "_2.png")
    pictures.save_png(other, inputs[1][2])  # The same name, another picture.
    assert task(task="diffuse", inputs=(str(other),))[0][0] == first.replace(".png", "_3.png")


def test_results_of_before_stay(task):
    """Files without a request beside them are somebody's too."""
    (png, npz), _, _ = task(num_images=2)
    pathlib.Path(png).with_suffix(".json").unlink()
    assert task(num_images=2)[0][0] == png.replace(".png", "_2.png")
    pathlib.Path(png).with_name(pathlib.Path(png).stem + "_2.json").write_text("{")
    assert task(num_images=2)[0][0] == png.replace(".png", "_3.png")


def test_the_results_go_where_they_are_wanted(task, tmp_path):
    written, _, _ = task(num_images=2, folder=str(tmp_path / "elsewhere"))
    assert {pathlib.Path(path).parent for path in written} == {tmp_path / "elsewhere"}
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_said_before_a_chain_runs(task, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("a file where the folder would be")
    monkeypatch.setattr(sample_lib, "sample", lambda *_, **__: pytest.fail("a chain ran"))
    with pytest.raises(UserError, match="cannot be written.*--config.sample.folder=pictures.$"):
        task(num_images=2)
    assert not list(tmp_path.glob("run/samples/*"))


def test_mistakes_are_found_before_the_checkpoint_is_read(tmp_path):
    config = digits.get_config()
    config.sample.task = "inpaint"
    with pytest.raises(ValueError, match="takes 1 or more"):
        sample_command.run(config, tmp_path / "nothing")


def test_progress_is_shown(task, inputs, monkeypatch):
    bars = []
    monkeypatch.setattr(
        editing, "img2img", lambda *a, progress, batch_size, **k: bars.append(
            (progress, batch_size)) or a[2])
    task(task="img2img", inputs=files(inputs, "a"), batch_size=8)
    assert bars == [(True, 8)]
