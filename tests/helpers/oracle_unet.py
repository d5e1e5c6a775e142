"""The paper's U-Net once more: one image at a time, float64 NumPy, parameters by name.

Images are [h, w, c]. Nothing here comes from the package, and nothing may.
"""

import numpy as np


def swish(x):
    return x / (1.0 + np.exp(-x))


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def conv(p, x, stride=1, padding=None):
    """3x3 convolution; pads ((top, bottom), (left, right)), or like TensorFlow's SAME."""
    if padding is None:
        padding = []
        for n in x.shape[:2]:
            total = max((-(-n // stride) - 1) * stride + 3 - n, 0)
            padding.append((total // 2, total - total // 2))
    x = np.pad(x, (*padding, (0, 0)))
    rows, columns = ((n - 3) // stride + 1 for n in x.shape[:2])
    out = np.empty((rows, columns, p["kernel"].shape[-1]))
    for i in range(rows):
        for j in range(columns):
            window = x[i * stride:i * stride + 3, j * stride:j * stride + 3]
            out[i, j] = np.einsum("hwc,hwco->o", window, p["kernel"]) + p["bias"]
    return out


def group_norm(p, x, groups):
    out = np.empty_like(x)
    size = x.shape[-1] // groups
    for g in range(groups):
        members = slice(g * size, (g + 1) * size)
        part = x[..., members]
        out[..., members] = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
    return out * p["scale"] + p["bias"]


def attention(p, x, groups, heads=1):
    height, width, channels = x.shape
    h = group_norm(p["norm"], x, groups).reshape(height * width, channels)
    q, k, v = (dense(p[name], h) for name in "qkv")
    size = channels // heads
    out = np.empty_like(h)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / np.sqrt(size)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, part] = weights / weights.sum(axis=1, keepdims=True) @ v[:, part]
    return x + dense(p["proj_out"], out).reshape(x.shape)


def res_block(p, x, temb, groups):
    h = conv(p["conv1"], swish(group_norm(p["norm1"], x, groups(x.shape[-1]))))
    h = h + dense(p["temb_proj"], swish(temb))
    h = conv(p["conv2"], swish(group_norm(p["norm2"], h, groups(h.shape[-1]))))
    return (dense(p["nin_shortcut"], x) if "nin_shortcut" in p else x) + h


def embedding(t, dim):
    half = dim // 2
    frequencies = [np.exp(-i * np.log(1e4) / (half - 1)) for i in range(half)]
    angles = t * np.array(frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)])


def upsample(x):
    out = np.empty((2 * x.shape[0], 2 * x.shape[1], x.shape[2]))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = x[i // 2, j // 2]
    return out


def forward(p, x, t, groups, channels, levels, blocks, attend_at):
    """The network's output for one image; `groups(channels)` is the number of groups of a norm."""
    temb = dense(p["temb_dense_0"], embedding(t, channels))
    temb = dense(p["temb_dense_1"], swish(temb))

    def stage(h, name, number):
        h = res_block(p[f"{name}_block_{number}"], h, temb, groups)
        if h.shape[0] in attend_at:
            h = attention(p[f"{name}_attn_{number}"], h, groups(h.shape[-1]))
        return h

    h = conv(p["conv_in"], x)
    skips = [h]
    for level in range(levels):
        for number in range(blocks):
            h = stage(h, f"down_{level}", number)
            skips.append(h)
        if level + 1 < levels:
            h = conv(p[f"down_{level}_downsample"], h, stride=2)
            skips.append(h)
    h = res_block(p["mid_block_1"], h, temb, groups)
    h = attention(p["mid_attn_1"], h, groups(h.shape[-1]))
    h = res_block(p["mid_block_2"], h, temb, groups)
    for level in reversed(range(levels)):
        for number in range(blocks + 1):
            h = stage(np.concatenate([h, skips.pop()], axis=-1), f"up_{level}", number)
        if level:
            h = conv(p[f"up_{level}_upsample"], upsample(h))
    return conv(p["conv_out"], swish(group_norm(p["norm_out"], h, groups(h.shape[-1]))))
