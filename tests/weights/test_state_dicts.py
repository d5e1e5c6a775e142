"""Weights with the names of PyTorch programs, which are written out by hand here.

The names are those of the programs' own modules: pytorch_diffusion and DDIM
(ermongroup/ddim, models/diffusion.py), improved-diffusion (improved_diffusion/unet.py).
"""

import math

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_allclose, assert_array_equal

import ddpm_jax
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.blocks import AttentionBlock
from ddpm_jax.weights import state_dicts
from nonzero import tiny_unet

SHAPE = (8, 8, 1)
MODEL = tiny_unet(num_groups=2)  # Two levels, one block each, attention in the second.
RESBLOCK = "norm1 conv1 temb_proj norm2 conv2"
ATTENTION = "norm q k v proj_out"
PYTORCH_DIFFUSION = {
    "temb_dense_0": "temb.dense.0",
    "temb_dense_1": "temb.dense.1",
    "conv_in": "conv_in",
    "down_0_block_0": "down.0.block.0",
    "down_0_downsample": "down.0.downsample.conv",
    "down_1_block_0": "down.1.block.0",
    "down_1_attn_0": "down.1.attn.0",
    "mid_block_1": "mid.block_1",
    "mid_attn_1": "mid.attn_1",
    "mid_block_2": "mid.block_2",
    "up_1_block_0": "up.1.block.0",
    "up_1_attn_0": "up.1.attn.0",
    "up_1_block_1": "up.1.block.1",
    "up_1_attn_1": "up.1.attn.1",
    "up_1_upsample": "up.1.upsample.conv",
    "up_0_block_0": "up.0.block.0",
    "up_0_block_1": "up.0.block.1",
    "norm_out": "norm_out",
    "conv_out": "conv_out",
}
IMPROVED_DIFFUSION = {
    "temb_dense_0": "time_embed.0",
    "temb_dense_1": "time_embed.2",
    "label_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "down_0_block_0": "input_blocks.1.0",
    "down_0_downsample": "input_blocks.2.0.op",
    "down_1_block_0": "input_blocks.3.0",
    "down_1_attn_0": "input_blocks.3.1",
    "mid_block_1": "middle_block.0",
    "mid_attn_1": "middle_block.1",
    "mid_block_2": "middle_block.2",
    "up_1_block_0": "output_blocks.0.0",
    "up_1_attn_0": "output_blocks.0.1",
    "up_1_block_1": "output_blocks.1.0",
    "up_1_attn_1": "output_blocks.1.1",
    "up_1_upsample": "output_blocks.1.2.conv",
    "up_0_block_0": "output_blocks.2.0",
    "up_0_block_1": "output_blocks.3.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
THEIR_PARTS = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "temb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "nin_shortcut": "skip_connection",
}
ONE_BY_ONE = ("q", "k", "v", "proj_out", "nin_shortcut")


def torch_weights(model, names, parts):
    """Random weights, by their names and by ours, both in PyTorch's order."""
    random, theirs, ours = np.random.default_rng(0), {}, {}
    for path, shape in trained_lib.shapes(model, SHAPE).items():
        if path[-1] == "kernel":
            shape = (*shape[::-1][:2], *shape[:-2])
            if path[-2] in ONE_BY_ONE:
                shape = (*shape, 1, 1)
        array = np.float32(0.3 * random.standard_normal(shape))
        middle = [parts.get(part, part) for part in path[1:-1]]
        leaf = "bias" if path[-1] == "bias" else "weight"
        theirs[".".join([names[path[0]], *middle, leaf])] = ours[path] = array
    return theirs, ours


def assert_ours(params, ours):
    found = trained_lib.leaves(params)
    assert found.keys() == ours.keys()
    for path, array in ours.items():
        if path[-1] == "kernel" and path[-2] in ONE_BY_ONE:
            array = array[:, :, 0, 0]
        if path[-1] == "kernel":
            array = np.einsum("oihw->hwio" if array.ndim == 4 else "oi->io", array)
        assert_array_equal(found[path], array, err_msg=str(path), strict=True)


def test_pytorch_diffusion(tmp_path):
    theirs, ours = torch_weights(MODEL, PYTORCH_DIFFUSION, {})
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({f"module.{name}": x for name, x in theirs.items()}, path)
    process = dict(schedule=schedule_lib.cosine(10), diffusion=Parameterization("v", "fixed_small"))
    trained = ddpm_jax.from_state_dict(path, MODEL, image_shape=SHAPE, **process)
    assert_ours(trained.params, ours)
    assert (trained.model, trained.image_shape) == (MODEL, SHAPE)
    assert (trained.schedule, trained.diffusion) == tuple(process.values())
    assert_array_equal(
        ddpm_jax.from_state_dict(path, MODEL, image_shape=SHAPE).schedule.beta,
        schedule_lib.linear().beta,
    )


def test_bfloat16_and_weights_in_several_files(tmp_path):
    theirs, ours = torch_weights(MODEL, PYTORCH_DIFFUSION, {})
    parts = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, path in enumerate(parts):
        safetensors.numpy.save_file(
            {name: theirs[name].astype(ml_dtypes.bfloat16) for name in sorted(theirs)[i::3]}, path
        )
    trained = ddpm_jax.from_state_dict(parts, MODEL, image_shape=SHAPE)
    rounded = {
        path: array.astype(ml_dtypes.bfloat16).astype(np.float32) for path, array in ours.items()
    }
    assert_ours(trained.params, rounded)
    with pytest.raises(ValueError, match="2.safetensors.* is missing: the network has"):
        ddpm_jax.from_state_dict(parts[::2], MODEL, image_shape=SHAPE)
    safetensors.numpy.save_file(
        {name: theirs[name].astype(np.int64) for name in sorted(theirs)[::3]}, parts[0])
    with pytest.raises(ValueError, match="conv_in.bias is int64, not a float"):
        ddpm_jax.from_state_dict(parts, MODEL, image_shape=SHAPE)


def joined(theirs, num_heads):
    """The weights with q, k and v in one layer, as in improved-diffusion: q, k, v of each head."""
    theirs = dict(theirs)
    for name in [name for name in theirs if ".q." in name]:
        q, k, v = (theirs.pop(name.replace(".q.", f".{part}.")) for part in "qkv")
        size = len(q) // num_heads
        rows = [part[h * size:(h + 1) * size] for h in range(num_heads) for part in (q, k, v)]
        whole = np.concatenate(rows)
        theirs[name.replace(".q.", ".qkv.")] = whole[:, :, 0] if whole.ndim == 4 else whole
    return theirs


def test_improved_diffusion():
    model = tiny_unet(num_groups=2, num_heads=4, num_classes=2, scale_shift=True)
    theirs, ours = torch_weights(model, IMPROVED_DIFFUSION, THEIR_PARTS)
    theirs = joined(theirs, 4)
    assert len(theirs) == len(ours) - 4 * 4  # Four attentions: of six arrays two are left.
    for name in list(theirs):
        if name.endswith("proj_out.weight"):
            theirs[name] = theirs[name][:, :, 0]  # Theirs is a convolution over one axis.
    assert_ours(state_dicts.to_params(theirs, model, SHAPE), ours)
    rows = theirs["label_emb.weight"]
    theirs["label_emb.weight"] = rows[:2]
    found = state_dicts.to_params(theirs, model, SHAPE)["label_embedding"]["embedding"]
    assert_allclose(found, [rows[0], rows[1], (rows[0] + rows[1]) / 2], rtol=1e-6)


def test_attention_of_improved_diffusion():
    """QKVAttention in NumPy: [b, heads * 3 * ch, n] is b * heads rows of q, k and v."""
    model = tiny_unet(num_groups=2, num_heads=4)
    theirs, _ = torch_weights(model, IMPROVED_DIFFUSION, THEIR_PARTS)
    theirs = joined(theirs, 4)
    params = state_dicts.to_params(theirs, model, SHAPE)["mid_attn_1"]
    name, (b, side, c) = "middle_block.1", (2, 2, 16)
    x = np.random.default_rng(1).standard_normal((b, c, side * side)).astype(np.float32)
    h = x.reshape(b, 2, -1)
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    scale, shift = (theirs[f"{name}.norm.{leaf}"][:, None] for leaf in ("weight", "bias"))
    h = h.reshape(x.shape) * scale + shift
    qkv = np.einsum("oi,bin->bon", theirs[f"{name}.qkv.weight"][:, :, 0], h)
    qkv = (qkv + theirs[f"{name}.qkv.bias"][:, None]).reshape(b * 4, -1, side * side)
    q, k, v = np.split(qkv, 3, axis=1)
    weights = np.exp(np.einsum("bct,bcs->bts", q, k) / math.sqrt(q.shape[1]))
    weights /= weights.sum(-1, keepdims=True)
    h = np.einsum("bts,bcs->bct", weights, v).reshape(b, c, -1)
    h = np.einsum("oi,bin->bon", theirs[f"{name}.proj_out.weight"][:, :, 0, 0], h)
    wanted = x + h + theirs[f"{name}.proj_out.bias"][:, None]

    block = AttentionBlock(num_heads=4, num_groups=2, norm_eps=1e-6, dtype=np.float32)
    images = np.moveaxis(x.reshape(b, c, side, side), 1, -1)
    found = jax.jit(lambda params: block.apply({"params": params}, images))(params)
    assert_allclose(np.moveaxis(found, -1, 1).reshape(x.shape), wanted, rtol=0, atol=1e-4)


def test_what_does_not_fit_is_named(tmp_path):
    theirs, _ = torch_weights(MODEL, PYTORCH_DIFFUSION, {})
    path = tmp_path / "model.safetensors"

    def refused(state, message, model=MODEL):
        safetensors.numpy.save_file(state, path)
        with pytest.raises(ValueError, match=message) as error:
            ddpm_jax.from_state_dict(path, model, image_shape=SHAPE)
        assert "\n" not in str(error.value) and str(path) in str(error.value)

    left = {name: x for name, x in theirs.items() if name != "mid.attn_1.q.weight"}
    refused(left, "mid.attn_1.q.weight is missing")
    refused(theirs | {"logvar": np.zeros(3, np.float32)}, "logvar has no place")
    refused(theirs | {"conv_out.bias": np.zeros(2, np.float32)}, r"conv_out.bias is \(2,\)")
    refused({"a.weight": np.zeros(1, np.float32)}, "of no known format \\(for example a.weight\\)")
    refused(theirs, "label_embedding/embedding of the network has no counterpart",
            tiny_unet(num_groups=2, num_classes=2))
    blocks = tiny_unet(num_groups=2, block_size=2, attention_resolutions=(2,))
    refused(theirs, "block_size=2 has no counterpart .* write block_size=1", blocks)
    refused(theirs, "self_condition=True has no counterpart .* write self_condition=False",
            tiny_unet(num_groups=2, self_condition=True))
    improved = joined(torch_weights(MODEL, IMPROVED_DIFFUSION, THEIR_PARTS)[0], 1)
    for name in improved:
        if "qkv" in name:
            improved[name] = improved[name][:-1]
    refused(improved, "does not divide into 1 heads")
    with pytest.raises(ValueError, match="none.pth: cannot be read"):
        ddpm_jax.from_state_dict(tmp_path / "none.pth", MODEL, image_shape=SHAPE)
