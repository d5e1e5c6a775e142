"""A state with its short arrays as one, and steps of it."""

import jax
import numpy as np
import pytest

from ddpm_jax.data import loading
from ddpm_jax.network.trained import leaves
from ddpm_jax.runtime import parallel
from ddpm_jax.training import packing, sharding
from ddpm_jax.training import state as state_lib
from nonzero import TinyNet, nonzero_params
from training_step import BATCH, small_config, state_of, step_of


def equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_a_tree_is_packed_and_unpacked():
    params = nonzero_params(TinyNet())
    packed = packing.packed(params)
    short = {path: x for path, x in leaves(params).items() if x.ndim == 1}
    assert 1 < len(short) < len(leaves(params)) and packed.short.ndim == 1
    equal(packed.short, np.concatenate(list(short.values())))
    assert len(jax.tree.leaves(packed)) == 1 + len(leaves(params)) - len(short)
    equal(packing.unpacked(packed), params)
    equal(packing.unpacked({"a": [packed, 3]}), {"a": [params, 3]})
    equal(packing.like(params, packed), packed)
    assert packing.like(params, params) is params


def test_a_tree_without_short_arrays_stays_as_it_is():
    tree = {"kernel": np.ones((2, 2), np.float32)}
    assert packing.packed(tree) is tree and packing.unpacked(tree) is not None
    equal(packing.unpacked(tree), tree)


def test_a_state_has_all_of_its_parts_back():
    state = state_of(small_config(extra_ema_decays=(0.5, 0.9)), TinyNet())
    packed = packing.pack_state(state)
    short = sum(x.ndim == 1 for x in jax.tree.leaves(state.params))
    # Of parameters, three averages and two moments.
    assert len(jax.tree.leaves(packed)) == len(jax.tree.leaves(state)) - 6 * (short - 1)
    equal(state_lib.to_saved(packing.unpack_state(packed)), state_lib.to_saved(state))
    some = packing.unpack_state(packed, ("ema_params",))
    equal(some.ema_params, state.ema_params)
    assert isinstance(some.params, packing.Packed)


@pytest.mark.parametrize("t_sampling", ["uniform", "importance"])
def test_a_packed_state_goes_the_same_way(t_sampling):
    config = small_config(extra_ema_decays=(0.5,), grad_clip=0.05, t_sampling=t_sampling)
    images, rows = loading.digits("train")[0], []
    plain = (parallel.replicate(state_of(config, TinyNet())),)
    states = [plain, sharding.hold(state_of(config, TinyNet()), False)]
    for i, held in enumerate(states):
        step = step_of(config)
        for j in range(2):
            batch = parallel.shard({"images": images[BATCH * j:BATCH * (j + 1)]})
            *held, metrics = step(*held, batch, jax.random.key(1))
        states[i], rows = held, [*rows, jax.device_get(metrics)]
    (wanted,), packed = states
    # The gradient's norm is a sum in another order; of parameters of about 1, the last bits.
    same = dict(rtol=1e-6, atol=2e-7)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **same),
        state_lib.to_saved(sharding.whole(packed)), state_lib.to_saved(wanted),
    )
    for name, value in rows[0].items():
        np.testing.assert_allclose(rows[1][name], value, rtol=1e-5, err_msg=name)
