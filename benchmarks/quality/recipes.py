"""Which schedule of the learning rate learns most in a fixed number of steps?

    python -m benchmarks.quality.recipes --data=digits --workdir=runs/recipes [--num_steps=2000]
    python -m benchmarks.quality.recipes --data=fashion_mnist --workdir=runs/recipes

Trains a small network (digits of 8x8, or Fashion-MNIST averaged to 14x14) with AdamW and each
schedule, over three seeds. The length of the average is chosen afterwards: for each schedule the
one with the least held-out loss over all seeds. Prints a Markdown row for each: loss and bits/dim
of held-out images, and the standard error over the seeds. Images, t and noise of the evaluation
are the same for all. A second start resumes.
"""

import argparse
import pathlib

import jax
import numpy as np

import ddpm_jax
from ddpm_jax.configs import digits, fashion_mnist
from ddpm_jax.evaluation import evaluate as evaluate_lib

RECIPES = {
    "constant": {},
    "cosine": {"train.schedule": "cosine"},
    "inverse_sqrt": {"train.schedule": "inverse_sqrt", "train.decay_start": 500},
}
WIDTHS = (0.03, 0.04, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2)
WEIGHTS = ("ema", *(f"sigma_rel={width}" for width in WIDTHS))
SEEDS = (0, 1, 2)
BITS_IMAGES = 100


def config_of(data: str, recipe: str, seed: int, num_steps: int):
    """The config of a run; it evaluates the loss."""
    config = digits.get_config() if data == "digits" else small_fashion_mnist()
    config.update_from_flattened_dict({
        "seed": seed, "train.num_steps": num_steps, "train.weight_decay": 0.01,
        "train.checkpoint_every": num_steps, "train.sample_every": num_steps,
        "train.eval_every": num_steps // 4, "train.ema_snapshot_every": num_steps // 40,
        "evaluate.metrics": ("loss",), "evaluate.weights": WEIGHTS,
    } | RECIPES[recipe])
    return config


def small_fashion_mnist():
    """Fashion-MNIST at 14x14, and the digits' settings of training."""
    config = fashion_mnist.get_config()
    config.train = digits.get_config().train
    config.update_from_flattened_dict({
        "data.image_size": 14, "model.channels": 32, "model.channel_multipliers": (1, 2),
        "model.attention_resolutions": (7,), "train.eval_images": 1000,
    })
    return config


def measured(data: str, recipe: str, args: argparse.Namespace) -> tuple[str, np.ndarray]:
    """The weights with the least loss, and [seeds, 2], loss and bits/dim of these."""
    losses, folders = [], []
    for seed in SEEDS:
        config = config_of(data, recipe, seed, args.num_steps)
        folders.append(args.workdir / f"{data}-{recipe}-{args.num_steps}-{seed}")
        ddpm_jax.train(config, folders[-1])
        losses.append([row["value"] for row in evaluate_lib.evaluate(config, folders[-1])])
    chosen = int(np.mean(losses, axis=0).argmin())
    bits = []
    for seed, folder in zip(SEEDS, folders):
        config = config_of(data, recipe, seed, args.num_steps)
        config.evaluate.metrics, config.evaluate.weights = ("bpd",), (WEIGHTS[chosen],)
        config.evaluate.num_images = BITS_IMAGES
        (row,) = evaluate_lib.evaluate(config, folder)
        bits.append(row["value"])
    return WEIGHTS[chosen], np.stack([np.array(losses)[:, chosen], bits], axis=1)


def main():
    """Prints one row per schedule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("digits", "fashion_mnist"), default="digits")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--num_steps", type=int, default=2000)
    args = parser.parse_args()
    table = ["| schedule | weights | loss | bits/dim |", "|---|---|---|---|"]
    for recipe in RECIPES:
        weights, values = measured(args.data, recipe, args)
        mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / len(SEEDS) ** 0.5
        table.append(
            f"| {recipe} | {weights} | {mean[0]:.5f} +- {error[0]:.5f} | "
            f"{mean[1]:.3f} +- {error[1]:.3f} |"
        )
    # Not before: the first run chooses how many devices a CPU has.
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {args.num_steps} steps")
    print("\n".join(table))


if __name__ == "__main__":
    main()
