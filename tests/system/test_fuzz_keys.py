"""Keys of evaluations: another question has another key, and the same one the same.

A question is changed in one random place: a weight, a setting, a pixel. The keys of all metrics
that depend on it have to change, and no other. `DDPM_JAX_FUZZ=1000` makes 1,000 new changes.
"""

import copy
import dataclasses
import os
import shutil
import subprocess
import sys
import types

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from ddpm_jax.configs import digits
from ddpm_jax.diffusion import process, schedule
from ddpm_jax.evaluation import catalogue, identity, job
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.network.unet import UNet
from fuzz import settings

SCORES = {"fid", "frechet_pixels", "sweep"}
SAMPLED = SCORES | {"is", "nearest_pixels", "samples"}
ROWS = SAMPLED - {"samples"} | {"bpd", "ode_bpd", "progressive"}
EVERY = ROWS | {"samples"}
METRICS = sorted(ROWS)


def question():
    """All that a result depends on, in small."""
    random = np.random.default_rng(0)

    def images(n):
        return random.integers(0, 256, (n, 4, 4, 1), np.uint8)

    return {
        "params": {
            "conv_in": {"kernel": np.float32(random.standard_normal((3, 3, 1, 2)))},
            "conv_out": {"bias": np.float32([0.5, -1])},
        },
        "model": {"channels": 8, "num_heads": 1, "scale_shift": False, "norm_eps": 1e-6},
        "beta": np.linspace(0.01, 0.5, 9), "mean": "eps", "variance": "fixed_large",
        "train": images(7), "test": images(6), "folder": images(5), "step": 6, "network": "c" * 64,
        "config": {
            "evaluate.num_images": 3, "evaluate.num_samples": 13, "evaluate.rounding": True,
            "evaluate.ode_steps": 3, "evaluate.ode_probes": 2, "evaluate.seed": 0,
            "evaluate.matmul_precision": "highest", "evaluate.split": "test",
            "evaluate.sweep_metric": "frechet_pixels", "evaluate.sweep_steps": (4, 3),
            "evaluate.sweep_samplers": ("ddim", "dpm_solver_pp"), "sample.weights": "ema",
            "sample.sampler": "ddim", "sample.num_steps": 5, "sample.eta": 0.5,
            "sample.clip": True, "sample.grid": "uniform",
        },
    }


# What else a value may be, and which metrics depend on it.
CHOICES = {
    "mean": ("eps", "v", "x_0"), "variance": ("fixed_large", "fixed_small"),
    "evaluate.matmul_precision": ("highest", "default"), "evaluate.split": ("test", "train"),
    "evaluate.sweep_metric": ("frechet_pixels", "fid"), "sample.weights": ("ema", "raw", "0.9"),
    "evaluate.sweep_samplers": (("ddim", "dpm_solver_pp"), ("ddim",), ("heun",)),
    "evaluate.sweep_steps": ((4, 3), (3, 4), (4,), (4, 3, 2)),
    "sample.sampler": ("ddim", "ancestral"), "sample.grid": ("uniform", "quadratic"),
}
BITS = {"bpd", "ode_bpd"}
DEPEND = {
    "params": EVERY, "model": EVERY, "beta": EVERY, "mean": EVERY, "variance": EVERY,
    "train": {"nearest_pixels"}, "test": BITS, "folder": SCORES, "step": ROWS,
    "network": {"fid", "is"}, "evaluate.num_images": BITS, "evaluate.split": BITS,
    "evaluate.num_samples": SAMPLED, "evaluate.rounding": SAMPLED,
    "evaluate.ode_steps": {"ode_bpd"}, "evaluate.ode_probes": {"ode_bpd"},
    "evaluate.seed": EVERY, "evaluate.matmul_precision": EVERY,
    "evaluate.sweep_metric": {"sweep"}, "evaluate.sweep_steps": {"sweep"},
    "evaluate.sweep_samplers": {"sweep"}, "sample.weights": EVERY,
    "sample.sampler": SAMPLED - {"sweep"}, "sample.num_steps": SAMPLED - {"sweep"},
    "sample.eta": SAMPLED, "sample.clip": EVERY - {"ode_bpd"}, "sample.grid": SAMPLED,
}


def keys(asked, folder):
    """The keys of all metrics, and of the samples that they share."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "r").mkdir(parents=True)
    for i, image in enumerate(asked["folder"]):
        Image.fromarray(image[..., 0]).save(folder / "r" / f"{i:02}.png")
    np.savez(folder / "d.npz", train=asked["train"], test=asked["test"])
    config = digits.get_config()
    config.update_from_flattened_dict(asked["config"] | {
        "data.name": "npz", "data.dir": str(folder / "d.npz"), "data.image_size": 0,
        "evaluate.metrics": tuple(METRICS), "evaluate.references": (str(folder / "r"),),
    })
    trained = Trained(
        asked["params"], UNet(**asked["model"]), schedule.from_betas(asked["beta"]),
        process.Parameterization(asked["mean"], asked["variance"]), (4, 4, 1),
    )
    settings, network = evaluate_lib.settings_of(config), types.SimpleNamespace(
        checksum=asked["network"])
    measured = job.Job(settings, asked["step"], trained, None, False, network)
    protocols = {
        name: catalogue.protocol(measured, name, reference)
        for name, reference in catalogue.measurements(settings)
    }
    protocols["samples"] = measured.samples_protocol()
    return {name: job.key(protocol) for name, protocol in protocols.items()}


def places(value, path=()):
    """The paths of all values of a question."""
    if not isinstance(value, dict):
        return [path]
    return [place for key in value for place in places(value[key], (*path, key))]


PLACES = places(question())


def changed_array(draw, array):
    """Another array: one value differs, or a row is missing, repeated or elsewhere."""
    array = array.copy()
    kinds = ["value", "shorter", "longer", "turned"] if array.dtype == np.uint8 else ["value"]
    kind = draw(st.sampled_from(kinds))
    row = draw(st.integers(0, len(array) - 1))
    if kind == "shorter":
        return np.delete(array, row, axis=0)
    if kind == "longer":
        return np.insert(array, row, array[row], axis=0)
    if kind == "turned":
        return np.roll(array, draw(st.integers(1, len(array) - 1)), axis=0)
    flat = array.reshape(-1)
    at = draw(st.integers(0, flat.size - 1))
    if array.dtype == np.uint8:
        flat[at] ^= draw(st.integers(1, 255))
    elif array.dtype == np.float32:  # A weight: the least that it can differ by.
        flat[at] = np.nextafter(flat[at], np.float32(draw(st.sampled_from([-9, 9]))))
    else:
        flat[at] *= 1.01
    return array


@st.composite
def changes(draw):
    """(path, value) of one change."""
    path = draw(st.sampled_from(PLACES))
    value = question()
    for key in path:
        value = value[key]
    if isinstance(value, np.ndarray):
        return path, changed_array(draw, value)
    if path[-1] in CHOICES:
        return path, draw(st.sampled_from([v for v in CHOICES[path[-1]] if v != value]))
    if isinstance(value, bool):
        return path, not value
    if isinstance(value, str):
        return path, "d" + value[1:]
    if isinstance(value, float):
        return path, value / draw(st.integers(2, 9))
    return path, value + draw(st.integers(1, 3))


def with_change(path, value):
    asked = question()
    inside = asked
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return asked


def dependants(path, value):
    """The metrics that depend on the value of that path."""
    if path == ("test",) and np.array_equal(evaluated(value), evaluated(question()["test"])):
        return set()
    return DEPEND[path[1] if path[0] == "config" else path[0]]


def evaluated(images):
    """Three of them, evenly spaced."""
    return images[np.linspace(0, len(images) - 1, 3).round().astype(int)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data") / "data"


@pytest.fixture(scope="module")
def known(folder):
    return keys(question(), folder)


@settings(60)
@hypothesis.given(change=changes())
def test_one_change_changes_the_keys_that_depend_on_it_and_no_other(folder, known, change):
    now = keys(with_change(*change), folder)
    assert {name for name in known if now[name] != known[name]} == dependants(*change)


@pytest.mark.parametrize("path", PLACES, ids="/".join)
def test_every_place_changes_keys(folder, known, path):
    """Every place once, whatever hypothesis draws."""
    first = hypothesis.find(changes(), lambda change: (
        change[0] == path and dependants(*change)), settings=settings(2000))
    now = keys(with_change(*first), folder)
    assert {name for name in known if now[name] != known[name]} == dependants(*first)


@settings(10)
@hypothesis.given(random=st.randoms(use_true_random=False))
def test_the_order_of_a_dict_and_another_copy_change_nothing(folder, known, random):
    def shuffled(value):
        if not isinstance(value, dict):
            return copy.deepcopy(value)
        names = list(value)
        random.shuffle(names)
        return {name: shuffled(value[name]) for name in names}

    assert keys(shuffled(question()), folder) == known


@pytest.mark.parametrize("metric", METRICS)
def test_code_of_another_version_changes_keys(folder, known, metric, monkeypatch):
    entry = dataclasses.replace(catalogue.METRICS[metric], version=2)
    monkeypatch.setitem(catalogue.METRICS, metric, entry)
    now = keys(question(), folder)
    wanted = {metric, "sweep"} if metric == "frechet_pixels" else {metric}
    assert {name for name in known if now[name] != known[name]} == wanted
    monkeypatch.setattr(identity, "SAMPLES", 2)
    now = keys(question(), folder)
    assert {name for name in known if now[name] != known[name]} == wanted | SAMPLED


def test_another_process_has_the_same_keys(folder, known):
    paths = [os.path.dirname(__file__), *sys.path]
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], capture_output=True, text=True,
        env=os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.stdout.strip().splitlines()[-1:] == [repr(known)], done.stderr


if __name__ == "__main__":
    import pathlib

    print(keys(question(), pathlib.Path(sys.argv[1])))
