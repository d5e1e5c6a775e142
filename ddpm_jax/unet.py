"""`ddpm_jax.network.unet` under the name by which it is imported elsewhere."""

from ddpm_jax.network.blocks import (
    AttentionBlock, ResBlock, default_num_groups, timestep_embedding,
)
from ddpm_jax.network.fields import check
from ddpm_jax.network.unet import UNet

__all__ = [
    "AttentionBlock", "ResBlock", "UNet", "check", "default_num_groups", "timestep_embedding",
]
