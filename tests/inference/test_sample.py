"""`sample`: image i depends on (params, rng, i) alone, whatever else is asked for."""

import dataclasses
import functools
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
import exhausting
from ddpm_jax.diffusion import process, randomness
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.errors import UserError
from ddpm_jax.inference import editing, progressive
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network import unet
from ddpm_jax.samplers.settings import Settings
from ddpm_jax.workdir import run_folder
from nonzero import SHAPE, TinyNet, nonzero_params, tiny_unet

# Batches of another size are summed in another order: some float32 roundings in 20 steps.
SAME = dict(rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def trained():
    model = tiny_unet()
    return ddpm_jax.Trained(
        nonzero_params(model), model, schedule_lib.linear(20, 1e-3, 0.4),
        process.Parameterization(), SHAPE,
    )


@pytest.fixture(scope="module")
def eleven(trained):
    return ddpm_jax.sample(trained, jax.random.key(3), 11)


def test_images_are_float32_in_range_and_differ(eleven):
    assert eleven.shape == (11, *SHAPE) and eleven.dtype == np.float32
    assert np.abs(eleven).max() <= 1 + 1e-6  # One rounding of the posterior mean.
    distances = np.abs(eleven[:, None] - eleven[None]).max(axis=(2, 3, 4))
    assert np.all(distances + np.eye(11) > 0.1)


def test_a_self_conditioned_network_is_told_what_it_said_last():
    """DDIM by a plain loop, with x_0 kept in [-1, 1]."""
    model, schedule = TinyNet(self_condition=True), schedule_lib.linear(6, 1e-2, 0.6)
    params = nonzero_params(model)
    trained = ddpm_jax.Trained(params, model, schedule, process.Parameterization(), SHAPE)
    denoise_fn = jax.jit(ddpm_jax.denoise_fn(trained))
    rngs = [jax.random.fold_in(jax.random.key(3), i) for i in range(2)]
    x = np.stack([jax.random.normal(jax.random.fold_in(rng, 0), SHAPE) for rng in rngs])
    alpha_bar, x_0 = np.append(1.0, schedule.alpha_bar), np.zeros((2, *SHAPE), np.float32)
    for step in range(6, 0, -1):
        signal, sigma = np.sqrt(alpha_bar[step]), np.sqrt(1 - alpha_bar[step])
        eps = denoise_fn(np.float32(x), np.full(2, step - 1), np.float32(x_0))
        x_0 = np.clip((x - sigma * eps) / signal, -1, 1)
        eps = (x - signal * x_0) / sigma
        x = np.sqrt(alpha_bar[step - 1]) * x_0 + np.sqrt(1 - alpha_bar[step - 1]) * eps
    images = ddpm_jax.sample(trained, 3, 2, sampler="ddim")
    np.testing.assert_allclose(images, x, **SAME)


@pytest.mark.parametrize("arguments", [
    dict(n=5), dict(n=11, batch_size=8), dict(n=17, batch_size=16), dict(n=1),
])
def test_number_and_batch_do_not_change_an_image(trained, eleven, arguments):
    images = ddpm_jax.sample(trained, jax.random.key(3), **arguments)
    assert len(images) == arguments["n"]
    n = min(len(images), 11)
    np.testing.assert_allclose(images[:n], eleven[:n], **SAME)


def test_keys_of_every_kind_mean_the_same(trained):
    typed = ddpm_jax.sample(trained, jax.random.key(5), 2)
    np.testing.assert_array_equal(ddpm_jax.sample(trained, 5, 2), typed)
    np.testing.assert_array_equal(
        ddpm_jax.sample(trained, jax.random.PRNGKey(5), 2), typed
    )
    assert np.abs(ddpm_jax.sample(trained, 6, 2) - typed).max() > 0.1


def test_a_seed_an_image(trained):
    pair = ddpm_jax.sample(trained, seeds=[7, 8])
    np.testing.assert_allclose(ddpm_jax.sample(trained, seeds=[8, 7])[::-1], pair, **SAME)
    assert np.abs(pair[0] - pair[1]).max() > 0.1


def test_seeds_of_64_bits_have_images_of_their_own(trained):
    seeds = [7, 2**32 + 7, -7, 2**32 - 7, np.int64(2**40), 7.0]
    images = ddpm_jax.sample(trained, seeds=seeds)
    distances = np.abs(images[:, None] - images[None]).max(axis=(2, 3, 4))
    alone = distances + 9 * np.eye(6) > 0.1
    alone[0, 5] = alone[5, 0] = not alone[0, 5]  # 7 and 7.0 are one seed.
    assert np.all(alone)


def test_the_chain_is_the_one_of_the_samplers(trained):
    """The same image from the pieces, on one device without `pmap`."""
    from ddpm_jax.samplers import reverse_chain

    rng = jax.random.fold_in(jax.random.key(3), 4)
    rng_x_T, rng_z = jax.random.fold_in(rng, 0), jax.random.fold_in(rng, 1)
    x_T = jax.random.normal(rng_x_T, SHAPE)[None]
    denoise = ddpm_jax.denoise_fn(trained)
    predict_fn = process.predict_fn(trained.schedule, denoise)
    chain = jax.jit(lambda x, rngs: reverse_chain.ancestral(trained.schedule, predict_fn, x, rngs))
    image = ddpm_jax.sample(trained, jax.random.key(3), 5)[4]
    np.testing.assert_allclose(chain(x_T, rng_z[None])[0], image, **SAME)


@pytest.mark.parametrize("mean, variance", [("x_prev", "learned"), ("v", "learned_range")])
def test_every_output_is_sampled_in_fewer_steps(mean, variance):
    """A network that knows x_0 leads to it, whatever kind of output it has."""
    full, x_0 = schedule_lib.linear(20, 1e-3, 0.4), 0.25

    class Knowing(unet.UNet):
        def __call__(self, x, t, *, train):
            at = {name: np.float32(coef) for name, coef in vars(full).items()}
            at = {name: jax.numpy.asarray(coef)[t][:, None, None, None]
                  for name, coef in at.items()}
            if mean == "x_prev":
                output = at["posterior_coef_x_0"] * x_0 + at["posterior_coef_x_t"] * x
                return jax.numpy.concatenate(
                    [output, at["posterior_log_variance"] + 0 * x], axis=-1)
            eps = (x - at["sqrt_alpha_bar"] * x_0) / at["sqrt_one_minus_alpha_bar"]
            v = at["sqrt_alpha_bar"] * eps - at["sqrt_one_minus_alpha_bar"] * x_0
            return jax.numpy.concatenate([v, 0 * v], axis=-1)

    for num_steps in (None, 4):
        images = ddpm_jax.sample(
            {}, 0, 2, model=Knowing(), schedule=full, image_shape=SHAPE, num_steps=num_steps,
            diffusion=process.Parameterization(mean, variance), clip=False,
        )
        np.testing.assert_allclose(images, x_0, rtol=0, atol=1e-4)  # float32, 20 steps


def test_uint8_is_the_rounded_float(trained, eleven):
    images = ddpm_jax.sample(trained, jax.random.key(3), 11, output="uint8")
    expected = np.clip(np.round((eleven.astype(np.float64) + 1) * 127.5), 0, 255)
    # At a half the product may round the other way in float32.
    assert images.dtype == np.uint8 and np.abs(images - expected).max() <= 1
    assert np.mean(images != expected) < 0.01


def test_progress_moves_a_bar_to_its_end_and_changes_nothing(trained, eleven, capsys, terminal):
    images = ddpm_jax.sample(trained, jax.random.key(3), 11, batch_size=8, progress=True)
    np.testing.assert_allclose(images, eleven, **SAME)
    assert "40/40" in capsys.readouterr().err  # Two batches of 20 steps.


def test_another_chain_may_run_between_two_rounds(trained, eleven, capsys, terminal):
    """As in evaluation, where samples go through Inception while more are drawn."""
    rngs = randomness.image_keys(jax.random.key(3), np.arange(11))
    batches = []
    for batch in sample_lib.stream(trained, rngs, batch_size=8, progress=True):
        ddpm_jax.sample(trained, 1, 2)
        batches.append(batch)
    np.testing.assert_allclose(np.concatenate(batches), eleven, **SAME)
    assert "100%" in capsys.readouterr().err


def test_a_second_call_compiles_nothing(trained):
    compiled = []
    ddpm_jax.sample(trained, jax.random.key(3), 6)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(event) if "backend_compile" in event else None
    )
    other = trained.replace(schedule=schedule_lib.linear(20, 1e-4, 0.3))
    ddpm_jax.sample(other, jax.random.key(4), 6)
    assert compiled == []
    ddpm_jax.sample(trained, jax.random.key(4), 6, num_steps=3)
    assert compiled != []  # The listener works.


def test_few_steps_call_the_network_so_often():
    calls = []

    class Counting(unet.UNet):
        def __call__(self, x, t, *, train):
            jax.debug.callback(lambda t: calls.append(int(t)), t[0])
            return x * 0.5

    ddpm_jax.sample({}, 0, 8, model=Counting(), schedule=schedule_lib.linear(20), num_steps=4,
                    image_shape=SHAPE)
    jax.effects_barrier()
    assert sorted(set(calls)) == [0, 6, 13, 19] and len(calls) == 4 * jax.device_count()


def test_a_bare_tree_is_the_papers_network():
    with pytest.raises(ValueError, match="params do not fit the model at conv_in/bias: .*128"):
        ddpm_jax.sample({"conv_in": {"bias": np.zeros(3)}}, 0, 1)


def test_params_of_another_model_are_refused_by_leaf(trained):
    with pytest.raises(ValueError, match=r"at conv_in/bias: the model has \(16,\), params \(8,\)"):
        ddpm_jax.sample(trained.params, 0, 1, model=tiny_unet(channels=16), image_shape=SHAPE)
    more = {**trained.params, "extra": np.zeros(2)}
    with pytest.raises(ValueError, match="at extra: the model has nothing"):
        ddpm_jax.sample(more, 0, 1, model=trained.model, image_shape=SHAPE)


@pytest.mark.parametrize("arguments, message", [
    (dict(rng=0, n=0), r"n=0 must be a whole number in 1\.\.2147483647; write n=1"),
    (dict(rng=0, n=10**12), r"n=1000000000000 must be a whole number in 1\.\.2147483647"),
    (dict(rng=0, n=2.5), r"n=2.5 must be a whole number in 1\.\..*; write n=2"),
    (dict(rng=0, n=True), "n=True must be a whole number"),
    (dict(seeds=5), r"seeds=5 must be a list of whole numbers; write seeds=\[5\]"),
    (dict(seeds=[7, 1.5]), r"seeds\[1\]=1.5 must be a whole number"),
    (dict(seeds=[2**63]), r"seeds\[0\]=9223372036854775808 does not fit into 64 bits"),
    (dict(rng=0), "n=None"),
    (dict(rng=0, n=2, seeds=[1]), "takes the place"),
    (dict(seeds=[]), "takes the place"),
    (dict(rng=0.5, n=1), "rng=0.5"),
    (dict(rng=0, n=1, sampler="euler"), "sampler='euler'.*ancestral"),
    (dict(rng=0, n=1, output="int8"), "output='int8'.*uint8"),
    (dict(rng=0, n=1, output=["uint8"]), "output=.*'uint8'.*is not known"),
    (dict(rng=0, n=1, batch_size=1.5), "batch_size=1.5 must be a whole number of at least 0"),
    (dict(rng=0, n=1, batch_size=-1), "batch_size=-1 must be a whole number of at least 0"),
    (dict(rng=0, n=1, batch_size="4"), "batch_size='4' must be a whole number"),
    (dict(rng=0, n=1, batch_size=True), "batch_size=True must be a whole number"),
    (dict(rng=0, n=1, trajectory=3), r"trajectory=3 must be a list of whole numbers.*\[3\]"),
    (dict(rng=0, n=1, trajectory=[0.5]), r"trajectory\[0\]=0.5 must be a whole number"),
    (dict(rng=0, n=1, trajectory=[2**40]), "must lie in 0..19"),
    (dict(rng=0, n=1, progress="no"), "progress='no' must be True or False"),
    (dict(rng=0, n=1, clip=None), "clip=None must be True or False"),
    (dict(rng=0, n=1, num_steps=2.5), "num_steps=2.5 must be a whole number"),
    (dict(rng=0, n=1, grid=5), "grid=5 must be a list of whole numbers"),
    (dict(rng=0, n=1, guidance="2"), "guidance='2' must be a finite number"),
    (dict(rng=0, n=1, guidance=None), "guidance=None must be a finite number"),
    (dict(rng=0, n=1, guidance_interval=5), "guidance_interval=5 must be a list of numbers"),
    (dict(rng=0, n=1, eta=float("nan")), "eta=nan must be a finite number"),
    (dict(rng=0, n=1, sampler=[1]), r"sampler=\[1\] is not known"),
    (dict(rng=0, n=1, model="unet"), "model='unet' is no Module; write for example model="),
    (dict(rng=0, n=1, schedule="cosine"), "schedule='cosine' is no Schedule; write for example"),
    (dict(rng=0, n=1, diffusion="v"), "diffusion='v' is no Parameterization; write for example"),
    (dict(rng=0, n=1, image_shape=8), "image_shape=8 must be a list of whole numbers"),
    (dict(rng=0, n=1, image_shape=(8, 8)), r"image_shape=\(8, 8\) must be \(h, w, c\)"),
    (dict(rng=0, n=1, settings="ddim"), "settings='ddim' must be a ddpm_jax.samplers.Settings"),
    (dict(rng=[0, 1], n=1), "rng=.* is not one threefry2x32 key"),
    (dict(rng=np.zeros(3, np.uint32), n=1), "rng=<uint32 \\[3\\]> is not one threefry2x32 key"),
    (dict(rng=0, n=1, num_steps=21), "num_steps=21 must lie in 1..20"),
    (dict(rng=0, n=1, schedule=schedule_lib.jsd(20)), "the noise does not tell x_0"),
])
def test_mistakes_are_told_in_one_line(trained, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        ddpm_jax.sample(trained, **arguments)
    assert "\n" not in str(error.value)


def test_help_shows_the_fields_of_the_settings():
    parameters = inspect.signature(ddpm_jax.sample).parameters
    for field in dataclasses.fields(Settings):
        assert parameters[field.name].default == field.default
    assert "fields" not in parameters and list(parameters)[:3] == ["params", "rng", "n"]


def test_settings_are_given_whole_or_by_their_fields(trained):
    settings = Settings("ddim", 5, eta=0.5, grid="quadratic")
    whole = ddpm_jax.sample(trained, 0, 3, settings=settings)
    fields = dict(sampler="ddim", num_steps=5, eta=0.5, grid="quadratic")
    np.testing.assert_array_equal(ddpm_jax.sample(trained, 0, 3, **fields), whole)
    assert np.abs(ddpm_jax.sample(trained, 0, 3, sampler="ddim", num_steps=5) - whole).max() > 0.01


@pytest.mark.parametrize("arguments, error, says", [
    (dict(settings=Settings("ddim"), eta=0.0), ValueError,
     r"eta=0.0 is a field of settings, .*; write settings=dataclasses.replace\(settings, eta=0.0"),
    (dict(settings="ddim"), ValueError, "settings='ddim' must be a .*samplers.Settings; write"),
    (dict(settings=Settings("heun")), ValueError, "sampler='heun' needs num_steps"),
    (dict(samler="ddim"), TypeError, r"sample\(\) got an unexpected keyword argument 'samler'"),
    (dict(settings=Settings(), samler="ddim"), TypeError, "unexpected keyword argument 'samler'"),
])
def test_settings_that_contradict_are_refused(trained, arguments, error, says):
    with pytest.raises(error, match=says) as raised:
        ddpm_jax.sample(trained, 0, 1, **arguments)
    assert "\n" not in str(raised.value)


SOLVERS = [("ddim", 6), ("dpm_solver", 6), ("dpm_solver_2", 6), ("dpm_solver_pp", 6),
           ("dpm_solver_pp_3", 6), ("dpm_solver_pp_sde", 6), ("unipc", 6), ("unipc_bh1", 6),
           ("unipc_3", 6), ("unipc_3_bh1", 6), ("heun", 7)]


@pytest.mark.parametrize("sampler, num_steps", SOLVERS)
def test_every_sampler_calls_the_network_as_often_as_it_says(sampler, num_steps):
    """And each image depends on its own key alone, in any batch."""
    calls = []

    class Counting(unet.UNet):
        def __call__(self, x, t, *, train):
            jax.debug.callback(lambda t: calls.append(float(t)), t[0])
            return x * 0.5

    draw = functools.partial(
        ddpm_jax.sample, {}, 0, model=Counting(), schedule=schedule_lib.linear(100, 1e-3, 0.2),
        image_shape=SHAPE, sampler=sampler, num_steps=num_steps,
    )
    images = draw(n=9)
    jax.effects_barrier()
    assert len(calls) == num_steps * jax.device_count()
    assert images.shape == (9, *SHAPE) and np.abs(images).max() <= 1 + 1e-6
    np.testing.assert_allclose(draw(n=3, batch_size=8), images[:3], **SAME)
    assert np.abs(images[0] - images[1]).max() > 0.01
    settings = Settings(sampler, num_steps)
    assert settings.num_calls(schedule_lib.linear(100, 1e-3, 0.2)) == num_steps


def test_ddim_is_the_one_of_the_solvers(trained):
    from ddpm_jax.samplers import ddim as ddim_lib
    from ddpm_jax.samplers import reverse_chain
    from ddpm_jax.samplers import steps as steps_lib

    steps = steps_lib.quadratic(20, 5)
    respaced = schedule_lib.respace(trained.schedule, steps)
    rng = jax.random.fold_in(jax.random.key(3), 4)
    rng_x_T, rng_z = jax.random.fold_in(rng, 0), jax.random.fold_in(rng, 1)
    x_T = jax.random.normal(rng_x_T, SHAPE)[None]
    predict_fn = process.predict_fn(respaced, ddpm_jax.denoise_fn(trained))
    chain = jax.jit(lambda x, rngs: ddim_lib.ddim(
        respaced, predict_fn, x, rngs, eta=0.5, trajectory=(3, 0)))
    expected, kept = chain(x_T, rng_z[None])
    images, trajectory = ddpm_jax.sample(
        trained, jax.random.key(3), 5, sampler="ddim", num_steps=5, eta=0.5, grid="quadratic",
        trajectory=(3, 0),
    )
    np.testing.assert_allclose(images[4], expected[0], **SAME)
    assert isinstance(trajectory, reverse_chain.Trajectory)
    assert trajectory.x_t.shape == trajectory.x_0.shape == (2, 5, *SHAPE)
    np.testing.assert_allclose(trajectory.x_t[:, 4], kept.x_t[:, 0], **SAME)
    np.testing.assert_allclose(trajectory.x_0[:, 4], kept.x_0[:, 0], **SAME)


class Unhashable:
    """A function that cannot be part of the key of a cache."""

    __hash__ = None

    def __call__(self, x_0):
        return x_0


@pytest.mark.parametrize("arguments, says", [
    (dict(sampler="heun"), "sampler='heun' needs num_steps"),
    (dict(eta=0.5), "eta=0.5 is for 'ddim' alone, and has no effect with sampler='ancestral'"),
    (dict(sampler="ddim", eta=1.5), "eta=1.5 must lie"),
    (dict(sampler="heun", num_steps=5, grid="quadratic"),
     "grid='quadratic' is for 'ancestral' and 'ddim' alone"),
    (dict(sampler="heun", num_steps=5, trajectory=(5,)), "trajectory=.5. must lie in 0..4"),
    (dict(rederive_eps=False), "rederive_eps=False is for 'ddim' alone"),
    (dict(sampler="heun", num_steps=5, rederive_eps=False), "rederive_eps=False is for"),
    (dict(sampler="ddim", clip=False, rederive_eps=False), "rederive_eps=False has no effect"),
    (dict(dynamic_threshold=99.5), "dynamic_threshold=99.5 must lie in 0..1"),
    (dict(dynamic_threshold=0.9, denoised_fn=np.tanh), "takes the place of denoised_fn"),
    (dict(denoised_fn=3), "denoised_fn=3 must be a hashable function"),
    (dict(denoised_fn=Unhashable()), "must be a hashable function"),
    (dict(sampler="heun", num_steps=4), "num_steps=4 must be odd"),
    (dict(grid="cubic", num_steps=4), "cubic"),
    (dict(sampler="dpm_solver", num_steps=6,
          diffusion=process.Parameterization("x_prev")), "mean='x_prev' cannot go"),
])
def test_samplers_refuse_what_has_no_effect(trained, arguments, says):
    with pytest.raises(ValueError, match=says) as error:
        ddpm_jax.sample(trained, 0, 1, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "sampler, num_steps", [("ancestral", 6), ("dpm_solver_pp", 6), ("heun", 7)]
)
def test_a_trajectory_of_every_sampler_in_any_batch(trained, sampler, num_steps):
    draw = functools.partial(
        ddpm_jax.sample, trained, jax.random.key(3), sampler=sampler, num_steps=num_steps
    )
    images, kept = draw(11, trajectory=(5, 0), batch_size=8)
    # Other programs, whose roundings go through up to 13 networks: seen 2e-5 (jax 0.12).
    np.testing.assert_allclose(draw(11), images, rtol=0, atol=4e-5)
    assert kept.x_t.shape == kept.x_0.shape == (2, 11, *SHAPE)
    assert kept.x_t.dtype == kept.x_0.dtype == np.float32
    np.testing.assert_allclose(kept.x_0[1], images, **SAME)  # The last call gives x_0.
    _, fewer = draw(3, trajectory=(0, 5))
    np.testing.assert_allclose(fewer.x_t[::-1], kept.x_t[:, :3], rtol=0, atol=1e-4)
    np.testing.assert_allclose(fewer.x_0[::-1], kept.x_0[:, :3], rtol=0, atol=1e-4)
    if num_steps == 6:  # With five of six calls left x_t is the prior draw.
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 9), 0)
        x_T = jax.random.normal(rng, SHAPE)
        np.testing.assert_allclose(kept.x_t[0, 9], x_T, **SAME)


@pytest.mark.parametrize("where, function, room, remedy", [
    ("host", "host_free", 3 * 2 * 4 * 64 * 11, "fewer images"),
    ("device", "device_budget", 3 * 2 * 4 * 64 * 2, "a smaller batch_size"),
])
def test_a_trajectory_without_room_is_refused_with_its_size(
    trained, monkeypatch, where, function, room, remedy
):
    """All of it must fit on the host, and that of a round, 2 images per device, on each device."""
    from ddpm_jax.runtime import memory

    draw = functools.partial(ddpm_jax.sample, trained, 0, 11, num_steps=3, batch_size=16)
    monkeypatch.setattr(memory, function, lambda: room)
    assert draw(trajectory=(2, 1, 0))[1].x_0.shape == (3, 11, *SHAPE)
    monkeypatch.setattr(memory, function, lambda: room - 1)
    size = f"{3 * 2 * 4 * 64 * (11 if where == 'host' else 2):,} bytes on (the|each) {where}"
    with pytest.raises(ValueError, match=f"{size}.*; write fewer steps or {remedy}") as error:
        draw(trajectory=(2, 1, 0))
    assert "\n" not in str(error.value)
    draw(trajectory=(2, 0))
    draw()


def halve(x_0):
    return x_0 / 2


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm_solver"])
def test_a_hook_on_x_0_reaches_every_sampler(trained, sampler):
    from ddpm_jax.diffusion import process

    draw = functools.partial(
        ddpm_jax.sample, trained, 0, 3, sampler=sampler, num_steps=4, trajectory=(3, 0)
    )
    _, plain = draw()
    _, halved = draw(denoised_fn=halve, clip=False)
    assert np.abs(halved.x_0[0] - plain.x_0[0]).max() > 0.1
    _, unclipped = draw(clip=False)
    # The first x_0 of the same x_T, a division by a signal of 0.1 apart.
    np.testing.assert_allclose(halved.x_0[0], unclipped.x_0[0] / 2, rtol=0, atol=1e-4)
    named = functools.partial(process.dynamic_threshold, percentile=0.6)
    _, divided = draw(dynamic_threshold=0.6)
    np.testing.assert_allclose(draw(denoised_fn=named)[1].x_0, divided.x_0, **SAME)
    expected = process.dynamic_threshold(unclipped.x_0[0], 0.6)
    np.testing.assert_allclose(divided.x_0[0], expected, rtol=0, atol=1e-4)


def test_the_networks_own_eps_reaches_ddim(trained):
    draw = functools.partial(ddpm_jax.sample, trained, 0, 3, sampler="ddim", num_steps=2,
                             trajectory=(1, 0))
    (_, ours), (_, own) = draw(), draw(rederive_eps=False)
    respaced = schedule_lib.respace(trained.schedule, [0, 19])
    eps = np.float64(ddpm_jax.denoise_fn(trained)(own.x_t[0], np.full(3, 19)))
    moved = (np.sqrt(respaced.alpha_bar[0]) * own.x_0[0]
             + np.sqrt(1 - respaced.alpha_bar[0]) * eps)
    np.testing.assert_allclose(own.x_t[1], moved, **SAME)
    assert np.abs(ours.x_t[1] - own.x_t[1]).max() > 0.01


@pytest.mark.parametrize("n, says", [
    (16, "batch_size=16 is too much: .* each device has .* GiB; write batch_size=8"),
    (8, "batch_size=8 is too much: .*cannot be lowered; use a smaller model or a larger device"),
])
def test_a_device_without_memory_is_one_line(n, says):
    """For real: each call of the network asks for a tebibyte."""
    model = exhausting.Exhausting()
    huge = ddpm_jax.Trained(
        {"net": nonzero_params(TinyNet())}, model, schedule_lib.linear(2, 0.1, 0.5),
        process.Parameterization(), SHAPE,
    )
    with pytest.raises(ValueError, match=says) as error:
        ddpm_jax.sample(huge, 0, n)
    assert "where 1,024.00 GiB was asked for" in str(error.value)


@pytest.mark.parametrize("model", [
    "runs/digits", pathlib.Path("runs/digits"), None, 5, [1], object(), tiny_unet(),
])
def test_what_is_no_model_is_refused_wherever_one_belongs(model):
    image, uint8 = np.zeros((1, *SHAPE), np.float32), np.zeros((1, *SHAPE), np.uint8)
    for call in (
        lambda: ddpm_jax.denoise_fn(model),
        lambda: ddpm_jax.bits_per_dim(model, 0, uint8),
        lambda: ddpm_jax.save_pretrained(model, "never"),
        lambda: progressive.generate(model, 0, 1),
        lambda: progressive.complete(model, 0, 1, shared=[2]),
        lambda: editing.diffuse(model, 0, image, [1]), lambda: editing.prior(model, 0, 1),
        lambda: editing.interpolate(model, 0, image, image),
        lambda: editing.img2img(model, 0, image), lambda: editing.encode(model, image),
        lambda: editing.decode(model, image), lambda: editing.reconstruct(model, image),
        lambda: editing.slerp(model, image, image), lambda: editing.colourise(model, 0, image),
        lambda: editing.inpaint(model, 0, image, np.eye(8, dtype=bool)),
    ):
        with pytest.raises(UserError) as error:
            call()
        line = str(error.value)
        is_path = isinstance(model, (str, pathlib.Path))
        assert ("ddpm_jax.load('runs/digits')" in line) and ("is a path" in line) == is_path
        assert "\n" not in line and len(line) < 300


@pytest.mark.parametrize("model", [None, 5, [1], object(), tiny_unet()])
def test_what_is_no_model_is_not_sampled_from(model):
    with pytest.raises(UserError, match="is not the Trained that .*write params = ddpm_jax.load"):
        ddpm_jax.sample(model, 0, 1)


def test_a_run_is_sampled_from_by_its_path(trained, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run_folder, "load", lambda path: asked.append(path) or trained)
    for path in ("runs/digits", tmp_path):
        images = ddpm_jax.sample(path, 0, 2, num_steps=3)
        np.testing.assert_array_equal(images, ddpm_jax.sample(trained, 0, 2, num_steps=3))
    assert asked == ["runs/digits", tmp_path]
    monkeypatch.undo()
    with pytest.raises(UserError, match="nowhere holds neither config.json nor a checkpoint"):
        ddpm_jax.sample(tmp_path / "nowhere", 0, 1)


def test_images_as_pictures_of_pillow(trained):
    images = ddpm_jax.sample(trained, 0, 2, num_steps=3, output="pil")
    expected = ddpm_jax.sample(trained, 0, 2, num_steps=3, output="uint8")
    assert [image.size for image in images] == [SHAPE[1::-1]] * 2
    for image, array in zip(images, expected):
        np.testing.assert_array_equal(np.asarray(image).reshape(array.shape), array)
    two = trained.replace(image_shape=(*SHAPE[:2], 2))
    with pytest.raises(UserError, match="output='pil' needs images of 1, 3 or 4 channels, and the "
                                        "model's have 2; write output='uint8'"):
        ddpm_jax.sample(two, 0, 2, output="pil")


def test_whole_floats_and_scalar_arrays_are_numbers(trained):
    images, way = ddpm_jax.sample(trained, 3, 2, num_steps=5, sampler="ddim", trajectory=[4, 0])
    same, again = ddpm_jax.sample(
        trained, np.float64(3), jnp.int32(2), num_steps=5.0, sampler="ddim", batch_size=2e0,
        trajectory=np.array([4.0, 0.0]), eta=jnp.float32(0), progress=0,
    )
    np.testing.assert_array_equal(images, same)
    np.testing.assert_array_equal(way.x_t, again.x_t)
