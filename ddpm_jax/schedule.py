"""`ddpm_jax.diffusion.schedule` under the name by which it is imported elsewhere."""

from ddpm_jax.diffusion.schedule import (
    NAMED, Schedule, at, constant, cosine, evenly_spaced, from_betas, half_log_snr,
    half_log_snr_table, jsd, linear, named, quadratic, rescaled_linear, respace, sigmoid,
    t_at_half_log_snr, warmup,
)

__all__ = [
    "NAMED", "Schedule", "at", "constant", "cosine", "evenly_spaced", "from_betas",
    "half_log_snr", "half_log_snr_table", "jsd", "linear", "named", "quadratic",
    "rescaled_linear", "respace", "sigmoid", "t_at_half_log_snr", "warmup",
]
