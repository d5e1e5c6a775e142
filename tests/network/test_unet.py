"""The network against the paper's numbers and against plain NumPy."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import oracle_unet
import tracing
from ddpm_jax.errors import UserError
from ddpm_jax.network.normalization import GroupNorm
from ddpm_jax.network.unet import UNet
from filled import fill, shapes

TINY = UNet(
    channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,),
    dropout=0.5,
)
RNG = np.random.default_rng(0)
X, T = np.float32(RNG.uniform(-1, 1, (4, 8, 8, 3))), np.array([0, 3, 500, 999])


def unet_shapes(model, height=8, width=8, channels=3):
    x, t = jnp.zeros((1, height, width, channels)), jnp.zeros(1, jnp.int32)
    return shapes(model, x, t, train=False)


def apply(model, params, x=X, t=T, **settings):
    settings = {"train": False, **settings}
    return model.apply({"params": params}, x, t, **settings)


def train(model, params, x, t, places, **settings):
    """The training pass with one fixed key: what changes is the arguments alone."""
    return apply(
        model, params, x, t, train=True, places=places, rngs={"dropout": jax.random.key(1)},
        **settings,
    )


def jit_of(method, model):
    return jax.jit(lambda *arguments: method(model, *arguments))


RUN, TRAIN = jit_of(apply, TINY), jit_of(train, TINY)  # Compiled once for all the tests.


@pytest.fixture(scope="module")
def tiny():
    """The tiny network's parameters, none of them zero."""
    return fill(unet_shapes(TINY))


# The numbers of the authors' and the DDIM checkpoints.
@pytest.mark.parametrize(
    "settings, size, count",
    [
        (dict(), 32, 35_746_307),
        (dict(out_channels=6), 32, 35_749_766),
        (dict(channel_multipliers=(1, 1, 2, 2, 4, 4)), 256, 113_673_219),
        (dict(channels=192, channel_multipliers=(1, 1, 2, 2, 4, 4)), 256, 255_677_955),
        (dict(channel_multipliers=(1, 2, 2, 2, 4)), 64, 78_700_803),
        (dict(num_classes=10), 32, 35_746_307 + 11 * 512),
        (dict(vector_size=4), 32, 35_746_307 + 5 * 512),
        (dict(condition_channels=3), 32, 35_746_307 + 9 * 3 * 128),
        # 3 channels more for each of the other 3 pixels of a block, at both ends.
        (dict(block_size=2), 64, 35_746_307 + 9 * 9 * 128 + (9 * 128 + 1) * 9),
        (dict(self_condition=True), 32, 35_746_307 + 9 * 3 * 128),
        (dict(augment_channels=9), 32, 35_746_307 + 9 * 512),
    ],
    ids=["cifar10", "learned variance", "256", "256 large", "celeba64", "classes", "vectors",
         "condition",
         "blocks", "self-conditioned", "augmented"],
)
def test_parameter_counts(settings, size, count):
    params = unet_shapes(UNet(**settings), size, size)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count
    attention = [name for name in params if "attn" in name]
    assert len(attention) == 6 and "mid_attn_1" in attention


@pytest.mark.parametrize("resolutions", [(), (4,), (8,), (4, 8)])
def test_attention_follows_every_block_at_its_resolution(resolutions):
    model = dataclasses.replace(TINY, num_res_blocks=2, attention_resolutions=resolutions)
    expected = {"mid_attn_1"}
    for level, height in enumerate((8, 4)):
        if height in resolutions:
            expected |= {f"down_{level}_attn_{j}" for j in range(2)}
            expected |= {f"up_{level}_attn_{j}" for j in range(3)}
    assert {name for name in unet_shapes(model) if "attn" in name} == expected


@pytest.mark.parametrize("width, scale", [(8, 1.0), (8, 1e-3), (4, 1.0)])
def test_forward_pass_matches_numpy(tiny, width, scale):
    """The whole network; a faint input shows the epsilon of the first norm."""
    params = dict(tiny, conv_in=jax.tree.map(lambda p: scale * p, tiny["conv_in"]))
    actual = RUN(params, X[:, :, :width], T)
    exact = jax.tree.map(np.float64, params)
    expected = [
        oracle_unet.forward(
            exact, np.float64(image), t, groups={8: 2, 16: 4, 24: 6, 32: 8}.get, channels=8,
            levels=2, blocks=1, attend_at=(4,),
        )
        for image, t in zip(X[:, :, :width], T)
    ]
    # Some 15 layers of float32 (6e-8 each), and the sine of an angle known to 6e-5.
    assert np.abs(actual - np.array(expected)).max() < 1e-4 * np.abs(expected).max()


def test_labels_and_conditions_match_numpy(tiny):
    """A label is a bias of the last layer of t's embedding; a condition, further channels.

    What was done to an image is such a bias, too, and so are its numbers.
    """
    model = dataclasses.replace(
        TINY, num_classes=3, condition_channels=2, augment_channels=5, vector_size=2
    )
    params = fill(unet_shapes(model), seed=1)
    condition = np.float32(RNG.uniform(-1, 1, (*X.shape[:3], 2)))
    labels, done = np.int32([2, 0, 3, 1]), np.float32(RNG.standard_normal((4, 5)))
    run = jax.jit(functools.partial(apply, model))
    vectors = np.float32(RNG.standard_normal((4, 3)))
    actual = run(params, labels=labels, condition=condition, augmentation=done, vectors=vectors)
    exact = jax.tree.map(np.float64, params)
    embedding = exact.pop("label_embedding")["embedding"]
    biases = embedding[labels] + done @ exact.pop("augment_embedding")["kernel"]
    biases += vectors @ exact.pop("vector_embedding")["kernel"]
    assert embedding.shape == (4, 32)
    last = exact["temb_dense_1"]
    expected = [
        oracle_unet.forward(
            exact | {"temb_dense_1": last | {"bias": last["bias"] + bias}},
            np.float64(np.concatenate([image, beside], axis=-1)), t,
            groups={8: 2, 16: 4, 24: 6, 32: 8}.get, channels=8, levels=2, blocks=1,
            attend_at=(4,),
        )
        for image, beside, bias, t in zip(X, condition, biases, T)
    ]
    # As above.
    assert np.abs(actual - np.array(expected)).max() < 1e-4 * np.abs(expected).max()
    # No label is the last one.
    assert_array_equal(
        run(params, condition=condition),
        run(params, labels=np.int32([3] * 4), condition=condition,
            augmentation=np.zeros_like(done), vectors=np.zeros_like(vectors)),
    )


def test_blocks_of_pixels_match_numpy():
    """With the last x_0, a condition, a learned variance and attention at half of the height."""
    model = dataclasses.replace(
        TINY, self_condition=True, condition_channels=1, block_size=2, out_channels=6
    )
    x, condition, last = (np.float32(RNG.uniform(-1, 1, (2, 8, 12, c))) for c in (3, 1, 3))
    params = fill(unet_shapes(model, 8, 12), seed=2)
    run = jax.jit(functools.partial(apply, model))
    actual = run(params, x, T[2:], x_0=last, condition=condition)
    exact = jax.tree.map(np.float64, params)

    def blocks(image):  # [8, 12, c] -> [4, 6, 4 c]
        return np.array([[image[2 * i:2 * i + 2, 2 * j:2 * j + 2].ravel() for j in range(6)]
                         for i in range(4)])

    def pixels(image):  # [4, 6, 4 c] -> [8, 12, c]
        rows = [[pixel.reshape(2, 2, -1) for pixel in row] for row in image]
        return np.concatenate([np.concatenate(row, axis=1) for row in rows])

    expected = [
        pixels(oracle_unet.forward(
            exact, blocks(np.float64(image)), t, groups={8: 2, 16: 4, 24: 6, 32: 8}.get,
            channels=8, levels=2, blocks=1, attend_at=(4,),
        ))
        for image, t in zip(np.concatenate([x, last, condition], axis=-1), T[2:])
    ]
    assert actual.shape == (2, 8, 12, 6) and "down_0_attn_0" in params
    # As above.
    assert np.abs(actual - np.array(expected)).max() < 1e-4 * np.abs(expected).max()
    # The last x_0 counts as far as [-1, 1] goes, and none is zeros.
    zeros, one = np.zeros_like(x), np.ones_like(x)
    run = functools.partial(run, params, x, T[2:], condition=condition)
    assert_array_equal(run(x_0=5 * one), run(x_0=one))
    assert_array_equal(run(), run(x_0=zeros))


def test_labels_and_conditions_that_the_network_does_not_take(tiny):
    with pytest.raises(ValueError, match="labels were given to an unconditional network"):
        apply(TINY, tiny, labels=np.zeros(4, np.int32))
    with pytest.raises(ValueError, match=r"shape \[4, 8, 8, 1\]; it must be .* \[4, 8, 8, 0\]"):
        apply(TINY, tiny, condition=np.zeros((4, 8, 8, 1), np.float32))
    with pytest.raises(UserError, match=r"augmentation has shape \[4, 9\]; it must be \[4, 0\]"):
        apply(TINY, tiny, augmentation=np.zeros((4, 9), np.float32))
    with pytest.raises(UserError, match=r"vectors have shape \[4, 3\], .* network takes none"):
        apply(TINY, tiny, vectors=np.zeros((4, 3), np.float32))
    of_two = dataclasses.replace(TINY, vector_size=2)
    with pytest.raises(UserError, match=r"vectors have shape \[4, 2\], .* takes \[4, 3\]"):
        apply(of_two, fill(unet_shapes(of_two)), vectors=np.zeros((4, 2), np.float32))
    with pytest.raises(UserError, match="x_0 was given to a network that is not self-condition"):
        apply(TINY, tiny, x_0=X)
    model = dataclasses.replace(TINY, self_condition=True)
    for x_0, message in (
        (X[:, :4], r"x_0 has shape \[4, 4, 8, 3\]; it must be that of x, \[4, 8, 8, 3\]"),
        (np.zeros_like(X, np.uint8), r"x_0=<uint8 \[4, 8, 8, 3\]> must be float in \[-1, 1\]"),
    ):
        with pytest.raises(UserError, match=message):
            apply(model, fill(unet_shapes(model)), x_0=x_0)
    model = dataclasses.replace(TINY, condition_channels=1)
    params = fill(unet_shapes(model))
    for condition in (None, np.zeros((4, 4, 4, 1)), np.zeros((4, 8, 8, 3))):
        with pytest.raises(ValueError, match=r"condition .* = \[4, 8, 8, 1\]"):
            apply(model, params, condition=condition)
    with pytest.raises(UserError, match=r"condition=<uint8 .* must be float in \[-1, 1\]"):
        apply(model, params, condition=np.zeros((4, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match=r"x=<uint8 \[4, 8, 8, 3\]> must be float in \[-1, 1\]"):
        TINY.apply({"params": tiny}, np.zeros_like(X, np.uint8), T, train=False)


class Down(UNet):
    @nn.compact
    def __call__(self, h):
        return self.downsample(h, "conv")


class Up(UNet):
    @nn.compact
    def __call__(self, h):
        return self.upsample(h, "conv")


@pytest.mark.parametrize(
    "name, padding",
    [
        ("asymmetric", None),
        ("asymmetric", ((0, 1), (0, 1))),
        ("symmetric", ((1, 1), (1, 1))),
    ],
    ids=["asymmetric is SAME", "asymmetric", "symmetric"],
)
@pytest.mark.parametrize("pixel", [(0, 0), (3, 4), (7, 7)])
def test_downsample_of_an_impulse(pixel, name, padding):
    x = np.zeros((1, 8, 8, 1), np.float32)
    x[0, *pixel, 0] = 1.0
    model = Down(downsample_padding=name)
    params = fill(shapes(model, x))
    expected = oracle_unet.conv(params["conv"], x[0], stride=2, padding=padding)
    actual = model.apply({"params": params}, x)[0]
    assert_allclose(actual, expected, rtol=0, atol=1e-6)  # One float32 sum.


def test_the_default_padding_is_tensorflows():
    assert UNet().downsample_padding == "asymmetric"


def test_upsample_repeats_pixels():
    x = X[:1, :3, :2]
    params = {"conv": {"kernel": np.zeros((3, 3, 3, 3), np.float32), "bias": np.zeros(3)}}
    params["conv"]["kernel"][1, 1] = np.eye(3)
    actual = Up().apply({"params": params}, x)[0]
    assert_allclose(actual, oracle_unet.upsample(x[0]), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def fresh():
    x, t = jnp.zeros((1, 8, 8, 3)), jnp.zeros(1, jnp.int32)
    return jax.jit(lambda rng: TINY.init(rng, x, t, train=False)["params"])(jax.random.key(0))


def test_a_fresh_network_outputs_zero(fresh):
    assert_array_equal(RUN(fresh, X, T), np.zeros_like(X))


def test_fresh_parameters_are_fan_avg_uniform(fresh):
    """Glorot's bounds, zero where a residual branch ends, and biases of zero."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh):
        module, name = path[-2].key, path[-1].key
        if name == "scale":
            assert_array_equal(leaf, 1.0)
        elif name == "bias" or module in ("conv2", "proj_out", "conv_out"):
            assert_array_equal(leaf, 0.0)
        else:
            window = np.prod(leaf.shape[:-2])
            bound = np.sqrt(6 / (window * (leaf.shape[-2] + leaf.shape[-1])))
            # The largest of 64 or more uniform draws is below 0.8 with probability 6e-7.
            assert 0.8 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6), path


@pytest.mark.parametrize("scale_shift", [False, True])
def test_time_reaches_every_block_of_the_network(tiny, scale_shift):
    """Cut everywhere else: only one block's own projection of the embedding is kept."""
    model = dataclasses.replace(TINY, scale_shift=scale_shift)
    params = tiny if not scale_shift else fill(unet_shapes(model))
    blocks = [name for name in params if "block" in name]
    assert len(blocks) == 8
    x, t = np.repeat(X[:1], 4, axis=0), np.array([10, 700, 10, 700])
    run = jit_of(apply, model) if scale_shift else RUN
    for kept in blocks:
        cut = {
            name: value if name == kept or name not in blocks else
            dict(value, temb_proj=jax.tree.map(np.zeros_like, value["temb_proj"]))
            for name, value in params.items()
        }
        one, other, *_ = run(cut, x, t)
        assert np.abs(one - other).max() > 1e-3, kept


@pytest.mark.parametrize(
    "settings, groups", [(dict(channels=128), 32), (dict(channels=8, num_groups=4), 4)]
)
def test_groups_of_every_norm(settings, groups):
    """An explicit number wins."""
    model = UNet(**{"channel_multipliers": (1,), "attention_resolutions": (), **settings})
    seen = set()

    def see(call, args, kwargs, context):
        if isinstance(context.module, GroupNorm):
            seen.add(context.module.num_groups)
        return call(*args, **kwargs)

    with nn.intercept_methods(see):
        jax.eval_shape(lambda p: apply(model, p), unet_shapes(model))
    assert seen == {groups}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("height, width", [(8, 4), (4, 8)])
def test_any_image_shape(channels, height, width):
    model = dataclasses.replace(
        TINY, out_channels=channels, attention_resolutions=(height // 2,)
    )
    params = unet_shapes(model, height, width, channels)
    x = jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)
    t = jax.ShapeDtypeStruct((2,), jnp.float32)
    output = jax.eval_shape(lambda p, x, t: apply(model, p, x, t), params, x, t)
    assert output.shape == x.shape and output.dtype == jnp.float32


BF16 = dataclasses.replace(TINY, dtype=jnp.bfloat16)
RUN_BF16 = jit_of(apply, BF16)


def test_bfloat16_is_close_and_float32_outside(tiny, fresh):
    assert jax.tree.map(jnp.shape, unet_shapes(BF16)) == jax.tree.map(jnp.shape, fresh)
    assert {leaf.dtype for leaf in jax.tree.leaves(unet_shapes(BF16))} == {X.dtype}
    rough, exact = RUN_BF16(tiny, X, T), RUN(tiny, X, T)
    assert rough.dtype == jnp.float32
    # bfloat16 rounds by 2^-9 in each of some 15 layers.
    assert 1e-4 < np.abs(rough - exact).max() / np.abs(exact).max() < 0.1


def test_bfloat16_only_inside_convolutions_and_projections(tiny):
    """Norms and softmax, the first and the last convolution compute in float32."""
    jaxpr = jax.make_jaxpr(lambda p: apply(BF16, p))(tiny).jaxpr
    equations = list(tracing.equations(jaxpr))
    for equation in equations:
        if equation.primitive.name in ("exp", "rsqrt", "reduce_sum", "reduce_max", "div"):
            dtypes = {v.aval.dtype for v in (*equation.invars, *equation.outvars)}
            assert jnp.dtype("bfloat16") not in dtypes, equation
    convolutions = [e for e in equations if e.primitive.name == "conv_general_dilated"]
    first, *torso, last = ({v.aval.dtype for v in e.invars} for e in convolutions)
    assert first == last == {jnp.dtype("float32")}
    assert torso and all(dtypes == {jnp.dtype("bfloat16")} for dtypes in torso)


def test_bfloat16_sees_the_input_unrounded(tiny):
    """Between two bfloat16 numbers, 2^-8 apart in [0.5, 1), a change is still felt."""
    x = np.float32(RNG.integers(128, 255, X.shape) / 256)
    nearby = x + np.float32(2**-10)
    assert_array_equal(jnp.bfloat16(x), jnp.bfloat16(nearby))
    assert np.any(RUN_BF16(tiny, x, T) != RUN_BF16(tiny, nearby, T))


def test_dropout_belongs_to_the_place_in_the_global_batch(tiny):
    places = np.array([0, 1, 2, 3])
    every = TRAIN(tiny, X, T, places)
    order = np.array([2, 0, 3, 1])
    # atol: XLA may sum in another order for another batch; outputs are about 1.
    close = dict(rtol=0, atol=1e-5)
    for rows in (order, np.array([0, 1]), np.array([2, 3])):
        some = TRAIN(tiny, X[rows], T[rows], places[rows])
        assert_allclose(some, every[rows], **close)
    assert np.abs(TRAIN(tiny, X, T, places + 4) - every).max() > 0.01


SMALL = UNet(
    channels=4, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(),
    dropout=0.5,
)


def test_dropout_only_in_training():
    """No key is asked for outside training, or at a rate of 0; places count from zero."""
    params = fill(unet_shapes(SMALL))
    plain = dataclasses.replace(SMALL, dropout=0.0)
    off, none, on, placed = jax.jit(lambda: (
        apply(SMALL, params),
        apply(plain, params, train=True),
        train(SMALL, params, X, T, None),
        train(SMALL, params, X, T, jnp.arange(4)),
    ))()
    close = dict(rtol=0, atol=1e-5)  # Compiled apart.
    assert_allclose(none, off, **close)
    assert_allclose(placed, on, **close)
    assert np.abs(on - off).max() > 0.01


def test_remat_keeps_every_number():
    """Masks of dropout too, which at a rate of 0.5 would change everything."""
    params = fill(unet_shapes(SMALL))

    def all_of(params, remat):
        """The training pass, its derivative along the parameters, and its gradient."""
        def forward(params):
            return train(SMALL, params, X, T, jnp.arange(4), remat=remat)

        y, pull = jax.vjp(forward, params)
        return y, jax.jvp(forward, (params,), (params,))[1], pull(jnp.sin(y))[0]

    results = [jax.jit(functools.partial(all_of, remat=remat))(params) for remat in (False, True)]
    for plain, again in zip(*map(jax.tree.leaves, results), strict=True):
        # Compiled apart: some 100 roundings of the largest; a key's bias has no other gradient.
        assert_allclose(again, plain, rtol=0, atol=1e-5 * max(np.abs(plain).max(), 1))


def test_remat_keeps_the_names_of_parameters(tiny):
    variables = jax.eval_shape(lambda: TINY.init(
        {"params": jax.random.key(0), "dropout": jax.random.key(1)}, X, T, train=True, remat=True
    ))
    assert jax.tree.map(np.shape, variables["params"]) == jax.tree.map(np.shape, tiny)


def test_remat_is_of_every_block_and_of_nothing_else(tiny):
    """8 residual and 4 attention blocks."""
    def made_again(remat):
        trace = jax.make_jaxpr(functools.partial(train, TINY, remat=remat))
        jaxpr = trace(tiny, X, T, jnp.arange(4))
        return [eqn for eqn in jaxpr.eqns if eqn.primitive.name in ("checkpoint", "remat2")]

    assert made_again(False) == [] and len(made_again(True)) == 8 + 4


def test_dropout_sits_before_the_second_convolution_of_every_block(tiny):
    """With their last kernels at zero the blocks pass nothing that was dropped."""
    muted = {
        name: dict(value, conv2=jax.tree.map(np.zeros_like, value["conv2"]))
        if "block" in name else value for name, value in tiny.items()
    }
    places = np.arange(4)
    off, on = RUN(muted, X, T), TRAIN(muted, X, T, places)
    assert_allclose(on, off, rtol=0, atol=1e-5)  # Compiled apart.
    for kept in (name for name in tiny if "block" in name):
        params = {**muted, kept: tiny[kept]}
        off, on = RUN(params, X, T), TRAIN(params, X, T, places)
        assert np.abs(on - off).max() > 1e-3, kept


def test_skips_come_after_the_features():
    """[h, skip]: the first half of a kernel on the way up meets what came from below."""
    model = dataclasses.replace(TINY, channel_multipliers=(1, 3))
    kernel = unet_shapes(model)["up_0_block_0"]["nin_shortcut"]["kernel"]
    assert kernel.shape == (24 + 8, 8)
    params = fill(unet_shapes(model))
    for name, block in params.items():
        if "block" in name:  # Identity, or the shortcut alone.
            params[name] = dict(block, conv2=jax.tree.map(np.zeros_like, block["conv2"]))
    shortcut = params["up_0_block_0"]["nin_shortcut"]
    shortcut["kernel"][:24] = 0  # Nothing from below.
    _, seen = jax.jit(lambda: apply(
        model, params, mutable=["intermediates"],
        capture_intermediates=lambda module, _: "block" in (module.name or ""),
    ))()
    outputs = seen["intermediates"]
    (down,), (up,) = (outputs[f"{way}_0_block_0"]["__call__"] for way in ("down", "up"))
    expected = np.float64(down) @ shortcut["kernel"][24:] + shortcut["bias"]
    assert_allclose(up, expected, rtol=0, atol=1e-5)  # One float32 product.
