"""Reverse chains, from noise to images: one `jax.lax.scan` each. Pure."""

from ddpm_jax.samplers.reverse_chain import Trajectory, ancestral, reverse_step, waiting
from ddpm_jax.samplers.settings import Settings

__all__ = ["Settings", "Trajectory", "ancestral", "reverse_step", "waiting"]
