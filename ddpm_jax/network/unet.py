"""The paper's U-Net (Ho, Jain and Abbeel 2020, Appendix B): images, timesteps and conditions.

`UNet()` with its defaults is the CIFAR-10 network, 35,746,307 parameters. Shapes in comments:
b images, h and w pixels, c channels, d the width of the timestep embedding.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import errors
from ddpm_jax.errors import UserError, check_floats, check_known
from ddpm_jax.network.blocks import (
    AttentionBlock, ResBlock, default_num_groups, fan_avg, group_norm, swish, timestep_embedding,
    zeros,
)
from ddpm_jax.network.upsampling import conv_of_doubled

PADDINGS = {"asymmetric": (0, 1), "symmetric": (1, 1)}  # Before and after, on either axis.


class _Call(NamedTuple):
    """What all blocks share in one call of the network (see `UNet.__call__`)."""

    temb: jax.Array  # [b, d]
    places: jax.Array  # [b]
    train: bool
    remat: bool

    def rematerialized(self, apply):
        """(block, *arrays) -> h, keeping only the arrays for a backward pass, where `remat`."""
        return nn.remat(apply) if self.remat else apply


def _word(field, value):
    if not isinstance(value, str):
        raise UserError("must be a string.", field=field, value=value)
    return value


def _dtype(field, value):
    try:
        if not isinstance(value, (np.ndarray, jax.Array)):  # These have one, and are none.
            jnp.dtype(value)
            return value
    except (TypeError, ValueError, SyntaxError):  # NumPy reads words in its own language.
        pass
    raise UserError("is no dtype; write jnp.float32 or jnp.bfloat16.", field=field, value=value)


# What reads each field of a network.
_TYPES = {
    "channels": errors.whole_number, "channel_multipliers": errors.whole_numbers,
    "num_res_blocks": errors.whole_number, "attention_resolutions": errors.whole_numbers,
    "dropout": errors.number, "out_channels": errors.whole_number,
    "num_heads": errors.whole_number, "scale_shift": errors.flag,
    "embedding_freq_shift": errors.whole_number, "timestep_scale": errors.number,
    "norm_eps": errors.number, "num_groups": errors.whole_number,
    "num_classes": errors.whole_number, "condition_channels": errors.whole_number,
    "embedding_order": _word, "downsample_padding": _word, "dtype": _dtype,
}


class UNet(nn.Module):
    """The denoising network: (x_t, t) -> an image of `out_channels`, float32.

    Any height and width that divide by 2^(levels - 1), square or not; any channel count.

    Attributes:
        channels: width of the first level; the embedding of t has 4 times as many.
        channel_multipliers: width of each level, from the finest, in units of `channels`.
        num_res_blocks: ResBlocks per level on the way down; one more on the way up.
        attention_resolutions: heights at which attention follows every block.
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
        condition_channels: channels of a second image, of the size of x, that is concatenated
            to x at the input. 0: none.
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
    condition_channels: int = 0
    dtype: Any = jnp.float32

    def __post_init__(self):
        """Gives each field its type.

        Raises:
            UserError: a field cannot have the type.
        """
        for field, read in _TYPES.items():
            value = getattr(self, field)
            if not (field == "num_groups" and value is None):
                object.__setattr__(self, field, read(field, value))
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x, t, *, train: bool, places=None, labels=None, condition=None, remat=False
    ):
        """The network's output for x at t, [b, h, w, out_channels] float32.

        Args:
            x: [b, h, w, c] float32.
            t: [b] int32 or float32 steps.
            train: draw dropout masks, from `rngs={"dropout": key}`.
            places: int32 [b], each image's place in the global batch, the address of its
                masks; 0..b-1 by default.
            labels: int32 [b] in 0..num_classes; None is the null label, `num_classes`.
            condition: [b, h, w, condition_channels] float32.
            remat: for the backward pass keep only the inputs of each block and compute its
                inside again (Chen et al. 2016); the numbers are the same.

        Raises:
            UserError: a setting does not suit the image size (see `check`), or the network does
                not take these labels or this condition.
        """
        check_floats(x=x)
        check(self, x.shape[1], x.shape[2])
        places = jnp.arange(x.shape[0]) if places is None else places
        temb = self.embed(t)
        if self.num_classes or labels is not None:
            temb = temb + self.embed_labels(labels, x.shape[0])
        if self.condition_channels or condition is not None:
            x = jnp.concatenate([x, self.checked(condition, x)], axis=-1)
        call = _Call(temb, places, train, remat)
        h, skips = self.down(x, call)
        h = self.middle(h, call)
        h = self.up(h, skips, call)
        h = group_norm(self, h.shape[-1], "norm_out", swish=True)(h)
        return nn.Conv(self.out_channels, (3, 3), kernel_init=zeros, name="conv_out")(h)

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
        padding = PADDINGS[self.downsample_padding]
        return nn.Conv(
            h.shape[-1], (3, 3), strides=2, padding=(padding, padding), dtype=self.dtype,
            kernel_init=fan_avg, name=name,
        )(h)

    def upsample(self, h, name):  # [b, h, w, c] -> [b, 2h, 2w, c]
        return nn.Conv(
            h.shape[-1], (3, 3), dtype=self.dtype, kernel_init=fan_avg, name=name,
            conv_general_dilated=conv_of_doubled,
        )(h)


# Fields that change neither the parameters nor what they mean: training's own, and the precision.
FREE = ("dropout", "dtype")


def check(model: UNet, height: int, width: int) -> None:
    """Raises UserError where a setting of the network is unknown or does not suit the images.

    Its fields are those of the network, `height` and `width`. Costs nothing inside a trace.
    """
    _check_size(model, height, width)
    _check_channels(model)
    _check_heads(model, height)
    check_known("embedding_order", model.embedding_order, ("sin_cos", "cos_sin"))
    check_known("downsample_padding", model.downsample_padding, tuple(PADDINGS))


def check_new(model: UNet) -> None:
    """Raises UserError where a network could be computed, but should not be trained from scratch.

    With one channel per group the norm removes the bias of t that is added before it. Networks
    of others have been trained with it all the same.
    """
    if not model.scale_shift and model.num_groups in _widths(model)[1:]:
        raise UserError(
            "makes groups of one channel where a block has as many channels: the norm would "
            "remove the timestep's bias", **_groups(model),
        )


def _widths(model: UNet) -> list[int]:
    """The channels of the first convolution and of each level."""
    return [model.channels * multiplier for multiplier in (1, *model.channel_multipliers)]


def _groups(model: UNet) -> dict[str, Any]:
    """What a `UserError` about `num_groups` names, with a number that suits all widths."""
    suitable = default_num_groups(int(np.gcd.reduce(_widths(model))))
    return dict(field="num_groups", value=model.num_groups, instead={"num_groups": suitable})


def _check_size(model: UNet, height: int, width: int) -> None:
    levels = len(model.channel_multipliers)
    factor = 2 ** (levels - 1)
    for field, size in (("height", height), ("width", width)):
        if size % factor:
            raise UserError(
                f"does not divide by {factor}, as the {levels} levels of {{channel_multipliers}} "
                "need", field=field, value=size,
                given={"channel_multipliers": model.channel_multipliers},
                instead={field: max(1, round(size / factor)) * factor},
            )
    heights = [height // 2**level for level in range(levels)]
    for resolution in model.attention_resolutions:
        if resolution not in heights:
            raise UserError(
                f"has {resolution}, which never occurs at an image height of {height}: the levels "
                f"have {', '.join(map(str, heights))}", field="attention_resolutions",
                value=model.attention_resolutions,
                instead={"attention_resolutions": (heights[min(1, levels - 1)],)},
            )


def _check_channels(model: UNet) -> None:
    if model.channels < 2:
        raise UserError(
            "leaves no sinusoid to embed the timestep", field="channels", value=model.channels,
            instead={"channels": 32},
        )
    for width in _widths(model):
        if model.num_groups is not None and (model.num_groups < 1 or width % model.num_groups):
            raise UserError(f"does not divide {width} channels", **_groups(model))


def _check_heads(model: UNet, height: int) -> None:
    """At the levels that attend, and in the middle."""
    multipliers = model.channel_multipliers
    attending = {
        model.channels * multiplier for level, multiplier in enumerate(multipliers)
        if height // 2**level in model.attention_resolutions or level == len(multipliers) - 1
    }
    for width in sorted(attending):
        if model.num_heads < 1 or width % model.num_heads:
            raise UserError(
                f"does not divide {width} channels", field="num_heads", value=model.num_heads,
                instead={"num_heads": 1},
            )
