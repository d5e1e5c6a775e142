"""Are digits of fast samplers as good as those of the full chain?

    python -m benchmarks.quality.samplers --workdir=runs/digits

Prints a Markdown row per sampler: its network calls, and the mean top probability that the
calibrated classifier of `digits.py` gives to its samples, with the standard error. DDIM with 20
calls and DPM-Solver++ with 10 should be within 0.03 of the full chain. All samplers start from the
same x_T.
"""

import argparse

import jax

import ddpm_jax
from benchmarks.quality import digits

CHAINS = [  # sampler, network calls; None is the full chain
    ("ancestral", None),
    ("ancestral", 50),
    ("ddim", 20),
    ("dpm_solver", 12),
    ("dpm_solver_pp", 10),
    ("heun", 19),
]


def main():
    """Prints the table for the newest checkpoint of a workdir."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num_images", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    trained, classifier = ddpm_jax.load(args.workdir), digits.fitted_classifier()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {args.num_images} samples, "
          f"seed {args.seed}")
    print("| sampler | calls | mean top probability |\n|---|---|---|", flush=True)
    for sampler, num_steps in CHAINS:
        images = ddpm_jax.sample(
            trained, args.seed, args.num_images, sampler=sampler, num_steps=num_steps,
            output="uint8",
        )
        mean, error = digits.top_probability(classifier, images)
        calls = num_steps or trained.schedule.num_timesteps
        print(f"| {sampler} | {calls} | {mean:.4f} ± {error:.4f} |", flush=True)


if __name__ == "__main__":
    main()
