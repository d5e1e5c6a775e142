"""Reverse chains, from noise to images: one `jax.lax.scan` each. Pure."""

from ddpm_jax.samplers.guides import Guide, classifier_guide, measurement_guide
from ddpm_jax.samplers.reverse_chain import Trajectory, ancestral, reverse_step, waiting
from ddpm_jax.samplers.settings import Settings

__all__ = [
    "Guide", "Settings", "Trajectory", "ancestral", "classifier_guide", "measurement_guide",
    "reverse_step", "waiting",
]
