"""The table of metrics: what each needs, and protocols by which old rows are known again."""

import pathlib
import types

import pytest

from ddpm_jax.configs import digits_superres
from ddpm_jax.diffusion import schedule
from ddpm_jax.evaluation import catalogue
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.evaluation import job as job_lib

ROOT = pathlib.Path(__file__).parents[2]
WITH_INCEPTION = {"fid", "sfid", "kid", "is", "precision_recall"}


def job_for(**evaluate):
    """A job without parameters: of a model with labels and conditions, and DDIM with noise."""
    config = digits_superres.get_config()
    config.data.labels = True
    config.sample.sampler, config.sample.num_steps, config.sample.eta = "ddim", 7, 0.5
    config.sample.labels = (3, 4)
    config.evaluate.num_images, config.evaluate.num_samples = 11, 13
    config.evaluate.sweep_steps = (4, 3)
    for name, value in evaluate.items():
        config.evaluate[name] = value
    trained = types.SimpleNamespace(
        model=types.SimpleNamespace(dtype="float32", num_classes=10, condition_channels=1),
        schedule=schedule.linear(50),
    )
    network = types.SimpleNamespace(checksum="c" * 64)
    return job_lib.Job(evaluate_lib.settings_of(config), 6, trained, None, False, network)


def protocol(name, job):
    """The protocol of a metric, against the first reference if it needs one."""
    (_, reference), *_ = catalogue.measurements(job.settings)
    return catalogue.protocol(job, name, reference)


# Recorded when the metrics were an if-chain. Another key computes everyone's rows anew.
KEYS = {
    "bpd": "3f4ea932", "ode_bpd": "54e55621", "progressive": "0f4957d5", "draws": "fbea27c2",
    "fid": "c667a728", "sfid": "c667a728", "kid": "c667a728", "is": "bbad547c",
    "precision_recall": "c667a728", "frechet_pixels": "ee35ff8c", "sweep": "870a15ce",
    "nearest_pixels": "5864cbd4", "nearest_features": "bbad547c",
}


@pytest.mark.parametrize("name", catalogue.METRICS)
def test_rows_of_old_are_known(name):
    assert job_lib.key(protocol(name, job_for(metrics=(name,)))) == KEYS[name]


def test_samples_and_sweeps_of_old_are_known():
    assert job_lib.key(job_for().samples_protocol()) == "f7a6edf2"
    job = job_for(metrics=("sweep",), sweep_metric="is", rounding=False, num_images=0)
    assert job_lib.key(protocol("sweep", job)) == "af0e27d4"


def test_a_protocol_is_json_of_what_the_value_depends_on():
    assert protocol("draws", job_for(metrics=("draws",))) == {
        "step": 6, "weights": "ema", "dtype": "float32", "matmul_precision": "highest", "seed": 0,
        "split": "test", "num_images": 11, "labels": [3, 4], "conditions": "test",
        "sampler": "ddim", "num_steps": 7, "eta": 0.5, "grid": "uniform", "clip": True,
        "guidance": 1.0, "guidance_interval": [], "rederive_eps": True, "dynamic_threshold": 0.0,
        "num_draws": 16,
    }


@pytest.mark.parametrize("trait, names", [
    ("needs_inception", WITH_INCEPTION | {"nearest_features"}),
    ("needs_references", WITH_INCEPTION - {"is"} | {"frechet_pixels"}),
    ("needs_condition", {"draws"}),
    ("in_sweeps", WITH_INCEPTION | {"frechet_pixels"}),
    ("higher_is_better", {"is", "precision_recall"}),
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
