"""Keys: what is accepted, and that an image's key depends on its place alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ddpm_jax.diffusion import randomness
from ddpm_jax.diffusion.randomness import IMPL, as_key, image_keys
from ddpm_jax.errors import UserError

ADDRESSES = (  # By the key below which they lie.
    "INIT STEP HELD_OUT GRID", "BITS ODE SAMPLES PICTURES HELD_OUT_LOSS",
    "T EPS MIRROR LABEL GUESS AUGMENT", "X_T Z FORWARD", "REVERSE KNOWN UP", "PRIOR SHARED OWN",
    "DEQUANTISATION PROBES",
)


@pytest.mark.parametrize(
    "rng",
    [
        lambda: jax.random.key(7),
        lambda: jax.random.PRNGKey(7),
        lambda: np.array([0, 7], np.uint32),
        lambda: 7,
        lambda: np.int64(7),
        lambda: jnp.int32(7),
        lambda: 7.0,
    ],
    ids=["typed", "legacy", "legacy on the host", "int", "NumPy int", "JAX int", "whole float"],
)
def test_as_key_accepts(rng):
    key = as_key(rng())
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()
    assert_array_equal(jax.random.key_data(key), [0, 7])


@pytest.mark.parametrize(
    "rng",
    [
        lambda: jax.random.key(0, impl="rbg"),
        lambda: jax.random.split(jax.random.key(0), 2),
        lambda: np.zeros(2, np.int32),
        lambda: np.zeros(4, np.uint32),
        lambda: 0.5,
        lambda: True,
        lambda: None,
        lambda: "0",
    ],
    ids=["rbg", "two keys", "int32", "four words", "float", "bool", "None", "str"],
)
def test_as_key_refuses(rng):
    with pytest.raises(ValueError, match=r"(?s)rng=.*write jax\.random\.key\(0\)"):
        as_key(rng())


SEEDS = [0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63 - 1, -1, -7, -2**31, -2**32, -2**63]


def test_seeds_of_64_bits_have_keys_of_their_own():
    words = np.array([jax.random.key_data(as_key(seed)) for seed in SEEDS])
    with jax.enable_x64(True):  # Else JAX drops the upper half of the seed.
        assert_array_equal(words, [jax.random.key_data(jax.random.key(seed)) for seed in SEEDS])
    assert len(np.unique(words, axis=0)) == len(SEEDS)
    assert_array_equal(words, jax.random.key_data(randomness.seed_keys(SEEDS)))


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_seeds_of_32_bits_have_the_keys_of_jax(seed):
    expected = jax.random.key_data(jax.random.key(seed, impl=IMPL))
    assert_array_equal(jax.random.key_data(as_key(seed)), expected)


@pytest.mark.parametrize("seed, rule", [
    (2**63, "does not fit into 64 bits"), (-2**63 - 1, "does not fit into 64 bits"),
    (10**30, "does not fit into 64 bits"), (1.5, "whole number"), (True, "whole number"),
    ("5", "whole number"), (float("nan"), "whole number"),
])
def test_other_seeds_are_refused(seed, rule):
    with pytest.raises(UserError, match=rf"^seeds\[1\]={seed!r} .*{rule}"):
        randomness.seed_keys([0, seed])
    with pytest.raises(UserError, match=r"^rng="):
        as_key(seed)


def test_image_key_depends_on_its_place_alone():
    def words(places):
        return np.asarray(jax.random.key_data(image_keys(as_key(3), jnp.array(places))))

    assert_array_equal(words([0, 1, 2, 3])[[3, 1]], words([3, 1]))
    assert len(np.unique(words(range(100)), axis=0)) == 100


def test_image_keys_differ_between_keys_and_stay_threefry():
    places = jnp.arange(4)
    a, b = image_keys(as_key(0), places), image_keys(as_key(1), places)
    assert str(jax.random.key_impl(a)) == IMPL
    assert np.all(np.any(jax.random.key_data(a) != jax.random.key_data(b), axis=-1))


@pytest.mark.parametrize("names", ADDRESSES)
def test_addresses_are_what_they_were(names):
    """Else a resumed run would draw other numbers, and kept samples would not be those drawn."""
    values = [getattr(randomness, name) for name in names.split()]
    assert values == list(range(len(values)))


def test_every_address_stands_in_the_table():
    names = [name for name, value in vars(randomness).items() if type(value) is int]
    assert sorted(names) == sorted(" ".join(ADDRESSES).split())
    for name in names:
        assert name in randomness.__doc__


def test_keys_of_a_step_and_of_its_images_are_addresses():
    def words(rng):
        return np.asarray(jax.random.key_data(rng))

    rngs_step = randomness.step_keys(as_key(5), 3)
    pair = jax.random.split(jax.random.fold_in(as_key(5), 3))
    assert_array_equal(words(jnp.stack(rngs_step)), words(pair))
    draws = words(randomness.image_draws(as_key(5)))
    assert_array_equal(draws, words(jax.random.split(as_key(5), 3)))
    label = words(randomness.below(5, randomness.LABEL))
    assert len(np.unique([*draws, label], axis=0)) == 4
