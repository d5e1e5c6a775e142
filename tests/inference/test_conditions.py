"""Labels, vectors, conditions and guidance (guided.py): their formulas, from `sample` on."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import losses, process, variational_bound
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.inference import conditions, held_out_loss
from ddpm_jax.inference import bits_per_dim as bits_lib
from ddpm_jax.samplers import reverse_chain
from nonzero import SHAPE, TinyNet, nonzero_params

# Batches of another size are summed in another order: some float32 roundings in 6 steps.
SAME = dict(rtol=0, atol=1e-5)
CLASSES = 3


@pytest.fixture(scope="module")
def by_class():
    return trained_as(num_classes=CLASSES)


@pytest.fixture(scope="module")
def by_image():
    return trained_as(condition_channels=2)


def trained_as(scale=(), **settings):
    model = TinyNet(**settings)
    params = nonzero_params(model)
    return ddpm_jax.Trained(
        params, model, schedule_lib.linear(6, 1e-2, 0.6), process.Parameterization(), SHAPE,
        vector_scale=scale,
    )


SCALE = ((10.0, -3.0), (4.0, 0.5))


@pytest.fixture(scope="module")
def by_vector():
    return trained_as(scale=SCALE, vector_size=2)


@pytest.fixture(scope="module")
def by_both():
    return trained_as(scale=SCALE, vector_size=2, num_classes=CLASSES)


def told(vectors):
    """What the network gets, by hand."""
    vectors = np.atleast_2d(vectors)
    return np.float32(np.c_[np.ones(len(vectors)), (vectors - np.array(SCALE[0])) / SCALE[1]])


def closed_over(trained, **model_kwargs):
    """(x_t, t) -> the output for one label or condition, [1, ...], for a batch of any size."""
    def denoise_fn(x, t):
        batch = {
            name: jnp.broadcast_to(value, (len(x), *np.shape(value)[1:]))
            for name, value in model_kwargs.items()
        }
        return trained.model.apply({"params": trained.params}, x, t, train=False, **batch)

    return denoise_fn


# `sample`.


@pytest.fixture(scope="module")
def seven(by_class):
    return ddpm_jax.sample(by_class, 3, 7)


def test_labels_are_every_class_in_turn(by_class, seven):
    in_turn = ddpm_jax.sample(by_class, 3, 7, labels=[0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(in_turn, seven)
    for label in range(CLASSES + 1):
        alone = ddpm_jax.sample(by_class, 3, 7, labels=label)
        for i in range(7):
            same = np.abs(alone[i] - seven[i]).max() < 1e-4
            assert same == (i % CLASSES == label)


def test_an_image_is_its_keys_and_its_labels(by_class, seven):
    some = ddpm_jax.sample(by_class, 3, 2, batch_size=8)
    np.testing.assert_allclose(some, seven[:2], **SAME)


def test_a_label_reaches_the_network_unchanged(by_class, seven):
    denoise = closed_over(by_class, labels=np.int32([1]))
    predict_fn = process.predict_fn(by_class.schedule, denoise)
    rng = jax.random.fold_in(jax.random.key(3), 4)
    x_T = jax.random.normal(jax.random.fold_in(rng, 0), SHAPE)[None]
    alone = jax.jit(lambda x, rngs: reverse_chain.ancestral(
        by_class.schedule, predict_fn, x, rngs))(x_T, jax.random.fold_in(rng, 1)[None])
    np.testing.assert_allclose(seven[4], alone[0], **SAME)


def test_guidance_of_nothing_and_of_one(by_class, seven):
    draw = functools.partial(ddpm_jax.sample, by_class, 3, 7)
    np.testing.assert_allclose(
        draw(guidance=0.0), draw(labels=CLASSES), rtol=0, atol=1e-4  # Other sums, 6 steps.
    )
    stronger = draw(guidance=3.0)
    assert np.abs(stronger - seven).max() > 0.01
    np.testing.assert_allclose(draw(guidance=3.0, guidance_interval=(0, 5)), stronger, **SAME)
    once = draw(guidance=3.0, guidance_interval=(5, 5))
    assert np.abs(once - stronger).max() > 1e-3 and np.abs(once - seven).max() > 1e-3


# Guidance by a worse model.


@pytest.fixture(scope="module")
def worse(by_class):
    params = jax.tree.map(lambda x: 0.7 * x, by_class.params)
    return by_class.replace(params=params)


@pytest.mark.parametrize("settings", [
    {}, dict(guidance_interval=(2, 4)), dict(guidance_rescale=0.6),
    dict(sampler="dpm_solver_pp", num_steps=4),
])
def test_a_worse_model_guides(by_class, worse, settings):
    """As a network that makes both calls and moves its output by hand."""
    class Both(nn.Module):
        num_classes: int = CLASSES

        @nn.compact
        def __call__(self, x, t, *, train, labels=None):
            good, bad = (
                TinyNet(num_classes=CLASSES, name=name)(x, t, train=train, labels=labels)
                for name in ("good", "bad")
            )
            moved = bad + 2.5 * (good - bad)
            if rescale := settings.get("guidance_rescale"):
                ratio = [x.std(axis=(1, 2, 3), keepdims=True) for x in (good, moved)]
                moved = moved * (1 - rescale) + rescale * moved * ratio[0] / ratio[1]
            low, high = settings.get("guidance_interval", (0, 9))
            inside = ((low <= t) & (t <= high)).reshape(-1, 1, 1, 1)
            return jnp.where(inside, moved, good)

    draw = functools.partial(ddpm_jax.sample, rng=3, n=3, labels=[1, 2, 3])
    actual = draw(by_class, guide_model=worse, guidance=2.5, **settings)
    both = by_class.replace(model=Both(), params={"good": by_class.params, "bad": worse.params})
    plain = {name: x for name, x in settings.items() if "guidance" not in name}
    expected = draw(both, **plain)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)  # Guidance of roundings.
    assert np.abs(actual - draw(by_class, **plain)).max() > 1e-3


@pytest.mark.parametrize("change, says", [
    (lambda t: t.replace(schedule=schedule_lib.linear(6, 1e-2, 0.5)), "has another schedule"),
    (lambda t: t.replace(diffusion=process.Parameterization("v")), "another what it predicts"),
    (lambda t: "runs/worse", "guide_model='runs/worse' is a path"),
    (lambda t: trained_as(num_classes=4), "has another num_classes than the model: 4 and 3"),
    (lambda t: t.replace(params={}), "params do not fit the model"),
])
def test_a_model_of_another_kind_does_not_guide(by_class, worse, change, says):
    with pytest.raises(ValueError, match=says) as error:
        ddpm_jax.sample(by_class, 0, 2, guide_model=change(worse), guidance=2.0)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="guidance=1.0 is 1, so guide_model has no effect"):
        ddpm_jax.sample(by_class, 0, 2, guide_model=worse)


# Vectors.


VECTORS = np.array([[12.0, -3.0], [6, -2.5], [10, -4], [10, -3]])


def test_a_vector_reaches_the_network_by_its_scale(by_vector):
    """The last one is the mean, and still not the same as none."""
    samples = ddpm_jax.sample(by_vector, 3, 4, vectors=VECTORS)
    for i in range(4):
        rng = jax.random.fold_in(jax.random.key(3), i)
        x_T = jax.random.normal(jax.random.fold_in(rng, 0), SHAPE)[None]
        denoise = closed_over(by_vector, vectors=told(VECTORS[i]))
        alone = jax.jit(lambda x, rngs: reverse_chain.ancestral(
            by_vector.schedule, process.predict_fn(by_vector.schedule, denoise), x, rngs
        ))(x_T, jax.random.fold_in(rng, 1)[None])
        np.testing.assert_allclose(samples[i], alone[0], **SAME)
    np.testing.assert_allclose(
        ddpm_jax.sample(by_vector, 3, 4, vectors=VECTORS[1].tolist())[1], samples[1], **SAME
    )
    nothing = ddpm_jax.sample(by_vector, 3, 4)
    assert np.abs(nothing - samples).max(axis=(1, 2, 3)).min() > 1e-3
    none_given = closed_over(by_vector, vectors=np.zeros((1, 3), np.float32))
    x, t = jnp.ones((2, *SHAPE)), jnp.int32([0, 5])
    np.testing.assert_array_equal(none_given(x, t), closed_over(by_vector)(x, t))


def test_one_number_needs_no_list():
    trained = trained_as(scale=((1.0,), (2.0,)), vector_size=1)
    rows = ddpm_jax.sample(trained, 0, 3, vectors=[[1.0], [2.0], [5.0]])
    np.testing.assert_array_equal(ddpm_jax.sample(trained, 0, 3, vectors=[1, 2, 5]), rows)
    np.testing.assert_allclose(ddpm_jax.sample(trained, 0, 3, vectors=2)[1], rows[1], **SAME)


@pytest.mark.parametrize("arguments, says", [
    (dict(vectors=5), r"vectors=5 must be 2 finite numbers .* for each of 3 images.*\[3, 2\]"),
    (dict(vectors=[1, 2, 3]), r"vectors=\[1, 2, 3\] must be 2 finite"),
    (dict(vectors=np.zeros((4, 2))), "must be 2 finite numbers as in the data"),
    (dict(vectors=[[1, 2], [3], [4, 5]]), "must be 2 finite numbers"),
    (dict(vectors=[1, np.inf]), "must be 2 finite numbers"),
    (dict(vectors="ab"), "vectors='ab' must be 2 finite numbers"),
    (dict(guidance=2.0), "guidance=2.0 has no effect with no vectors; .* or other vectors"),
])
def test_mistakes_with_vectors(by_vector, arguments, says):
    with pytest.raises(ValueError, match=says) as error:
        ddpm_jax.sample(by_vector, 0, 3, **arguments)
    assert "\n" not in str(error.value)


def test_vectors_where_they_are_not_taken(by_class):
    with pytest.raises(ValueError, match=r"vectors=\[1, 2\], but this model is told no numbers"):
        ddpm_jax.sample(by_class, 0, 3, vectors=[1, 2])
    model = by_class.model.clone(vector_size=2)
    with pytest.raises(ValueError, match="model.vector_size=2, but vector_scale is of 0"):
        conditions.checked(by_class.replace(model=model), 3)


def test_guidance_hides_labels_and_vectors_together(by_both):
    draw = functools.partial(ddpm_jax.sample, by_both, 3, 4)
    given = dict(labels=[0, 1, 2, 0], vectors=VECTORS)
    plain, nothing = draw(**given), draw(labels=CLASSES)
    np.testing.assert_allclose(draw(**given, guidance=0.0), nothing, rtol=0, atol=1e-4)
    assert np.abs(draw(**given, guidance=2.0) - plain).max() > 1e-3
    assert np.abs(draw(labels=CLASSES, vectors=VECTORS, guidance=2.0) - nothing).max() > 1e-3
    with pytest.raises(ValueError, match="labels=3, which is no class and no vectors; write"):
        draw(labels=CLASSES, guidance=2.0)


def test_bits_and_losses_go_by_the_model_s_scale(by_vector):
    """A `Source` has the scale of its own images, which is another."""
    images = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8)
    bits = ddpm_jax.bits_per_dim(by_vector, 1, images, vectors=VECTORS)
    source = source_lib.from_array(images, vectors=VECTORS)
    assert source.vector_scale != SCALE
    terms = bits_lib.terms(by_vector, 1, source)
    np.testing.assert_allclose(variational_bound.total_bits(terms), bits, rtol=1e-6)
    moved = bits_lib.terms(by_vector, 1, source_lib.from_array(images, vectors=VECTORS[::-1]))
    assert np.abs(variational_bound.total_bits(moved)[:3] - bits[:3]).min() > 1e-4
    assert np.abs(ddpm_jax.bits_per_dim(by_vector, 1, images) - bits).min() > 1e-4
    by_ode = bits_lib.by_ode(by_vector, 1, source, num_steps=2)
    held = held_out_loss.of_source(by_vector, 1, source, losses.Objective())
    right = source.with_vector_scale(SCALE)
    np.testing.assert_array_equal(by_ode, bits_lib.by_ode(by_vector, 1, right, num_steps=2))
    np.testing.assert_array_equal(
        held, held_out_loss.of_source(by_vector, 1, right, losses.Objective())
    )
    with pytest.raises(ValueError, match="vectors: 1 numbers for each image, and the model takes"):
        bits_lib.terms(by_vector, 1, source_lib.from_array(images, vectors=np.arange(4)))


def test_vectors_in_turn():
    images, vectors = np.zeros((3, 2, 2, 1), np.uint8), np.arange(6.0).reshape(3, 2)
    source = source_lib.from_array(images, labels=np.array([2, 0, 1]), vectors=vectors)
    actual = conditions.in_turn(source, 4)
    np.testing.assert_array_equal(actual["vectors"], vectors[[0, 1, 2, 0]])
    np.testing.assert_array_equal(actual["labels"], [2, 0, 1, 2])
    own = conditions.in_turn(None, 3, vectors=((7, 8), (9, 10)))
    np.testing.assert_array_equal(own["vectors"], [[7, 8], [9, 10], [7, 8]])
    np.testing.assert_array_equal(
        conditions.in_turn(None, 3, vectors=(0.5, 2))["vectors"], [[0.5], [2], [0.5]]
    )
    with pytest.raises(ValueError, match="vectors=.*must be vectors of equally many numbers"):
        conditions.in_turn(None, 3, vectors=((7, 8), (9,)))
    assert conditions.go_by_images(TinyNet(vector_size=2))
    assert not conditions.go_by_images(TinyNet(vector_size=2), ((7, 8),))
    assert not conditions.go_by_images(TinyNet(num_classes=2))


@pytest.mark.parametrize("settings", [dict(sampler="ddim"), dict(sampler="dpm_solver_pp")])
def test_every_sampler_is_told(by_class, settings):
    draw = functools.partial(ddpm_jax.sample, by_class, 3, 2, num_steps=3, **settings)
    assert np.abs(draw(labels=0) - draw(labels=1)).max() > 1e-3
    assert np.abs(draw(labels=0, guidance=3.0) - draw(labels=0)).max() > 1e-3


def test_an_image_goes_by_its_own_condition(by_image):
    condition = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 2), np.uint8)
    draw = functools.partial(ddpm_jax.sample, by_image, 3)
    actual = draw(5, condition=condition)
    np.testing.assert_allclose(  # The two divisions by 127.5 may differ in the last bit.
        draw(5, condition=np.float32(condition / 127.5 - 1)), actual, rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(draw(3, condition=condition[:3]), actual[:3], **SAME)
    all_alike = draw(5, condition=condition[1])
    np.testing.assert_allclose(all_alike[1], actual[1], **SAME)
    assert np.abs(all_alike[2] - actual[2]).max() > 1e-3


def test_float_and_uint8_conditions_are_the_same_to_the_network(by_image):
    """Against a closed-over condition, so that a swapped channel or sign would show."""
    condition = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 2), np.uint8)
    denoise = closed_over(by_image, condition=np.float32(condition) / 127.5 - 1)
    x, t = jnp.ones((2, *SHAPE)), jnp.int32([0, 5])
    model_kwargs = conditions.as_float({"condition": condition.repeat(2, axis=0)})
    direct = by_image.model.apply({"params": by_image.params}, x, t, train=False, **model_kwargs)
    np.testing.assert_allclose(denoise(x, t), direct, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arguments, says", [
    (dict(labels=4), r"labels=4 must be .* in 0..2, or 3 for no class"),
    (dict(labels=-1), "labels=-1 must"),
    (dict(labels=[0, 1]), r"labels=\[0, 1\] must be one whole number or 7"),
    (dict(labels=0.5), "labels=0.5 must"),
    (dict(condition=np.zeros((8, 8, 1))), "this model takes no condition"),
    (dict(guidance=-1.0), "guidance=-1.0 must be at least 0"),
    (dict(guidance_interval=(0, 5)), "guidance other than 1"),
    (dict(guidance=2.0, guidance_interval=(5, 0)), r"guidance_interval=\(5, 0\) must"),
    (dict(guidance=2.0, guidance_interval=(5,)), "guidance_interval=.*the first and the last"),
    (dict(guidance=2.0, guidance_rescale=1.5), r"guidance_rescale=1.5 must lie in 0..1"),
    (dict(guidance_rescale=0.5), "guidance_rescale=0.5 must .* be 0 without guidance"),
    (dict(guidance="2"), "guidance='2' must be a finite"),
    (dict(guidance=float("nan")), "guidance=nan must be a finite"),
    (dict(guidance=2.0, guidance_interval=("a", 5)), r"guidance_interval\[0\]='a' must be a fin"),
    (dict(guidance=2.0, guidance_interval=(4.2, 4.6)),
     r"guidance_interval=\(4.2, 4.6\) has no effect: .* and the nearest is 4; write a longer"),
    (dict(guidance=2.0, guidance_interval=(1, 2), sampler="dpm_solver_pp", num_steps=2),
     r"has no effect: this chain visits no step t in it"),
    (dict(guidance=2.0, labels=3), "guidance=2.0 has no effect with labels=3, which is no class"),
])
def test_mistakes_with_labels(by_class, arguments, says):
    with pytest.raises(ValueError, match=says) as error:
        ddpm_jax.sample(by_class, 0, 7, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arguments, says", [
    (dict(), r"condition=None: .*\[8, 8, 2\] for all or \[3, ...\]"),
    (dict(condition=np.zeros((3, 8, 8, 1))), r"condition=\[3, 8, 8, 1\]: "),
    (dict(condition=np.zeros((4, 8, 8, 2))), r"condition=\[4, 8, 8, 2\]: "),
    (dict(condition=np.full((8, 8, 2), 255.0)), "condition reaches 255"),
    (dict(condition=np.full((8, 8, 2), np.nan)), "condition reaches nan"),
    (dict(condition=np.zeros((8, 8, 2)), labels=0), "labels=0, but this model is unconditional"),
    (dict(condition=np.zeros((8, 8, 2)), guidance=2.0), "guidance=2.0 follows labels"),
])
def test_mistakes_with_conditions(by_image, arguments, says):
    with pytest.raises(ValueError, match=says) as error:
        ddpm_jax.sample(by_image, 0, 3, **arguments)
    assert "\n" not in str(error.value)


def test_what_samples_are_told_in_turn():
    images = np.zeros((3, 2, 2, 1), np.uint8)
    condition = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1)
    source = source_lib.from_array(images, labels=np.array([2, 0, 1]), condition=condition)
    assert conditions.in_turn(None, 4) == {}
    assert conditions.in_turn(source_lib.from_array(images), 4) == {}
    np.testing.assert_array_equal(conditions.in_turn(None, 4, (5, 6))["labels"], [5, 6, 5, 6])
    actual = conditions.in_turn(source, 5)
    np.testing.assert_array_equal(actual["labels"], [2, 0, 1, 2, 0])
    np.testing.assert_array_equal(actual["condition"], condition[[0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(conditions.in_turn(source, 2, (1,))["labels"], [1, 1])


# Bits/dim.


def test_bits_are_those_of_the_label(by_class):
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
    labels = np.int32([2, 0, 1])
    actual = ddpm_jax.bits_per_dim(by_class, 1, images, labels=labels)
    source = source_lib.from_array(images, labels=labels)
    terms = bits_lib.terms(by_class, 1, source)
    np.testing.assert_allclose(variational_bound.total_bits(terms), actual, rtol=1e-6)
    for i in range(3):
        predict_fn = process.predict_fn(
            by_class.schedule, closed_over(by_class, labels=labels[i : i + 1]))
        alone = jax.jit(lambda x, rngs: variational_bound.vlb_terms(
            by_class.schedule, predict_fn, x, rngs))(
                np.float32(images[i : i + 1] / 127.5 - 1),
                jax.random.fold_in(jax.random.key(1), i)[None])
        total = variational_bound.total_bits(jax.device_get(alone))
        np.testing.assert_allclose(actual[i], total[0], rtol=1e-5)  # Sums in another order.
    # Without labels: the label of no class.
    nothing = ddpm_jax.bits_per_dim(by_class, 1, images)
    np.testing.assert_array_equal(
        nothing, ddpm_jax.bits_per_dim(by_class, 1, images, labels=CLASSES))
    assert np.abs(nothing - actual).min() > 1e-4
    with pytest.raises(ValueError, match="labels=9 must be"):
        ddpm_jax.bits_per_dim(by_class, 1, images, labels=9)


def test_bits_go_by_the_condition(by_image):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, *SHAPE), np.uint8)
    condition = rng.integers(0, 256, (3, 8, 8, 2), np.uint8)
    actual = ddpm_jax.bits_per_dim(by_image, 1, images, condition=condition)
    again = ddpm_jax.bits_per_dim(by_image, 1, images[:2], condition=condition[:2])
    np.testing.assert_allclose(again, actual[:2], rtol=1e-5)
    other = ddpm_jax.bits_per_dim(by_image, 1, images, condition=condition[[0, 2, 1]])
    np.testing.assert_allclose(other[0], actual[0], rtol=1e-6)
    assert np.abs(other - actual)[1:].min() > 1e-4
