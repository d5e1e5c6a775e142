"""Folders that diffusers has written (fixtures/make_diffusers.py), and checks of what is read."""

import pathlib

import jax
import pytest
from numpy.testing import assert_array_equal

import ddpm_jax

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures/diffusers"
HINT = "clip_sample=false: write sample\\(..., clip=False\\)"


def same(a, b):
    """Asserts the same parameters, to the bit, and the same of everything else."""
    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
    jax.tree.map(assert_array_equal, a.params, b.params)
    assert_array_equal(a.schedule.beta, b.schedule.beta)
    assert (a.diffusion, a.image_shape) == (b.diffusion, b.image_shape)


def refused(source, message):
    with pytest.raises(ValueError, match=message) as error:
        ddpm_jax.from_pretrained(source)
    assert "\n" not in str(error.value)
