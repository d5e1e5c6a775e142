"""Guidance by gradients, with a model of digits that was told nothing while it was trained.

    python main.py --config=configs/digits.py --workdir=runs/digits
    python -m benchmarks.quality.guides --task=classifier --workdir=runs/digits
    python -m benchmarks.quality.guides --task=restore --workdir=runs/digits
    python -m benchmarks.quality.guides --task=worse --workdir=runs/digits --step=500

Classifier: a small network is trained to name noised digits and guides the chain towards each class
in turn, 100 samples each; the support-vector classifier of `digits.py`, which it never saw, judges
them. Pictures of some go into the current folder.
Restore: the 300 held-out digits from the means of their 2x2 pixels, and from 30 % of their pixels,
16 draws each, compared with what interpolation and ridge regression make of the same.
Worse: guidance away from an earlier step of the run (autoguidance), by the Frechet distance of
pixels to the training digits (`frechet_pixels`) over five seeds, at a fixed number of network
calls: a guided chain has half as many steps as one without. Needs `pip install -e ".[test]"` for
scikit-learn.
"""

import argparse
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.interpolate import griddata
from sklearn.linear_model import RidgeCV

import ddpm_jax
from benchmarks.quality.conditional import with_error
from benchmarks.quality.digits import fitted_classifier, scaled
from ddpm_jax import diffusion
from ddpm_jax.data import loading, pixels
from ddpm_jax.evaluation import metrics
from ddpm_jax.inference import operators
from ddpm_jax.samplers import classifier_guide, measurement_guide
from ddpm_jax.workdir import pictures

_DRAWS, _STEPS, _BATCH = 16, 3000, 256


class Classifier(nn.Module):
    """Logits [b, 10] of noised digits [b, 8, 8, 1], told how much noise there is."""

    @nn.compact
    def __call__(self, x, signal):
        level = jnp.broadcast_to(signal, x.shape)
        x = nn.Conv(64, (3, 3))(jnp.concatenate([x, level], axis=-1))
        for channels, strides in ((64, 1), (128, 2), (128, 1), (256, 2)):
            x = nn.Conv(channels, (3, 3), strides=strides)(nn.swish(nn.GroupNorm(16)(x)))
        return nn.Dense(10)(nn.swish(nn.GroupNorm(16)(x)).mean(axis=(1, 2)))


def noisy_classifier(trained, seed):
    """log p(label | x_t) as (x_t, t, label) -> [b], and its accuracy on held-out digits at some t.

    It is trained on digits noised as often as for the model, at random t.
    """
    schedule, model = trained.schedule, Classifier()
    table = jnp.asarray(schedule.sqrt_alpha_bar, jnp.float32)
    images, labels = loading.digits("train")
    x_0, labels = jnp.asarray(pixels.as_float(images)), jnp.asarray(labels)
    tx = optax.adamw(optax.cosine_decay_schedule(1e-3, _STEPS), weight_decay=0.05)

    def noised(x_0, t, rng):
        return diffusion.q_sample(schedule, x_0, t, jax.random.normal(rng, x_0.shape))

    def logits(params, x_t, t):
        signal = jnp.interp(t.astype(jnp.float32), jnp.arange(len(table), dtype=jnp.float32), table)
        return model.apply(params, x_t, signal.reshape(-1, 1, 1, 1))

    @jax.jit
    def step(params, opt_state, rng):
        rng_image, rng_t, rng_eps = jax.random.split(rng, 3)
        at = jax.random.randint(rng_image, (_BATCH,), 0, len(x_0))
        t = jax.random.randint(rng_t, (_BATCH,), 0, len(table))

        def loss(params):
            each = optax.softmax_cross_entropy_with_integer_labels(
                logits(params, noised(x_0[at], t, rng_eps), t), labels[at])
            return each.mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params = model.init(jax.random.key(seed), x_0[:1], jnp.ones((1, 1, 1, 1)))
    opt_state = tx.init(params)
    for i in range(_STEPS):
        params, opt_state = step(params, opt_state, jax.random.key(seed + 1 + i))

    test, truth = loading.digits("test")
    for t in (0, 200, 400, 600):
        x_t = noised(pixels.as_float(test), jnp.full(len(test), t), jax.random.key(t))
        right = np.argmax(logits(params, x_t, jnp.full(len(test), t)), axis=1) == truth
        print(f"the guide on held-out digits at t = {t}: {with_error(right)}")

    def log_prob_fn(x_t, t, label):
        log_probs = jax.nn.log_softmax(logits(params, x_t, t))
        return jnp.take_along_axis(log_probs, label[:, None], axis=1)[:, 0]

    return log_prob_fn


def classifier(trained, args):
    """Prints the share of 1,000 samples that the judge names as asked, by scale and sampler."""
    judge, (test, truth) = fitted_classifier(), loading.digits("test")
    print(f"the judge on held-out digits: {with_error(judge.predict(scaled(test)) == truth)}; "
          f"standard deviation of a pixel within a class {_spread(test, truth):.1f} grey levels")
    log_prob_fn, labels = noisy_classifier(trained, args.seed), np.arange(args.num_images) % 10
    for sampler in args.samplers:
        for scale in args.scales:
            samples = ddpm_jax.sample(
                trained, args.seed, len(labels), guide=classifier_guide(log_prob_fn, scale, labels),
                output="uint8", progress=True, **_chain(sampler),
            )
            right = judge.predict(scaled(samples)) == labels
            print(f"{sampler}, scale {scale:g}: named as asked {with_error(right)}, standard "
                  f"deviation within a class {_spread(samples, labels):.1f}", flush=True)
            pictures.save_png(f"classifier_{sampler.replace(':', '_')}_{scale:g}.png",
                              pictures.grid(samples[:100], columns=10))


def _chain(text):
    """{"sampler": "ddim", "num_steps": 50} of "ddim:50"."""
    sampler, _, num_steps = text.partition(":")
    return dict(sampler=sampler, num_steps=int(num_steps or 0) or None)


def _spread(images, labels):
    return np.mean([images[labels == k].std(axis=0, dtype=np.float64) for k in range(10)])


def restore(trained, args):
    """Prints errors in grey levels on held-out digits, by operator, sampler and scale."""
    train, test = loading.digits("train")[0], loading.digits("test")[0][:args.num_images]
    some = np.random.default_rng(args.seed).permutation(64).reshape(8, 8) < round(0.3 * 64)
    for text, mask in (("downsample:2", None), ("mask", some)):
        operator = operators.named(text, trained.image_shape, mask)
        measure = functools.partial(_measured, operator)
        y = measure(test)
        ridge = RidgeCV(alphas=np.logspace(-3, 6, 19)).fit(
            measure(train).reshape(len(train), -1), train.reshape(len(train), -1))
        print(f"{text}: ridge regression {_error(_shaped(ridge.predict(_flat(y))), test)}, cubic "
              f"interpolation {_error(_interpolated(y, mask), test)}", flush=True)
        for sampler in args.samplers:
            for scale in args.scales:
                draws = ddpm_jax.sample(
                    trained, args.seed, _DRAWS * len(y), progress=True, **_chain(sampler),
                    guide=measurement_guide(operator, y.repeat(_DRAWS, axis=0), scale),
                )
                again = measure((draws + 1) * 127.5) - y.repeat(_DRAWS, axis=0)
                draws = ((draws + 1) * 127.5).reshape(len(y), _DRAWS, *draws.shape[1:])
                print(f"  {sampler}, scale {scale:g}: one draw {_error(draws[:, 0], test)}, mean "
                      f"of {_DRAWS} {_error(draws.mean(axis=1), test)}; a draw measured again is "
                      f"off by {127.5 * np.sqrt(np.mean(np.square(again))):.2f}", flush=True)


def worse(trained, args):
    """Prints frechet_pixels of 1,000 samples by sampler and guidance."""
    train, other = loading.digits("train")[0], ddpm_jax.load(args.workdir, step=args.step)
    for sampler in args.samplers:
        chain = _chain(sampler)
        for scale in (1.0, *args.scales):
            guided = dict(guidance=scale, guide_model=other) if scale != 1 else {}
            num_steps = (chain["num_steps"] or 1000) // (2 if guided else 1)
            distances = np.array([metrics.pixel_distance([ddpm_jax.sample(
                trained, seed, args.num_images, output="uint8", **chain | {"num_steps": num_steps},
                **guided,
            )], [train])["value"] for seed in range(args.seed, args.seed + 5)])
            print(f"{sampler}, guidance {scale:g} with {num_steps} steps: frechet_pixels "
                  f"{with_error(distances)}", flush=True)


def _measured(operator, images):
    """What is measured of images 0..255, in [-1, 1]."""
    return np.asarray(operator(jnp.float32(images / 127.5 - 1)))


def _flat(x):
    return x.reshape(len(x), -1)


def _shaped(x):
    return x.clip(0, 255).reshape(-1, 8, 8, 1)


def _interpolated(y, mask):
    """Cubic interpolation on 0..255; the nearest known pixel outside of what it reaches."""
    places = np.argwhere(mask) if mask is not None else 2.0 * np.argwhere(np.ones((4, 4))) + 0.5
    values = (y[:, mask] if mask is not None else y.reshape(len(y), 16, 1)) * 127.5 + 127.5
    everywhere = np.argwhere(np.ones((8, 8)))
    values = values.reshape(len(y), -1).T
    cubic, nearest = (griddata(places, values, everywhere, method) for method in
                      ("cubic", "nearest"))
    return _shaped(np.where(np.isnan(cubic), nearest, cubic).T)


def _error(images, truth):
    return with_error(np.sqrt(np.square(images - np.float64(truth)).mean(axis=(1, 2, 3))))


def main():
    """Prints the numbers of one task for the newest checkpoint of a workdir."""
    tasks = {"classifier": classifier, "restore": restore, "worse": worse}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=tasks, required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", type=int, help="of the worse checkpoint")
    parser.add_argument("--num_images", type=int, help="1,000 samples, 300 held-out digits")
    parser.add_argument("--samplers", default="ancestral,ddim:50,dpm_solver_pp:20",
                        type=lambda text: text.split(","))
    parser.add_argument("--scales", default="1,2,4",
                        type=lambda text: [float(x) for x in text.split(",")])
    args = parser.parse_args()
    args.num_images = args.num_images or {"restore": 300}.get(args.task, 1000)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; {args.task} of {args.workdir}, "
          f"seed {args.seed}")
    tasks[args.task](ddpm_jax.load(args.workdir), args)


if __name__ == "__main__":
    main()
