"""The paper's U-Net (Ho, Jain and Abbeel 2020, Appendix B): images, timesteps and conditions.

`UNet()` with its defaults is the CIFAR-10 network, 35,746,307 parameters. Shapes in comments:
b images, h and w pixels, c channels, d the width of the timestep embedding.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError, check_floats
from ddpm_jax.network import fields
from ddpm_jax.network.blocks import (
    AttentionBlock, ResBlock, fan_avg, group_norm, swish, timestep_embedding, zeros,
)
from ddpm_jax.network.space_to_depth import depth_to_space, space_to_depth
from ddpm_jax.network.upsampling import conv_of_doubled


class _Call(NamedTuple):
    """What all blocks share in one call of the network (see `UNet.__call__`)."""

    temb: jax.Array  # [b, d]
    places: jax.Array  # [b]
    train: bool
    remat: bool

    def rematerialized(self, apply):
        """(block, *arrays) -> h, keeping only the arrays for a backward pass, where `remat`."""
        return nn.remat(apply) if self.remat else apply


class UNet(nn.Module):
    """The denoising network: (x_t, t) -> an image of `out_channels`, float32.

    Any height and width that divide by block_size * 2^(levels - 1), square or not; any channel
    count.

    Attributes:
        channels: width of the first level; the embedding of t has 4 times as many.
        channel_multipliers: width of each level, from the finest, in units of `channels`.
        num_res_blocks: ResBlocks per level on the way down; one more on the way up.
        attention_resolutions: heights at which attention follows every block; that of the first
            level is the image's height / block_size.
        dropout: rate inside every ResBlock while training.
        out_channels: channels of the output.
        num_heads: attention heads.
        scale_shift: condition the second norm of a ResBlock by scale and shift of t, as in
            improved-diffusion, and not by a bias before it.
        embedding_order: "sin_cos" or "cos_sin" (see `timestep_embedding`).
        embedding_freq_shift: 1 or 0 (see `timestep_embedding`).
        downsample_padding: "asymmetric" pads bottom and right before a stride of 2 (TensorFlow's
            SAME, the paper), "symmetric" all sides (PyTorch's padding=1).
        timestep_scale: t is multiplied by this before its embedding; with 1000 / T the network
            sees 0..1000 whatever T is (improved-diffusion).
        norm_eps: added to the variance in GroupNorm.
        num_groups: groups of every GroupNorm; None for `default_num_groups`.
        num_classes: classes of a conditional network, whose embedding is added to that of t as
            in improved-diffusion; label `num_classes` is the null label. 0: unconditional.
        vector_size: numbers that the network is told of each image, whose linear map is added to
            the embedding of t; 0: none.
        condition_channels: channels of a second image, of the size of x, that is concatenated
            to x at the input. 0: none.
        augment_channels: numbers that the network is told of how an image was augmented; zeros,
            as when sampling, stand for an image as it is. 0: none.
        block_size: side of the blocks of pixels that become channels at the input, and pixels
            again at the output: a network for large images with block_size^2 fewer pixels at
            every level, as in the authors' code. 1: none.
        self_condition: takes its last x_0 beside x (Chen, Zhang and Hinton 2022).
        dtype: of the torso; parameters, norms, softmax, the input convolution and the output
            are float32 whatever it is.
    """

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    out_channels: int = 3
    num_heads: int = 1
    scale_shift: bool = False
    embedding_order: str = "sin_cos"
    embedding_freq_shift: int = 1
    downsample_padding: str = "asymmetric"
    timestep_scale: float = 1.0
    norm_eps: float = 1e-6
    num_groups: int | None = None
    num_classes: int = 0
    vector_size: int = 0
    condition_channels: int = 0
    augment_channels: int = 0
    block_size: int = 1
    self_condition: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        """Gives each field its type.

        Raises:
            UserError: a field cannot have the type.
        """
        for field, read in fields.TYPES.items():
            value = getattr(self, field)
            if not (field == "num_groups" and value is None):
                object.__setattr__(self, field, read(field, value))
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x, t, x_0=None, *, train: bool, places=None, labels=None, vectors=None,
        condition=None, augmentation=None, remat=False,
    ):
        """The network's output for x at t, [b, h, w, out_channels] float32.

        Args:
            x: [b, h, w, c] float32.
            t: [b] int32 or float32 steps.
            x_0: [b, h, w, c], what a self-conditioned network predicted last; it is clipped to
                [-1, 1]. None is zeros, as at the start of a chain.
            train: draw dropout masks, from `rngs={"dropout": key}`.
            places: int32 [b], each image's place in the global batch, the address of its
                masks; 0..b-1 by default.
            labels: int32 [b] in 0..num_classes; None is the null label, `num_classes`.
            vectors: [b, 1 + vector_size] float32, a one and the numbers; None is zeros, which
                stand for no numbers.
            condition: [b, h, w, condition_channels] float32.
            augmentation: [b, augment_channels] float32; None is zeros.
            remat: for the backward pass keep only the inputs of each block and compute its
                inside again (Chen et al. 2016); the numbers are the same.

        Raises:
            UserError: a setting does not suit the image size (see `fields.check`), or the network
                does not take this x_0, these labels or vectors, this condition or augmentation.
        """
        check_floats(x=x)
        fields.check(self, x.shape[1], x.shape[2])
        places = jnp.arange(x.shape[0]) if places is None else places
        temb = self.embed(t)
        if self.num_classes or labels is not None:
            temb = temb + self.embed_labels(labels, x.shape[0])
        if self.vector_size or vectors is not None:
            temb = temb + self.embed_vectors(vectors, x.shape[0])
        if self.augment_channels or augmentation is not None:
            temb = temb + self.embed_augmentation(augmentation, x.shape[0])
        inputs = [x]
        if self.self_condition or x_0 is not None:
            inputs.append(self.checked_last(x_0, x))
        if self.condition_channels or condition is not None:
            inputs.append(self.checked(condition, x))
        if len(inputs) > 1:
            x = jnp.concatenate(inputs, axis=-1)
        if self.block_size > 1:
            x = space_to_depth(x, self.block_size)
        call = _Call(temb, places, train, remat)
        h, skips = self.down(x, call)
        h = self.middle(h, call)
        h = self.up(h, skips, call)
        h = group_norm(self, h.shape[-1], "norm_out", swish=True)(h)
        channels = self.out_channels * self.block_size**2
        h = nn.Conv(channels, (3, 3), kernel_init=zeros, name="conv_out")(h)
        return depth_to_space(h, self.block_size) if self.block_size > 1 else h

    def down(self, x, call):
        """h at the coarsest level, and h after every step on the way there, for the way up."""
        h = nn.Conv(self.channels, (3, 3), kernel_init=fan_avg, name="conv_in")(x)
        h = h.astype(self.dtype)
        skips = [h]
        for level, multiplier in enumerate(self.channel_multipliers):
            if level > 0:
                h = self.downsample(h, f"down_{level - 1}_downsample")
                skips.append(h)
            for j in range(self.num_res_blocks):
                h = self.res_block(f"down_{level}_block_{j}", multiplier, call, h)
                if h.shape[1] in self.attention_resolutions:
                    h = self.attend(f"down_{level}_attn_{j}", call, h)
                skips.append(h)
        return h, skips

    def middle(self, h, call):
        """Two blocks around attention, at the coarsest level."""
        multiplier = self.channel_multipliers[-1]
        h = self.res_block("mid_block_1", multiplier, call, h)
        h = self.attend("mid_attn_1", call, h)
        return self.res_block("mid_block_2", multiplier, call, h)

    def up(self, h, skips, call):
        """h back at the finest level; each block takes one of `skips` beside h, last one first."""
        for level, multiplier in reversed(list(enumerate(self.channel_multipliers))):
            for j in range(self.num_res_blocks + 1):
                h = self.res_block(f"up_{level}_block_{j}", multiplier, call, h, skips.pop())
                if h.shape[1] in self.attention_resolutions:
                    h = self.attend(f"up_{level}_attn_{j}", call, h)
            if level > 0:
                h = self.upsample(h, f"up_{level}_upsample")
        assert not skips
        return h

    def res_block(self, name, multiplier, call, *parts):
        """A ResBlock on the parts, concatenated along the channels."""
        def apply(block, temb, places, *parts):  # A skip is kept once, on its way down.
            return block(jnp.concatenate(parts, axis=-1), temb, places, train=call.train)

        block = ResBlock(
            self.channels * multiplier, self.dropout, self.scale_shift, self.num_groups,
            self.norm_eps, self.dtype, name=name,
        )
        return call.rematerialized(apply)(block, call.temb, call.places, *parts)

    def attend(self, name, call, h):
        """Self-attention."""
        def apply(block, h):
            return block(h)

        block = AttentionBlock(
            self.num_heads, self.num_groups, self.norm_eps, self.dtype, name=name
        )
        return call.rematerialized(apply)(block, h)

    def embed(self, t):  # [b] -> [b, d]
        temb = timestep_embedding(
            self.timestep_scale * jnp.float32(t), self.channels,
            order=self.embedding_order, freq_shift=self.embedding_freq_shift,
        )
        temb = nn.Dense(4 * self.channels, kernel_init=fan_avg, name="temb_dense_0")(temb)
        return nn.Dense(4 * self.channels, kernel_init=fan_avg, name="temb_dense_1")(
            swish(temb)
        )

    def embed_labels(self, labels, b):  # [b] -> [b, d]
        if not self.num_classes:
            raise UserError(
                "labels were given to an unconditional network; leave them out, or use a network "
                "that was trained with labels."
            )
        labels = jnp.full((b,), self.num_classes) if labels is None else labels
        return nn.Embed(
            self.num_classes + 1, 4 * self.channels, name="label_embedding",
            embedding_init=nn.initializers.normal(1.0),
        )(labels)

    def embed_vectors(self, vectors, b):  # [b, 1 + vector_size] -> [b, d]
        wanted = (b, 1 + self.vector_size)
        vectors = jnp.zeros(wanted) if vectors is None else vectors
        if not self.vector_size or vectors.shape != wanted:
            raise UserError(
                f"vectors have shape {list(vectors.shape)}, and this network takes "
                f"{list(wanted) if self.vector_size else 'none'}; give a one and the numbers for "
                "each image, zeros for none, or leave them out."
            )
        return nn.Dense(  # Its bias is the weight of the one, so that zeros change nothing.
            4 * self.channels, use_bias=False, name="vector_embedding",
            kernel_init=nn.initializers.lecun_normal(),  # Of unit variance, as those of labels.
        )(vectors)

    def embed_augmentation(self, augmentation, b):  # [b, augment_channels] -> [b, d]
        wanted = (b, self.augment_channels)
        augmentation = jnp.zeros(wanted) if augmentation is None else augmentation
        if not self.augment_channels or augmentation.shape != wanted:
            raise UserError(
                f"augmentation has shape {list(augmentation.shape)}; it must be {list(wanted)}, "
                "zeros where nothing was done, or left out."
            )
        return nn.Dense(  # Without a bias, so that zeros change nothing.
            4 * self.channels, use_bias=False, kernel_init=fan_avg, name="augment_embedding"
        )(augmentation)

    def checked_last(self, x_0, x):
        """The last x_0 in [-1, 1], as of a chain that clips; zeros where there is none."""
        if not self.self_condition:
            raise UserError(
                "x_0 was given to a network that is not self-conditioned; leave it out, or use one "
                "that was trained with self_condition=True."
            )
        if x_0 is None:
            return jnp.zeros_like(x)
        check_floats(x_0=x_0)
        if x_0.shape != x.shape:
            raise UserError(
                f"x_0 has shape {list(x_0.shape)}; it must be that of x, {list(x.shape)}."
            )
        return jnp.clip(x_0, -1.0, 1.0)

    def checked(self, condition, x):
        """The condition, once its shape suits x; zeros while parameters are initialized."""
        if condition is None and self.is_initializing():
            condition = jnp.zeros((*x.shape[:3], self.condition_channels))
        check_floats(condition=condition)
        wanted = (*x.shape[:3], self.condition_channels)
        if condition is None or condition.shape != wanted:
            shape = "is missing" if condition is None else f"has shape {list(condition.shape)}"
            raise UserError(f"condition {shape}; it must be [b, h, w, c] = {list(wanted)}.")
        return condition

    def downsample(self, h, name):  # [b, h, w, c] -> [b, h/2, w/2, c]
        padding = fields.PADDINGS[self.downsample_padding]
        return nn.Conv(
            h.shape[-1], (3, 3), strides=2, padding=(padding, padding), dtype=self.dtype,
            kernel_init=fan_avg, name=name,
        )(h)

    def upsample(self, h, name):  # [b, h, w, c] -> [b, 2h, 2w, c]
        return nn.Conv(
            h.shape[-1], (3, 3), dtype=self.dtype, kernel_init=fan_avg, name=name,
            conv_general_dilated=conv_of_doubled,
        )(h)
