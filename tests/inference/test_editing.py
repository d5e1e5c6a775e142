"""Editing (editing.py, edit_chains.py) is made of its chains, picture by picture."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ddpm_jax
import oracle
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.inference import editing
from ddpm_jax.network.unet import UNet
from ddpm_jax.samplers import reverse_chain
from ddpm_jax.samplers import ddim as ddim_lib
from ddpm_jax.samplers import steps as steps_lib
from ddpm_jax.samplers.settings import Settings
from nonzero import TinyNet, nonzero_params

# Batches of another size are summed in another order: float32 roundings of 12 steps.
SAME = dict(rtol=0, atol=2e-5)
T, KEY, SHAPE = 12, 5, (8, 8, 3)
DDIM = Settings("ddim")
X_T, Z, EPS = range(3)  # Addresses of the draws below an image's key.
LEFT = np.broadcast_to(np.arange(8) < 4, (8, 8))


@pytest.fixture(scope="module")
def trained():
    model = TinyNet()
    return ddpm_jax.Trained(
        nonzero_params(model, SHAPE), model, schedule_lib.linear(T, 1e-3, 0.6),
        process.Parameterization(), SHAPE,
    )


def pictures(n, seed=0):
    return np.float32(np.random.default_rng(seed).uniform(-1, 1, (n, *SHAPE)))


def keys(use, n):
    rngs = [jax.random.fold_in(jax.random.key(KEY), i) for i in range(n)]
    return jnp.stack([jax.random.fold_in(rng, use) for rng in rngs])


def normal(use, n):
    return np.stack([jax.random.normal(rng, SHAPE) for rng in keys(use, n)])


def direct(trained, x, start, steps=range(T), sampler=reverse_chain.ancestral, clip=True):
    """The chain itself, from x noised `start` times."""
    full = trained.schedule
    respaced = schedule_lib.respace(full, np.array(steps))
    predict = process.predict_fn(
        respaced, ddpm_jax.denoise_fn(trained), full=full, clip=clip)
    chain = jax.jit(lambda x, rngs: sampler(
        respaced, predict, x, rngs, start=start))
    return chain(jnp.float32(x), keys(Z, len(x)))


def noised(x, t):
    scale, variance = oracle.compose(np.linspace(1e-3, 0.6, T), t)
    return scale * x + np.sqrt(variance) * normal(EPS, len(x))


def test_pictures_go_under_in_one_noise_each(trained):
    images, t = pictures(2), (0, 1, 7, T)
    actual = editing.diffuse(trained, KEY, images, t)
    assert actual.shape == (2, 4, *SHAPE) and actual.dtype == np.float32
    assert_array_equal(actual[:, 0], images)
    for column, noisings in enumerate(t):
        assert_allclose(actual[:, column], noised(images, noisings), rtol=0, atol=1e-6)


def test_edits_carry_what_a_self_conditioned_network_said_last(trained):
    """Each edit tells the network something: with zeros in place of its last x_0 all differ."""
    told = TinyNet(self_condition=True)
    told = trained.replace(model=told, params=nonzero_params(told, SHAPE))
    mute = dict(told.params, conv_in=dict(told.params["conv_in"]))
    mute["conv_in"]["kernel"] = mute["conv_in"]["kernel"].copy()
    mute["conv_in"]["kernel"][:, :, 3:] = 0  # As if x_0 were always zeros.
    images = pictures(2)
    for edit in (
        lambda trained: editing.interpolate(trained, KEY, images, images[::-1], t=(T, 5)),
        lambda trained: editing.encode(trained, images),
        lambda trained: editing.decode(trained, images),
        lambda trained: editing.inpaint(trained, KEY, images, LEFT),
    ):
        results = edit(told), edit(told.replace(params=mute))
        assert np.abs(results[0] - results[1]).max() > 1e-3
        assert np.isfinite(results[0]).all()
    # Where it starts with the last step of the chain it has said nothing yet.
    first = dict(t=(1,), lam=(0.3,))
    last = [editing.interpolate(t, KEY, images, images[::-1], **first)
            for t in (told, told.replace(params=mute))]
    assert_allclose(*last, **SAME)


class Told(nn.Module):
    """A network of no inputs but x and t: one of classes and numbers, told the same of all."""

    label: int
    number: float
    scale: float

    @nn.compact
    def __call__(self, x, t, *, train):
        network = TinyNet(num_classes=3, vector_size=1, name="network")

        def output(label, vector):
            return network(
                x, t, train=train, labels=jnp.full(len(x), label),
                vectors=jnp.tile(jnp.float32(vector), (len(x), 1)),
            )

        given = output(self.label, (1, (self.number - 10) / 4))
        return given if self.scale == 1 else given + (self.scale - 1) * (
            given - output(3, (0, 0)))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_each_picture_goes_by_its_own_label_and_vector(trained, guidance):
    """All rows and columns of one go by the same; guidance as in sampling."""
    model = TinyNet(num_classes=3, vector_size=1)
    params = nonzero_params(model, SHAPE)
    conditional = trained.replace(model=model, params=params, vector_scale=((10.0,), (4.0,)))
    labels, numbers, images = (2, 0), (11.0, 5.0), pictures(2)
    both = dict(labels=labels, vectors=numbers)
    ancestral, ddim = Settings(guidance=guidance), Settings("ddim", guidance=guidance)
    x_T = pictures(2, seed=3)
    edits = (
        lambda t, **told: editing.interpolate(
            t, KEY, images, images[::-1], t=(4, T), lam=(0.0, 0.3), settings=ancestral, **told),
        lambda t, **told: editing.img2img(t, KEY, images, settings=ancestral, **told),
        lambda t, **told: editing.encode(t, images, settings=ddim, **told),
        lambda t, **told: editing.decode(t, x_T, settings=ddim, **told),
        lambda t, **told: editing.slerp(
            t, x_T, x_T[::-1], lam=(0.0, 0.5), settings=ddim, **told),
        lambda t, **told: editing.inpaint(t, KEY, images, LEFT, settings=ancestral, **told),
        lambda t, **told: editing.colourise(t, KEY, images, settings=ancestral, **told),
    )
    plain = (dataclasses.replace(s, guidance=1.0) for s in (ancestral, ddim))
    guided, (ancestral, ddim) = [edit(conditional, **both) for edit in edits], plain
    for i in range(2):
        told = trained.replace(
            model=Told(labels[i], numbers[i], guidance), params={"network": params})
        for edit, actual in zip(edits, guided):
            # Guidance multiplies roundings.
            assert_allclose(actual[i], edit(told)[i], rtol=0, atol=2e-4)
    nothing = editing.img2img(conditional, KEY, images)
    assert_array_equal(editing.img2img(conditional, KEY, images, labels=3), nothing)
    assert np.abs(guided[1] - nothing).max() > 1e-3
    with pytest.raises(ValueError, match="guidance=2.0 has no effect with labels=3, .* no vectors"):
        editing.img2img(conditional, KEY, images, settings=Settings(guidance=2.0))


# Interpolation.


def test_mixtures_are_decoded_from_where_they_were_mixed(trained):
    a, b = pictures(2), pictures(2, seed=1)
    t, lam = (0, 1, 7, T), (0.0, 0.25, 1.0)
    actual = editing.interpolate(trained, KEY, a, b, t=t, lam=lam)
    assert actual.shape == (2, 4, 3, *SHAPE) and actual.dtype == np.float32
    for row, start in enumerate(t):
        for column, weight in enumerate(lam):
            mixed = (1 - weight) * noised(a, start) + weight * noised(b, start)
            expected = direct(trained, mixed, start) if start else mixed
            assert_allclose(actual[:, row, column], expected, **SAME)


def test_the_defaults_are_those_of_fig_8(trained):
    a, b = pictures(1), pictures(1, seed=1)
    actual = editing.interpolate(trained, KEY, a, b)
    assert actual.shape == (1, 1, 11, *SHAPE)
    again = editing.interpolate(trained, KEY, a, b, t=(6,), lam=np.linspace(0, 1, 11))
    assert_allclose(actual, again, **SAME)


def test_the_ends_are_each_pictures_img2img(trained):
    a, b = pictures(2), pictures(2, seed=1)
    ends = editing.interpolate(trained, KEY, a, b, t=(6,), lam=(0.0, 1.0))
    for column, images in enumerate((a, b)):
        alone = editing.img2img(trained, KEY, images, strength=0.5)
        assert_allclose(ends[:, 0, column], alone, **SAME)
    assert np.abs(alone - images).max() > 0.1


@pytest.mark.parametrize("settings, t, steps", [
    (dict(num_steps=4), 1, [0]), (dict(num_steps=4), 4, [0, 1, 2, 3]),
    (dict(num_steps=4), 8, [0, 2, 5, 7]), (dict(num_steps=4), T, [0, 4, 7, 11]),
    (dict(num_steps=1), 6, [5]), (dict(num_steps=2, grid="trailing"), 6, [2, 5]),
    (dict(num_steps=3, grid="quadratic"), 10, [0, 2, 9]),
    (dict(grid=(0, 3, 7, 11)), 8, [0, 3, 7]), (dict(grid=(0, 3, 7, 11)), 6, [0, 3, 5]),
    (dict(grid="2,2"), 9, [0, 5, 6, 8]),
])
def test_fewer_steps_are_spread_below_t(trained, settings, t, steps):
    """From the noise of t itself, so the first step is t - 1."""
    images = pictures(2)
    for lam in ((0.5,), (0.0,)):
        actual = editing.interpolate(
            trained, KEY, images, images, t=(t,), lam=lam, settings=Settings(**settings))
        expected = direct(trained, noised(images, t), len(steps), steps)
        assert_allclose(actual[:, 0, 0], expected, **SAME)


def test_rows_of_fewer_steps_are_those_of_each_t_alone(trained):
    a, b = pictures(2), pictures(2, seed=1)
    for settings in (Settings(num_steps=3), Settings(grid=(4, 9))):
        rows = editing.interpolate(
            trained, KEY, a, b, t=(0, 7, T), lam=(0.0, 0.4), settings=settings)
        for i, t in enumerate((0, 7, T)):
            alone = editing.interpolate(
                trained, KEY, a, b, t=(t,), lam=(0.0, 0.4), settings=settings)
            assert_allclose(rows[:, i:i + 1], alone, **SAME)
        assert_allclose(rows[:, 0, 0], a, rtol=0, atol=1e-6)


def test_strength_is_a_share_of_the_steps(trained):
    assert [editing.noising_steps(trained, s) for s in (0.0, 0.1, 0.5, 1.0)] == [0, 1, 6, T]
    images = pictures(1)
    all_of_it = editing.img2img(trained, KEY, images, strength=1.0, settings=DDIM)
    expected = direct(trained, noised(images, T), T, sampler=ddim_lib.ddim)
    assert_allclose(all_of_it, expected, **SAME)


def test_every_sampler_of_steps_edits(trained):
    images = pictures(2)
    actual = editing.img2img(trained, KEY, images, settings=Settings("ddim", eta=0.7))
    expected = direct(
        trained, noised(images, 6), 6, sampler=lambda *a, **k: ddim_lib.ddim(*a, eta=0.7, **k))
    assert_allclose(actual, expected, **SAME)
    free = editing.img2img(trained, KEY, images, settings=Settings(clip=False))
    assert_allclose(free, direct(trained, noised(images, 6), 6, clip=False), **SAME)


@pytest.mark.parametrize("mean, variance", [("x_prev", "fixed_small"), ("v", "fixed_large")])
def test_a_respaced_chain_knows_the_full_one(mean, variance):
    model = TinyNet()
    trained = ddpm_jax.Trained(
        nonzero_params(model, SHAPE), model, schedule_lib.linear(T, 1e-3, 0.6),
        process.Parameterization(mean, variance), SHAPE,
    )
    steps = steps_lib.uniform(T, 4)
    respaced = schedule_lib.respace(trained.schedule, steps)
    predict = process.predict_fn(
        respaced, ddpm_jax.denoise_fn(trained), full=trained.schedule, mean=mean,
        variance=variance)
    expected = jax.jit(lambda x, rngs: reverse_chain.ancestral(
        respaced, predict, x, rngs))(
            jnp.float32(noised(pictures(1), T)), keys(Z, 1))
    actual = editing.img2img(
        trained, KEY, pictures(1), strength=1.0, settings=Settings(num_steps=4))
    assert_allclose(actual, expected, **SAME)


# To x_T and back, and arcs.


def test_x_T_is_that_of_sample(trained):
    x_T = editing.prior(trained, KEY, 3)
    assert_allclose(x_T, normal(X_T, 3), rtol=0, atol=1e-6)
    expected = ddpm_jax.sample(trained, KEY, 3, sampler="ddim", num_steps=4)
    settings = Settings("ddim", num_steps=4)
    assert_allclose(editing.decode(trained, x_T, settings=settings), expected, **SAME)


def test_reconstruction_goes_there_and_back_unclipped(trained):
    images = pictures(2)
    x_T = editing.encode(trained, images, settings=DDIM)  # clip=True, without effect
    changing = dataclasses.replace(DDIM, dynamic_threshold=0.5, rederive_eps=False)
    assert_array_equal(editing.encode(trained, images, settings=changing), x_T)
    free = Settings("ddim", clip=False)
    assert_allclose(editing.encode(trained, images, settings=free), x_T, **SAME)
    actual = editing.reconstruct(trained, images)
    assert_allclose(actual, editing.decode(trained, x_T, settings=free), **SAME)
    assert np.abs(actual - editing.decode(trained, x_T)).max() > 0.01  # clipped


def test_slerp_decodes_the_arc(trained):
    x_T, y_T = editing.prior(trained, 1, 2), editing.prior(trained, 2, 2)
    actual = editing.slerp(trained, x_T, y_T, lam=(0.0, 0.3, 1.0))
    assert actual.shape == (2, 3, *SHAPE)
    cosine = (x_T * y_T).sum((1, 2, 3)) / np.sqrt(
        (x_T**2).sum((1, 2, 3)) * (y_T**2).sum((1, 2, 3)))
    theta = np.arccos(np.float64(cosine))[:, None, None, None]
    between = (np.sin(0.7 * theta) * x_T + np.sin(0.3 * theta) * y_T) / np.sin(theta)
    for column, x in enumerate((x_T, np.float32(between), y_T)):
        assert_allclose(actual[:, column], editing.decode(trained, x), **SAME)
    assert editing.slerp(trained, x_T[:1], y_T[:1]).shape == (1, 11, *SHAPE)


# Known parts.


def test_known_pixels_stay_and_others_are_new(trained):
    images = pictures(2)
    actual = editing.inpaint(trained, KEY, images, LEFT, resamplings=2, jump_length=3)
    assert_array_equal(actual[:, LEFT], images[:, LEFT])
    assert np.abs(actual - images)[:, ~LEFT].max() > 0.1
    other = np.where(LEFT[..., None], images, 0)
    again = editing.inpaint(trained, KEY, other, LEFT, resamplings=2, jump_length=3)
    assert_allclose(again, actual, **SAME)  # Pixels outside the mask are not used.
    each = editing.inpaint(trained, KEY, images, np.stack([LEFT, ~LEFT]))
    assert_array_equal(each[1][~LEFT], images[1][~LEFT])


def test_far_from_what_is_known_inpainting_is_sampling(trained):
    """From the same prior draw, by DDIM, which adds no other noise; one step sees one corner."""
    corner = np.zeros((8, 8), bool)
    corner[0, 0] = True
    one = Settings("ddim", num_steps=1)
    actual = editing.inpaint(trained, KEY, pictures(2), corner, settings=one)
    expected = ddpm_jax.sample(trained, KEY, 2, settings=one)
    assert_allclose(actual[:, ~corner], expected[:, ~corner], **SAME)


def test_resampling_goes_the_rows_of_repaint(trained):
    plain, again, longer = (
        editing.inpaint(trained, KEY, pictures(1), LEFT, resamplings=n, jump_length=length)
        for n, length in ((1, 10), (2, 3), (2, 4))
    )
    assert np.abs(plain - again).max() > 0.05 and np.abs(longer - again).max() > 0.05


def test_colours_are_new_and_grey_stays(trained):
    images = pictures(2)
    actual = editing.colourise(trained, KEY, images, resamplings=2)  # 12 steps, jumps of 10
    assert_allclose(actual.mean(-1), images.mean(-1), rtol=0, atol=1e-6)
    assert np.abs(actual - images).max() > 0.1
    grey = np.repeat(images.mean(-1, keepdims=True), 3, axis=-1)
    again = editing.colourise(trained, KEY, grey, resamplings=2)
    assert_allclose(again, actual, **SAME)  # Colours are not used.


# One picture, independent of the others.


@pytest.mark.parametrize("edit", [
    lambda t, x, **k: editing.img2img(t, KEY, x, **k),
    lambda t, x, **k: editing.interpolate(t, KEY, x, x[:, ::-1], lam=(0.4,), **k)[:, 0, 0],
    lambda t, x, **k: editing.inpaint(t, KEY, x, LEFT, **k),
    lambda t, x, **k: editing.colourise(t, KEY, x, **k),
    lambda t, x, **k: editing.reconstruct(t, x, **k),
], ids=["img2img", "interpolate", "inpaint", "colourise", "reconstruct"])
def test_an_image_depends_on_its_picture_and_place_alone(trained, edit):
    images = pictures(11)
    all_of_them = edit(trained, images)
    few = edit(trained, images[:3], batch_size=8)
    assert_allclose(few, all_of_them[:3], **SAME)
    assert_allclose(edit(trained, images, batch_size=8), all_of_them, **SAME)
    twice = edit(trained, np.repeat(images[:1], 2, axis=0))
    assert_allclose(twice[0], all_of_them[0], **SAME)


def test_the_same_picture_twice_becomes_two(trained):
    twice = np.repeat(pictures(1), 2, axis=0)
    for first, second in (
        editing.img2img(trained, KEY, twice), editing.inpaint(trained, KEY, twice, LEFT),
        editing.colourise(trained, KEY, twice),
    ):
        assert np.abs(first - second).max() > 0.05


def test_progress_moves_a_bar_to_its_end(trained, capsys, terminal):
    images = pictures(9)
    editing.inpaint(trained, KEY, images, LEFT, resamplings=2, jump_length=3, batch_size=8,
                    progress=True)
    assert "42/42" in capsys.readouterr().err  # Two batches of 12 + 3 * 3 rows.
    editing.encode(trained, images[:2], progress=True)
    editing.img2img(trained, KEY, images[:2], strength=0.25, progress=True)
    printed = capsys.readouterr().err
    assert "12/12" in printed and "3/3" in printed


def test_a_second_call_compiles_nothing(trained):
    compiled = []
    editing.img2img(trained, KEY, pictures(2))
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(event) if "backend_compile" in event else None
    )
    editing.img2img(trained, KEY + 1, pictures(2, seed=1))
    assert compiled == []
    editing.img2img(trained, KEY, pictures(2), strength=0.75)
    assert compiled != []  # The listener works.


@pytest.mark.parametrize("edit, says", [
    (lambda t, x: editing.img2img(t, 0, x, strength=0.0), "strength=0.0 must be at least 1 of 12"),
    (lambda t, x: editing.img2img(t, 0, x, strength=1.2), "strength=1.2 must lie in 0..1"),
    (lambda t, x: editing.img2img(t, 0, x[0]), r"images are float32 \[8, 8, 3\].*images\[None\]"),
    (lambda t, x: editing.img2img(t, 0, np.uint8(x)), r"uint8 \[1, 8, 8, 3\].*data.to_float"),
    (lambda t, x: editing.img2img(t, 0, x[:, :4]), r"\[1, 4, 8, 3\], and the model's are float"),
    (lambda t, x: editing.img2img(t, 0, x[:0]), r"\[0, 8, 8, 3\]"),
    (lambda t, x: editing.img2img(t, 0, x, settings=Settings("heun", 5)),
     "sampler='heun' cannot edit"),
    (lambda t, x: editing.img2img(t, 0, x, settings=Settings(guidance=2.0)),
     "guidance=2.0 follows labels"),
    (lambda t, x: editing.img2img(t, 0, x, labels=1), "labels=1, but this model is unconditional"),
    (lambda t, x: editing.encode(t.replace(model=UNet(condition_channels=1)), x),
     "condition=None: this model needs an image to go by"),
    (lambda t, x: editing.interpolate(t, 0, x, x, t=(13,)),
     r"t\[0\]=13 must be a whole number in 0..12; write t\[0\]=12"),
    (lambda t, x: editing.interpolate(t, 0, x, x, t=(3, -1)), r"t\[1\]=-1 must be .* in 0..12"),
    (lambda t, x: editing.interpolate(t, 0, x, x, t=(2.5,)), r"t\[0\]=2.5 must be a whole number"),
    (lambda t, x: editing.interpolate(t, 0, x, x, t=5), r"t=5 must be a list of whole numbers"),
    (lambda t, x: editing.interpolate(t, 0, x, x, t=()), r"t=\(\) must have at least one"),
    (lambda t, x: editing.diffuse(t, 0, x, []), r"t=\(\) must have at least one"),
    (lambda t, x: editing.interpolate(t, 0, x, x, lam=()), r"lam=\(\) must have at least one"),
    (lambda t, x: editing.interpolate(t, 0, x, x, lam=0.5), "lam=0.5 must be a list of numbers"),
    (lambda t, x: editing.interpolate(t, 0, x, x, lam=["a"]), r"lam\[0\]='a' must"),
    (lambda t, x: editing.interpolate(t, 0, x, x, lam=(0, np.nan)), r"lam\[1\]=nan"),
    (lambda t, x: editing.img2img(t, 0, x, strength="0.5"), "strength='0.5' must be a finite"),
    (lambda t, x: editing.img2img(t, 0, x, strength=np.nan), "strength=nan must be a finite"),
    (lambda t, x: editing.img2img(t, 0, x, settings=Settings(grid=(9, 11))),
     r"grid=\(9, 11\) has no step below t=6, .* its first is 9; write .* grid='uniform'"),
    (lambda t, x: editing.img2img(t, 0, x, settings="ddim"), "settings='ddim' must be a ddpm_jax"),
    (lambda t, x: editing.encode(t, x, settings=None), "settings=None must be a ddpm_jax"),
    (lambda t, x: editing.reconstruct(t, x, settings=7), "settings=7 must be a ddpm_jax"),
    (lambda t, x: editing.img2img(t, 0, x, settings=Settings(guidance=None)),
     "guidance=None must be a finite number"),
    (lambda t, x: editing.img2img(t, 0, x, settings=Settings(guidance="2")),
     "guidance='2' must be a finite number"),
    (lambda t, x: editing.img2img(t, 0, x * 127.5 + 127.5),
     r"images lie in \[.*, 25.*must lie in \[-1, 1\]; write images / 127.5 - 1"),
    (lambda t, x: editing.colourise(t, 0, x * 1.5), r"must lie in \[-1, 1\]; write numpy.clip"),
    (lambda t, x: editing.inpaint(t, 0, np.where(LEFT[..., None], x, np.nan), LEFT),
     r"images\[0\] has NaN or infinite pixels"),
    (lambda t, x: editing.decode(t, x * np.inf), r"x_T\[0\] has NaN or infinite"),
    (lambda t, x: editing.slerp(t, x, x[:, :4]), r"y_T are float32 \[1, 4, 8, 3\], and the model"),
    (lambda t, x: editing.slerp(t, x, np.repeat(x, 2, 0)), "x_T has 1 images and y_T 2"),
    (lambda t, x: editing.slerp(t, 3, 4), r"x_T are int64 \[\], and the model's are float"),
    (lambda t, x: editing.encode(t, [x[0], x[0, :4]]), "images have several sizes; resize"),
    (lambda t, x: editing.interpolate(t, 0, x, np.repeat(x, 2, 0)), "a has 1 images and b 2"),
    (lambda t, x: editing.interpolate(t, 0, x, x[0]), r"b are float32 \[8, 8, 3\]"),
    (lambda t, x: editing.diffuse(t, 0, x, (13,)), r"t\[0\]=13 must be a whole number"),
    (lambda t, x: editing.encode(t, x, settings=Settings()), "'ancestral' with eta=0.0 does not"),
    (lambda t, x: editing.decode(t, x, settings=Settings("ddim", eta=0.5)), "eta=0.5 does not"),
    (lambda t, x: editing.inpaint(t, 0, x, LEFT[:4]), r"mask is bool \[4, 8\], but must be bool"),
    (lambda t, x: editing.inpaint(t, 0, x, np.float32(LEFT)), r"mask is float32 \[8, 8\]"),
    (lambda t, x: editing.inpaint(t, 0, x, LEFT, resamplings=0), "resamplings=0 must be a whole"),
    (lambda t, x: editing.inpaint(t, 0, x, np.ones((8, 8), bool)),
     "mask is True everywhere, which leaves nothing to draw"),
    (lambda t, x: editing.inpaint(t, 0, x, np.zeros((8, 8), bool)),
     "mask is False everywhere, which leaves nothing of the picture"),
    (lambda t, x: editing.inpaint(t, 0, np.repeat(x, 2, 0), np.stack([LEFT, LEFT | True])),
     r"mask\[1\] is True everywhere"),
    (lambda t, x: editing.inpaint(t, 0, x, LEFT, resamplings=10, jump_length=12),
     "resamplings=10 has no effect with jump_length=12 on a chain of 12 steps"),
    (lambda t, x: editing.colourise(t, 0, x, resamplings=10, settings=Settings(num_steps=10)),
     "resamplings=10 has no effect with jump_length=10 on a chain of 10 steps"),
    (lambda t, x: editing.inpaint(t, 0, x, LEFT, jump_length=5),
     "jump_length=5 has no effect with resamplings=1"),
    (lambda t, x: editing.colourise(t.replace(image_shape=(8, 8, 1)), 0, x[..., :1]),
     "colourise needs a model of 3 channels, and this one has 1"),
    (lambda t, x: editing.img2img(t.replace(params={}), 0, x), "params do not fit the model"),
])
def test_mistakes_are_told_in_one_line(trained, edit, says):
    with pytest.raises(ValueError, match=says) as error:
        edit(trained, pictures(1))
    assert "\n" not in str(error.value)
