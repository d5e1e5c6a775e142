"""Logs have each step once in both records, whatever was written before a stop."""

import inspect
import io
import math

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.workdir.logs import RECENT, Logs, Rate, Silence
from clock import Clock
from records import TORN_LINES, events, rows


def run(workdir, start, stop, value=0.5):
    with Logs(workdir, start_step=start, num_steps=20, progress=False) as logs:
        for step in range(start + 1, stop + 1):
            logs.write(step, {"loss": value})


def test_rows_are_exact_and_flushed(tmp_path):
    loss = np.float32(0.1)
    with Logs(str(tmp_path), start_step=0, num_steps=20, progress=False) as logs:
        logs.write(np.int32(3), {"loss": loss, "grad_norm": 1 / 3})
        assert rows(tmp_path) == [{"step": 3, "loss": float(loss), "grad_norm": 1 / 3}]


def test_numbers_that_json_lacks_are_null(tmp_path):
    with Logs(tmp_path, start_step=0, num_steps=20, progress=False) as logs:
        logs.write(1, {"a": math.nan, "b": math.inf, "c": 2})
    assert rows(tmp_path) == [{"step": 1, "a": None, "b": None, "c": 2.0}]
    assert math.isnan(events(tmp_path).Scalars("train/a")[0].value)


def test_resume_has_every_step_once(tmp_path):
    run(tmp_path, 0, 9, value=1.0)
    run(tmp_path, 6, 12, value=2.0)
    run(tmp_path, 10, 14, value=3.0)
    values = [1.0] * 6 + [2.0] * 4 + [3.0] * 4
    assert rows(tmp_path) == [{"step": i + 1, "loss": v} for i, v in enumerate(values)]
    scalars = events(tmp_path).Scalars("loss/loss")
    assert [(s.step, s.value) for s in scalars] == list(enumerate(values, start=1))


def test_starting_over_without_a_checkpoint_drops_all(tmp_path):
    run(tmp_path, 0, 4, value=1.0)
    run(tmp_path, 0, 2, value=2.0)
    assert [row["loss"] for row in rows(tmp_path)] == [2.0, 2.0]
    assert [(s.step, s.value) for s in events(tmp_path).Scalars("loss/loss")] == [(1, 2), (2, 2)]


@pytest.mark.parametrize("torn", TORN_LINES)
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    run(tmp_path, 0, 2)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    run(tmp_path, 2, 4)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]


def test_images_and_text(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    opaque = np.full((6, 9, 1), 255, np.uint8)
    with Logs(tmp_path, start_step=4, num_steps=20, progress=False) as logs:
        for c in (1, 3, 4):
            logs.images(f"c{c}", np.dstack([picture, opaque])[..., :c], 5)
        logs.text("config", "```json\n{}\n```")
    read = events(tmp_path)
    for name in ("c1", "c3", "c4"):
        [image] = read.Images(name)
        assert (image.step, image.height, image.width) == (5, 6, 9)
        with Image.open(io.BytesIO(image.encoded_image_string)) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        want = picture[..., :1] if name == "c1" else picture
        np.testing.assert_array_equal(pixels, np.broadcast_to(want, pixels.shape))
    [text] = read.Tensors("config/text_summary")
    assert text.step == 4 and b"json" in text.tensor_proto.string_val[0]


def test_lines_without_a_bar(tmp_path, capsys):
    with Logs(tmp_path, start_step=0, num_steps=8000, progress=False) as logs:
        logs.write(1200, {"loss": 0.03125, "images_per_second": 51.26, "eta": 7500.0})
        logs.write(1300, {"psnr": 3.0})
        logs.write(1400, {"loss": 0.5, "heldout_loss": 0.04})
        logs.advance(1300)
        logs.say("done")
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "step 1,200 of 8,000  loss 0.0312  51.3 images/s  eta 2 h 05 min",
        "step 1,300 of 8,000",
        "step 1,400 of 8,000  loss 0.5000  held-out loss 0.0400",
        "done",
    ]
    assert not err


def test_bar_starts_where_the_run_does(tmp_path, capsys):
    with Logs(tmp_path, start_step=5, num_steps=20, progress=True) as logs:
        assert "5/20" in capsys.readouterr().err
        logs.write(8, {"loss": 0.25})
        logs.advance(8)
        logs.write(9, {"loss": 0.25, "heldout_loss": 0.5})
        logs.say("a line")
    out, err = capsys.readouterr()
    assert out == "step 9 of 20  loss 0.2500  held-out loss 0.5000\na line\n"  # None for step 8.
    assert "8/20" in err and "loss 0.25" in err


def methods(logs):
    return {
        name: [p.name for p in inspect.signature(member).parameters.values()]
        for name, member in inspect.getmembers(logs, inspect.isfunction)
        if not name.startswith("_") or name in ("__enter__", "__exit__")
    }


def test_a_process_that_logs_nothing_takes_the_same_calls(tmp_path, capsys):
    assert methods(Silence) == methods(Logs)
    with Silence() as silence:
        silence.write(1, {"loss": 0.5})
        silence.say("a line")
        assert silence.folder / "profile"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_bar_by_default_on_a_terminal_only(tmp_path, monkeypatch, terminal):
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", stderr)
    with Logs(tmp_path, start_step=0, num_steps=2):
        pass
    assert bool(stderr.getvalue()) == terminal


def test_rate_leaves_pauses_out_of_the_speed_but_not_of_the_eta():
    clock = Clock()
    rate = Rate(start_step=10, num_steps=110, batch_size=8, clock=clock)
    clock.now += 4
    with rate.paused():
        clock.now += 6
    # 20 steps in 4 s of work and 10 s in all; 80 steps remain.
    assert rate.read(30) == {
        "images_per_second": 40.0,
        "steps_per_second": 5.0,
        "eta": 40.0,
    }
    clock.now += 10
    # 10 more in 10 s; 30 in 20 s in all; 70 remain.
    got = rate.read(40)
    assert got["images_per_second"] == 8.0 and got["steps_per_second"] == 1.0
    assert got["eta"] == pytest.approx(70 * 20 / 30)


def test_the_remaining_time_goes_by_recent_steps_without_compilation():
    clock = Clock()
    rate = Rate(start_step=0, num_steps=1000, batch_size=1, clock=clock)
    clock.now += 500
    rate.compiled(1)
    assert math.isnan(rate.read(1)["eta"])
    clock.now += 9
    assert rate.read(10)["eta"] == 990  # A second a step.
    for step in range(20, 20 + 10 * RECENT, 10):
        clock.now += 20
        eta = rate.read(step)["eta"]
    assert eta == 2 * (1000 - step)  # Two seconds a step: the first ones are no longer recent.


@pytest.mark.parametrize("name,want", [
    ("loss", "loss/loss"), ("heldout_loss", "loss/heldout_loss"),
    ("loss_quartile_3", "loss_by_t/quartile_3"), ("images_per_second", "speed/images_per_second"),
    ("grad_norm", "train/grad_norm"),
])
def test_curves_are_in_groups(name, want, tmp_path):
    with Logs(tmp_path, start_step=0, num_steps=2, progress=False) as logs:
        logs.write(1, {name: 3.0})
    assert [e.value for e in events(tmp_path).Scalars(want)] == [3.0]


def test_rate_counts_a_pause_that_ends_in_an_error():
    clock = Clock()
    rate = Rate(start_step=0, num_steps=10, batch_size=1, clock=clock)
    with pytest.raises(KeyError), rate.paused():
        clock.now += 6
        raise KeyError
    clock.now += 2
    assert rate.read(4)["steps_per_second"] == 2.0


def test_rate_of_nothing_is_unknown():
    rate = Rate(start_step=3, num_steps=10, batch_size=1, clock=Clock())
    assert all(map(math.isnan, rate.read(3).values()))
