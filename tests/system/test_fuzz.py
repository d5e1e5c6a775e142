"""Random settings and pictures work, or are refused by a UserError of one line.

By default each config is traced, not trained. `DDPM_JAX_FUZZ=1000` draws 1,000 new ones and trains
two steps of each; add what it finds to the examples below.
"""

import io
import sys
import warnings

import hypothesis
import jax
import numpy as np
import pytest
from absl import flags, logging
from hypothesis import strategies as st
from ml_collections import config_flags
from PIL import Image

from ddpm_jax import cli, validation
from ddpm_jax import config as config_lib
from ddpm_jax.configs import cifar10
from ddpm_jax.data import decoding, loading
from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import randomness
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.runtime import memory, parallel
from ddpm_jax.training import loop
from ddpm_jax.training import run as run_lib
from ddpm_jax.training import state as state_lib
from ddpm_jax.training.step import pmap_train_step
from fuzz import LONG, assert_one_line, settings
from nonzero import TinyNet
from tiny_run import tiny_config


# Values for a setting of each type: likely ones, absurd ones and those of another type.
INTS = st.one_of(
    st.integers(-3, 40), st.sampled_from([64, 10**6, 2**31 - 1, 2**31, 2**32, -2**63, 10**30]))
FLOATS = st.one_of(
    st.floats(), st.floats(0, 1), st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e300, 0.5]))
WORDS = st.one_of(st.text(st.characters(codec="utf-8"), max_size=6), st.sampled_from([
    "digits", "image_folder", "npz", "cifar10", "digits/1", "../x", "/", "low_resolution", "noisy",
    "stored", "linear", "cosine", "jsd", "betas", "warmup10", "sigmoid", "constant", "eps", "x_0",
    "x_prev", "v", "fixed_small", "learned", "learned_range", "simple", "vlb", "rescaled_vlb",
    "hybrid", "rescaled_hybrid", "min_snr", "p2", "importance", "antithetic", "highest",
    "bfloat16", "cos_sin", "symmetric", "ddim", "dpm_solver", "dpm_solver_pp", "heun", "quadratic",
    "trailing", "5,5", "0.9", "all", "7", "fid", "bpd", "train",
]))
TUPLES = st.one_of(*(
    st.lists(item, max_size=3).map(tuple) for item in (
        st.integers(-1, 20), INTS, FLOATS, WORDS, st.sampled_from([None, (1,), True, "a"]))
))
KINDS = {bool: st.booleans(), int: INTS, float: st.one_of(FLOATS, st.integers(-2, 3)),
         str: WORDS, tuple: TUPLES}
BASE = dict(config_lib.leaves(cifar10.get_config()))
# These two would open a model or a network connection, and have their own tests.
NAMES = sorted(set(BASE) - {"train.warm_start", "train.wandb"})


@st.composite
def overrides(draw):
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    return {name: draw(st.one_of(KINDS[type(BASE[name])], st.none())) for name in names}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """2 GiB for eight devices, and no data sets or TensorFlow."""
    monkeypatch.setattr(memory, "host_total", lambda: 2 * 2**30)
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 2**20)  # Larger sets are streamed.
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr(logging, "warning", lambda *_: None)


def tiny_net(config, channels):
    return TinyNet(
        config.model.dropout, config_lib.parameterization(config).out_channels(channels),
        config.data.num_classes if config.data.labels else 0,
        config.data.condition_channels if config.data.condition else 0,
    )


def begin(config, folder):
    """Sets up a run and traces its step, or trains two steps."""
    evaluate_lib.check_evaluation(config)
    config_lib.sampling_settings(config)
    if LONG:
        config.train.num_steps = 2
        loop.train(config, folder)
        return
    run = run_lib.prepare(config, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_lib, "create", state_lib.fresh)
        state = jax.eval_shape(lambda: run_lib.fresh_state(run))
    step = pmap_train_step(
        schedule=run.schedule, learning_rate=run.learning_rate, settings=run.step_settings
    )
    share = run.settings.batch_size
    batch = parallel.shard(run.source.examples(np.arange(share) % len(run.source)))
    step.lower(state, batch, run.rng(randomness.STEP))


FOUND = [  # Values that once were not refused, or did not end.
    {"seed": 2**32}, {"train.batch_size": 10**30}, {"train.grad_clip": float("inf")},
    {"diffusion.num_timesteps": 10**9}, {"data.name": None}, {"model.num_res_blocks": 10**6},
    {"data.image_size": 2**31 - 1}, {"data.labels": True, "data.num_classes": 2**31 - 1},
]


def examples(test):
    for changes in reversed(FOUND):
        test = hypothesis.example(changes=changes)(test)
    return test


@settings(20)
@examples
@hypothesis.given(changes=overrides())
def test_a_config_begins_or_is_refused_in_one_line(tmp_path_factory, changes):
    config = tiny_config()
    try:
        config.update_from_flattened_dict(changes)
    except (TypeError, ValueError):
        return  # ml_collections refuses it when the config is written.
    with pytest.MonkeyPatch.context() as patch:
        if not any(name.startswith("model.") for name in changes):
            patch.setattr(config_lib, "model", tiny_net)
            patch.setattr(validation, "check_images", lambda config, shape: None)
        try:
            begin(config, tmp_path_factory.mktemp("run") if LONG else None)
        except ValueError as error:
            assert_one_line(error)


@settings(150)
@hypothesis.given(name=st.sampled_from(NAMES), text=st.one_of(
    WORDS, INTS.map(str), FLOATS.map(str), TUPLES.map(str), st.text(max_size=12),
    st.sampled_from(["()", "(", "(1,", "1,2", "[1]", "{}", "None", "True", "nan", "1e400", "'a'",
                     "__import__('os')", "(" * 100, "0x10", "1_000", " 3", "(1;2)"]),
))
def test_text_on_the_command_line_becomes_a_value_or_an_error_of_one_line(name, text):
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", tiny_config(), flag_values=values)
    try:
        values(["main.py", f"--config.{name}={text}"])
    except cli.FLAG_ERRORS:
        return
    try:
        evaluate_lib.check_evaluation(values.config)
        config_lib.sampling_settings(values.config)
        validation.validate(values.config, num_devices=8)
    except ValueError as error:
        assert_one_line(error)


# Pictures.


def encoded(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, kind, **({"exif": exif} if kind in ("png", "jpeg", "webp") else {}))
    return file.getvalue()


WHOLE = [encoded(kind) for kind in ("png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm")]


@st.composite
def damaged(draw):
    content = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, min(len(content) - 1, draw(st.sampled_from([40, 10**6])))))
        content[at] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures") / "a.png"


@settings(150)
@hypothesis.given(content=st.one_of(st.binary(max_size=200), damaged()),
                  shape=st.sampled_from([(0, 0, 3), (4, 6, 1), (5, 5, 4)]))
def test_bytes_are_a_picture_or_an_error_of_one_line(path, content, shape):
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # From Pillow, about damage that it repaired.
        try:
            image = decoding.read(path, shape, setting="config.sample.inputs")
        except ValueError as error:
            assert_one_line(error)
        else:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == shape[-1]
            assert not shape[0] or image.shape == shape


@settings(50)
@hypothesis.given(content=st.one_of(st.binary(max_size=200), damaged()))
def test_a_folder_with_any_bytes_is_read_or_refused(path, content):
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            source = loading.load("image_folder", data_dir=str(path.parent), image_size=4)
        except ValueError as error:
            assert_one_line(error)
        else:
            assert source.read(np.arange(1)).shape == (1, 4, 4, 3)
