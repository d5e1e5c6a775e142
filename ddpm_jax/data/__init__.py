"""Data sets: uint8 images from files and TFDS, and batches of them."""

from ddpm_jax.data.batching import batches
from ddpm_jax.data.loading import digits, is_there, load
from ddpm_jax.data.pixels import to_float, to_uint8
from ddpm_jax.data.source import Source, from_array

__all__ = [
    "Source", "batches", "digits", "from_array", "is_there", "load", "to_float", "to_uint8",
]
