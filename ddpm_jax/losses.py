"""`ddpm_jax.diffusion.losses` under the name by which it is imported elsewhere."""

from ddpm_jax.diffusion.losses import (
    LOSSES, Objective, WEIGHTINGS, discretized_gaussian_log_likelihood, normal_kl, target,
    training_loss, vlb_term, weight,
)

__all__ = [
    "LOSSES", "Objective", "WEIGHTINGS", "discretized_gaussian_log_likelihood", "normal_kl",
    "target", "training_loss", "vlb_term", "weight",
]
