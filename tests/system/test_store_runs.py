"""A whole run in a store: trained, resumed, sampled, edited, evaluated and read."""

import contextlib

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.configs import digits
from ddpm_jax.data import loading
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.inference import sample_command
from ddpm_jax.runtime import files
from ddpm_jax.training import loop
from ddpm_jax.workdir import (
    checkpoints, lock, metrics_file, pictures, run_folder, tensorboard_writer,
)
from nonzero import TinyNet
from object_store import local_copy, objects
from records import events, lasting


class Net(TinyNet):
    """With the field that protocols record."""

    dtype: str = "float32"


SETTINGS = {
    "diffusion.num_timesteps": 4, "diffusion.beta_end": 0.9, "train.batch_size": 16,
    "train.num_steps": 6, "train.log_every": 1, "train.checkpoint_every": 2,
    "train.eval_every": 2, "train.eval_images": 8, "train.sample_images": 8,
    "sample.num_images": 8, "evaluate.metrics": ("frechet_pixels",),
    "evaluate.references": ("train",), "evaluate.num_samples": 16,
}


def config_of(**settings):
    config = digits.get_config()
    config.update_from_flattened_dict(SETTINGS | settings)
    return config


@pytest.fixture
def run(bucket, tmp_path, monkeypatch):
    """(name, settings) -> the folder in the store where a tiny network has been trained."""
    monkeypatch.setattr(config_lib, "model", lambda config, channels: Net())
    monkeypatch.setattr(validation, "check_images", lambda config, shape: None)
    monkeypatch.setattr(lock, "SETTLE", 0.0)
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
    # Orbax hands arrays to tensorstore, which connects to Google itself and knows no store of
    # Python's: checkpoints alone are on the disk.
    monkeypatch.setattr(checkpoints, "checkpoints_folder", lambda workdir: (
        files.path(tmp_path) / "checkpoints" / files.path(workdir).name))

    def train(name="run", **settings):
        loop.train(config_of(**settings), f"gs://bucket/{name}")
        return bucket / name

    return train


def test_a_run_lives_in_a_store(run, bucket, tmp_path, capsys):
    whole = list(map(lasting, ddpm_jax.read_metrics(run("whole"))))
    run(**{"train.num_steps": 4})
    workdir = run(**{"train.profile": (5, 5)})
    rows = ddpm_jax.read_metrics(workdir)
    assert list(map(lasting, rows)) == whole and [r["step"] for r in rows] == list(range(1, 7))
    names = {name.removeprefix("bucket/run/") for name in objects()}
    assert {"config.json", "metrics.jsonl", "metrics.from_00000004.jsonl",
            "samples/step_00000006.png"} <= names
    assert not any("tmp" in name or "owner" in name or "writable" in name for name in names)
    copied = local_copy(workdir, tmp_path / "copied")
    assert [e.step for e in events(copied).Scalars("loss/loss")] == list(range(1, 7))
    assert list((copied / "tensorboard" / "profile").glob("plugins/profile/*/*.xplane.pb"))

    sample_command.run(run_folder.stored_config(workdir), str(workdir))
    says = capsys.readouterr().out.splitlines()[-1]
    assert says.startswith("8 images in gs://bucket/run/samples/ema_step_00000006_")
    with (workdir / "samples" / says.split("/")[-1]).open("rb") as file:
        assert file.read(4) == b"\x89PNG"
    arrays = [path for path in (workdir / "samples").iterdir() if path.suffix == ".npz"]
    assert len(arrays) == 2 and "latest.npz" in {path.name for path in arrays}
    for path in arrays:
        with path.open("rb") as file, np.load(file) as stored:
            assert stored["arr_0"].shape == (8, 8, 8, 1)

    for i, digit in enumerate(loading.digits("test")[0][:2]):
        pictures.save_png(f"gs://bucket/{i}.png", digit)
    config = run_folder.stored_config(workdir)
    config.update_from_flattened_dict({
        "sample.task": "img2img", "sample.inputs": ("gs://bucket/0.png", "gs://bucket/1.png")})
    for path in sample_command.run(config, workdir):
        assert path.startswith("gs://bucket/run/samples/img2img_0_1_") and files.path(path).exists()

    [row] = ddpm_jax.evaluate(config_of(), workdir)
    assert row == evaluate_lib.rows(workdir)[0] and np.isfinite(row["value"])
    assert ddpm_jax.evaluate(config_of(), str(workdir)) == [row]
    assert "known already" in capsys.readouterr().out
    copied = local_copy(workdir / "tensorboard" / "evaluation", tmp_path / "e" / "tensorboard")
    assert len(events(copied.parent).Scalars("frechet_pixels/train")) == 1


def test_a_trainer_that_lost_its_workdir_stops(run, bucket, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def hold(workdir):
        steps = iter([None] * 2)

        def check():
            if next(steps, "lost") == "lost":
                raise ValueError("taken over")

        yield check

    def killed(written, close=tensorboard_writer.EventFiles.close):
        with monkeypatch.context() as patch:
            patch.setattr(files, "write", lambda path, content: None)
            close(written)

    monkeypatch.setattr(lock, "hold", hold)
    # Nothing is written at the end: what is there was flushed with the checkpoint.
    monkeypatch.setattr(metrics_file.MetricsFile, "close", lambda self: None)
    monkeypatch.setattr(tensorboard_writer.EventFiles, "close", killed)
    with pytest.raises(ValueError, match="taken over"):
        run()
    assert [row["step"] for row in ddpm_jax.read_metrics(bucket / "run")] == [1, 2]
    scalars = events(local_copy(bucket / "run", tmp_path / "copied"))
    assert [e.step for e in scalars.Scalars("loss/loss")] == [1, 2]
    assert checkpoints.steps(bucket / "run") == [2]


def test_a_refused_trainer_changes_nothing(run, bucket):
    owners = run_folder.dump(digits.get_config()).encode()
    files.write(bucket / "run" / "config.json", owners)
    with lock.hold(bucket / "run"):
        before = objects()
        with pytest.raises(ValueError, match="is being trained by process"):
            run()
        assert objects() == before
    assert (bucket / "run" / "config.json").read_bytes() == owners
