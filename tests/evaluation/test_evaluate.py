"""`evaluate`: rows with their protocol (job.py, catalogue.py), each once; best_checkpoint.py."""

import json
import os
import shutil
import threading

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import ddpm_jax
from ddpm_jax.configs import digits
from ddpm_jax.data import kept as kept_lib
from ddpm_jax.data import loading
from ddpm_jax.diffusion import randomness
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import (
    best_checkpoint, catalogue, identity, inception_features, references,
)
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.evaluation import job as job_lib
from ddpm_jax.network.inception import Features
from ddpm_jax.weights import inception_weights
from ddpm_jax.workdir import data_record, run_folder


POOL, SPATIAL = 32, 24


class FakeNetwork:
    """Random projections to few features in place of Inception: deterministic and instant."""

    checksum = "fake"
    calls = 0

    def __init__(self, path=None):
        random = np.random.default_rng(0)
        self._to = [random.standard_normal((64, d)).astype(np.float32)
                    for d in (POOL, SPATIAL, 7)]

    def features(self, images):
        type(self).calls += len(images)
        rows = images.mean(axis=-1).reshape(len(images), -1) / np.float32(255)
        return Features(*(rows @ to for to in self._to))

    def stream(self, read, n):
        for places in np.array_split(np.arange(n), 2):
            yield self.features(read(places))


def small_config(**evaluate):
    config = digits.get_config()
    config.model.channels, config.model.num_groups = 8, 0
    config.model.channel_multipliers = (1,)
    config.model.attention_resolutions = ()
    config.diffusion.num_timesteps = 4
    config.diffusion.beta_end = 0.9
    config.train.num_steps = 6
    config.train.batch_size = 16
    config.train.checkpoint_every = config.train.eval_every = config.train.sample_every = 2
    config.train.keep = 3
    config.train.ema_snapshot_every = 1
    config.train.sample_images = 8
    config.train.eval_images = 8
    config.evaluate.num_images = 11
    config.evaluate.num_samples = 13
    config.evaluate.ode_steps = 3
    config.evaluate.sweep_metric = "frechet_pixels"
    config.evaluate.sweep_samplers = ("ddim", "dpm_solver_pp")
    config.evaluate.sweep_steps = (3, 2)
    for name, value in evaluate.items():
        config.evaluate[name] = value
    return config


@pytest.fixture(scope="module")
def trained_workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    ddpm_jax.train(small_config(), workdir)
    return workdir


@pytest.fixture
def workdir(trained_workdir, tmp_path, monkeypatch):
    """A copy of the run for each test, with its own cache and a fake network."""
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(inception_features, "Network", FakeNetwork)
    for module in (inception_features, references):
        monkeypatch.setattr(module, "POOL", POOL)
        monkeypatch.setattr(module, "SPATIAL", SPATIAL)
    for name in ("checkpoints", "config.json", "ema"):
        os.symlink(trained_workdir / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_every_metric_leaves_a_row_and_a_line(workdir, capsys):
    metrics = tuple(
        name for name, metric in catalogue.METRICS.items()
        if not metric.needs_condition and metric.needs_bins is not False
    )
    config = small_config(metrics=metrics)
    rows = ddpm_jax.evaluate(config, workdir)
    against = ("fid", "sfid", "kid", "precision_recall", "density_coverage", "frechet_pixels",
               "sweep")
    names = [(m, r) for m in metrics
             for r in (("train", "test") if m in against else (None,))]
    assert [(row["metric"], row["reference"]) for row in rows] == names
    assert rows == evaluate_lib.rows(workdir)
    output = capsys.readouterr().out
    for row in rows:
        assert row["step"] == 6 and row["protocol"]["step"] == 6
        assert row["value"] is None or np.isfinite(row["value"])
        assert f"{row['metric']}{'/' * bool(row['reference'])}{row['reference'] or ''} " in output
    by_name = {(row["metric"], row["reference"]): row for row in rows}
    assert by_name["bpd", None]["n"] == by_name["ode_bpd", None]["n"] == 11
    assert by_name["bpd", None]["standard_error"] > 0
    parts = sum(by_name["bpd", None][name] for name in ("L_T", "L_1_to_T-1", "L_0"))
    assert by_name["bpd", None]["value"] == pytest.approx(parts)
    assert by_name["fid", "train"]["remarks"] and "13" in output
    protocol = by_name["fid", "train"]["protocol"]
    train = loading.load("digits")
    assert protocol == {
        "version": 1, "samples_version": 1, "features_version": 1,
        "checkpoint": identity.of_model(ddpm_jax.load(workdir)),
        "reference_content": identity.of_images(train),
        "step": 6, "weights": "ema", "dtype": "float32", "matmul_precision": "highest",
        "seed": 0, "num_samples": 13, "sampler": "ancestral", "num_steps": 4, "clip": True,
        "eta": 0.0, "grid": "uniform", "guidance": 1.0, "guidance_interval": [],
        "rederive_eps": True, "dynamic_threshold": 0.0,
        "rounding": "uint8", "resize": inception_features.RESIZE, "inception": "fake",
        "reference": "train",
    }
    files = {path.name for path in (workdir / "evaluations").rglob("*") if path.is_file()}
    assert {"terms.npz", "bound.png", "rate_distortion.png", "rate_distortion.csv",
            "generation.png", "generation.gif", "completions.png", "nearest.csv",
            "nearest.png", "bits.npz", "sweep.csv", "sweep.md", "sweep.png"} <= files
    assert not [path for path in (workdir / "evaluations").rglob("parts")]
    assert list((workdir / "tensorboard" / "evaluation").iterdir())


def test_results_go_to_another_folder_where_the_workdir_cannot_be_written(
    workdir, tmp_path_factory, monkeypatch
):
    checked = []

    def refused(folder, instead):
        checked.append(folder)
        raise UserError(f"{folder} cannot be written to; name one that can, for example {instead}.")

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "check_writable", refused)
        patch.setattr(run_folder, "load_step", lambda *_, **__: pytest.fail("work began"))
        with pytest.raises(UserError, match="--config.evaluate.folder=measured.$"):
            ddpm_jax.evaluate(small_config(), workdir)
    assert [str(folder) for folder in checked] == [str(workdir)]

    before, elsewhere = sorted(workdir.rglob("*")), tmp_path_factory.mktemp("elsewhere")
    config = small_config(metrics=("bpd",), best="bpd", folder=str(elsewhere))
    row, = ddpm_jax.evaluate(config, workdir)
    assert evaluate_lib.rows(elsewhere) == [row] and sorted(workdir.rglob("*")) == before
    assert ddpm_jax.load(elsewhere / "best") and list(elsewhere.glob("tensorboard/evaluation/*"))


def test_a_folder_without_a_run_gets_no_files(tmp_path):
    with pytest.raises(UserError, match="nothing was trained there"):
        ddpm_jax.evaluate(small_config(), tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_a_protocol_is_measured_once_and_another_anew(workdir, capsys):
    config = small_config(metrics=("bpd", "fid"), references=("train",))
    first = ddpm_jax.evaluate(config, workdir)
    calls = FakeNetwork.calls
    capsys.readouterr()
    assert ddpm_jax.evaluate(config, workdir) == first
    assert capsys.readouterr().out.count("known already") == 2
    assert FakeNetwork.calls == calls
    config.evaluate.seed = 1
    second = ddpm_jax.evaluate(config, workdir)
    assert [row["value"] for row in second] != [row["value"] for row in first]
    assert len(evaluate_lib.rows(workdir)) == 4
    # A new score of the same samples draws nothing; another split is another protocol.
    config = small_config(metrics=("is", "bpd"), split="train", seed=1)
    drawn = sorted((workdir / "evaluations").rglob("samples-*/*.npz"))
    times = [path.stat().st_mtime_ns for path in drawn]
    more = ddpm_jax.evaluate(config, workdir)
    assert [path.stat().st_mtime_ns for path in drawn] == times
    assert sorted((workdir / "evaluations").rglob("samples-*/*.npz")) == drawn
    assert more[1]["value"] != second[0]["value"]


def test_samples_are_those_of_sample_and_their_number_is_exact(workdir):
    config = small_config(metrics=("is",), num_samples=21)
    config.sample.batch_size = 8
    ddpm_jax.evaluate(config, workdir)
    folder, = (workdir / "evaluations" / "step_00000006").glob("samples-*")
    parts = [np.load(path)["arr_0"] for path in sorted(folder.iterdir())]
    images = np.concatenate(parts)
    assert len(parts) == 3 and images.shape == (21, 8, 8, 1) and images.dtype == np.uint8
    settings = evaluate_lib.settings_of(config)
    rng = job_lib.Job(settings, 6, None, None, False, None).rng(randomness.SAMPLES)
    expected = ddpm_jax.sample(ddpm_jax.load(workdir), rng, 21, output="uint8")
    # Batches of another size sum in another order: at most one grey level of rounding.
    assert np.abs(images.astype(int) - expected).max() <= 1


def test_a_killed_evaluation_resumes(workdir, monkeypatch):
    config = small_config(metrics=("is",), num_samples=24)
    config.sample.batch_size = 8
    (whole,) = ddpm_jax.evaluate(config, workdir)
    (workdir / "evaluations.jsonl").unlink()
    folder, = (workdir / "evaluations" / "step_00000006").glob("samples-*")
    kept, *lost = sorted(folder.iterdir())
    before = kept.stat().st_mtime_ns
    for path in lost:
        path.unlink()
    (again,) = ddpm_jax.evaluate(config, workdir)
    assert kept.stat().st_mtime_ns == before
    assert again["value"] == pytest.approx(whole["value"], rel=1e-3)


def test_unrounded_samples_are_floats(workdir):
    config = small_config(metrics=("is", "nearest_pixels"), rounding=False)
    rows = ddpm_jax.evaluate(config, workdir)
    assert rows[0]["protocol"]["rounding"] == "none"
    path, = (workdir / "evaluations").rglob("samples-*/*.npz")
    images = np.load(path)["arr_0"]
    assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 255
    assert np.any(images != np.round(images))


def test_all_checkpoints_and_the_best_of_them(workdir, capsys):
    config = small_config(metrics=("bpd",), checkpoints="all", best="bpd")
    rows = ddpm_jax.evaluate(config, workdir)
    assert [row["step"] for row in rows] == [2, 4, 6]
    best = min(rows, key=lambda row: row["value"])["step"]
    assert [p.name for p in (workdir / "best" / "checkpoints").iterdir()] == [str(best)]
    kept, original = ddpm_jax.load(workdir / "best"), ddpm_jax.load(workdir, step=best)
    for a, b in zip(*(map(np.asarray, jax.tree.leaves(t.params)) for t in (kept, original))):
        np.testing.assert_array_equal(a, b)
    # The highest, if higher is better; rows of another protocol do not count.

    def scored(step, value, seed=0, of=None):
        trained = ddpm_jax.load(workdir, step=of or step)
        return {"step": step, "metric": "is", "reference": None, "value": value, "protocol": {
            "step": step, "seed": seed, "weights": "ema", "checkpoint": identity.of_model(trained),
        }}

    known = [
        scored(2, 1.5), scored(4, 2.5), scored(6, 2.0), scored(6, 9.0, seed=1),
        scored(2, 8.0, of=4),  # Of another run, before the workdir was cleared.
    ]
    path = epath.Path(workdir)
    kept = best_checkpoint.keep(path, known[2], known, path / "best", higher_is_better=True)
    assert kept == 4
    assert [p.name for p in (workdir / "best" / "checkpoints").iterdir()] == ["4"]


def test_one_checkpoint_by_its_step(workdir):
    (row,) = ddpm_jax.evaluate(small_config(checkpoints="4"), workdir)
    assert row["step"] == 4
    with pytest.raises(ValueError, match="no checkpoint of step 5"):
        ddpm_jax.evaluate(small_config(checkpoints="5"), workdir)


def test_following_a_running_job_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_lib, "POLL_SECONDS", 0.05)
    config = small_config(checkpoints="follow")
    config.train.keep = 10
    failed = []

    def run():
        try:
            ddpm_jax.train(config, tmp_path)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not (tmp_path / "config.json").exists() and thread.is_alive():
        thread.join(0.05)
    rows = ddpm_jax.evaluate(config, tmp_path)
    thread.join()
    assert not failed and [row["step"] for row in rows] == [2, 4, 6]


def test_a_torn_last_row_is_dropped(workdir):
    (row,) = ddpm_jax.evaluate(small_config(), workdir)
    path = workdir / "evaluations.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "met')
    assert evaluate_lib.rows(workdir) == [row]
    ddpm_jax.evaluate(small_config(seed=2), workdir)
    assert len(path.read_text().splitlines()) == 2


def test_a_folder_of_pictures_is_a_reference(workdir):
    folder = workdir / "pictures"
    folder.mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")
    config = small_config(metrics=("kid",), references=(str(folder),))
    (row,) = ddpm_jax.evaluate(config, workdir)
    assert row["reference"] == str(folder) and row["subset_size"] == 5


def test_a_metric_is_one_function_and_one_entry(workdir, monkeypatch, capsys):
    def mean_grey_level(job, folder):
        return {"value": float(np.mean([images.mean() for images in job.samples()]))}

    metric = catalogue.Metric(
        mean_grey_level, needs_samples=True, higher_is_better=True,
        depends_on=(lambda job: {"num_samples": job.settings.num_samples},),
    )
    monkeypatch.setitem(catalogue.METRICS, "grey", metric)
    config = small_config(metrics=("grey",), checkpoints="all", best="grey")
    rows = ddpm_jax.evaluate(config, workdir)
    assert all(0 < row["value"] < 255 for row in rows)
    assert rows[0]["protocol"]["num_samples"] == 13
    best = max(rows, key=lambda row: row["value"])["step"]
    assert [path.name for path in (workdir / "best" / "checkpoints").iterdir()] == [str(best)]
    capsys.readouterr()
    assert ddpm_jax.evaluate(config, workdir) == rows
    assert capsys.readouterr().out.count("known already") == 3


@pytest.mark.parametrize("name, value, message", [
    ("metrics", ("fidd",), "config.evaluate.metrics has 'fidd'.*use some of bpd"),
    ("metrics", (), "asks for nothing"),
    ("checkpoints", "last", "checkpoints='last' must be newest, all, follow or a step"),
    ("best", "fid/train", "best='fid/train' is not measured; use one of bpd"),
    ("matmul_precision", "bf16", "config.evaluate.matmul_precision='bf16'"),
    ("num_samples", 1, "config.evaluate.num_samples=1 must be at least 2"),
    ("split", "validation", "split"),
])
def test_mistakes_raise_one_line(workdir, name, value, message):
    with pytest.raises(ValueError, match=message) as error:
        ddpm_jax.evaluate(small_config(**{name: value}), workdir)
    assert "\n" not in str(error.value)
    assert not (workdir / "evaluations.jsonl").exists()


@pytest.mark.parametrize("metrics, refused", [
    (("bpd", "fid"), "fid"), (("sweep",), "sweep"), (("frechet_pixels",), "frechet_pixels"),
    (("bpd", "is"), None),
])
def test_no_reference_is_refused_where_one_is_needed(metrics, refused):
    config = small_config(metrics=metrics, references=())
    if refused is None:
        evaluate_lib.check_evaluation(config)
        return
    with pytest.raises(ValueError, match=(
        rf"^config.evaluate.references=\(\) leaves '{refused}' .*; "
        r"write --config.evaluate.references=\"\('train',\)\".$"
    )):
        evaluate_lib.check_evaluation(config)


def png(path, shape=(8, 8)):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)


WRONG = {
    "none": "which does not exist; name 'train', 'test', a folder of pictures or an .npz.",
    "none.npz": "which does not exist; name", "": "which does not exist; name",
    "trian": "which does not exist; name",
    "empty": "no pictures there or below, only 1 .txt; name a folder",
    "r/0.png": "which is neither a folder nor an .npz; name",
    "one": "which holds one image; .* at least 2: add more",
    "one.npz": "which holds one image; samples are compared with at least 2",
    "sizes": "needs pictures of one size, but b.png is 9x9 and others are 8x8; resize",
    "damaged": r"1 of 3 files \(33%\) are unreadable, 5% may be; mend or remove c.png",
    "larger": "which has images of 9x9, and the samples are 8x8; .*resize",
}


@pytest.mark.parametrize("metric", ["fid", "frechet_pixels", "sweep"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_reference_is_named_and_refused_before_any_work(
    workdir, monkeypatch, metric, name
):
    monkeypatch.chdir(workdir)
    png(workdir / "r" / "0.png")
    png(workdir / "one" / "a.png")
    for path, shape in {"sizes/a": (8, 8), "sizes/b": (9, 9), "damaged/a": (8, 8),
                        "damaged/b": (8, 8), "larger/a": (9, 9), "larger/b": (9, 9)}.items():
        png(workdir / f"{path}.png", shape)
    (workdir / "damaged" / "c.png").write_bytes(b"PNG")
    (workdir / "empty").mkdir()
    (workdir / "empty" / "notes.txt").write_text("none")
    np.savez("one.npz", arr_0=np.zeros((1, 8, 8, 1), np.uint8))
    config = small_config(metrics=("bpd", metric), references=(name,))
    with pytest.raises(ValueError, match=(
        f"^{metric}/{name}: config.evaluate.references has '{name}'[:,] {WRONG[name]}"
    )) as error:
        ddpm_jax.evaluate(config, workdir)
    assert "\n" not in str(error.value) and "config.data" not in str(error.value)
    assert not (workdir / "evaluations").exists()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_batch_of_any_channels_is_compared_with_a_grey_model(workdir, channels):
    """Their grey is the same, so their distance is, and FID repeats grey three times."""
    grey = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    opaque = np.full_like(grey, 255)
    arrays = {1: grey, 3: grey.repeat(3, 3), 4: np.concatenate([grey.repeat(3, 3), opaque], 3)}
    np.savez(workdir / "grey.npz", arr_0=grey)
    np.savez(workdir / "batch.npz", arr_0=arrays[channels])
    names = tuple(str(workdir / name) for name in ("grey.npz", "batch.npz"))
    config = small_config(metrics=("frechet_pixels", "fid"), references=names)
    rows = ddpm_jax.evaluate(config, workdir)
    values = [row["value"] for row in rows]
    assert values[0] == values[1] > 0 and values[2] == values[3] > 0


@pytest.mark.parametrize("metric", ["bpd", "ode_bpd", "is", "frechet_pixels"])
def test_a_model_that_diverged_is_refused_in_one_line(workdir, monkeypatch, metric):
    def diverged(*arguments, load=run_folder.load_step, **settings):
        step, trained = load(*arguments, **settings)
        nan = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), trained.params)
        return step, trained.replace(params=nan)

    monkeypatch.setattr(run_folder, "load_step", diverged)
    with pytest.raises(ValueError, match=f"^{metric}.* NaN.*diverged") as error:
        ddpm_jax.evaluate(small_config(metrics=(metric,)), workdir)
    assert "\n" not in str(error.value) and not (workdir / "evaluations.jsonl").exists()


def test_precision_and_recall_of_few_images_name_what_to_raise(workdir):
    with pytest.raises(ValueError, match="at least 4 samples .* not 3 and 1497; raise config"):
        ddpm_jax.evaluate(
            small_config(metrics=("precision_recall",), references=("train",), num_samples=3),
            workdir,
        )


def test_no_weights_and_no_network_say_what_to_fetch(trained_workdir, tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(inception_weights, "URL", "http://127.0.0.1:9/weights.pth")
    with pytest.raises(ValueError, match="download.*config.evaluate.inception=PATH") as error:
        ddpm_jax.evaluate(small_config(metrics=("fid",)), trained_workdir)
    assert "\n" not in str(error.value)
    (tmp_path / "wrong.pth").write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256") as error:
        ddpm_jax.evaluate(
            small_config(metrics=("fid",), inception=str(tmp_path / "wrong.pth")),
            trained_workdir,
        )
    assert "\n" not in str(error.value)
    assert not (trained_workdir / "evaluations.jsonl").exists()


SAMPLER = {"eta": 0.0, "grid": "uniform", "clip": True, "guidance": 1.0, "guidance_interval": [],
           "rederive_eps": True, "dynamic_threshold": 0.0}


def test_a_sweep_is_a_table_of_single_scores(workdir, capsys):
    config = small_config(metrics=("sweep",), references=("train",))
    (row,) = ddpm_jax.evaluate(config, workdir)
    assert row["value"] is None and list(row["table"]) == ["ddim", "dpm_solver_pp"]
    assert row["protocol"] == {
        "version": 1, "samples_version": 1, "sweep_metric_version": 1,
        "checkpoint": identity.of_model(ddpm_jax.load(workdir)),
        "reference_content": identity.of_images(loading.load("digits")),
        "step": 6, "weights": "ema", "dtype": "float32", "matmul_precision": "highest",
        "seed": 0, "num_samples": 13, "rounding": "uint8", "sweep_metric": "frechet_pixels",
        "samplers": {"ddim": SAMPLER, "dpm_solver_pp": SAMPLER}, "steps": [3, 2],
        "reference": "train",
    }
    for sampler, values in row["table"].items():
        for steps, value in zip((3, 2), values, strict=True):
            single = small_config(metrics=("frechet_pixels",), references=("train",))
            single.sample.sampler, single.sample.num_steps = sampler, steps
            (alone,) = ddpm_jax.evaluate(single, workdir)
            assert alone["reference_n"] == 1497
            assert alone["value"] == pytest.approx(value, rel=1e-6)  # Six digits.
    # With two calls, both samplers take one step between the same ends.
    assert len({value for values in row["table"].values() for value in values}) == 3
    folder, = (workdir / "evaluations" / "step_00000006").glob("sweep-*")
    lines = (folder / "sweep.csv").read_text().splitlines()
    assert lines[0] == "sampler,3,2" and lines[1].startswith("ddim,") and len(lines) == 3
    assert [float(v) for v in lines[2].split(",")[1:]] == row["table"]["dpm_solver_pp"]
    assert not (folder / "parts").exists()
    capsys.readouterr()
    assert ddpm_jax.evaluate(config, workdir) == [row]
    assert "known already" in capsys.readouterr().out
    config.evaluate.sweep_steps = (2,)
    assert ddpm_jax.evaluate(config, workdir)[0]["table"]["ddim"] == row["table"]["ddim"][1:]


def test_a_sweep_has_a_row_of_students(workdir, tmp_path):
    """Here the student of 3 steps is the model itself, with other digits of its weights."""
    for steps in (3, 5):
        shutil.copytree(workdir, tmp_path / f"steps_{steps}")
    (tmp_path / "steps_1").mkdir()  # A phase without a checkpoint.
    config = small_config(metrics=("sweep",), references=("train",), sweep_steps=(3,),
                          sweep_students=str(tmp_path))
    (row,) = ddpm_jax.evaluate(config, workdir)
    assert list(row["table"]) == ["ddim", "dpm_solver_pp", "distilled"]
    assert row["protocol"]["students"] == {"3": identity.of_model(ddpm_jax.load(workdir))}
    single = small_config(metrics=("frechet_pixels",), references=("train",))
    single.sample.update(dict(sampler="ddim", num_steps=3, grid="trailing"))
    (alone,) = ddpm_jax.evaluate(single, workdir)
    assert row["table"]["distilled"] == [pytest.approx(alone["value"], rel=1e-6)]
    config.evaluate.sweep_steps = (2, 3)
    with pytest.raises(UserError, match=r"has no student of 2 steps.*sweep_steps=\"\(5, 3\)\""):
        ddpm_jax.evaluate(config, workdir)
    config.evaluate.sweep_students = str(tmp_path / "none")
    with pytest.raises(UserError, match="has no students; name a workdir of --mode=distill"):
        ddpm_jax.evaluate(config, workdir)


def test_a_sweep_of_an_inception_score_names_its_network(workdir):
    config = small_config(metrics=("sweep",), sweep_metric="is", sweep_steps=(2,))
    (row,) = ddpm_jax.evaluate(config, workdir)
    assert row["protocol"]["inception"] == "fake" and row["reference"] is None
    config = small_config(metrics=("is",))
    config.sample.sampler, config.sample.num_steps = "ddim", 2
    (single,) = ddpm_jax.evaluate(config, workdir)
    assert row["table"]["ddim"] == [pytest.approx(single["value"], rel=1e-5)]


def test_raw_pixels_need_no_network(workdir, monkeypatch):
    monkeypatch.setattr(inception_features, "Network", None)
    config = small_config(metrics=("frechet_pixels", "sweep"), references=("test",))
    assert len(ddpm_jax.evaluate(config, workdir)) == 2


def test_a_sweep_takes_what_suits_each_sampler(workdir):
    config = small_config(metrics=("sweep",), references=("train",), sweep_steps=(2,))
    config.evaluate.sweep_samplers = ("ancestral", "ddim", "heun")
    config.evaluate.sweep_steps = (3,)
    config.sample.eta, config.sample.grid, config.sample.clip = 0.5, "trailing", False
    (row,) = ddpm_jax.evaluate(config, workdir)
    samplers = row["protocol"]["samplers"]
    names = ("eta", "grid", "clip")
    assert {s: tuple(samplers[s][name] for name in names) for s in samplers} == {
        "ancestral": (0.0, "trailing", False), "ddim": (0.5, "trailing", False),
        "heun": (0.0, "uniform", False),
    }


@pytest.mark.parametrize("settings, message", [
    (dict(sweep_metric="bpd"), "sweep_metric='bpd' is no score of samples; use one of fid"),
    (dict(sweep_samplers=()), "sweep_samplers=.. leaves no rows; write"),
    (dict(sweep_samplers=("euler",)), "sweep_steps has 3, and 'euler' .*is not known"),
    (dict(sweep_samplers=("heun",)), "sweep_steps has 2, and 'heun' .*write num_steps=1"),
    (dict(sweep_steps=(5,)), "sweep_steps has 5, and 'ddim' .*num_steps=5 must lie in 1..4"),
    (dict(sweep_steps=()), "sweep_steps=.. must be whole numbers, at least one"),
    (dict(sweep_steps=(0, 2)), "sweep_steps=.0, 2. must be whole numbers"),
    (dict(best="sweep/train"), "best='sweep/train' needs a metric with a value"),
])
def test_impossible_sweeps_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        evaluate_lib.check_evaluation(small_config(metrics=("sweep",), **settings))
    assert "\n" not in str(error.value)


def test_sweeps_that_the_model_rules_out_are_refused():
    config = small_config(metrics=("sweep",))
    config.diffusion.mean = "x_prev"
    with pytest.raises(ValueError, match="has 'dpm_solver_pp', which cannot go with"):
        evaluate_lib.check_evaluation(config)
    config.evaluate.sweep_samplers = ("ddim", "ancestral")
    evaluate_lib.check_evaluation(config)
    config.sample.grid = "quadratic"
    config.diffusion.num_timesteps, config.evaluate.sweep_steps = 1000, (50,)
    with pytest.raises(ValueError, match="'ddim' makes 49 calls .*grid=uniform"):
        evaluate_lib.check_evaluation(config)


def test_the_images_held_out_are_those_that_the_run_keeps(workdir):
    """Whatever the seed, and where images were added; others are refused."""
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    config = small_config(metrics=("frechet_pixels",), references=("test",))
    config.data.name, config.data.dir, config.seed = "npz", str(workdir / "x.npz"), 3
    np.savez(config.data.dir, train=images)
    splits = [
        loading.load("npz", split=split, data_dir=config.data.dir, holdout=5, seed=8)
        for split in ("train", "test")
    ]
    data_record.write(kept_lib.of(*splits, 5), workdir)
    (workdir / "config.json").unlink()
    (workdir / "config.json").write_text(run_folder.dump(config))
    [row] = ddpm_jax.evaluate(config, workdir)
    assert identity.of_images(splits[1]) in json.dumps(row["protocol"])
    config.seed, config.data.holdout = 4, 5
    np.savez(config.data.dir, train=np.concatenate([images, images]))
    assert ddpm_jax.evaluate(config, workdir) == [row]
    config.data.holdout = 6
    with pytest.raises(ValueError, match="config.data.holdout=6 is not the 5 images"):
        ddpm_jax.evaluate(config, workdir)
    config.data.holdout = 0
    np.savez(config.data.dir, train=images[::-1])
    with pytest.raises(ValueError, match="5 of the 5 images that the run keeps from training"):
        ddpm_jax.evaluate(config, workdir)


def test_a_run_is_measured_on_other_data_by_their_own_settings(workdir):
    """Nothing of those is the run's, so the seed sets images aside."""
    data_record.write(kept_lib.Kept(held_out={}), workdir)  # The run is of digits.
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    np.savez(workdir / "x.npz", train=images)
    config = small_config(metrics=("frechet_pixels",), references=("test",))
    config.data.name, config.data.dir, config.data.holdout = "npz", str(workdir / "x.npz"), 6
    [row] = ddpm_jax.evaluate(config, workdir)
    test = loading.load("npz", split="test", data_dir=config.data.dir, holdout=6)
    assert identity.of_images(test) in json.dumps(row["protocol"])


WEIGHTS = ("ema", "raw", "sigma_rel=0.05", "sigma_rel=0.08")


def test_several_weights_are_measured_and_compared(workdir, capsys):
    config = small_config(metrics=("loss", "bpd"), weights=WEIGHTS)
    rows = ddpm_jax.evaluate(config, workdir)
    assert [(row["protocol"]["weights"], row["metric"]) for row in rows] == [
        (weights, metric) for weights in WEIGHTS for metric in ("loss", "bpd")
    ]
    values = [row["value"] for row in rows if row["metric"] == "loss"]
    assert len(set(values)) == len(values) and all(value > 0 for value in values)
    for row in rows:
        trained = ddpm_jax.load(workdir, weights=row["protocol"]["weights"])
        assert row["protocol"]["checkpoint"] == identity.of_model(trained)
    *_, head, ema, raw, tracked, rebuilt = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "weights", "loss", "bpd"]
    for line, weights, value in zip((ema, raw, tracked, rebuilt), WEIGHTS, values):
        assert line.split()[:3] == ["6", weights, f"{value:.4f}"]
    assert ddpm_jax.evaluate(config, workdir) == rows


def test_the_best_of_rebuilt_averages_can_be_loaded(workdir):
    config = small_config(
        metrics=("loss",), weights=WEIGHTS[-1:], checkpoints="all", best="loss"
    )
    rows = ddpm_jax.evaluate(config, workdir)
    best = min(rows, key=lambda row: row["value"])
    kept = ddpm_jax.load(workdir / "best", weights=WEIGHTS[-1])
    assert identity.of_model(kept) == best["protocol"]["checkpoint"]


@pytest.mark.parametrize("weights, line", [
    ("0.5", "are not in .*; use one of ema, raw, or sigma_rel=0.01 to sigma_rel=0.28."),
    ("sigma_rel=0.4", "have no such width; use sigma_rel=0.01 to sigma_rel=0.28."),
    ("sigma_rel=wide", "have no such width"), ("sigma_rel=nan", "have no such width"),
    ("sigma_rel=-1", "have no such width"), (3, "are not in"),
    ("sigma_rel=0.01", "cannot be rebuilt at step 6 from 5 snapshots: .* 5% are taken"),
])
def test_weights_that_there_are_not_are_one_line_before_any_work(workdir, weights, line):
    config = small_config(metrics=("loss",), weights=("ema", weights))
    with pytest.raises(UserError, match=f"config.evaluate.weights=.?{weights}.? {line}"):
        ddpm_jax.evaluate(config, workdir)
    assert evaluate_lib.rows(workdir) == []
