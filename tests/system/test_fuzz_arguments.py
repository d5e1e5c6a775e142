"""Any value in the place of an argument works, or is refused by a UserError of one line.

`DDPM_JAX_FUZZ=1000` draws 1,000 new ones of each kind, as in test_fuzz.py.
"""

import pathlib
import warnings

import hypothesis
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import strategies as st

import ddpm_jax
from ddpm_jax import schedule as schedule_lib
from ddpm_jax.data import loading
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import nearest, scores
from ddpm_jax.inference import batched_map, editing
from ddpm_jax.samplers.settings import Settings
from fuzz import assert_one_line, settings
from nonzero import SHAPE, tiny_trained


def capped(x):
    """The value, or 9 for a number of which so many would take hours, and would be taken."""
    large = isinstance(x, (int, float)) and x > 1000
    return 9 if large else x


SCALARS = st.one_of(
    st.integers(-3, 12), st.floats(), st.booleans(), st.none(), st.text(max_size=3),
    st.sampled_from([5.0, 1e3, 2**31, 2**32, -2**63, 2**64, 10**30, 1j, b"5", "4", "ddim"]),
)
ARRAYS = st.sampled_from([
    np.int8(5), np.float32(2), np.array(3), np.array([1.0, 2.0]), np.zeros((2, 2)), np.array("a"),
    jnp.int32(4), jnp.float32(1.5), jnp.arange(3), jax.random.key(0), jax.random.PRNGKey(0),
    np.zeros(3, np.uint32), np.array([None, 1], object),
])
OTHERS = st.sampled_from([pathlib.Path("runs/digits"), {}, {"a": 1}, object(), len, range(3)])
VALUES = st.one_of(SCALARS, ARRAYS, OTHERS, st.lists(SCALARS, max_size=3))
IMAGES, ROWS = np.zeros((2, *SHAPE), np.float32), np.eye(4)
MASK = np.eye(8, dtype=bool)


PIXELS = ("images", "mask", "condition", "labels")  # Where nobody has a key.


class DrawnError(Exception):
    """Everything was checked, and the chains would run now."""


@pytest.fixture(scope="module", autouse=True)
def trained():
    """A tiny model whose chains are not run, but begun."""
    def begun(*_, **__):
        raise DrawnError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batched_map, "run", begun)
        yield tiny_trained(schedule_lib.linear(20, 1e-3, 0.4))


CALLS = {  # By the argument that takes any value: how to pass it to a function.
    "params": lambda x, trained: ddpm_jax.sample(x, 0, 1),
    "rng": lambda x, trained: ddpm_jax.sample(trained, x, 1),
    "seeds": lambda x, trained: ddpm_jax.sample(trained, seeds=x),
    **{name: lambda x, trained, name=name: ddpm_jax.sample(trained, 0, 1, **{name: x})
       for name in ("model", "schedule", "diffusion", "image_shape", "settings", "labels",
                    "condition", "denoised_fn", "trajectory", "batch_size", "output", "progress",
                    *Settings.__dataclass_fields__)},
    **{f"bits_per_dim {name}": lambda x, trained, name=name: ddpm_jax.bits_per_dim(**{
        "trained": trained, "rng": 0, "images": np.zeros((2, *SHAPE), np.uint8), name: x,
    }) for name in ("trained", "rng", "images", "labels", "condition", "clip", "batch_size",
                    "progress")},
    "prior n": lambda x, trained: editing.prior(trained, 0, capped(x)),
    "diffuse t": lambda x, trained: editing.diffuse(trained, 0, IMAGES, x),
    **{f"interpolate {name}": lambda x, trained, name=name: editing.interpolate(
        trained, 0, IMAGES, IMAGES, **{name: x}
    ) for name in ("t", "lam", "settings", "batch_size", "progress")},
    "strength": lambda x, trained: editing.img2img(trained, 0, IMAGES, strength=x),
    "slerp lam": lambda x, trained: editing.slerp(trained, IMAGES + 1, IMAGES, lam=x),
    **{f"inpaint {name}": lambda x, trained, name=name: editing.inpaint(
        trained, 0, IMAGES, **({"mask": MASK} | {name: capped(x)})
    ) for name in ("mask", "jump_length", "resamplings")},
    **{f"schedule {name}": lambda x, trained, name=name: getattr(schedule_lib, name)(capped(x))
       for name in ("linear", "cosine")},
    "beta": lambda x, trained: schedule_lib.from_betas(x),
    **{f"load {name}": lambda x, trained, name=name: ddpm_jax.load(**{"workdir": "no run", name: x})
       for name in ("workdir", "step", "weights")},
    "read_metrics": lambda x, trained: ddpm_jax.read_metrics(x),
    "train": lambda x, trained: ddpm_jax.train(x, "never"),
    "evaluate": lambda x, trained: ddpm_jax.evaluate(x, "never"),
    **{f"data {name}": lambda x, trained, name=name: loading.load("digits", **{name: x})
       for name in ("holdout", "seed", "factor", "channels")},
    "k": lambda x, trained: nearest.nearest(ROWS, ROWS, x),
    "splits": lambda x, trained: scores.inception_score(ROWS, x),
    **{f"UNet {name}": lambda x, trained, name=name: ddpm_jax.UNet(**{name: x})
       for name in ("channels", "channel_multipliers", "attention_resolutions", "dropout",
                    "scale_shift", "num_groups", "dtype", "embedding_order")},
}


@settings(300)
@hypothesis.given(name=st.sampled_from(sorted(CALLS)), value=VALUES)
@hypothesis.example("batch_size", 1.5)
@hypothesis.example("seeds", 5)
@hypothesis.example("trajectory", 3)
@hypothesis.example("params", "runs/digits")
@hypothesis.example("settings", "ddim")
@hypothesis.example("output", ["uint8"])
def test_an_argument_works_or_is_refused_in_one_line(trained, name, value):
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    hypothesis.assume(not is_key or name.rpartition(" ")[2] not in PIXELS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # From NumPy, where a float32 overflows.
            CALLS[name](value, trained)
    except (DrawnError, jaxtyping.TypeCheckError):  # The latter: the type checker of the tests.
        pass
    except UserError as error:
        assert_one_line(error, 1000)


@settings(100)
@hypothesis.given(seeds=st.lists(st.integers(-2**63, 2**63 - 1), min_size=1, max_size=5))
@hypothesis.example([7, 2**32 + 7, -7, 2**32 - 7])
def test_seeds_of_64_bits_have_keys_of_their_own(seeds):
    from ddpm_jax.diffusion import randomness

    words = jax.random.key_data(randomness.seed_keys(seeds))
    assert len(np.unique(words, axis=0)) == len(set(seeds))
    with jax.enable_x64(True):  # The same as JAX's own, where it does not cut them off.
        np.testing.assert_array_equal(words, [
            jax.random.key_data(jax.random.key(seed)) for seed in seeds
        ])
