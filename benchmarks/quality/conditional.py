"""Do labels, vectors and conditions have their effect?

    python main.py --config=configs/digits_conditional.py --workdir=runs/digits_conditional
    python -m benchmarks.quality.conditional --task=guidance --workdir=runs/digits_conditional
    python main.py --config=configs/digits_vectors.py --workdir=runs/digits_vectors
    python -m benchmarks.quality.conditional --task=vectors --workdir=runs/digits_vectors
    python main.py --config=configs/digits_superres.py --workdir=runs/digits_superres
    python -m benchmarks.quality.conditional --task=superres --workdir=runs/digits_superres
    python main.py --config=configs/digits_segment.py --workdir=runs/digits_segment
    python -m benchmarks.quality.conditional --task=segment --workdir=runs/digits_segment

Guidance: the share of samples whose label the classifier of `digits.py` predicts, by scale.
Vectors: the regression of the ink of samples, their mean, on the ink that was asked for, and the
share whose class is the one asked for. Pictures of some, a row for each digit, go into the current
folder.
Super-resolution: the error of the mean of 16 draws on the 300 held-out digits, compared with
bicubic interpolation and ridge regression, and the difference between a reduced draw and its
condition.
Segmentation: Dice of the mean of 16 draws on the held-out digits, compared with the best threshold
of the noisy digit. Needs `pip install -e ".[test]"` for scikit-learn.
"""

import argparse

import jax
import numpy as np
from PIL import Image
from scipy import stats
from sklearn.linear_model import RidgeCV

import ddpm_jax
from benchmarks.quality.digits import fitted_classifier, scaled
from ddpm_jax.data import image_pairs, loading
from ddpm_jax.evaluation import conditional_draws, scores
from ddpm_jax.workdir import pictures

_DRAWS = 16
_CHAIN = dict(sampler="ddim", eta=1.0, num_steps=50, output="uint8", progress=True)


def with_error(values):
    """The mean and its standard error, as text."""
    return f"{values.mean():.4f} +- {scores.standard_error(values):.4f}"


def guidance(trained, seed):
    """Prints the share of 1,000 samples whose label the classifier predicts, by guidance scale."""
    classifier, labels = fitted_classifier(), np.arange(1000) % 10
    images, truth = loading.digits("test")
    print("held-out digits:", with_error(classifier.predict(scaled(images)) == truth))
    for scale in (1.0, 2.0, 3.0):
        samples = ddpm_jax.sample(
            trained, seed, len(labels), labels=labels, guidance=scale, **_CHAIN)
        right = classifier.predict(scaled(samples)) == labels
        print(f"guidance {scale:g}: label predicted {with_error(right)}, standard deviation of a "
              f"pixel within a class {_spread(samples, labels):.1f}; of held-out digits "
              f"{_spread(images, truth):.1f}")


def _spread(images, labels):
    """The standard deviation of a pixel within a class, in grey levels, averaged."""
    return np.mean([images[labels == k].std(axis=0, dtype=np.float64) for k in range(10)])


def vectors(trained, seed):
    """Prints the regression of ink on 1,000 samples, 20 for each digit and of five amounts of ink.

    The amounts are percentiles of the ink of the held-out digits.
    """
    classifier, source = fitted_classifier(), loading.load("digits", split="test", vectors=("ink",))
    amounts = np.percentile(source.vectors, (5, 25, 50, 75, 95))
    labels, inks = (grid.ravel() for grid in np.meshgrid(np.arange(10), amounts, indexing="ij"))
    asked = np.concatenate([np.eye(10)[labels], inks[:, None]], axis=1)
    for scale in (1.0, 2.0):
        samples = ddpm_jax.sample(
            trained, seed, 20 * len(asked), vectors=np.tile(asked, (20, 1)), guidance=scale,
            **_CHAIN,
        )
        ink, wanted = samples.mean(axis=(1, 2, 3)) / 255, np.tile(inks, 20)
        fit = stats.linregress(wanted, ink)
        right = classifier.predict(scaled(samples)) == np.tile(labels, 20)
        print(f"guidance {scale:g}: ink = {fit.intercept:.3f} + ({fit.slope:.3f} +- "
              f"{fit.stderr:.3f}) asked, R^2 {fit.rvalue**2:.3f}, off by {_rms(ink - wanted):.4f}; "
              f"ink of held-out digits spreads by {source.vectors.std():.4f}; class as asked "
              f"{with_error(right)}")
        pictures.save_png(f"vectors_guidance_{scale:g}.png",
                          pictures.grid(samples[:len(asked)], columns=len(amounts)))


def _rms(values):
    return np.sqrt(np.mean(np.square(values)))


def drawn(trained, seed, source):
    """(draws [n, 16, ...], truth [n, ...], condition [n, ...]) for all images of a source."""
    examples = source.examples(np.arange(len(source)))
    condition = examples["condition"].repeat(_DRAWS, axis=0)
    draws = ddpm_jax.sample(trained, seed, len(condition), condition=condition, **_CHAIN)
    return (draws.reshape(len(source), _DRAWS, *draws.shape[1:]), examples["images"],
            examples["condition"])


def superres(trained, seed):
    """Prints errors in grey levels, on the 300 held-out digits."""
    source = loading.load("digits", split="test", condition="low_resolution", factor=2)
    draws, truth, condition = drawn(trained, seed, source)
    small = image_pairs.shrink(condition, 2)
    bicubic = np.stack([
        np.asarray(Image.fromarray(x[..., 0]).resize((8, 8), Image.Resampling.BICUBIC))
        for x in small
    ])[..., None]
    train = loading.digits("train")[0]
    ridge = RidgeCV(alphas=np.logspace(-3, 6, 19)).fit(
        image_pairs.shrink(train, 2).reshape(len(train), -1) / 255, train.reshape(len(train), -1))
    regressed = ridge.predict(small.reshape(len(small), -1) / 255).reshape(truth.shape)

    def error(images):
        return np.sqrt(np.square(images - truth.astype(float)).mean(axis=(1, 2, 3)))

    together = conditional_draws.summarize(draws, truth)
    print(f"mean of {_DRAWS} draws: RMSE {with_error(together.error)}")
    print(f"one draw: {with_error(together.single_error)}")
    print(f"bicubic: {with_error(error(bicubic.astype(float)))}")
    print(f"ridge regression: {with_error(error(regressed.clip(0, 255)))}")
    again = image_pairs.shrink(draws.reshape(-1, *truth.shape[1:]), 2).astype(float)
    inputs = small.repeat(_DRAWS, axis=0)
    off = np.sqrt(np.square(again - inputs).mean(axis=(1, 2, 3)))
    print(f"a reduced draw and its condition: RMSE {with_error(off)}, maximum {off.max():.2f}")
    spread = together.disagreement.mean(axis=(1, 2, 3))
    print(f"draws for one condition differ by {with_error(spread)}")


def segment(trained, seed):
    """Prints Dice on the 300 held-out digits."""
    source = loading.load("digits", split="test", condition="noisy")
    draws, truth, condition = drawn(trained, seed, source)
    together = conditional_draws.summarize(draws, truth)
    print(f"mean of {_DRAWS} draws: Dice {with_error(together.dice)}")

    def dice(masks):
        masks, wanted = masks.reshape(len(masks), -1), truth.reshape(len(truth), -1) == 255
        return 2 * (masks & wanted).sum(1) / (masks.sum(1) + wanted.sum(1))

    single = dice(draws[:, 0] >= 128)
    print(f"one draw: {with_error(single)}")
    best = max((dice(condition >= level) for level in range(64, 200, 4)), key=np.mean)
    print(f"best threshold of the noisy digit: {with_error(best)}")


def main():
    """Prints the numbers of one task for the newest checkpoint of a workdir."""
    tasks = {"guidance": guidance, "vectors": vectors, "superres": superres, "segment": segment}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=tasks, required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; {args.task} of {args.workdir}, "
          f"50 steps of ddim with eta=1, seed {args.seed}")
    tasks[args.task](ddpm_jax.load(args.workdir), args.seed)


if __name__ == "__main__":
    main()
