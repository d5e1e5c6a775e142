"""How much of an image survives DDIM inversion to x_T and back, by the number of steps?

    python -m benchmarks.quality.inversion --workdir=runs/digits

Prints the mean squared error per pixel, in [0, 1], over the 300 held-out digits, for the numbers of
steps in Table 2 of Song, Meng and Ermon 2021 (DDIM). The paper's numbers, on the CIFAR-10 test set,
stand beside them: they are for other images but fall in the same way.
"""

import argparse

import jax
import numpy as np

import ddpm_jax
from ddpm_jax.data import loading, pixels
from ddpm_jax.evaluation import scores
from ddpm_jax.inference import editing
from ddpm_jax.samplers.settings import Settings

PAPER = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}


def main():
    """Prints a row of the table for each number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num_images", type=int, default=300)
    args = parser.parse_args()

    trained = ddpm_jax.load(args.workdir)
    digits = pixels.to_float(loading.digits("test")[0][: args.num_images])
    print(f"jax {jax.__version__} on {jax.default_backend()}, {len(digits)} held-out digits\n")
    print("| steps each way | digits | CIFAR-10 (paper) |\n|---|---|---|")
    for num_steps, paper in PAPER.items():
        settings = Settings("ddim", num_steps)
        reconstructed = editing.reconstruct(trained, digits, settings=settings)
        error = np.mean(np.square(np.float64(reconstructed - digits) / 2), axis=(1, 2, 3))
        spread = scores.standard_error(error)
        print(f"| {num_steps} | {error.mean():.2g} ± {spread:.1g} | {paper} |", flush=True)


if __name__ == "__main__":
    main()
