"""What is used again: only results of the same weights, images (image_sets.py) and code."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import config as config_lib
from ddpm_jax import validation
from ddpm_jax.data import loading
from ddpm_jax.evaluation import catalogue, identity
from ddpm_jax.evaluation import evaluate as evaluate_lib
from nonzero import TinyNet
from tiny_run import tiny_config


class Net(TinyNet):
    """Says of what type it is, as evaluations record it."""

    dtype: str = "float32"


@pytest.fixture(autouse=True, scope="module")
def tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_lib, "model", lambda config, channels: Net())
        patch.setattr(validation, "check_images", lambda config, shape: None)
        yield


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def config_of(metric, **settings):
    return tiny_config(**({
        "diffusion.num_timesteps": 3, "diffusion.beta_end": 0.9, "train.num_steps": 2,
        "train.eval_images": 0, "train.sample_images": 1, "evaluate.metrics": (metric,),
        "evaluate.num_samples": 16, "evaluate.num_images": 11, "sample.batch_size": 16,
        "evaluate.references": ("r",),
    } | settings))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that any test may copy."""
    folder = tmp_path_factory.mktemp("run")
    ddpm_jax.train(config_of("bpd"), folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def pictures(seed=0, n=12):
    images = np.random.default_rng(seed).integers(0, 256, (n, 8, 8), np.uint8)
    os.makedirs("r", exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(f"r/{i:02}.png", compress_level=0)
    return images


def measured(config, run, capsys):
    """(the row, whether it was computed now)."""
    (row,) = ddpm_jax.evaluate(config, run)
    return row, "known already" not in capsys.readouterr().out


def replaced(seed):
    """Other pictures of the same names, sizes and times."""
    before = {entry.path: entry.stat() for entry in os.scandir("r")}
    pictures(seed)
    for path, stat in before.items():
        assert os.stat(path).st_size == stat.st_size
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert os.stat(path).st_mtime_ns == stat.st_mtime_ns


FOLDER_CHANGES = {
    "replaced": lambda: replaced(1),
    "added": lambda: Image.fromarray(np.zeros((8, 8), np.uint8)).save("r/zz.png"),
    "removed": lambda: os.remove("r/05.png"),
    "one pixel": lambda: Image.fromarray(
        pictures()[11] ^ np.uint8(np.arange(64) == 63).reshape(8, 8)).save("r/11.png"),
}


@pytest.mark.parametrize("change", FOLDER_CHANGES)
@pytest.mark.parametrize("metric", ["frechet_pixels", "sweep"])
def test_a_reference_whose_pictures_changed_is_another(run, capsys, metric, change):
    pictures()
    config = config_of(metric, **{
        "evaluate.sweep_metric": "frechet_pixels", "evaluate.sweep_steps": (2,),
        "evaluate.sweep_samplers": ("ddim",),
    })
    first, new = measured(config, run, capsys)
    assert new and measured(config, run, capsys) == (first, False)
    FOLDER_CHANGES[change]()
    second, new = measured(config, run, capsys)
    assert new and second["protocol"] != first["protocol"]
    if change != "one pixel":  # It may be lost in the rounding of a table.
        value = "table" if metric == "sweep" else "value"
        assert second[value] != first[value]
    pictures()
    for name in set(os.listdir("r")) - {f"{i:02}.png" for i in range(12)}:
        os.remove(f"r/{name}")
    assert measured(config, run, capsys) == (first, False)


def test_a_batch_that_was_replaced_is_another(run, capsys):
    config, values = config_of("frechet_pixels", **{"evaluate.references": ("a.npz",)}), []
    for seed in (0, 1, 1):
        random = np.random.default_rng(seed)
        np.savez("a.npz", arr_0=random.integers(0, 256, (9, 8, 8, 1), np.uint8))
        row, new = measured(config, run, capsys)
        values.append((row["value"], new))
    assert values[0][0] != values[1][0] and values[1:] == [values[1], (values[1][0], False)]


def older(run):
    """The run of a version that kept nothing of its data: the seed decides what is held out."""
    (run / "data.json").unlink()


def own_data(seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez("d.npz", train=images)
    return {"data.name": "npz", "data.dir": "d.npz", "data.holdout": 12}


@pytest.mark.parametrize("metric", ["bpd", "ode_bpd"])
def test_other_images_of_the_same_split_are_measured_anew(run, capsys, metric):
    older(run)
    config = config_of(metric, **own_data(), **{"evaluate.ode_steps": 2})
    first, _ = measured(config, run, capsys)
    assert measured(config, run, capsys) == (first, False)
    for changes in ({"seed": 1}, {"evaluate.num_images": 10}):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(changes)
        second, new = measured(other, run, capsys)
        assert new and second["value"] != first["value"]
    own_data(1)
    third, new = measured(config, run, capsys)
    assert new and third["value"] != first["value"]
    own_data()
    assert measured(config, run, capsys) == (first, False)


def test_a_split_that_is_not_there_is_refused_before_any_work(run):
    config = config_of("bpd", **own_data(), **{"evaluate.metrics": ("progressive", "bpd")})
    config.data.holdout = 0
    with pytest.raises(ValueError, match="^bpd: config.evaluate.split='test', but .*'npz' has no"):
        ddpm_jax.evaluate(config, run)
    assert not (run / "evaluations").exists()


def test_copies_are_looked_for_among_the_training_images_of_now(run, capsys):
    older(run)
    config = config_of("nearest_pixels", **own_data())
    first, _ = measured(config, run, capsys)
    assert measured(config, run, capsys) == (first, False)
    own_data(1)
    second, new = measured(config, run, capsys)
    assert new and second["median_distance"] != first["median_distance"]


def test_another_checkpoint_at_the_same_step_is_measured_anew(run, capsys):
    """After a workdir was cleared, but for its rows and samples, and trained with another seed."""
    configs = [config_of(metric) for metric in ("bpd", "frechet_pixels")]
    pictures()
    firsts = [measured(config, run, capsys)[0] for config in configs]
    drawn = list((run / "evaluations").rglob("samples-*"))
    shutil.rmtree(run / "checkpoints")
    (run / "config.json").unlink()
    ddpm_jax.train(config_of("bpd", **{"seed": 1}), run)
    capsys.readouterr()
    for config, first in zip(configs, firsts):
        second, new = measured(config, run, capsys)
        assert new and second["value"] != first["value"] and second["step"] == first["step"]
    assert len(list((run / "evaluations").rglob("samples-*"))) == 2 * len(drawn) == 2


def test_ema_and_raw_weights_are_two_questions(run, capsys):
    rows = [measured(config_of("bpd", **{"sample.weights": weights}), run, capsys)
            for weights in ("ema", "raw")]
    assert all(new for _, new in rows) and rows[0][0]["value"] != rows[1][0]["value"]


NEW_FIELDS = {"version", "checkpoint", "images", "samples_version", "reference_content"}


@pytest.mark.parametrize("metric", ["bpd", "frechet_pixels"])
def test_rows_of_older_versions_are_shown_but_are_no_answers(run, capsys, metric):
    pictures()
    config = config_of(metric)
    row, _ = measured(config, run, capsys)
    protocol = {name: v for name, v in row["protocol"].items() if name not in NEW_FIELDS}
    old = row | {"value": 1234.5, "protocol": protocol}
    (run / "evaluations.jsonl").write_text(json.dumps(old) + "\n")
    (again,) = ddpm_jax.evaluate(config, run)
    shown, line = capsys.readouterr().out.splitlines()
    assert "= 1234.5" in shown and "did not record" in shown
    assert again == row and f"= {row['value']:.4f}" in line
    assert evaluate_lib.rows(run) == [old, row]
    ddpm_jax.evaluate(config, run)
    assert "1234.5" not in capsys.readouterr().out


def test_data_that_change_while_they_are_measured_leave_no_row(run, monkeypatch):
    pictures()

    def measure(job, folder, reference):
        job.source("train")  # Another set, so that the first is opened again.
        replaced(1)
        job.reference(reference, 1).open()
        return {"value": 1.0}

    metric = catalogue.Metric(measure, needs_references=True)
    monkeypatch.setitem(catalogue.METRICS, "slow", metric)
    with pytest.raises(ValueError, match="slow/r: the data have changed while") as error:
        ddpm_jax.evaluate(config_of("slow"), run)
    assert "\n" not in str(error.value) and not evaluate_lib.rows(run)


def test_a_set_is_read_once_for_many_questions(run, monkeypatch, capsys):
    pictures()
    opened, hashed, load, digest = [], [], loading.load, identity.of_images
    monkeypatch.setattr(
        loading, "load", lambda name, **settings: opened.append(name) or load(name, **settings))
    monkeypatch.setattr(
        identity, "of_images", lambda *a, **k: hashed.append(a) or digest(*a, **k))
    config = config_of("frechet_pixels", **{
        "evaluate.metrics": ("frechet_pixels", "sweep"), "evaluate.sweep_steps": (2, 3),
        "evaluate.sweep_metric": "frechet_pixels", "evaluate.sweep_samplers": ("ddim",),
    })
    ddpm_jax.evaluate(config, run)
    assert opened == ["image_folder"] and len(hashed) == 1


def test_the_best_checkpoint_is_never_one_of_an_earlier_run(run, capsys):
    config = config_of("bpd", **{"evaluate.best": "bpd"})
    row, _ = measured(config, run, capsys)
    for folder in ("checkpoints", "best"):
        shutil.rmtree(run / folder)
    (run / "config.json").unlink()
    better = row | {"value": -1.0}
    (run / "evaluations.jsonl").write_text(json.dumps(better) + "\n")
    ddpm_jax.train(config_of("bpd", **{"seed": 1}), run)
    measured(config, run, capsys)
    kept, now = (identity.of_model(ddpm_jax.load(folder)) for folder in (run / "best", run))
    assert kept == now != row["protocol"]["checkpoint"]
