"""Does augmentation that the network is told of help where there are few images?

    python -m benchmarks.quality.augmentation --data=digits --workdir=runs/augmentation
        [--num_steps=6000] [--augment=0,0.12,0.3] [--seeds=0]

Trains on 500 digits, or on 1,000 images of Fashion-MNIST (14x14, means of 2x2 pixels), without and
with `config.data.augment`, long enough for plain training to overfit. It prints a Markdown row for
each: the held-out loss of the EMA at its lowest, the step of that, and the loss at the end. The
held-out images are never augmented. A second start resumes.
"""

import argparse
import pathlib

import jax
import numpy as np

import ddpm_jax
from ddpm_jax.configs import digits
from ddpm_jax.data import loading

EVALUATIONS = 20  # Per run.
HELD_OUT = 1000  # At most.


def images_of(name):
    """(images to train on, images held out), uint8 [n, h, w, 1]."""
    if name == "digits":
        return loading.digits("train")[0][:500], loading.digits("test")[0]
    return tuple(
        halved(loading.load("fashion_mnist", split=split, channels=1).read(np.arange(n)))
        for split, n in (("train", 1000), ("test", HELD_OUT))
    )


def halved(images):
    """Means of 2x2 pixels, rounded."""
    n, height, width, c = images.shape
    blocks = images.reshape(n, height // 2, 2, width // 2, 2, c).astype(np.float64)
    return np.uint8(np.round(blocks.mean(axis=(2, 4))))


def config_of(path, size, augment, num_steps, seed, num_held_out):
    """The digits' network for the images of an `.npz`, evaluated at every twentieth of the run."""
    config = digits.get_config()
    config.seed = seed
    config.data.name, config.data.dir = "npz", str(path)
    config.data.image_size = size
    config.data.augment = augment
    config.model.attention_resolutions = (size // 2,)
    config.train.num_steps = num_steps
    config.train.eval_images = num_held_out
    config.train.log_every = config.train.eval_every = num_steps // EVALUATIONS
    config.train.sample_every = config.train.checkpoint_every = num_steps
    return config


def main():
    """Prints one row per probability and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--data", choices=("digits", "fashion_mnist"), default="digits")
    parser.add_argument("--num_steps", type=int, default=6000)
    parser.add_argument("--augment", default="0,0.12,0.3", help="probabilities")
    parser.add_argument("--seeds", default="0")
    args = parser.parse_args()
    train, held_out = images_of(args.data)
    path = pathlib.Path(args.workdir, f"{args.data}.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, train=train, test=held_out)
    table = ["| augment | seed | lowest | at step | at the end |", "|---|---|---|---|---|"]
    for augment in map(float, args.augment.split(",")):
        for seed in map(int, args.seeds.split(",")):
            config = config_of(
                path, train.shape[1], augment, args.num_steps, seed, len(held_out)
            )
            workdir = pathlib.Path(args.workdir, f"{args.data}-{augment:g}-{seed}")
            ddpm_jax.train(config, workdir)
            rows = {row["step"]: row["heldout_loss"] for row in ddpm_jax.read_metrics(workdir)
                    if "heldout_loss" in row}
            best = min(rows, key=rows.get)
            table.append(f"| {augment:g} | {seed} | {rows[best]:.4f} | {best:,} "
                         f"| {rows[max(rows)]:.4f} |")
            print(table[-1], flush=True)
    # Not before: the first run chooses how many devices a CPU has.
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {len(train):,} images")
    print("\n".join(table))


if __name__ == "__main__":
    main()
