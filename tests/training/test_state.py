"""The state of training at its start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training import state as state_lib
from nonzero import SHAPE, TinyNet


def test_a_fresh_state_holds_everything_once():
    """The state is donated: a buffer under two names would be used after its end."""
    state = state_lib.create(
        TinyNet(), optax.adam(1.0), jax.random.key(0), SHAPE, extra_averages=("0.5",)
    )
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers) == 5 * len(jax.tree.leaves(state.params)) + 4


def test_a_fresh_state_is_what_the_network_draws(compiled):
    model, rng = TinyNet(), jax.random.key(3)
    x, t = jnp.zeros((1, *SHAPE)), jnp.zeros((1,), jnp.int32)
    want = jax.jit(functools.partial(model.init, train=False))(rng, x, t)["params"]
    del compiled[:]
    state = state_lib.create(model, optax.adam(1.0), rng, SHAPE, extra_averages=("0.5",))
    for params in (state.params, state.ema_params, state.extra_ema_params["0.5"]):
        jax.tree.map(np.testing.assert_array_equal, params, want)
    assert compiled == ["jit(fresh)"]  # one program, not one per leaf


@pytest.fixture
def compiled():
    """The names of the programs compiled so far."""
    names = []

    def note(event, _, fun_name="", **__):
        if event.endswith("backend_compile_duration"):
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)
