"""What is read of a workdir, beside what test_report.py sees on the page."""

import json

import numpy as np
import pytest

import recorded_run
from ddpm_jax.reporting import contents


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return contents.read(recorded_run.recorded(tmp_path_factory.mktemp("runs") / "birds"))


def test_all_of_a_run_is_read_and_named(run):
    assert run.name == "birds" and run.notes == [] and run.num_steps == 1000
    assert [step for step, _ in run.previews] == [500, 1000, 1500]
    assert [drawn.title for drawn in run.samples] == ["samples, step 1500, ddim, 50 steps".replace(
        "1500", "1,500")]
    chain, = run.chains
    assert chain.x_t.shape == chain.x_0.shape == (5, 4, 8, 8, 1)
    assert chain.labels[0] == "1,000 network calls to go"
    assert chain.labels[-1] == "1 network call to go"
    assert [each.name for each in run.evaluations] == [
        "bpd", "nearest_pixels", "fid/birds.npz", "sweep"]
    assert list(run.evaluations[0].files) == ["rate_distortion.csv"]
    assert run.values("heldout_loss") == [(500, 0.022), (1000, 0.011)]


def test_a_chain_of_an_older_version_is_numbered(tmp_path):
    run = recorded_run.recorded(tmp_path / "birds")
    with np.load(run / "samples/strip.npz") as arrays:
        older = {name: arrays[name] for name in ("x_t", "x_0")}
    np.savez(run / "samples/strip.npz", **older)
    assert contents.read(run).chains[0].labels == tuple(f"{n} of 5" for n in range(1, 6))


def test_the_newest_samples_stay(tmp_path):
    run = recorded_run.recorded(tmp_path / "birds")
    asked = json.loads((run / "samples/ema_ddim.json").read_text())
    picture = (run / "samples/ema_ddim.png").read_bytes()
    for step in range(20):
        (run / f"samples/at_{step}.json").write_text(json.dumps(asked | {"step": step}))
        (run / f"samples/at_{step}.png").write_bytes(picture)
    read = contents.read(run)
    assert [drawn.title.split(",")[1] for drawn in read.samples[:2]] == [" step 9", " step 10"]
    assert read.notes == ["9 older pictures of samples are left out."]
