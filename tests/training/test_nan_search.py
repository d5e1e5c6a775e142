"""Steps whose loss or gradient is not finite: skipped, counted and explained.

step.py skips them and nan_search.py explains them: both use the same compiled steps.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config as config_lib
from ddpm_jax.data import loading
from ddpm_jax.runtime import parallel
from ddpm_jax.training import loop, nan_search
from ddpm_jax.training import run as run_lib
from ddpm_jax.workdir import run_folder
from training_step import BATCH, small_config, state_of, step_of

RNG = jax.random.key(1)


class Poisoned(nn.Module):
    """A network that fails for images of label 1: in its output, its gradient or their loss."""

    fails: str

    @nn.compact
    def __call__(self, x, t, *, train, places=None, labels=None, remat=False):
        marked = jnp.zeros(len(x)) if labels is None else jnp.float32(labels)
        marked = marked[:, None, None, None]
        first = nn.remat(nn.Conv) if remat else nn.Conv
        h = first(4, (3, 3), name="first")(x)
        if self.fails == "output":
            h = h / (1 - marked)
        if self.fails == "gradient":  # sqrt(0) is 0, and its slope is infinite
            h = h * jnp.sqrt(jnp.abs(h) * (1 - marked))
        h = nn.Conv(4, (3, 3), name="second")(nn.swish(h))
        h = nn.Conv(1, (3, 3), name="last")(h)
        # Too large to be squared in float32, but not for the gradient.
        return h.at[:, :1, :1].add(2e19 * marked) if self.fails == "loss" else h


def poisoned_config(**train):
    config = small_config(**({"label_dropout": 0.0, "extra_ema_decays": (0.5,)} | train))
    config.data.labels, config.data.num_classes = True, 2
    return config


def batch_of(poison):
    """A batch of digits; with `poison` the one on the sixth of eight devices is marked."""
    labels = np.zeros(BATCH, np.int32)
    labels[11] = poison
    return parallel.shard({"images": loading.digits("train")[0][:BATCH], "labels": labels})


@functools.cache
def compiled(config):
    return step_of(run_folder.parse(config))


def states(config, model, poison, **changed):
    """The state and the metrics after each step; `poison` says which batches are poisoned."""
    state = parallel.replicate(state_of(config, model).replace(**changed))
    step = compiled(config.to_json())
    seen = [(jax.device_get(state), None)]
    for poisoned in poison:
        state, metrics = step(state, batch_of(poisoned), RNG)
        seen.append(jax.device_get((state, metrics)))
    return seen


def assert_same(a, b, *names):
    for name in names:
        one, other = (jax.tree.leaves(getattr(state, name)) for state in (a, b))
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)


UPDATED = ("params", "ema_params", "extra_ema_params", "opt_state", "loss_history")


@pytest.mark.parametrize("fails", ["output", "gradient", "loss"])
def test_one_bad_image_of_one_device_skips_the_update_of_all(fails):
    """A gradient's norm is finite for "loss", the loss for "gradient"."""
    config = poisoned_config(t_sampling="importance", log_every=4, warmup_steps=10)
    (_, _), (good, _), (bad, row), (worse, _), (again, last) = states(
        config, Poisoned(fails), (0, 1, 1, 0)
    )
    assert np.isfinite(row["grad_norm"]) == (fails == "loss")
    assert np.isfinite(row["loss"])  # of the images since the last row without the skipped ones
    assert_same(good, bad, "tally", *UPDATED)
    assert_same(good, worse, "tally", *UPDATED)
    assert [int(s.step) for s in (good, bad, worse, again)] == [1, 2, 3, 4]
    assert [list(s.skipped) for s in (good, bad, worse, again)] == [[0, 0], [1, 1], [2, 2], [2, 0]]
    assert (last["skipped"], last["skipped_in_a_row"]) == (2, 0)
    # The rate is that of the optimizer's second update: 1/10 of the full rate.
    np.testing.assert_allclose(last["learning_rate"], 1e-4, rtol=1e-6)

    # The next step starts from the state before them, with the data and noise of its own number.
    without = states(config, Poisoned(fails), (0,), **{
        name: getattr(good, name) for name in ("tally", *UPDATED)
    } | {"step": jnp.int32(3)})[-1][0]
    assert_same(without, again, "step", "tally", *UPDATED)


def test_a_row_of_skipped_steps_alone_has_no_loss():
    config = poisoned_config(log_every=1)
    _, (good, _), (bad, metrics) = states(config, Poisoned("output"), (0, 1))
    assert set(loop.finite_row(metrics)) == {"learning_rate", "skipped", "skipped_in_a_row"}
    np.testing.assert_array_equal(bad.tally, 0)  # it starts again with its row
    assert good.tally[1].sum() == BATCH


def test_numbers_are_those_of_one_image_alone():
    """The loss of the row is the mean over the images of the steps that counted."""
    config = poisoned_config(log_every=3, learning_rate=1e-12)
    _, *counted = states(config, Poisoned("output"), (0, 0, 0))
    _, _, _, (_, row) = states(config, Poisoned("output"), (0, 1, 0))
    sums = [np.float64(state.tally[0].sum()) for state, _ in counted]
    expected = (sums[0] + sums[2] - sums[1]) / (2 * BATCH)
    np.testing.assert_allclose(row["loss"], expected, rtol=1e-5)  # float32 sums of 32


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("fails, says", [
    ("output", "second has an output that is not finite"),
    ("gradient", "first has a gradient that is not finite"),
    ("loss", "the loss is not finite, though the output of every layer is"),
])
def test_the_layer_is_named(fails, says, accumulate):
    config = poisoned_config(accumulate=accumulate, remat=accumulate == 2)
    state = state_of(config, Poisoned(fails))
    find = functools.partial(
        nan_search.not_finite, state, rng=RNG, schedule=config_lib.schedule(config),
        settings=run_lib.step_settings(config),
    )
    assert find(batch=batch_of(1)) == says
    assert "all of it was finite" in find(batch=batch_of(0))


def test_the_step_is_run_again_with_its_own_draws(monkeypatch):
    """The diagnosis sees the loss of the step."""
    config = poisoned_config(log_every=1)
    (state, _), (_, row) = states(config, Poisoned("output"), (0,), step=jnp.int32(4))
    seen = []
    monkeypatch.setattr(
        nan_search, "first_not_finite",
        lambda layers, finite, loss, grads: seen.append(float(loss)),
    )
    nan_search.not_finite(state, batch_of(0), RNG, schedule=config_lib.schedule(config),
                          settings=run_lib.step_settings(config))
    assert len(seen) == 8
    np.testing.assert_allclose(np.mean(seen), row["loss"], rtol=1e-5)  # sums of 16 in float32
