"""What an exported chain of the CIFAR-10 network costs: its size, writing, loading, first images.

    python -m benchmarks.speed.export [--images=4] [--num_steps=10]

Parameters are random. The file is read in another process, by jax alone.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

import ddpm_jax
from ddpm_jax.diffusion import process, schedule

READER = """
import json, sys, time, zipfile

began = time.perf_counter()
import jax, jax.export

imported = time.perf_counter()
file = zipfile.ZipFile(sys.argv[1])
about = json.loads(file.read("about.json"))
chain = jax.export.deserialize(bytearray(file.read("chain.bin")))
loaded = time.perf_counter()
draw = jax.jit(chain.call)
keys = jax.random.key_data(jax.random.split(jax.random.key(0), about["n"]))
draw(keys).block_until_ready()
first = time.perf_counter()
draw(keys).block_until_ready()
print(f"jax imported in {imported - began:.1f} s, file loaded in {loaded - imported:.1f} s, first "
      f"{about['n']} images {first - loaded:.1f} s, next {time.perf_counter() - first:.1f} s")
"""


def main():
    """Prints two lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--num_steps", type=int, default=10)
    args = parser.parse_args()
    random, model = np.random.default_rng(0), ddpm_jax.UNet()
    shapes = jax.eval_shape(lambda: model.init(
        jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), np.zeros(1, np.int32), train=False
    )["params"])
    params = jax.tree.map(lambda x: np.float32(0.02 * random.standard_normal(x.shape)), shapes)
    trained = ddpm_jax.Trained(
        params, model, schedule.linear(), process.Parameterization(), (32, 32, 3)
    )
    with tempfile.TemporaryDirectory() as folder:
        path, began = pathlib.Path(folder, "cifar10.zip"), time.perf_counter()
        ddpm_jax.export(
            trained, path, args.images, sampler="dpm_solver_pp", num_steps=args.num_steps
        )
        print(f"{path.stat().st_size / 1e6:.1f} MB for CPU, CUDA and TPU, written in "
              f"{time.perf_counter() - began:.1f} s; {args.num_steps} calls for an image")
        subprocess.run([sys.executable, "-c", READER, path], check=True)


if __name__ == "__main__":
    main()
