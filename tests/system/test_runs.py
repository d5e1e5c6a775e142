"""The program as its users start it: `main.py` in its own process."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from program import ROOT, command, on, run
from records import lasting, rows, saved


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    output = run(command(workdir, **{"train.num_steps": 120}))
    return workdir, output


def test_a_run_prints_what_it_is_and_leaves_its_records(undisturbed):
    workdir, output = undisturbed
    for line in ("1,497 images of 8x8x1, 300 held out", "parameters:", "starting at step 0 of 120",
                 "memory after the first step", "done: 120 steps"):
        assert line in output
    assert [row["step"] for row in rows(workdir)] == list(range(5, 121, 5))
    last = rows(workdir)[-1]
    assert {"loss", "loss_quartile_4", "grad_norm", "learning_rate", "heldout_loss",
            "images_per_second", "steps_per_second", "eta"} <= set(last)
    assert 0 < last["loss"] < rows(workdir)[0]["loss"]
    with Image.open(workdir / "samples" / "step_00000120.png") as picture:
        assert min(picture.size) >= 64 and np.asarray(picture).std() > 10
    assert json.loads((workdir / "config.json").read_text())["train"]["num_steps"] == 120
    assert list((workdir / "tensorboard").iterdir())


def test_kill_and_resume_equals_no_interruption_bit_for_bit(undisturbed, tmp_path):
    arguments = command(tmp_path, **{"train.num_steps": 120})
    process = subprocess.Popen(arguments, env=on(2), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, cwd=ROOT)
    while process.poll() is None and not any(row["step"] >= 50 for row in rows(tmp_path)):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    assert rows(tmp_path)[-1]["step"] < 120

    output = run(arguments)
    assert "resuming at step" in output and "resuming at step 0" not in output
    workdir, _ = undisturbed
    assert [lasting(row) for row in rows(tmp_path)] == [lasting(row) for row in rows(workdir)]
    for resumed, whole in zip(saved(tmp_path, 120), saved(workdir, 120), strict=True):
        np.testing.assert_array_equal(resumed, whole)


def test_a_run_is_changed_by_its_workdir_alone(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    program = [sys.executable, str(ROOT / "main.py"), f"--workdir={workdir}"]
    few = ["--config.sample.num_images=3", "--config.sample.sampler", "ddim",
           "--config.sample.num_steps=4"]
    run([*program, "--mode=sample", *few])
    [npz] = (workdir / "samples").glob("ema_step_00000120_ddim_4_seed_0.npz")
    assert np.load(npz)["arr_0"].shape == (3, 8, 8, 1)
    assert "done: 125 steps" in run([*program, "--config.train.num_steps=125"])
    assert json.loads((workdir / "config.json").read_text())["model"]["channels"] == 8
    listed = run([*program, "--mode=config", "--config.sample.num_images=7"]).splitlines()
    assert {"--config.train.num_steps=125", "--config.sample.num_images=7",
            "'--config.model.channel_multipliers=(1,)'"} <= set(listed)
    again = run([*program, "--mode=config", *shlex.split(" ".join(listed))]).splitlines()
    assert again == listed
    for flags, says in (
        (["--config.model.channels=16"], "channels=16, but .* was made with 8"),
        (["--mode=sample", "--config.model.channels=16"], "channels=16, but .* was made with 8"),
        (["--mode=evaluate", "--config.train.num_steps=9"], "num_steps=9 is not read by --mode"),
        (["--mode=sample", "--config.sample.samplr=ddim"], "did you mean --config.sample.sampler"),
    ):
        output = run([*program, *flags], fails=True)
        assert re.search(says, output) and output.count("\n") == 1


def test_a_run_is_measured_from_the_command_line(undisturbed):
    workdir, _ = undisturbed
    measure = [sys.executable, str(ROOT / "main.py"), f"--workdir={workdir}", "--mode=evaluate"]
    with_config = command(workdir, "evaluate", **{
        "evaluate.num_images": 10, "evaluate.metrics": "('bpd', 'nearest_pixels')",
        "evaluate.num_samples": 6, "train.num_steps": 120,
    })
    output = run(with_config)
    assert "step 120  bpd = " in output and "step 120  nearest_pixels = " in output
    known = [json.loads(line) for line in
             (workdir / "evaluations.jsonl").read_text().splitlines()]
    assert [row["metric"] for row in known] == ["bpd", "nearest_pixels"]
    assert known[0]["n"] == 10 and 0 < known[0]["value"] < 20
    assert "known already" in run(with_config)
    again = [*measure, "--config.evaluate.num_images=10", "--config.evaluate.metrics=('bpd',)"]
    assert "known already" in run(again)
    output = run([*measure, "--config.evaluate.metrics=('bdp',)"], fails=True)
    assert output.count("\n") == 1 and "bpd" in output


def test_one_two_and_eight_devices_give_the_same_losses(undisturbed, tmp_path):
    workdir, _ = undisturbed
    two = [row["loss"] for row in rows(workdir)[:4]]
    losses_alone = {"train.num_steps": 20, "train.eval_images": 0, "train.sample_images": 1}
    for devices in (1, 8):
        run(command(tmp_path / str(devices), **losses_alone), devices=devices)
        losses = [row["loss"] for row in rows(tmp_path / str(devices))]
        # Sums over devices run in another order: float32 roundings, grown over 20 steps.
        np.testing.assert_allclose(losses, two, rtol=1e-5)


def test_one_two_and_eight_devices_give_the_same_samples(undisturbed, tmp_path):
    workdir, _ = undisturbed
    program = (
        "import sys, numpy, ddpm_jax; trained = ddpm_jax.load(sys.argv[1]); "
        "numpy.save(sys.argv[2], ddpm_jax.sample(trained, 0, 11))"
    )
    images = {}
    for devices in (1, 2, 8):
        path = tmp_path / f"{devices}.npy"
        run([sys.executable, "-c", program, str(workdir), str(path)], devices=devices)
        images[devices] = np.load(path)
    assert images[1].std() > 0.1
    for devices in (2, 8):
        np.testing.assert_allclose(images[devices], images[1], rtol=0, atol=1e-5)


def test_a_finished_run_does_nothing_and_can_be_sampled(undisturbed):
    workdir, _ = undisturbed
    before = rows(workdir)
    output = run(command(workdir, **{"train.num_steps": 120}))
    assert "nothing to do" in output and rows(workdir) == before
    output = run(command(workdir, "sample", **{"sample.num_images": 5, "sample.num_steps": 7}))
    assert "5 images in" in output
    path = workdir / "samples" / "ema_step_00000120_ancestral_7_seed_0.npz"
    images = np.load(path)["arr_0"]
    assert images.shape == (5, 8, 8, 1) and images.dtype == np.uint8
    assert path.with_suffix(".png").exists()
    bare = [sys.executable, str(ROOT / "main.py"), f"--workdir={workdir}", "--mode=sample"]
    assert "64 images in" in run(bare)  # With the config of the workdir.


def test_pictures_are_edited_with_a_run(undisturbed, tmp_path):
    workdir, _ = undisturbed
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    edit = {"sample.task": "img2img", "sample.num_steps": 4, "sample.inputs": tmp_path / "a.png"}
    output = run(command(workdir, "sample", **edit))
    assert "redrawings at strength 0.5" in output
    path = workdir / "samples" / "img2img_a_ema_step_00000120_ancestral_4_seed_0.npz"
    images = np.load(path)["arr_0"]
    assert images.shape == (1, 1, 4, 8, 8, 1) and path.with_suffix(".png").exists()
    output = run(command(workdir, "sample", **edit | {"sample.task": "inpaint"}), fails=True)
    assert "error: config.sample.mask=''" in output and "Traceback" not in output


def test_another_model_in_the_same_workdir_is_refused(undisturbed):
    workdir, _ = undisturbed
    for mode in ("train", "sample"):
        output = run(command(workdir, mode, **{"diffusion.beta_end": 0.3}), fails=True)
        assert "error: config.diffusion.beta_end=0.3, but" in output
        assert "was made with 0.4" in output and "Traceback" not in output


def test_a_damaged_newest_checkpoint_is_set_aside_and_written_again(undisturbed, tmp_path):
    import shutil

    workdir = tmp_path / "copy"
    shutil.copytree(undisturbed[0], workdir)
    data = max((workdir / "checkpoints" / "120" / "state").rglob("*"),
               key=lambda path: path.stat().st_size if path.is_file() else 0)
    data.write_bytes(data.read_bytes()[:100])
    output = run(command(workdir, **{"train.num_steps": 120}))
    assert "120.corrupt" in output and "resuming at step 100" in output
    assert (workdir / "checkpoints" / "120.corrupt").exists()
    for again, before in zip(saved(workdir, 120), saved(undisturbed[0], 120), strict=True):
        np.testing.assert_array_equal(again, before)
    assert [row["step"] for row in rows(workdir)] == list(range(5, 121, 5))


@pytest.mark.parametrize("flags, says", [
    (["--config.train.num_stepss=3"], "no setting; did you mean --config.train.num_steps?"),
    (["--config.num_steps=3"], "no setting; did you mean --config.train.num_steps?"),
    (["--config.train.num_steps=abc"], "--config.train.num_steps=abc: must be a whole number"),
    (["--config.train.num_steps=1.5"], "--config.train.num_steps=1.5: must be a whole number"),
    (["--config.train.batch_size=1.7e1"], "config.train.batch_size=17 does not divide over 2"),
    (["--config=configs"], "--config=configs is a folder"),
    (["--config=docs/index.md"], "docs/index.md, line 4: unterminated string"),
    (["--config.train.batch_size=17"], "config.train.batch_size=17 does not divide over 2"),
    (["--config.data.name=image_folder", "--config.data.dir=/nowhere"], "/nowhere"),
    (["--config.data.name=cifar10", "--config.data.dir=/nowhere"], "/nowhere"),
    (["--bogus=1"], "bogus"),
    (["--mode=trian"], "use one of train, sample"),
    (["stray"], "'stray' is not a flag"),
    (["--config=configs/nope.py"], "does not exist"),
    (["--mode=sample"], "nothing was trained there"),
    (["--workdir=/proc/nowhere"], "cannot be written to"),
])
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, flags, says):
    workdir = tmp_path / "run"
    arguments = [sys.executable, str(ROOT / "main.py"), f"--workdir={workdir}",
                 "--config=configs/digits.py", *flags]
    done = subprocess.run(arguments, env=on(2), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert says in done.stderr and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (workdir / "config.json").exists()


def test_a_missing_config_or_workdir_is_one_line():
    for flags, says in (([], "start with --config=configs/digits.py --workdir="),
                        (["--config=digits"], "--workdir is missing"),
                        (["--workdir=x"], "--config is missing"),
                        (["--config.seed=1", "--workdir=x"], "add --config=FILE")):
        done = subprocess.run([sys.executable, str(ROOT / "main.py"), *flags],
                              capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["import ddpm_jax", "from ddpm_jax import cli; cli.main()"],
                         ids=["import", "help"])
def test_what_must_be_instant_imports_neither_jax_nor_numpy(command):
    program = (
        f"import sys; sys.argv = ['main.py', '--help']\n{command}\n"
        "assert not {'flax', 'jax', 'numpy', 'tensorflow'} & set(sys.modules), sys.modules.keys()"
    )
    out = run([sys.executable, "-c", program])
    assert ("--workdir=FOLDER" in out) == ("cli" in command)


def test_importing_the_package_touches_no_device():
    program = (
        "import ddpm_jax\n"
        "for name in ddpm_jax.__all__: getattr(ddpm_jax, name)\n"
        "import jax; jax.config.update('jax_num_cpu_devices', 3)\n"
        "assert jax.device_count() == 3"
    )
    run([sys.executable, "-c", program])
