"""Samples in few network calls: distilled students beside solvers of their teacher.

    python main.py --config=configs/digits_conditional.py --config.diffusion.mean=v \\
        --workdir=runs/teacher
    python main.py --config=configs/digits_conditional.py --config.diffusion.mean=v \\
        --mode=distill --config.distill.teacher=runs/teacher --workdir=runs/students \\
        --config.train.num_steps=500 --config.train.schedule=linear \\
        --config.train.learning_rate=5e-4 --config.train.warmup_steps=50
    python -m benchmarks.quality.distillation --teachers=runs/teacher --students=runs/students

Several teachers, of several seeds, and their students are given with commas between. The share of
1,000 samples that the support-vector classifier of `digits.py` names as asked, and the Frechet
distance of their pixels to the training digits (`frechet_pixels`), with standard errors over seeds.
Needs `pip install -e ".[test]"` for scikit-learn.
"""

import argparse

import jax
import numpy as np

import ddpm_jax
from benchmarks.quality.digits import fitted_classifier, scaled
from ddpm_jax.data import loading
from ddpm_jax.evaluation import metrics, scores

_CALLS = (1, 2, 4, 8)
_OF_TEACHER = ("ddim", "dpm_solver_pp")


def measured(judge, samples, labels, train):
    """(share named as asked, Frechet distance of the pixels to the training digits)."""
    right = judge.predict(scaled(samples)) == labels
    return right.mean(), metrics.pixel_distance([samples], [train])["value"]


def drawn(trained, seed, labels, **chain):
    """Samples of these labels, uint8."""
    return ddpm_jax.sample(trained, seed, len(labels), labels=labels, output="uint8", **chain)


def cells(teacher, students, seed, num_images):
    """{(row, calls): what `measured` gives} for one teacher."""
    judge, train = fitted_classifier(), loading.digits("train")[0]
    labels, trained = np.arange(num_images) % 10, ddpm_jax.load(teacher)
    table = {("ancestral", 1000): measured(judge, drawn(trained, seed, labels), labels, train)}
    for calls in _CALLS:
        for sampler in _OF_TEACHER:
            grid = {"grid": "trailing"} if sampler == "ddim" else {}
            samples = drawn(trained, seed, labels, sampler=sampler, num_steps=calls, **grid)
            table[sampler, calls] = measured(judge, samples, labels, train)
        samples = drawn(
            ddpm_jax.load(f"{students}/steps_{calls}"), seed, labels, sampler="ddim",
            num_steps=calls, grid="trailing",
        )
        table["distilled", calls] = measured(judge, samples, labels, train)
    return table


def main():
    """Prints a table: rows are samplers, columns numbers of calls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teachers", required=True, type=lambda text: text.split(","))
    parser.add_argument("--students", required=True, type=lambda text: text.split(","))
    parser.add_argument("--num_images", type=int, default=1000)
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; {args.num_images} samples of "
          f"each of {len(args.teachers)} seeds")
    tables = [
        cells(teacher, students, seed, args.num_images)
        for seed, (teacher, students) in enumerate(zip(args.teachers, args.students, strict=True))
    ]
    for row, calls in tables[0]:
        shares, distances = np.array([table[row, calls] for table in tables]).T
        print(f"{row:14s} {calls:5d} calls: named as asked {_shown(100 * shares)} %, "
              f"frechet_pixels {_shown(distances)}")


def _shown(values):
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{values.mean():.2f} +- {scores.standard_error(values):.2f}"


if __name__ == "__main__":
    main()
