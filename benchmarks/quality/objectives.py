"""Does each training objective learn the digits, and which bits/dim does it reach?

    python -m benchmarks.quality.objectives --workdir=runs/objectives [--only=3,5] [--num_steps=600]

Trains `configs/digits.py` with each objective for the same number of steps and prints a Markdown
row: the held-out loss at the first evaluation and at the end, and the bits/dim of 100 held-out
digits. Each loss is that of its own objective, so only the bits/dim can be compared between rows. A
second start resumes.
"""

import argparse
import pathlib

import jax

import ddpm_jax
from ddpm_jax.configs import digits
from ddpm_jax.evaluation import evaluate as evaluate_lib

OBJECTIVES = [  # mean, variance, loss, weighting, t
    ("eps", "fixed_large", "simple", "constant", "uniform"),
    ("eps", "fixed_large", "simple", "constant", "antithetic"),
    ("eps", "fixed_large", "simple", "min_snr", "uniform"),
    ("eps", "fixed_large", "simple", "p2", "uniform"),
    ("x_0", "fixed_large", "simple", "constant", "uniform"),
    ("v", "fixed_large", "simple", "constant", "uniform"),
    ("x_prev", "fixed_large", "simple", "constant", "uniform"),
    ("x_prev", "fixed_large", "rescaled_vlb", "constant", "uniform"),
    ("x_prev", "learned", "rescaled_vlb", "constant", "uniform"),
    ("eps", "fixed_large", "rescaled_vlb", "constant", "uniform"),
    ("eps", "learned", "rescaled_vlb", "constant", "uniform"),
    ("eps", "learned_range", "rescaled_vlb", "constant", "importance"),
    ("eps", "learned_range", "rescaled_hybrid", "constant", "uniform"),
]


def config_of(objective, num_steps):
    """The digits' config with another objective, evaluated at every tenth of the run."""
    config = digits.get_config()
    diffusion = config.diffusion
    (diffusion.mean, diffusion.variance, diffusion.loss, diffusion.weighting,
     config.train.t_sampling) = objective
    config.train.num_steps = num_steps
    config.train.log_every = config.train.eval_every = num_steps // 10
    config.train.sample_every = config.train.checkpoint_every = num_steps
    config.evaluate.metrics = ("bpd",)
    config.evaluate.num_images = 100
    return config


def main():
    """Prints one row per objective."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num_steps", type=int, default=600)
    parser.add_argument("--only", default="", help="rows, for example 0,12; default all")
    args = parser.parse_args()
    chosen = [int(i) for i in args.only.split(",") if i] or range(len(OBJECTIVES))
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {args.num_steps} steps")
    table = ["| mean | variance | loss | weighting | t | first | last | bits/dim |",
             "|---|---|---|---|---|---|---|---|"]
    for i in chosen:
        config = config_of(OBJECTIVES[i], args.num_steps)
        workdir = pathlib.Path(args.workdir, "-".join(OBJECTIVES[i]))
        ddpm_jax.train(config, workdir)
        (row,) = evaluate_lib.evaluate(config, workdir)
        losses = [logged["heldout_loss"] for logged in ddpm_jax.read_metrics(workdir)]
        table.append("| " + " | ".join(OBJECTIVES[i]) + f" | {losses[0]:.4g} | {losses[-1]:.4g} "
                     f"| {row['value']:.3f} +- {row['standard_error']:.3f} |")
    print("\n".join(table))


if __name__ == "__main__":
    main()
