"""The schedules of the learning rate against their formulas, and AdamW against optax's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import optimizer
from ddpm_jax.errors import UserError
from ddpm_jax.network.trained import leaves
from ddpm_jax.optimizer import LearningRate
from nonzero import nonzero_params, tiny_unet

RATE, WARM_UP, END, LAST = 2e-4, 100, 1000, 1e-5
COUNTS = (0, 1, 50, 99, 100, 101, 299, 300, 301, 550, 999, 1000, 1500)
FLOAT32 = dict(rtol=2e-6, atol=1e-11)


def rate(schedule, **settings):
    made = LearningRate(**{
        "schedule": schedule, "learning_rate": RATE, "warmup_steps": WARM_UP, "num_steps": END,
        **settings,
    })
    made.check()
    return made


def share(count, start):
    """How much of a decay from `start` to END is over."""
    return min(max((count - start) / (END - start), 0), 1)


def cosine(count, start, last):
    return last + (RATE - last) * (1 + math.cos(math.pi * share(count, start))) / 2


def linear(count, start, last):
    return RATE + (last - RATE) * share(count, start)


FORMULAS = {
    "constant": (rate("constant"), lambda n: RATE),
    "cosine": (rate("cosine"), lambda n: cosine(n, 100, 0)),
    "cosine to a rate, later": (
        rate("cosine", decay_start=300, end_learning_rate=LAST), lambda n: cosine(n, 300, LAST)),
    "linear": (rate("linear"), lambda n: linear(n, 100, 0)),
    "linear to a rate, later": (
        rate("linear", decay_start=300, end_learning_rate=LAST), lambda n: linear(n, 300, LAST)),
    "inverse_sqrt": (rate("inverse_sqrt"), lambda n: RATE / math.sqrt(max(n, 100) / 100)),
    "inverse_sqrt, later": (  # Karras et al. 2024, with t_ref = 300.
        rate("inverse_sqrt", decay_start=300), lambda n: RATE / math.sqrt(max(n / 300, 1))),
    "piecewise": (
        rate("piecewise", piecewise_steps=(300, 1000), piecewise_scales=(0.5, 0.1)),
        lambda n: RATE * (0.05 if n >= 1000 else 0.5 if n >= 300 else 1)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_each_schedule_follows_its_formula_after_the_warm_up(name):
    made, formula = FORMULAS[name]
    wanted = [RATE * n / WARM_UP if n < WARM_UP else formula(n) for n in COUNTS]
    np.testing.assert_allclose([made(n) for n in COUNTS], wanted, **FLOAT32)
    traced = jax.jit(jax.vmap(made))(jnp.array(COUNTS))
    np.testing.assert_allclose(traced, wanted, **FLOAT32)
    without = dataclasses.replace(made, warmup_steps=0, decay_start=max(made.decay_start, 100))
    if made.schedule in ("cosine", "inverse_sqrt"):
        np.testing.assert_allclose(
            [without(n) for n in COUNTS], [formula(n) for n in COUNTS], **FLOAT32
        )


def test_cosine_after_a_warm_up_is_that_of_optax():
    theirs = optax.warmup_cosine_decay_schedule(0.0, RATE, WARM_UP, END, LAST)
    ours = rate("cosine", end_learning_rate=LAST)
    np.testing.assert_allclose(
        [ours(n) for n in COUNTS], [theirs(n) for n in COUNTS], **FLOAT32
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("new_end", [400, 2000])
def test_a_decay_goes_on_to_another_end_from_where_it_is(schedule, new_end):
    """Its share that was over at 370 of 1000 stays, and the rest takes as long as is left."""
    before = rate(schedule, end_learning_rate=LAST)
    after = dataclasses.replace(before, num_steps=new_end).resumed(before, 370)
    np.testing.assert_allclose(after(370), before(370), **FLOAT32)
    np.testing.assert_allclose(after(new_end), LAST, **FLOAT32)
    for part in (0.25, 0.5, 1.0):
        np.testing.assert_allclose(
            after(370 + part * (new_end - 370)), before(370 + part * (1000 - 370)), **FLOAT32
        )
    again = dataclasses.replace(before, num_steps=new_end).resumed(after, 380)
    assert again == after  # Resumed once more, with the same end.
    back = before.resumed(after, 390)  # And once more, with the first.
    np.testing.assert_allclose(back(390), after(390), **FLOAT32)
    np.testing.assert_allclose(back(1000), LAST, **FLOAT32)
    lower = dataclasses.replace(after, learning_rate=RATE / 2, moved_start=None)
    assert lower.resumed(after, 390).moved_start == after.moved_start  # Another rate, as far on.


@pytest.mark.parametrize("before, after, count", [
    (rate("cosine"), rate("cosine", num_steps=2000), 1000),  # The decay has ended,
    (rate("cosine"), rate("cosine", num_steps=2000), 100),  # or not begun.
    (rate("cosine"), rate("linear", num_steps=2000), 500),
    (rate("cosine"), rate("cosine", num_steps=2000, decay_start=300), 500),
    (rate("constant"), rate("cosine"), 500),
    (rate("cosine"), rate("inverse_sqrt"), 500),
    (rate("constant"), rate("constant", num_steps=2000), 500),
])
def test_another_schedule_is_as_if_it_had_been_so_from_the_start(before, after, count):
    assert after.resumed(before, count) == after


@pytest.mark.parametrize("schedule, settings, words", [
    ("cosinus", {}, "schedule='cosinus' is not known; use one of constant, cosine"),
    ("constant", dict(decay_start=5), "decay_start=5 is for cosine, linear, inverse_sqrt alone, "
     "and has no effect with schedule='constant'; write decay_start=0."),
    ("inverse_sqrt", dict(end_learning_rate=1e-6), "write end_learning_rate=0.0."),
    ("cosine", dict(piecewise_steps=(3,)), r"write piecewise_steps=\(\)."),
    ("cosine", dict(end_learning_rate=1.0), "end_learning_rate=1.0 is above learning_rate=0.0002"),
    ("inverse_sqrt", dict(warmup_steps=0), "decay_start=0 must be at least 1 with "
     "schedule='inverse_sqrt' and warmup_steps=0: .*write decay_start=1000."),
    ("piecewise", {}, r"piecewise_steps=\(\) must be one or more increasing numbers"),
    ("piecewise", dict(piecewise_steps=(300, 200), piecewise_scales=(0.1, 0.1)), "increasing"),
    ("piecewise", dict(piecewise_steps=(300, 300), piecewise_scales=(0.1, 0.1)), "increasing"),
    ("piecewise", dict(piecewise_steps=(100,), piecewise_scales=(0.1,)),
     "above warmup_steps=100; write piecewise_steps"),
    ("piecewise", dict(piecewise_steps=(300, 400), piecewise_scales=(0.1,)),
     r"piecewise_scales=\(0.1,\) must have a number for each of piecewise_steps=\(300, 400\); "
     r"write piecewise_scales=\(0.1, 0.1\)."),
])
def test_what_a_schedule_cannot_take_is_refused_in_one_line(schedule, settings, words):
    with pytest.raises(UserError, match=words) as error:
        rate(schedule, **settings)
    assert "\n" not in str(error.value)


def test_what_is_written_instead_is_allowed():
    settings = {}
    for _ in range(2):  # The steps, and then the factors.
        with pytest.raises(UserError) as error:
            rate("piecewise", **settings)
        settings |= error.value.instead
    rate("piecewise", **settings)


def random_tree(params, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.float32(random.standard_normal(x.shape)), params)


def steps_of(tx, params, num_steps=3, **extra):
    """Parameters and state after some updates by random gradients."""
    state = tx.init(params)
    for seed in range(num_steps):
        grads = random_tree(params, seed)
        updates, state = tx.update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


SETTINGS = dict(b1=0.8, b2=0.95, eps=1e-3)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_updates_are_those_of_optax(weight_decay):
    params = random_tree(nonzero_params(tiny_unet(num_classes=3)), 7)
    rate = optax.linear_schedule(0.1, 0.05, 3)
    ours, state = steps_of(
        optimizer.adamw(rate, weight_decay=weight_decay, **SETTINGS), params, norm=1.0
    )
    theirs, _ = steps_of(optax.adamw(
        rate, weight_decay=weight_decay, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree),
        **SETTINGS
    ), params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), ours, theirs)
    adam = optax.chain(optax.identity(), optax.adam(rate, **SETTINGS)).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(adam)  # Checkpoints stay readable.


def test_weights_decay_and_biases_and_norms_do_not():
    params = nonzero_params(tiny_unet(num_classes=3, condition_channels=1))
    tx = optimizer.adamw(0.5, weight_decay=0.01)
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params, norm=0.0)
    before = leaves(params)
    assert {"kernel", "bias", "scale", "embedding"} == {path[-1] for path in before}
    for path, x in leaves(updates).items():
        decays = before[path].ndim > 1
        np.testing.assert_allclose(x, -0.5 * 0.01 * before[path] if decays else 0 * x, rtol=1e-6)


@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_gradients_are_clipped_as_optax_does(max_norm):
    rng = np.random.default_rng(0)
    grads = {"a": jnp.float32(rng.normal(size=(3, 4))), "b": [jnp.float32(rng.normal(size=5))]}
    norm = optax.tree.norm(grads)
    ours, theirs = optimizer.clip_by_norm(max_norm), optax.clip_by_global_norm(max_norm)
    clipped, state = ours.update(grads, ours.init(grads), norm=norm)
    expected, theirs = theirs.update(grads, theirs.init(grads))
    assert jax.tree.structure(state) == jax.tree.structure(theirs)  # Checkpoints stay readable.
    jax.tree.map(np.testing.assert_array_equal, clipped, expected)
