"""A state that devices share, against one that each of them has whole."""

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import config as config_lib
from ddpm_jax import validation
from ddpm_jax.data import loading
from ddpm_jax.network.trained import leaves
from ddpm_jax.runtime import parallel
from ddpm_jax.training import memory_check, sharding
from ddpm_jax.training import state as state_lib
from ddpm_jax.workdir import checkpoints
from nonzero import SHAPE, TinyNet
from training_step import BATCH, small_config, state_of, step_of

CLIP = 0.05  # Below the gradient's norm, so that clipping is seen.
STEPS = 4
SAME = dict(rtol=1e-6, atol=1e-7)  # Two sums over devices, in another order each.


@pytest.fixture(autouse=True)
def cut_small_arrays(monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST", 16)


def net():
    """One kernel of 16 input channels, two arrays of fewer than devices, and biases."""
    return TinyNet(channels=16)


def run(shard_update, change=lambda state: state, num_steps=STEPS, **settings):
    """(the arrays to save, the metrics of each step, what the devices hold at the end)."""
    config = small_config(shard_update=shard_update, **settings)
    held, step = sharding.hold(change(state_of(config, net())), shard_update), step_of(config)
    images, rows = loading.digits("train")[0], []
    for i in range(num_steps):
        batch = parallel.shard({"images": images[BATCH * i:BATCH * (i + 1)]})
        *held, metrics = step(*held, batch, jax.random.key(1))
        rows.append(jax.device_get(metrics))
    return jax.device_get(state_lib.to_saved(sharding.whole(held))), rows, held


def shards(tree):
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, sharding.Shard))


def test_a_shared_state_goes_the_same_way():
    settings = dict(
        grad_clip=CLIP, extra_ema_decays=(0.5,), t_sampling="importance", accumulate=2,
        weight_decay=0.1, schedule="cosine", num_steps=STEPS,
    )
    (saved, rows, _), (wanted, wanted_rows, _) = (run(x, **settings) for x in (True, False))
    assert wanted_rows[0]["grad_norm"] > 2 * CLIP
    for row, want in zip(rows, wanted_rows, strict=True):
        assert row.keys() == want.keys()
        for name, value in want.items():
            np.testing.assert_allclose(row[name], value, **SAME, err_msg=name)
    jax.tree.map(lambda x, want: np.testing.assert_allclose(x, want, **SAME), saved, wanted)


def test_each_device_keeps_its_input_channels():
    """A kernel, its two averages and its two moments; the rest is whole on each device."""
    state = state_of(small_config(extra_ema_decays=(0.5,)), net())
    held = sharding.hold(state, True)
    assert [x.shape for x in shards(held[1])] == [(3, 3, 16, 1)] * 5
    kernel = np.asarray(state.params["conv_out"]["kernel"])
    (share,) = shards(held[1].params)
    for i, part in enumerate(np.split(kernel, jax.device_count(), axis=2)):
        there = share.rows.addressable_shards[i]
        assert there.device == jax.local_devices()[i]
        np.testing.assert_array_equal(there.data[0], part.reshape(-1, 1))
    again = sharding.whole(held)
    jax.tree.map(np.testing.assert_array_equal, state_lib.to_saved(again),
                 state_lib.to_saved(state))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_an_update_that_is_not_finite_is_skipped_by_all(request, platform):
    if platform == "gpu":
        request.getfixturevalue("as_on_a_gpu")

    def broken(state):
        kernel = state.params["conv_out"]["kernel"].at[0, 0, 3, 0].set(np.inf)
        return state.replace(params=state.params | {
            "conv_out": state.params["conv_out"] | {"kernel": kernel}
        })

    saved, rows, _ = run(True, broken)
    wanted = jax.device_get(state_lib.to_saved(broken(state_of(small_config(), net()))))
    assert [row["skipped_in_a_row"] for row in rows] == list(range(1, STEPS + 1))
    for part in ("params", "ema_params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, saved[part], wanted[part])


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("shard_update", [False, True])
def test_weights_decay_in_whatever_form_the_step_has_them(request, platform, shard_update):
    """One step of AdamW is one of Adam, less rate times decay times the kernels before it.

    The step packs biases, cuts kernels and, on a GPU, flattens all arrays.
    """
    if platform == "gpu":
        request.getfixturevalue("as_on_a_gpu")
    settings = dict(shard_update=shard_update, learning_rate=0.5)
    (decayed, *_), (plain, *_) = (
        run(num_steps=1, weight_decay=decay, **settings) for decay in (0.25, 0.0)
    )
    before = leaves(state_of(small_config(), net()).params)
    for path, x in leaves(decayed["params"]).items():
        taken = 0.5 * 0.25 * before[path] * (path[-1] == "kernel")
        np.testing.assert_allclose(x, leaves(plain["params"])[path] - taken, **SAME)


def test_what_a_device_needs_is_counted():
    """By hand: 144 numbers of the kernel, an eighth of them on each device."""
    state = state_of(small_config(), net())
    whole = memory_check.of_state(state)
    shared = memory_check.of_state(sharding.merged(*sharding.hold(state, True)))
    num_params = sum(x.size for x in jax.tree.leaves(state.params))
    assert whole["parameters"] == whole["gradients"] == 4 * num_params
    saved = 4 * (144 - 144 // 8)
    assert shared == {
        "parameters": whole["parameters"] - saved, "gathered parameters": 4 * num_params,
        "averages": whole["averages"] - saved, "optimizer": whole["optimizer"] - 2 * saved,
        "gradients": whole["gradients"],
    }
    config = small_config()
    needs = [
        memory_check.of_fresh_state(net(), config_lib.optimizer(config), SHAPE, (), num_shards)
        for num_shards in (None, 8)
    ]
    assert needs == [sum(whole.values()), sum(shared.values())]


def test_a_run_goes_on_with_and_without(tmp_path, monkeypatch):
    """Off, on, off: the losses, the checkpoints and the EMA of a run that was always off."""
    monkeypatch.setattr(config_lib, "model", lambda config, channels: net())
    monkeypatch.setattr(validation, "check_images", lambda config, shape: None)

    def train(folder, num_steps, shard_update):
        return ddpm_jax.train(small_config(
            shard_update=shard_update, num_steps=num_steps, log_every=1, eval_every=2,
            eval_images=8, sample_every=6, sample_images=2, checkpoint_every=2,
        ), tmp_path / folder)

    wanted = train("off", 6, False)
    for num_steps, shard_update in ((2, False), (4, True), (6, False)):
        trained = train("both", num_steps, shard_update)
    jax.tree.map(lambda x, want: np.testing.assert_allclose(x, want, **SAME),
                 trained.params, wanted.params)
    for name in ("loss", "grad_norm", "heldout_loss"):
        values, others = ([row[name] for row in ddpm_jax.read_metrics(tmp_path / folder)
                           if name in row] for folder in ("both", "off"))
        assert len(others) >= 3
        np.testing.assert_allclose(values, others, rtol=1e-6, err_msg=name)
    for part in ("params", "opt_state"):
        both, off = (checkpoints.restore_part(tmp_path / folder, part, 4)[1]
                     for folder in ("both", "off"))
        jax.tree.map(lambda x, want: np.testing.assert_allclose(x, want, **SAME), both, off)
