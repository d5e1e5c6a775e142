"""The table of metrics: what each needs, and protocols by which old rows are known again."""

import dataclasses
import os
import pathlib
import types

import numpy as np
import pytest

from ddpm_jax.configs import digits_superres
from ddpm_jax.diffusion import process, schedule
from ddpm_jax.evaluation import catalogue, identity, references
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.evaluation import job as job_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.network.unet import UNet

ROOT = pathlib.Path(__file__).parents[2]
WITH_INCEPTION = {"fid", "sfid", "kid", "is", "precision_recall", "density_coverage"}


def job_for(**evaluate):
    """A job of a model with labels and conditions but few parameters, and DDIM with noise."""
    config = digits_superres.get_config()
    config.data.labels = True
    config.sample.sampler, config.sample.num_steps, config.sample.eta = "ddim", 7, 0.5
    config.sample.labels = (3, 4)
    config.evaluate.num_images, config.evaluate.num_samples = 11, 13
    config.evaluate.sweep_steps = (4, 3)
    for name, value in evaluate.items():
        config.evaluate[name] = value
    trained = Trained(
        {"conv": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}},
        UNet(channels=8, num_classes=10, condition_channels=1), schedule.linear(50),
        process.Parameterization(), (8, 8, 1),
    )
    network = types.SimpleNamespace(checksum="c" * 64)
    return job_lib.Job(evaluate_lib.settings_of(config), 6, trained, None, False, network)


def protocol(name, job):
    """The protocol of a metric, against the first reference if it needs one."""
    (_, reference), *_ = catalogue.measurements(job.settings)
    return catalogue.protocol(job, name, reference)


# Recorded once. Another key computes everyone's rows anew.
KEYS = {
    "bpd": "949c5db9b96df4e3", "loss": "bc2a6349480803c3", "ode_bpd": "fdde780179199aad",
    "nats_ode": "fdde780179199aad", "progressive": "e3b67ddd69ce90b6",
    "draws": "b6ce83d6e40ebbc9", "fid": "5bf6406367d18623", "sfid": "5bf6406367d18623",
    "kid": "5bf6406367d18623", "is": "f7d7df4b138b2acb", "precision_recall": "5bf6406367d18623",
    "density_coverage": "a5248e38c6955661",
    "frechet_pixels": "3c618ba0d08c2699", "sweep": "0f55bb7e5a3e00bc",
    "nearest_pixels": "699e09366ef7a9a3", "nearest_features": "8ab76b430b8d11fc",
}


@pytest.mark.parametrize("name", catalogue.METRICS)
def test_rows_of_before_are_known(name):
    assert job_lib.key(protocol(name, job_for(metrics=(name,)))) == KEYS[name]


def test_samples_and_sweeps_of_before_are_known():
    assert job_lib.key(job_for().samples_protocol()) == "76db2316c7ca9aad"
    job = job_for(metrics=("sweep",), sweep_metric="is", rounding=False, num_images=0)
    assert job_lib.key(protocol("sweep", job)) == "6d619fb4e3c44c44"


@pytest.mark.parametrize("name", catalogue.METRICS)
def test_a_new_version_of_a_metric_makes_new_rows(name, monkeypatch):
    metric = dataclasses.replace(catalogue.METRICS[name], version=2)
    monkeypatch.setitem(catalogue.METRICS, name, metric)
    assert job_lib.key(protocol(name, job_for(metrics=(name,)))) != KEYS[name]


def test_a_sweep_knows_the_version_of_its_score(monkeypatch):
    metric = dataclasses.replace(catalogue.METRICS["fid"], version=2)
    monkeypatch.setitem(catalogue.METRICS, "fid", metric)
    assert job_lib.key(protocol("sweep", job_for(metrics=("sweep",)))) != KEYS["sweep"]


@pytest.mark.parametrize("part, others", [
    ("SAMPLES", {"bpd", "loss", "ode_bpd", "nats_ode", "progressive"}),
    ("FEATURES", set(KEYS) - WITH_INCEPTION - {"sweep", "nearest_features"}),
])
def test_versions_of_shared_code_make_new_rows(monkeypatch, part, others):
    monkeypatch.setattr(identity, part, 2)
    same = {n for n in KEYS if job_lib.key(protocol(n, job_for(metrics=(n,)))) == KEYS[n]}
    assert same == others


def test_a_protocol_is_json_of_what_the_value_depends_on():
    job = job_for(metrics=("draws",))
    assert protocol("draws", job) == {
        "version": 1, "samples_version": 1, "checkpoint": identity.of_model(job.trained),
        "images": identity.of_images(job.images(), inputs=True), "step": 6,
        "weights": "ema", "dtype": "float32", "matmul_precision": "highest", "seed": 0,
        "split": "test", "num_images": 11, "labels": [3, 4], "conditions": "test",
        "sampler": "ddim", "num_steps": 7, "eta": 0.5, "grid": "uniform", "clip": True,
        "guidance": 1.0, "guidance_interval": [], "rederive_eps": True, "dynamic_threshold": 0.0,
        "num_draws": 16,
    }


def test_the_protocol_of_density_and_coverage_has_their_k():
    job = job_for(metrics=("density_coverage",))
    fid = protocol("fid", job_for(metrics=("fid",)))
    assert protocol("density_coverage", job) == fid | {"k": 5} and fid["num_samples"] == 13


def test_the_images_that_samples_go_by_are_known_by_their_content(tmp_path):
    random = np.random.default_rng(0)
    arrays = {name: random.integers(0, 256, (9, 8, 8, 1), np.uint8) for name in (
        "train", "test", "train_condition", "test_condition")}

    def keys():
        np.savez(tmp_path / "pairs.npz", **arrays)
        data = dict(name="npz", data_dir=str(tmp_path / "pairs.npz"), condition="stored")
        job = job_for(metrics=("draws",))
        job = dataclasses.replace(job, settings=dataclasses.replace(job.settings, data=data))
        return job_lib.key(job.samples_protocol()), job_lib.key(protocol("draws", job))

    first = keys()
    for name, images in arrays.items():
        images[0, 3, 3, 0] ^= 1
        now = keys()
        changed = [a != b for a, b in zip(first, now)]
        assert changed == [name.startswith("test")] * 2, name
        first = now


def test_a_file_of_statistics_is_known_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setattr(references, "POOL", 3)
    path = tmp_path / "stats.npz"
    job, keys = job_for(metrics=("fid",), references=(str(path),)), []
    for scale in (1, 2, 1):  # Of one size and, after `utime`, of one time.
        np.savez(path, mu=np.arange(3.0), sigma=scale * np.eye(3))
        os.utime(path, (0, 0))
        keys.append((path.stat().st_size, path.stat().st_mtime, job_lib.key(protocol("fid", job))))
    assert keys[0] == keys[2] and keys[0][:2] == keys[1][:2] and keys[0] != keys[1]


@pytest.mark.parametrize("trait, names", [
    ("needs_inception", WITH_INCEPTION | {"nearest_features"}),
    ("needs_references", WITH_INCEPTION - {"is"} | {"frechet_pixels"}),
    ("needs_condition", {"draws"}),
    ("in_sweeps", WITH_INCEPTION | {"frechet_pixels"}),
    ("higher_is_better", {"is", "precision_recall", "density_coverage", "nats_ode"}),
])
def test_traits(trait, names):
    assert {name for name, metric in catalogue.METRICS.items() if getattr(metric, trait)} == names


def test_only_pictures_and_tables_have_no_value():
    without = {name for name, metric in catalogue.METRICS.items() if not metric.has_value}
    assert without == {"progressive", "sweep"}


@pytest.mark.parametrize("score, inception, references", [
    ("fid", True, ("train", "test")), ("is", True, (None,)),
    ("frechet_pixels", False, ("train", "test")),
])
def test_a_sweep_needs_what_its_score_needs(score, inception, references):
    settings = job_for(metrics=("sweep", "bpd"), sweep_metric=score).settings
    assert catalogue.needs_inception(settings) is inception
    assert catalogue.measurements(settings) == [
        *(("sweep", reference) for reference in references), ("bpd", None),
    ]


def test_the_docs_list_every_metric():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    config = (ROOT / "configs" / "cifar10.py").read_text()
    for name in catalogue.METRICS:
        assert f"`{name}`" in page and f" {name}" in config, name


def test_the_model_that_guides_is_part_of_the_protocol():
    job = job_for()
    guided = dataclasses.replace(job, worse=job.trained.replace(image_shape=(8, 8, 2)))
    assert guided.samples_protocol() == job.samples_protocol() | {
        "guide_model": identity.of_model(guided.worse)}


def test_later_settings_of_samplers_are_in_the_protocol_where_they_are_chosen():
    job = job_for()
    sampler = job.settings.sampler.with_sampler("heun", 7)
    churned = dataclasses.replace(sampler, s_churn=5.0)
    assert "s_churn" not in identity.of_settings(sampler)
    assert identity.of_settings(churned) == identity.of_settings(sampler) | {"s_churn": 5.0}
