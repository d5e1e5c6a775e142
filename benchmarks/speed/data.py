"""How many images per second reach a training loop, by kind of source?

    python -m benchmarks.speed.data [--data_dir=PATH]

`data_dir` is a TFDS directory with CIFAR-10 (default: $TFDS_DATA_DIR or
~/tensorflow_datasets). Each number is the median of five repetitions, with their range.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import statistics
import tempfile
import time

import numpy as np
from PIL import Image

from ddpm_jax.data import batching, loading
from ddpm_jax.data import source as source_lib

BATCH_SIZE = 128
REPEATS = 5
PACKAGES = ("numpy", "pillow", "grain", "array_record", "tensorflow-datasets")


def report(what, rates):
    low, high = min(rates), max(rates)
    print(f"{what:<52}{statistics.median(rates):>10,.0f}  ({low:,.0f} to {high:,.0f})")


def batch_rates(source, num_batches):
    """Images per second of consecutive runs of batches, after the first batch."""
    iterator = batching.batches(source, seed=0, batch_size=BATCH_SIZE)
    next(iterator)
    rates = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(num_batches):
            next(iterator)
        rates.append(num_batches * BATCH_SIZE / (time.perf_counter() - start))
    iterator.close()
    return rates


def load_rates(repeats, **settings):
    """Images a second of opening a source, and the source."""
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        source = loading.load(**settings)
        rates.append(len(source) / (time.perf_counter() - start))
    return rates, source


def write_pictures(folder, n=2000, size=64):
    """n PNG files of smooth colour with a little noise, about as photographs compress."""
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(pathlib.Path(folder, f"{i}.png"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="", help="TFDS directory with CIFAR-10")
    cifar10 = {"name": "cifar10", "data_dir": parser.parse_args().data_dir}
    versions = (f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    cores, python = os.cpu_count(), platform.python_version()
    print(f"{platform.machine()}, {cores} cores, Python {python}")
    print(", ".join(versions))
    print(f"{'batches of ' + str(BATCH_SIZE):<52}{'images/s':>10}")

    rates, source = load_rates(REPEATS, split="test", **cifar10)
    report("CIFAR-10, decoding the 10,000 test images", rates)
    report("CIFAR-10, batches from memory", batch_rates(source, 400))
    budget, source_lib.MEMORY_BUDGET = source_lib.MEMORY_BUDGET, 0
    streamed = loading.load(**cifar10)
    source_lib.MEMORY_BUDGET = budget
    report("CIFAR-10, batches streamed from ArrayRecord", batch_rates(streamed, 40))
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(folder)
        settings = {"name": "image_folder", "data_dir": folder}
        report("folder, decoding 2,000 PNG, 64x64", load_rates(REPEATS, **settings)[0])
        rates, _ = load_rates(REPEATS, image_size=32, **settings)
        report("folder, decoding 2,000 PNG, 64x64 to 32x32", rates)


if __name__ == "__main__":
    main()
