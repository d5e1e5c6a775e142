"""`ddpm_jax.diffusion.schedule` and `rescaled`, by the name under which outsiders import them."""

from ddpm_jax.diffusion.rescaled import shifted, zero_terminal_snr
from ddpm_jax.diffusion.schedule import (
    NAMED, Schedule, at, constant, cosine, evenly_spaced, from_betas, half_log_snr,
    half_log_snr_table, jsd, linear, named, quadratic, rescaled_linear, respace, sigmoid,
    t_at_half_log_snr, warmup,
)

__all__ = [
    "NAMED", "Schedule", "at", "constant", "cosine", "evenly_spaced", "from_betas",
    "half_log_snr", "half_log_snr_table", "jsd", "linear", "named", "quadratic",
    "rescaled_linear", "respace", "shifted", "sigmoid", "t_at_half_log_snr", "warmup",
    "zero_terminal_snr",
]
