"""One training step against its parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config as config_lib
from ddpm_jax.data import augmentation, loading
from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import losses, randomness
from ddpm_jax.network import averages
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.runtime import parallel
from ddpm_jax.training import loop
from ddpm_jax.training import state as state_lib
from ddpm_jax.training import step as step_lib
from nonzero import SHAPE, TinyNet, nonzero_params
from training_step import BATCH, held_out_loss, small_config, state_of, step_of

CLIP = 0.05  # below the gradient's norm, so that clipping is seen
# Relative float32 roundings: eight shares are summed in another order than one batch.
SAME = dict(rtol=2e-5, atol=1e-7)


def run(config, model, num_steps=1):
    """(state, metrics of every step) after some steps on the same images."""
    images = loading.digits("train")[0][:BATCH]
    state, step, rows = parallel.replicate(state_of(config, model)), step_of(config), []
    for _ in range(num_steps):
        state, metrics = step(state, parallel.shard({"images": images}), jax.random.key(1))
        rows.append(jax.device_get(metrics))
    return jax.device_get(state), rows


@pytest.fixture(scope="module")
def one_step():
    return run(small_config(extra_ema_decays=(0.5,), grad_clip=CLIP), TinyNet())


def drawn(config, step=0):
    """The draws of the step for the whole batch, on one device."""
    return step_lib.draw(
        {"images": loading.digits("train")[0][:BATCH]},
        rng=jax.random.split(jax.random.fold_in(jax.random.key(1), step))[0],
        places=jnp.arange(BATCH), num_timesteps=config.diffusion.num_timesteps,
        t_sampling="uniform", loss_history={}, random_flip=config.data.random_flip,
        augment=config.data.augment, label_dropout=0.0, null_label=0,
    )


@pytest.fixture(scope="module")
def whole_batch():
    """The loss per image, t and the mean gradient over the whole batch."""
    config, model = small_config(), TinyNet()
    x_0, t, _, eps, _ = drawn(config)

    def loss_fn(params):
        def denoise_fn(x_t, t):
            return model.apply({"params": params}, x_t, t, train=False)

        loss = losses.training_loss(config_lib.schedule(config), denoise_fn, x_0, t, eps)
        return loss.mean(), loss

    params = nonzero_params(model)
    grads, loss = jax.jit(jax.grad(loss_fn, has_aux=True))(params)
    return params, np.asarray(loss), np.asarray(t), grads


def test_eight_devices_see_the_loss_and_gradient_of_the_whole_batch(one_step, whole_batch):
    _, (metrics,) = one_step
    _, loss, _, grads = whole_batch
    np.testing.assert_allclose(metrics["loss"], loss.mean(), **SAME)
    norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, **SAME)


def test_quartiles_are_means_over_their_images(one_step, whole_batch):
    _, (metrics,) = one_step
    _, loss, t, _ = whole_batch
    for i in range(4):
        mine = loss[(5 * i <= t) & (t < 5 * i + 5)]  # T = 20
        np.testing.assert_allclose(metrics[f"loss_quartile_{i + 1}"], mine.mean(), **SAME)


def test_a_quartile_without_images_is_no_nan():
    """JAX_DEBUG_NANS ends a run at the first NaN, so no healthy step may have one."""
    config = small_config()
    config.diffusion.num_timesteps = 1
    with jax.debug_nans(True):
        _, (metrics,) = run(config, TinyNet())
    assert metrics["loss"] == metrics["loss_quartile_1"] and np.isfinite(metrics["loss"])
    assert "loss_quartile_2" not in loop.finite_row(metrics)
    assert step_lib.weighted_mean(jnp.float32(6.0), jnp.float32(4.0)) == 1.5


def test_adam_clips_the_norm_and_steps(one_step, whole_batch):
    """The first Adam step in NumPy: m / (1 - b1) = g and v / (1 - b2) = g^2."""
    state, _ = one_step
    params, _, _, grads = whole_batch
    norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(grads)))
    clip = CLIP / norm
    assert clip < 1

    def check(before, g, after):
        g = np.float64(g) * clip
        expected = before - 1e-3 * g / (np.abs(g) + 1e-8)
        # A gradient near eps is a sum of roundings (the key biases' is 0): leave it out.
        sure = np.abs(g) > 1e-5
        # One rounding of the parameter, about 1, and 1e-3 times SAME.
        np.testing.assert_allclose(after[sure], expected[sure], rtol=0, atol=3e-7)
        return sure.sum()

    counted = sum(jax.tree.leaves(jax.tree.map(check, params, grads, state.params)))
    assert counted > 0.8 * trained_lib.num_params(params)


def test_a_gpu_updates_and_skips_as_others_do(one_step, as_on_a_gpu):
    config = small_config(extra_ema_decays=(0.5,), grad_clip=CLIP)
    for ours, theirs in zip(
        jax.tree.leaves(run(config, TinyNet())), jax.tree.leaves(one_step), strict=True
    ):
        # The last bits of parameters of about 1, and SAME.
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=3e-7)
    before = parallel.replicate(state_of(config, TinyNet()))
    before = before.replace(params=jax.tree.map(lambda x: x * np.nan, before.params))
    kept = jax.device_get(before)
    images = {"images": loading.digits("train")[0][:BATCH]}
    after, _ = step_of(config)(before, parallel.shard(images), jax.random.key(1))
    assert after.step == kept.step + 1 and list(after.skipped) == [1, 1]
    for name in ("params", "opt_state", "ema_params", "extra_ema_params", "tally"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(kept, name))


def test_averages_follow_their_decays(one_step):
    state, _ = one_step
    before = nonzero_params(TinyNet())
    decay = small_config().train.ema_decay

    def check(average, old, new, decay):
        expected = decay * np.float64(old) + (1 - decay) * np.float64(new)
        np.testing.assert_allclose(average, expected, rtol=3e-7, atol=1e-8)  # float32

    jax.tree.map(lambda a, b, n: check(a, 2 * b, n, decay), state.ema_params, before,
                 state.params)
    fresh = state_lib.create(
        TinyNet(), config_lib.optimizer(small_config()), jax.random.key(0), SHAPE,
        extra_averages=("0.5",),
    )
    jax.tree.map(lambda a, b, n: check(a, b, n, 0.5), state.extra_ema_params["0.5"],
                 jax.device_get(fresh.params), state.params)


@pytest.mark.parametrize("step, decay", [(1, 2 / 11), (10, 11 / 20), (10**6, 0.9999)])
def test_average_warms_up(step, decay):
    actual = averages.ema_decay_at(0.9999, step=step, warmup=True)
    np.testing.assert_allclose(actual, decay, rtol=1e-6)  # float32
    assert averages.ema_decay_at(0.9999, step=step, warmup=False) == 0.9999


def test_every_replica_holds_the_same():
    config = small_config()
    state, _ = step_of(config)(
        parallel.replicate(state_of(config, TinyNet())),
        parallel.shard({"images": loading.digits("train")[0][:BATCH]}), jax.random.key(1),
    )
    for leaf in jax.tree.leaves(state):
        first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        assert len(others) == 7
        for other in others:
            np.testing.assert_array_equal(other, first)


def test_rows_are_means_since_the_last_row():
    config = small_config(log_every=2, learning_rate=1e-12)
    _, rows = run(config, TinyNet(), num_steps=4)
    singles = [row["loss"] for row in run(
        small_config(log_every=1, learning_rate=1e-12), TinyNet(), num_steps=4)[1]]
    expected = [singles[0], np.mean(singles[:2]), singles[2], np.mean(singles[2:])]
    np.testing.assert_allclose([row["loss"] for row in rows], expected, **SAME)
    assert len(set(np.round(singles, 4))) == 4  # every step has new draws


def test_micro_batches_change_nothing_with_dropout():
    model = TinyNet(dropout=0.5)
    _, (whole,) = run(small_config(), model)
    _, (halves,) = run(small_config(accumulate=2), model)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(halves[name], whole[name], **SAME)
    _, (without,) = run(small_config(), TinyNet())
    assert abs(without["loss"] - whole["loss"]) > 1e-3  # dropout was on


def test_micro_batches_are_unrolled_on_cpu():
    """The gradient of a convolution is about 20 times slower inside a loop there."""
    config = small_config(accumulate=2)
    batch = parallel.shard({"images": loading.digits("train")[0][:BATCH]})
    lowered = step_of(config).lower(state_of(config, TinyNet()), batch, jax.random.key(1))
    assert "stablehlo.convolution" in lowered.as_text()
    assert "convolution" not in "".join(
        part.split("stablehlo.return")[0] for part in lowered.as_text().split(" do {")[1:]
    )


def test_flips_are_left_to_right_one_image_in_two():
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 6, 2), np.uint8)
    draw = functools.partial(
        step_lib.draw, rng=jax.random.key(0), num_timesteps=10, t_sampling="uniform",
        loss_history={}, random_flip=True, augment=0.0, label_dropout=0.25, null_label=10,
    )
    labels = np.arange(400, dtype=np.int32) % 10
    vectors = np.float32(np.c_[np.ones(400), np.arange(400)])
    batch = {"images": images, "labels": labels, "condition": images[..., :1],
             "vectors": vectors}
    x_0, t, weight, eps, model_kwargs = draw(batch, places=jnp.arange(400))
    plain = images / 127.5 - 1
    straight = np.abs(x_0 - plain).max(axis=(1, 2, 3)) < 1e-6
    mirrored = np.abs(x_0 - plain[:, :, ::-1]).max(axis=(1, 2, 3)) < 1e-6
    assert np.all(straight ^ mirrored)
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / 20  # five standard errors
    assert set(np.unique(t)) == set(range(10))
    assert abs(np.mean(eps)) < 5 / np.sqrt(eps.size)
    np.testing.assert_array_equal(weight, 1)
    # Conditions are mirrored with their images, and some labels are hidden.
    np.testing.assert_array_equal(model_kwargs["condition"], x_0[..., :1])
    hidden = model_kwargs["labels"] == 10
    assert abs(hidden.mean() - 0.25) < 5 * (0.25 * 0.75 / 400) ** 0.5
    np.testing.assert_array_equal(model_kwargs["labels"][~hidden], labels[~hidden])
    np.testing.assert_array_equal(  # Together with the labels.
        model_kwargs["vectors"], np.where(hidden[:, None], 0, vectors)
    )
    assert abs(np.corrcoef(hidden, mirrored)[0, 1]) < 5 / 20  # another draw than the mirror's
    again = draw(jax.tree.map(lambda x: x[7:8], batch), places=jnp.arange(7, 8))
    for whole, single in zip(jax.tree.leaves((x_0, t, weight, eps, model_kwargs)),
                             jax.tree.leaves(again)):
        np.testing.assert_array_equal(whole[7], single[0])


@pytest.mark.parametrize("kind", ["labels", "vectors", "condition"])
def test_the_network_is_told_what_goes_with_each_image(kind):
    """On eight devices the loss is that of the whole batch on one."""
    config = small_config(label_dropout=0.5)
    config.data.labels, config.data.num_classes = kind == "labels", 10 * (kind == "labels")
    model = TinyNet(num_classes=config.data.num_classes,
                    condition_channels=2 * (kind == "condition"),
                    vector_size=3 * (kind == "vectors"))
    images, labels = (x[:BATCH] for x in loading.digits("train"))
    batch = {"images": images, kind: {
        "labels": labels, "condition": np.concatenate([images[::-1], 255 - images], axis=-1),
        "vectors": np.random.default_rng(0).normal(size=(BATCH, 3)),
    }[kind]}
    source = source_lib.from_array(**batch)
    batch = source.examples(np.arange(BATCH))
    _, metrics = step_of(config)(
        parallel.replicate(state_of(config, model)), parallel.shard(batch), jax.random.key(1)
    )
    x_0, t, _, eps, model_kwargs = step_lib.draw(
        batch, rng=jax.random.split(jax.random.fold_in(jax.random.key(1), 0))[0],
        places=jnp.arange(BATCH), num_timesteps=20, t_sampling="uniform", loss_history={},
        random_flip=False, augment=0.0, label_dropout=0.5, null_label=10,
    )
    if kind == "condition":
        np.testing.assert_allclose(model_kwargs[kind], batch[kind] / 127.5 - 1, atol=1e-6)
    denoise_fn = functools.partial(
        model.apply, {"params": nonzero_params(model)}, train=False, **model_kwargs)
    loss = losses.training_loss(config_lib.schedule(config), denoise_fn, x_0, t, eps)
    np.testing.assert_allclose(metrics["loss"], loss.mean(), **SAME)
    params = state_of(config, model).params
    held_out = held_out_loss(config, model, source)(params)
    assert np.isfinite(held_out)
    swapped = source_lib.from_array(
        images, **{kind: source.sample_kwargs(np.arange(BATCH))[kind][::-1]}
    )
    assert abs(held_out_loss(config, model, swapped)(params) - held_out) > 1e-4


def test_the_network_is_told_how_each_image_was_augmented():
    """By each image's own key, with its condition; on eight devices as in the whole batch."""
    config = small_config()
    config.data.augment = 0.5
    model = TinyNet(condition_channels=1, augment_channels=9)
    images = loading.digits("train")[0][:BATCH]
    batch = {"images": images, "condition": images}
    _, metrics = step_of(config)(
        parallel.replicate(state_of(config, model)), parallel.shard(batch), jax.random.key(1)
    )
    rng = jax.random.split(jax.random.fold_in(jax.random.key(1), 0))[0]
    x_0, t, _, eps, model_kwargs = step_lib.draw(
        batch, rng=rng, places=jnp.arange(BATCH), num_timesteps=20, t_sampling="uniform",
        loss_history={}, random_flip=False, augment=0.5, label_dropout=0.0, null_label=0,
    )
    for place in (0, 7):
        address = jax.random.fold_in(jax.random.fold_in(rng, place), 5)
        told = augmentation.draw(jax.random.split(address, 6), 0.5)
        np.testing.assert_allclose(model_kwargs["augmentation"][place], told, rtol=1e-6)
        seen = augmentation.transform(images[place] / np.float32(127.5) - 1, told)
        np.testing.assert_allclose(x_0[place], seen, rtol=0, atol=1e-4)
    assert np.abs(x_0 - (images / 127.5 - 1)).max() > 0.1
    np.testing.assert_array_equal(x_0, model_kwargs["condition"])
    denoise_fn = functools.partial(
        model.apply, {"params": nonzero_params(model)}, train=False, **model_kwargs)
    loss = losses.training_loss(config_lib.schedule(config), denoise_fn, x_0, t, eps)
    np.testing.assert_allclose(metrics["loss"], loss.mean(), **SAME)


def test_half_of_the_images_tell_a_self_conditioned_network_their_guess():
    """By each image's own key; on eight devices the loss is that of the whole batch on one."""
    config, model = small_config(), TinyNet(self_condition=True)
    config.model.self_condition = True
    rng = jax.random.split(jax.random.fold_in(jax.random.key(1), 0))[0]
    tells = np.array([
        bool(jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(rng, place), 4)))
        for place in range(BATCH)
    ])
    assert 0 < tells.sum() < BATCH
    _, (metrics,) = run(config, model)
    x_0, t, _, eps, _ = drawn(config)
    schedule, params = config_lib.schedule(config), nonzero_params(model)
    signal, sigma = (
        np.float32(level)[t].reshape(-1, 1, 1, 1)
        for level in (schedule.sqrt_alpha_bar, schedule.sqrt_one_minus_alpha_bar)
    )
    x_t = signal * x_0 + sigma * eps
    denoise_fn = functools.partial(model.apply, {"params": params}, train=False)
    guess = np.clip((x_t - sigma * denoise_fn(x_t, t)) / signal, -1, 1)
    guess = np.where(tells.reshape(-1, 1, 1, 1), guess, 0)
    loss = np.mean(np.square(eps - denoise_fn(x_t, t, guess)))
    np.testing.assert_allclose(metrics["loss"], loss, **SAME)
    assert abs(loss - np.mean(np.square(eps - denoise_fn(x_t, t)))) > 1e-3


def test_the_held_out_loss_tells_the_guess_for_every_image():
    config, model = small_config(eval_images=8), TinyNet(self_condition=True)
    images, params = loading.digits("test")[0][:8], nonzero_params(model)
    t = np.arange(8) * 20 // 8
    eps = np.stack([
        jax.random.normal(jax.random.fold_in(jax.random.key(2), i), SHAPE) for i in range(8)
    ])
    loss = losses.training_loss(
        config_lib.schedule(config),
        functools.partial(model.apply, {"params": params}, train=False),
        np.float32(images / 127.5 - 1), t, eps, tells=jnp.ones(8, bool),
    )
    actual = held_out_loss(config, model, source_lib.from_array(images))(params)
    np.testing.assert_allclose(actual, loss.mean(), **SAME)


def test_importance_is_part_of_the_step_and_of_what_is_saved():
    """Devices pool their losses; the gradient is that of the weighted mean."""
    config, model = small_config(t_sampling="importance"), TinyNet()
    x_0, t, _, eps, _ = drawn(config)
    state, (metrics,) = run(config, model)
    u = [jax.random.uniform(jax.random.split(key, 3)[0]) for key in randomness.image_keys(
        jax.random.split(jax.random.fold_in(jax.random.key(1), 0))[0], jnp.arange(BATCH))]
    t = np.floor(np.array(u) * 20).astype(int)  # all equally likely at first
    loss = losses.training_loss(
        config_lib.schedule(config),
        lambda x, t: model.apply({"params": nonzero_params(model)}, x, t, train=False),
        x_0, t, eps,
    )
    np.testing.assert_allclose(metrics["loss"], loss.mean(), **SAME)
    saved = state_lib.to_saved(state)["loss_history"]
    np.testing.assert_array_equal(saved["count"], np.bincount(t, minlength=20))
    np.testing.assert_allclose(saved["loss"].sum(), loss.sum(), **SAME)


def test_importance_leaves_the_mean_gradient_as_it_is():
    """With a history that prefers late steps: the weighted loss estimates the plain one."""
    config = small_config(t_sampling="importance", batch_size=4096, log_every=1)
    size = np.arange(1, 21, dtype=np.float32)
    history = {"loss": jnp.tile(size[:, None], 10), "count": jnp.full(20, 10, jnp.int32)}
    state = state_of(config, TinyNet()).replace(loss_history=history)
    images = np.tile(loading.digits("train")[0][:512], (8, 1, 1, 1))
    metrics = {}
    for t_sampling in ("importance", "uniform"):
        config.train.t_sampling = t_sampling
        _, metrics[t_sampling] = step_of(config)(
            parallel.replicate(jax.tree.map(jnp.copy, state)), parallel.shard({"images": images}),
            jax.random.key(1),
        )
    # 4,096 losses each, of a spread like their mean: a standard error of 2 %.
    np.testing.assert_allclose(
        metrics["importance"]["loss"], metrics["uniform"]["loss"], rtol=0.1
    )
    np.testing.assert_allclose(
        metrics["importance"]["grad_norm"], metrics["uniform"]["grad_norm"], rtol=0.1
    )


@pytest.mark.parametrize("mean, variance, loss, t_sampling", [
    ("eps", "fixed_large", "simple", "antithetic"),
    ("x_prev", "learned", "vlb", "uniform"),
    ("eps", "fixed_large", "rescaled_vlb", "uniform"),
    ("eps", "learned_range", "rescaled_vlb", "importance"),
    ("v", "learned_range", "hybrid", "uniform"),
])
def test_every_objective_is_learned(mean, variance, loss, t_sampling):
    """The held-out loss falls by at least a fifth between two evaluations."""
    config = small_config(
        t_sampling=t_sampling, learning_rate=1e-2, eval_images=64, batch_size=64,
        ema_decay=0.5, log_every=1,
    )
    config.diffusion.mean, config.diffusion.variance = mean, variance
    config.diffusion.loss = loss
    model = TinyNet(out_channels=config_lib.parameterization(config).out_channels(1))
    state, step = parallel.replicate(state_of(config, model)), step_of(config)
    evaluate = held_out_loss(config, model, loading.load("digits", split="test"))
    images, values = loading.digits("train")[0], []
    for i in range(60):
        batch = {"images": images[64 * (i % 23) : 64 * (i % 23) + 64]}
        state, _ = step(state, parallel.shard(batch), jax.random.key(1))
        if i in (0, 59):
            values.append(evaluate(state.params))
    assert values[1] < 0.8 * values[0], values
