"""Random masks, pictures and settings of an edit are taken as said, or refused in one line.

`DDPM_JAX_FUZZ=1000` draws 1,000 new ones of each.
"""

import math
import numbers

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import ddpm_jax
from ddpm_jax.configs import cifar10
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.errors import UserError
from ddpm_jax.inference import edit_chains, edit_checks, task_inputs
from ddpm_jax.network.unet import UNet
from ddpm_jax.samplers import inpainting
from ddpm_jax.samplers.settings import Settings
from fuzz import assert_one_line, settings

T, SHAPE = 12, (4, 3, 1)
TRAINED = ddpm_jax.Trained(
    {}, UNet(), schedule_lib.linear(T, 1e-3, 0.6), process.Parameterization(), SHAPE)
MODES = ["L", "LA", "RGB", "RGBA", "P", "1"]
ABSURD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.text(max_size=3),
    st.lists(st.one_of(st.floats(), st.integers(-2, 20), st.none()), max_size=3),
    st.sampled_from([2**70, -1e300, b"1", {}, np.float32(0.5), np.int64(3), object()]),
)


def fuzzed(examples, **strategies):
    def decorate(test):
        return settings(examples)(hypothesis.given(**strategies)(test))

    return decorate


def taken(function, *arguments):
    """What the function returns, or None where it refuses in one line."""
    try:
        return function(*arguments)
    except UserError as error:
        assert_one_line(error, 1000)
        return None


@fuzzed(
    150, mode=st.sampled_from(MODES), pixels=arrays.arrays(
        np.uint8, (4, 3, 4), elements=st.sampled_from([0, 90, 160, 255]), fill=st.just(255)))
def test_masks(tmp_path_factory, mode, pixels):
    """Known is what is light, or what is opaque where some is not; never all or nothing."""
    path = tmp_path_factory.getbasetemp() / "mask.png"
    pixels[..., 3] = np.where(pixels[..., 3] > 127, 255, 0)
    rgba = Image.fromarray(pixels)
    (rgba if mode == "RGBA" else rgba.convert(mode)).save(path)
    known = taken(task_inputs.mask, str(path), SHAPE)
    if known is None:
        return
    assert known.dtype == bool and known.shape == (4, 3) and known.any() and not known.all()
    with Image.open(path) as image:
        grey_alpha = np.asarray(image.convert("RGBA").convert("LA"))
    white, opaque = np.moveaxis(grey_alpha > 127, -1, 0)
    np.testing.assert_array_equal(known, white if opaque.all() else opaque)


@fuzzed(150, mask=st.one_of(ABSURD, arrays.arrays(
    st.sampled_from([bool, bool, np.uint8, float]),
    st.sampled_from([(4, 3), (2, 4, 3), (3, 4), (1, 4, 3), (4, 3, 1), ()]))))
def test_masks_of_python(mask):
    known = taken(edit_checks.known_pixels, TRAINED, mask, 2)
    if known is not None:
        assert known.shape == (2, 4, 3, 1)
        each = known.reshape(2, -1)
        assert np.all(each.any(axis=1) & ~each.all(axis=1))
        np.testing.assert_array_equal(known[..., 0], np.broadcast_to(mask, (2, 4, 3)))


RAGGED = st.just([np.zeros(SHAPE), np.zeros((1, 1, 1))])


@fuzzed(150, images=st.one_of(ABSURD, RAGGED, arrays.arrays(
    st.sampled_from([np.float16, np.float32, np.float64, np.uint8, np.int32, bool]),
    st.sampled_from([(1, *SHAPE), (2, *SHAPE), SHAPE, (0, *SHAPE), (1, 3, 4, 1), (1, 4, 3, 3)]))))
def test_pictures_of_python(images):
    pictures = taken(edit_checks.pictures, TRAINED, images)
    if pictures is not None:
        assert pictures.dtype == np.float32 and pictures.shape[1:] == SHAPE and len(pictures)
        assert np.abs(pictures).max() <= 1.001
        np.testing.assert_array_equal(pictures, np.float32(images))


@fuzzed(150, t=ABSURD, lam=ABSURD)
def test_noising_steps_and_weights(t, lam):
    steps = taken(edit_checks.noisings, t, T)
    assert steps is None or steps and all(type(s) is int and 0 <= s <= T for s in steps)
    weights = taken(edit_checks.weights, lam)
    assert weights is None or weights.size and np.all(np.isfinite(weights))


@fuzzed(
    200, t=st.integers(1, T), num_steps=st.one_of(st.none(), st.integers(1, T)),
    grid=st.one_of(
        st.sampled_from(["uniform", "quadratic", "trailing", "2,3", "ddim6", "ddim5", "x"]),
        st.lists(st.integers(-1, T), max_size=4).map(tuple)),
    sampler=st.sampled_from(["ancestral", "ddim", "heun"]))
def test_chains_start_at_the_noise_of_t(t, num_steps, grid, sampler):
    settings = taken(lambda: Settings(sampler, num_steps, grid=grid))
    chain = taken(edit_chains.step_chain, settings, TRAINED.schedule, t)
    if chain is None:
        return
    below = np.asarray(chain.timesteps)[np.asarray(chain.timesteps) < t]
    assert below[-1] == t - 1
    np.testing.assert_allclose(
        chain.schedule.alpha_bar[below.size - 1], TRAINED.schedule.alpha_bar[t - 1], rtol=1e-12)


@fuzzed(150, num_timesteps=st.integers(1, 30), jump=st.integers(0, 40), runs=st.integers(0, 4))
def test_resamplings_make_more_calls_or_are_refused(num_timesteps, jump, runs):
    schedule = schedule_lib.linear(num_timesteps, 1e-3, 0.6)
    rows = taken(lambda: inpainting.repaint(schedule, jump_length=jump, resamplings=runs))
    if rows is not None:
        assert (rows.num_calls > num_timesteps) == (runs > 1)
        assert runs > 1 or jump == inpainting.JUMP_LENGTH


@pytest.mark.parametrize("name", ["eta", "guidance", "dynamic_threshold"])
def test_numbers_of_settings(name):
    @fuzzed(60, value=ABSURD)
    def check(value):
        # Tests check that eta is Python's float.
        is_float = type(value) is float or not isinstance(value, numbers.Real)
        hypothesis.assume(name != "eta" or is_float)
        settings = taken(lambda: Settings("ddim", 5, **{name: value}))
        if settings is not None:
            assert math.isfinite(getattr(settings, name))
            taken(settings.check)

    check()


@fuzzed(100, task=st.sampled_from(sorted(task_inputs.READS)), data=st.data())
def test_requests_read_all_that_they_take(task, data):
    config = cifar10.get_config().sample
    config.task = task
    config.inputs = data.draw(st.sampled_from([(), ("a.png",), ("a.png", "b.png")]))
    names = data.draw(st.lists(st.sampled_from(sorted(task_inputs.READS["inpaint"])), max_size=3))
    for name in names:
        kind = type(config[name])
        config[name] = {str: "x", int: 3, float: 0.5, bool: False, tuple: (0.5,)}[kind]
    try:
        task_inputs.check(config.to_dict())
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert set(names) <= set(task_inputs.READS[task])
