"""Bits/dim on every device equal those of each image alone; finished batches are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import ode_likelihood, process, variational_bound
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.inference import batched_map
from ddpm_jax.inference import bits_per_dim as bits_lib
from ddpm_jax.runtime import partial_results
from nonzero import SHAPE, TinyNet, nonzero_params, tiny_trained

# Sums over pixels in another order, with terms of up to 20 bits: some float32 roundings.
SAME = dict(rtol=1e-5, atol=1e-5)
T, KEY = 6, 3
FIELDS = ("vlb", "prior", "mse_x_0", "mse_eps")


def trained_as(mean, variance):
    return tiny_trained(schedule_lib.linear(T, 1e-2, 0.6), mean, variance)


@pytest.fixture(scope="module")
def trained():
    return trained_as("eps", "fixed_large")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (20, *SHAPE), np.uint8)


def key(i):
    return jax.random.fold_in(jax.random.key(KEY), i)


def one_by_one(trained, images, clip):
    """The terms of each image from the pure function, on one device without `pmap`."""
    predict_fn = process.predict_fn(
        trained.schedule, ddpm_jax.denoise_fn(trained), mean=trained.diffusion.mean,
        variance=trained.diffusion.variance, clip=clip,
    )
    terms = jax.jit(lambda x_0, rngs: variational_bound.vlb_terms(
        trained.schedule, predict_fn, x_0, rngs))
    each = [
        terms(np.float32(image[None] / 127.5 - 1), key(i)[None])
        for i, image in enumerate(images)
    ]
    return {name: np.concatenate([getattr(one, name) for one in each]) for name in FIELDS}


@pytest.fixture(scope="module")
def expected(trained, pixels):
    return one_by_one(trained, pixels, clip=True)


def assert_terms(actual, expected, n):
    assert isinstance(actual, variational_bound.Terms)
    for name in FIELDS:
        array = getattr(actual, name)
        assert isinstance(array, np.ndarray) and len(array) == n, name
        np.testing.assert_allclose(array, expected[name][:n], err_msg=name, **SAME)


def test_a_self_conditioned_network_is_told_its_own_guess(pixels):
    """The bound of a network of x_t alone: one that calls it twice."""
    plain = trained_as("eps", "fixed_large")
    model = TinyNet(self_condition=True)
    trained = plain.replace(model=model, params=nonzero_params(model))
    apply_fn, schedule = ddpm_jax.denoise_fn(trained), trained.schedule

    def twice(x_t, t):
        signal, sigma = (jnp.float32(level)[:, None, None, None] for level in (
            schedule.sqrt_alpha_bar, schedule.sqrt_one_minus_alpha_bar))
        guess = (x_t - sigma[t] * apply_fn(x_t, t)) / signal[t]
        return apply_fn(x_t, t, guess.clip(-1, 1))

    def bound(denoise_fn):
        predict_fn = process.predict_fn(schedule, denoise_fn)
        rngs = jnp.stack([key(i) for i in range(3)])
        return variational_bound.total_bits(jax.jit(lambda x_0: variational_bound.vlb_terms(
            schedule, predict_fn, x_0, rngs))(np.float32(pixels[:3] / 127.5 - 1)))

    actual = ddpm_jax.bits_per_dim(trained, KEY, pixels[:3])
    np.testing.assert_allclose(actual, bound(twice), **SAME)
    assert np.abs(actual - bound(apply_fn)).max() > 1e-2


class Recording:
    """A source that remembers which images were read."""

    def __init__(self, images):
        self.read = []
        self.source = source_lib.Source(len(images), images.shape[1:], self._read)
        self.images = images

    def _read(self, places):
        self.read.append(np.asarray(places).tolist())
        return self.images[places]


# The bound.


def test_images_cost_differently(expected):
    """So the tests below notice a value of another image or term."""
    assert expected["vlb"].std(axis=0).min() > 1e-3
    assert np.abs(np.diff(expected["vlb"].mean(axis=0))).min() > 1e-3


@pytest.mark.parametrize("n, batch_size", [
    (1, None), (5, 3), (11, None), (11, 3), (11, 16),
])
def test_terms_are_those_of_each_image_alone(trained, pixels, expected, n, batch_size):
    source = source_lib.from_array(pixels[:n])
    actual = bits_lib.terms(trained, KEY, source, batch_size=batch_size)
    assert_terms(actual, expected, n)


@pytest.mark.parametrize("mean, variance, clip", [
    ("v", "learned_range", True), ("x_0", "fixed_small", False),
])
def test_the_networks_output_is_taken_for_what_it_is(pixels, mean, variance, clip):
    trained = trained_as(mean, variance)
    actual = bits_lib.terms(trained, KEY, source_lib.from_array(pixels[:3]), clip=clip)
    assert_terms(actual, one_by_one(trained, pixels[:3], clip), 3)


@pytest.mark.parametrize("other", [
    schedule_lib.linear(T, 1e-2, 0.3),
    schedule_lib.respace(schedule_lib.linear(9, 1e-2, 0.4), schedule_lib.evenly_spaced(9, T)),
], ids=["other betas", "steps of a longer one"])
def test_the_schedule_is_the_one_given(trained, pixels, expected, other):
    """It is as long as the one before, so a program for that could be reused by mistake."""
    changed = trained.replace(schedule=other)
    actual = bits_lib.terms(changed, KEY, source_lib.from_array(pixels[:3]))
    assert_terms(actual, one_by_one(changed, pixels[:3], clip=True), 3)
    assert np.abs(actual.vlb - expected["vlb"][:3]).max() > 0.01


def test_the_next_checkpoint_compiles_nothing(trained, pixels):
    def run(trained):
        source = source_lib.from_array(pixels[:5])
        ode = bits_lib.by_ode(trained, KEY, source, num_steps=2)
        return bits_lib.terms(trained, KEY, source).vlb, ode

    compiled, before = [], run(trained)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: "backend_compile" in event and compiled.append(event)
    )
    after = run(trained.replace(params=jax.tree.map(lambda x: x + 0.1, trained.params)))
    assert compiled == []
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(after, before))
    run(trained.replace(schedule=schedule_lib.linear(T, 1e-2, 0.5)))
    assert compiled != []  # The listener works.


def test_bits_are_the_sum_of_the_terms(trained, pixels, expected):
    actual = ddpm_jax.bits_per_dim(trained, jax.random.PRNGKey(KEY), pixels[:11])
    assert ddpm_jax.bits_per_dim is bits_lib.bits_per_dim
    assert actual.shape == (11,) and actual.dtype == np.float64
    total = expected["vlb"].astype(np.float64).sum(axis=1) + expected["prior"]
    np.testing.assert_allclose(actual, total[:11], **SAME)
    clipped = ddpm_jax.bits_per_dim(trained, KEY, pixels[:11], clip=False)
    assert np.abs(clipped - actual).max() > 0.01
    other = ddpm_jax.bits_per_dim(trained, KEY + 1, pixels[:11])
    assert np.abs(other - actual).max() > 0.01


def test_the_last_round_is_counted_once(trained, pixels):
    """Eight devices, eleven images: five places of the second batch are padding."""
    recording = Recording(pixels[:11])
    actual = bits_lib.terms(trained, KEY, recording.source, batch_size=8)
    assert recording.read == [list(range(8)), [8, 9, 10, 10, 10, 10, 10, 10]]
    assert {len(getattr(actual, name)) for name in FIELDS} == {11}


def test_progress_moves_a_bar_to_its_end_and_changes_nothing(
    trained, pixels, expected, capsys, terminal
):
    source = source_lib.from_array(pixels[:11])
    actual = bits_lib.terms(trained, KEY, source, batch_size=8, progress=True)
    assert_terms(actual, expected, 11)
    assert f"{2 * T}/{2 * T}" in capsys.readouterr().err  # Two batches of T steps.
    bits_lib.bits_per_dim(trained, KEY, pixels[:11], batch_size=8, progress=True)
    assert f"{2 * T}/{2 * T}" in capsys.readouterr().err
    bits_lib.terms(trained, KEY, source)
    assert capsys.readouterr().err == ""


# Resuming.


@pytest.fixture
def folder(tmp_path, trained, pixels):
    """The parts of 20 images in batches of 8."""
    folder = tmp_path / "made" / "parts"
    bits_lib.terms(trained, KEY, source_lib.from_array(pixels), batch_size=8, folder=folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "000000000.npz", "000000008.npz", "000000016.npz"]
    return folder


def test_parts_hold_the_rows_once(folder, expected):
    actual = list(partial_results.finished(folder))
    assert [partial_results.num_rows(part) for part in actual] == [8, 8, 4]
    for name in FIELDS:
        rows = np.concatenate([part[name] for part in actual])
        np.testing.assert_allclose(rows, expected[name], err_msg=name, **SAME)


def test_finished_parts_are_taken_as_they_are(trained, pixels, expected, folder):
    part = dict(np.load(folder / "000000008.npz"))
    partial_results.keep(folder, 8, part | {"vlb": part["vlb"] + 100})
    (folder / "000000016.npz").unlink()
    planted = dict(expected, vlb=expected["vlb"].copy())
    planted["vlb"][8:16] += 100
    recording = Recording(pixels)
    actual = bits_lib.terms(trained, KEY, recording.source, batch_size=8, folder=folder)
    np.testing.assert_allclose(actual.vlb[8:16], part["vlb"] + 100, rtol=1e-6)
    assert_terms(actual, planted, 20)
    assert recording.read == [[16, 17, 18, 19, 19, 19, 19, 19]]
    assert (folder / "000000016.npz").exists()

    again = bits_lib.terms(trained, KEY, recording.source, batch_size=8, folder=folder)
    assert len(recording.read) == 1  # Nothing more was read.
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(again, name), getattr(actual, name))


def test_a_damaged_part_is_computed_again(trained, pixels, expected, folder):
    path = folder / "000000008.npz"
    path.write_bytes(path.read_bytes()[:-30])
    recording = Recording(pixels)
    actual = bits_lib.terms(trained, KEY, recording.source, batch_size=16, folder=folder)
    assert_terms(actual, expected, 20)
    assert recording.read == [[8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, *4 * [19]]]
    assert sum(partial_results.num_rows(part) for part in partial_results.finished(folder)) == 20


def test_what_is_killed_continues(tmp_path, trained, pixels, expected):
    recording = Recording(pixels)

    def killed(places):
        if places[0] >= 16:
            raise KeyboardInterrupt
        return pixels[places]

    source = source_lib.Source(20, SHAPE, killed)
    with pytest.raises(KeyboardInterrupt):
        bits_lib.terms(trained, KEY, source, batch_size=8, folder=tmp_path)
    actual = bits_lib.terms(trained, KEY, recording.source, batch_size=8, folder=tmp_path)
    assert [places[0] for places in recording.read] == [16]
    assert_terms(actual, expected, 20)


def test_progress_of_the_rest_reaches_its_end(trained, pixels, folder, capsys, terminal):
    (folder / "000000016.npz").unlink()
    source = source_lib.from_array(pixels)
    bits_lib.terms(trained, KEY, source, batch_size=8, folder=folder, progress=True)
    assert f"{T}/{T}" in capsys.readouterr().err


# The probability-flow ODE.


@pytest.mark.parametrize("mean, variance, num_probes", [
    ("eps", "fixed_large", 1), ("v", "learned_range", 2),
])
def test_ode_bits_are_those_of_each_image_alone(pixels, mean, variance, num_probes):
    trained = trained_as(mean, variance)
    settings = dict(num_steps=4, num_probes=num_probes)
    alone = jax.jit(lambda images, rngs: ode_likelihood.ode_bits_per_dim(
        trained.schedule, ddpm_jax.denoise_fn(trained), images, rngs, mean=mean,
        variance=variance, **settings,
    ))
    expected = [alone(pixels[i : i + 1], key(i)[None])[0] for i in range(11)]
    assert np.std(expected) > 0.01
    for n, batch_size in ((11, 8), (5, None)):
        actual = bits_lib.by_ode(
            trained, KEY, source_lib.from_array(pixels[:n]), batch_size=batch_size, **settings)
        assert actual.shape == (n,) and actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected[:n], **SAME)


def test_ode_bits_resume_and_move_a_bar(tmp_path, trained, pixels, capsys, terminal):
    def run(source):
        return bits_lib.by_ode(
            trained, KEY, source, num_steps=5, batch_size=8, folder=tmp_path, progress=True)

    actual = run(source_lib.from_array(pixels[:11]))
    assert "10/10" in capsys.readouterr().err  # Two batches of 5 steps.
    partial_results.keep(tmp_path, 0, {"bits": np.full(8, 100, np.float32)})
    (tmp_path / "000000008.npz").unlink()
    recording = Recording(pixels[:11])
    again = run(recording.source)
    assert [places[0] for places in recording.read] == [8]
    np.testing.assert_array_equal(again, np.append(np.full(8, 100), actual[8:]))


# Mistakes.


@pytest.mark.parametrize("compute", [bits_lib.terms, bits_lib.by_ode])
@pytest.mark.parametrize("shape", [(4, 4, 1), (8, 8, 3)])
def test_images_of_another_shape_are_refused(trained, compute, shape):
    source = source_lib.from_array(np.zeros((2, *shape), np.uint8))
    with pytest.raises(ValueError, match=r"config\.data\.image_size") as error:
        compute(trained, KEY, source)
    assert "\n" not in str(error.value)
    assert str(list(shape)) in str(error.value) and str(list(SHAPE)) in str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_other_than_uint8_is_refused(trained, dtype):
    with pytest.raises(ValueError, match="must be uint8") as error:
        ddpm_jax.bits_per_dim(trained, KEY, np.zeros((2, *SHAPE), dtype))
    assert "\n" not in str(error.value)


def test_images_of_another_shape_are_refused_by_the_short_way(trained):
    with pytest.raises(ValueError, match=r"config\.data\.image_size"):
        ddpm_jax.bits_per_dim(trained, KEY, np.zeros((2, 4, 4, 1), np.uint8))


# Batches.


def test_a_batch_holds_what_fits_and_at_most_64_per_device(trained, pixels, monkeypatch):
    def sizes():
        recording = Recording(pixels)
        bits_lib.terms(trained, KEY, recording.source)
        return [len(places) for places in recording.read]

    assert sizes() == [24]
    monkeypatch.setattr(batched_map, "images_that_fit", lambda *_: 1)
    assert sizes() == [8, 8, 8]
    monkeypatch.setattr(batched_map, "images_that_fit", lambda *_: 256)
    monkeypatch.setattr(bits_lib, "MOST_PER_DEVICE", 2)
    assert sizes() == [16, 16]
