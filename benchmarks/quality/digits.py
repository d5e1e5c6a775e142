"""Do samples look like digits, and are they new? A classifier and nearest neighbours judge.

    python -m benchmarks.quality.digits --workdir=runs/digits

A calibrated support-vector classifier is fitted on the 1,497 training digits. Its mean top
probability should agree to 0.03 between the samples and the 300 held-out digits. Every class should
have at least 3 % of the samples. The median distance to the nearest training digit should not be
smaller for samples than for held-out digits; otherwise samples would be copies. Needs
`pip install -e ".[test]"` for scikit-learn.
"""

import argparse
import platform

import jax
import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

import ddpm_jax
from ddpm_jax.data import loading
from ddpm_jax.evaluation import scores


def scaled(images):
    """Converts uint8 [n, 8, 8, 1] to scikit-learn's scale 0..16, float64 [n, 64]."""
    return images.reshape(len(images), -1) / 255 * 16


def nearest(images, train):
    """The distance of each image to the nearest one in `train`, [n], on the scale 0..16."""
    return np.sqrt(((images[:, None] - train[None]) ** 2).sum(axis=-1)).min(axis=1)


def fitted_classifier():
    """Fits a calibrated classifier on the training digits."""
    images, labels = loading.digits("train")
    classifier = CalibratedClassifierCV(SVC(gamma=0.001), ensemble=False)
    return classifier.fit(scaled(images), labels)


def top_probability(classifier, images):
    """The classifier's top probability for uint8 [n, 8, 8, 1]: mean and standard error."""
    top = classifier.predict_proba(scaled(images)).max(axis=1)
    return top.mean(), scores.standard_error(top)


def main():
    """Prints the numbers for the newest checkpoint of a workdir."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num_images", type=int, default=512)
    parser.add_argument("--num_steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    train, _ = loading.digits("train")
    test, _ = loading.digits("test")
    samples = ddpm_jax.sample(
        ddpm_jax.load(args.workdir), args.seed, args.num_images, num_steps=args.num_steps,
        output="uint8", progress=True,
    )
    classifier = fitted_classifier()

    print(f"{platform.processor() or platform.machine()}, jax {jax.__version__}, "
          f"{args.num_images} samples, seed {args.seed}, steps {args.num_steps or 'all'}")
    for name, images in (("samples", samples), ("held out", test)):
        mean, error = top_probability(classifier, images)
        distances = nearest(scaled(images), scaled(train))
        print(f"{name:9s} top probability {mean:.4f} +- {error:.4f}, "
              f"median distance to a training digit {np.median(distances):.2f}")
    counts = np.bincount(classifier.predict(scaled(samples)), minlength=10) / len(samples)
    print("share of each class, %:", " ".join(f"{100 * share:.1f}" for share in counts))


if __name__ == "__main__":
    main()
