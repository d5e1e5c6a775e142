"""`benchmarks/record`: finished stages are kept, interrupted ones continue, files stay small."""

import json
import pathlib
import signal
import threading
import types
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import ddpm_jax
from benchmarks.record import clock, compare, run, settings, stages
from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.configs import cifar10
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.evaluation.job import Job
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime.interruption import Interrupted
from ddpm_jax.training import loop
from ddpm_jax.weights import state_dicts
from ddpm_jax.workdir import checkpoints, pictures, run_folder
from ddpm_jax.workdir.metrics_file import read_metrics
from nonzero import TinyNet, nonzero_params, tiny_unet

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # absl's
CONFIG = str(pathlib.Path(__file__).parents[2] / "configs/digits.py")
STAGES = ["weights", "held_out", "bits", "ddim", "chain", "process"]


def row(step, speed):
    return {"step": step, "steps_per_second": speed}


@pytest.mark.parametrize("rows, starts, training_seconds, starting", [
    # 10 steps/s; the first 100 steps with 30 s of compiling.
    ([row(100, 100 / 40), row(200, 10), row(300, 10)], [0], 30, [30]),
    # Interrupted, and resumed at the step of a row with 5 steps/s; the start takes 7 s.
    ([row(100, 100 / 40), row(200, 10), row(300, 100 / 27), row(400, 5)], [0, 200],
     10 + 10 + 20 + 20, [30, 7]),
    # Resumed between two rows: 60 steps since the start, of 100 in the row.
    ([row(100, 10), row(200, 60 / 19), row(300, 10)], [140], 30, [13]),
    # No row after the first of a start: the speed of the row before.
    ([row(50, 1), row(100, 10), row(150, 50 / 8)], [0, 100], 15, [45, 3]),
    # A start that was interrupted before its second row.
    ([row(10, 1), row(20, 1 / 2), row(30, 10)], [0, 10], 3, [9, 19]),
    # A start whose steps were lost counts once; a row faster than the next costs nothing.
    ([row(10, 20), row(20, 10)], [0, 0], 2, [0]),
    # Only a row that includes compiling.
    ([row(10, 1)], [0], 0, [10]),
])
def test_seconds_of_training_and_of_starting(rows, starts, training_seconds, starting):
    trained, beside = clock.seconds(rows, starts)
    assert trained == pytest.approx(training_seconds)
    assert_allclose(beside, starting, atol=1e-9)


def test_training_is_ended_once_it_is_due_and_a_handler_is_there(monkeypatch):
    monkeypatch.setattr(clock, "POLL", 0.001)
    checked, received = threading.Event(), threading.Event()

    def due():
        checked.set()
        return True

    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with clock.ended_when(due) as asked:
        assert checked.wait(10) and not asked.is_set()  # No handler: SIGTERM would end the process.
        signal.signal(signal.SIGTERM, lambda *_: received.set())
        try:
            assert asked.wait(10) and received.wait(10)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with clock.ended_when(lambda: False) as asked:
        assert not asked.wait(0.02)


def flags(workdir, *more, **changed):
    numbers = dict(minutes=1, bits_images=10, ddim_images=70, chain_images=9, file_mib=1)
    return [
        f"--config={CONFIG}", f"--workdir={workdir}",
        *(f"--{name}={value}" for name, value in (numbers | changed).items()),
        "--config.diffusion.num_timesteps=20", "--config.diffusion.beta_end=0.4",
        "--config.train.batch_size=16", "--config.train.num_steps=6", "--config.train.log_every=2",
        "--config.train.eval_every=100", "--config.train.sample_images=8", *more,
    ]


@pytest.fixture
def small(monkeypatch):
    """A network of three layers, whose parameters have no names in diffusers."""
    class Net(TinyNet):
        dtype: Any = jnp.float32

    monkeypatch.setattr(config_lib, "model", lambda config, channels: Net())
    monkeypatch.setattr(validation, "check_images", lambda config, shape: None)

    def named(params, model, height):
        return {"/".join(path): x for path, x in trained_lib.leaves(params).items()}

    monkeypatch.setattr(state_dicts, "from_params", named)
    monkeypatch.setattr(stages, "HEADER", 2**20 - 40 * 64)  # 40 images a file.


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The workdir of a record; made by the first test that needs it."""
    return tmp_path_factory.mktemp("record") / "run"


def work(capsys, workdir, *more, **changed):
    run.main(flags(workdir, *more, **changed))
    return capsys.readouterr().out


def files(workdir):
    return {
        path.name: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in (workdir / "record").iterdir()
    }


def metrics(workdir):
    return json.loads((workdir / "record/metrics.json").read_text())


def samples(workdir, name):
    return np.concatenate([
        np.load(workdir / "record" / file)["arr_0"] for file in metrics(workdir)[name]["files"]
        if file.endswith("npz")
    ])


def test_a_record_is_made_whole(small, recorded, capsys):
    out = work(capsys, recorded)
    entries = metrics(recorded)
    assert [name for name in entries if name not in ("starts", "train")] == STAGES
    assert all(f"\n{name}: " in out for name in STAGES) and "trained: 6 steps" in out
    train = entries["train"]
    assert (train["step"], train["config"]["train"]["num_steps"]) == (6, 6)
    assert [row["step"] for row in train["rows"]] == [2, 4, 6]
    assert train["loss"] == pytest.approx(np.mean([row["loss"] for row in train["rows"]]))
    assert train["images_per_second"] == pytest.approx(16 * train["steps_per_second"])
    listed = [file for name in STAGES for file in entries[name].get("files", ())]
    assert sorted([*listed, "metrics.json"]) == sorted(files(recorded))
    assert all(size <= 2**20 for _, size in files(recorded).values())


def test_samples_are_those_of_the_library_unselected(small, recorded, capsys):
    work(capsys, recorded)
    trained = ddpm_jax.load(recorded)
    rng = jax.random.fold_in(jax.random.key(0), 2)  # The key of --mode=evaluate.
    with jax.default_matmul_precision("highest"):
        ddim = ddpm_jax.sample(
            trained, rng, 70, sampler="ddim", num_steps=20, output="uint8")
        chain = ddpm_jax.sample(trained, rng, 9, output="uint8")
    assert_array_equal(samples(recorded, "ddim"), ddim, strict=True)
    assert_array_equal(samples(recorded, "chain"), chain, strict=True)
    entries = metrics(recorded)
    assert sum(file.endswith("npz") for file in entries["ddim"]["files"]) == 2  # 40 a file.
    shown = np.asarray(Image.open(recorded / "record/ddim.png"))
    assert_array_equal(shown, pictures.grid(ddim[:64])[..., 0])


def test_bits_and_losses_are_those_of_the_library(small, recorded, capsys):
    work(capsys, recorded)
    entries, trained = metrics(recorded), ddpm_jax.load(recorded)
    held_out, _ = ddpm_jax.data.digits("test")
    chosen = np.linspace(0, 299, 10).round().astype(int)
    rng = jax.random.fold_in(jax.random.key(0), 0)
    with jax.default_matmul_precision("highest"):
        bits = ddpm_jax.bits_per_dim(trained, rng, held_out[chosen])
    assert_allclose(entries["bits"]["each"], bits, rtol=0, atol=1e-5)  # They have five decimals.
    assert entries["bits"]["value"] == pytest.approx(bits.mean(), abs=1e-6)
    assert entries["bits"]["standard_error"] == pytest.approx(bits.std(ddof=1) / 10**0.5, abs=1e-6)

    rngs = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 4), i))(
        jnp.arange(300))
    eps = jax.vmap(lambda rng: jax.random.normal(rng, (8, 8, 1)))(rngs)
    t = np.arange(300) * 20 // 300
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.4, 20))[t][:, None, None, None]
    x_t = np.sqrt(alpha_bar) * (held_out / 127.5 - 1) + np.sqrt(1 - alpha_bar) * np.asarray(eps)
    apply = jax.jit(lambda x, t: trained.model.apply({"params": trained.params}, x, t, train=False))
    found_eps = np.asarray(apply(np.float32(x_t), t), np.float64)
    loss = np.mean((found_eps - np.asarray(eps)) ** 2)
    # Sums of 300 float32 losses, in another order.
    assert entries["held_out"]["value"] == pytest.approx(loss, rel=1e-5)


def test_finished_stages_are_not_repeated(small, recorded, capsys, monkeypatch):
    work(capsys, recorded)
    before = files(recorded)

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(loop, "train", never)
    monkeypatch.setattr(stages, "job_of", never)
    out = work(capsys, recorded)
    assert [f"{name}: already done" in out for name in STAGES] == [True] * 6
    del before["metrics.json"]
    assert before.items() <= files(recorded).items()


def test_a_stage_is_repeated_where_a_file_is_missing_or_the_numbers_changed(
    small, recorded, capsys
):
    work(capsys, recorded)
    before = metrics(recorded)["chain"]["files"]
    whole = samples(recorded, "chain")
    (recorded / "record" / before[-1]).unlink()
    out = work(capsys, recorded)
    assert out.count("already done") == 5 and "\nchain: " in out
    assert_array_equal(samples(recorded, "chain"), whole)
    out = work(capsys, recorded, ddim_images=20)
    assert out.count("already done") == 5 and "ddim_1_of_1.npz" in out
    assert not (recorded / "record/ddim_2_of_2.npz").exists()
    assert len(samples(recorded, "ddim")) == 20
    assert "chain: " not in work(capsys, recorded, ddim_images=20, chain_images=0)


def test_all_stages_are_repeated_for_another_checkpoint_of_the_same_step(
    small, recorded, capsys, monkeypatch
):
    work(capsys, recorded)
    load = run_folder.load_step

    def other(*arguments, **settings):
        step, trained = load(*arguments, **settings)
        return step, trained.replace(params=jax.tree.map(lambda x: x + 0.01, trained.params))

    monkeypatch.setattr(run_folder, "load_step", other)
    assert "already done" not in work(capsys, recorded)


def test_an_interrupted_stage_keeps_its_finished_rounds(small, recorded, capsys, monkeypatch):
    draw = sample_lib.stream
    rounds = []

    def interrupted(*args, done, **kwargs):
        for batch in draw(*args, done=done, **kwargs):
            yield batch
            rounds.append(done)
            if len(rounds) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(sample_lib, "stream", interrupted)
    more = dict(ddim_images=31)
    with pytest.raises(KeyboardInterrupt):
        work(capsys, recorded, "--config.sample.batch_size=8", **more)
    assert metrics(recorded)["ddim"]["images"] != 31
    work(capsys, recorded, "--config.sample.batch_size=8", **more)
    assert rounds == [0, 0, 16, 16]  # Both finished rounds were kept: 16 of 31 images.
    rng = jax.random.fold_in(jax.random.key(0), 2)
    with jax.default_matmul_precision("highest"):
        whole = ddpm_jax.sample(
            ddpm_jax.load(recorded), rng, 31, sampler="ddim", num_steps=20, output="uint8")
    assert_array_equal(samples(recorded, "ddim"), whole)


def test_stages_that_no_longer_fit_are_skipped_with_a_line(small, recorded, capsys, monkeypatch):
    work(capsys, recorded)
    (recorded / "record/chain.png").unlink()
    (recorded / "record/ddim.png").unlink()
    took = {"chain": 90.0, "ddim": 50.0}
    monkeypatch.setattr(stages.Stage, "seconds", lambda stage, speed, start: took[stage.name])
    monkeypatch.setattr(run, "time", types.SimpleNamespace(monotonic=lambda: 1000.0))
    out = work(capsys, recorded, total_minutes=1)
    assert "chain: skipped, would take about 1 min 30 s of the 1 min 00 s left; continue" in out
    assert f"python -m benchmarks.record.run --config={CONFIG} --workdir={recorded}" in out
    assert (recorded / "record/ddim.png").exists()
    assert not (recorded / "record/chain.png").exists()


def test_seconds_of_a_stage_are_its_calls_at_a_third_of_training_and_a_start():
    stage = stages.Stage("chain", None, 60, 1000)
    assert stage.seconds(images_per_second=500.0, starting=7.0) == 7 + 60_000 / 1500
    all_stages = stages.stages(1000, bits_images=3, ddim_images=5, chain_images=0)
    calls = {stage.name: (stage.num_images, stage.num_calls) for stage in all_stages}
    assert calls == {"weights": (1, 0), "held_out": (1, 1), "bits": (3, 1000), "ddim": (5, 50),
                     "process": (16, 1000)}


@pytest.fixture
def played(monkeypatch):
    """A clock by which each row of training takes one second."""
    monkeypatch.setattr(clock, "POLL", 0.001)
    monkeypatch.setattr(clock, "seconds", lambda rows, starts: (float(len(rows)), np.ones(1)))


ALONE = dict(bits_images=0, ddim_images=0, chain_images=0, minutes=5 / 60)
LONG = ["--config.train.num_steps=4000", "--config.train.sample_every=4000",
        "--config.train.checkpoint_every=4000"]


def test_training_ends_after_its_minutes_and_is_not_resumed(
    small, played, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(stages, "stages", lambda *_, **__: [])
    out = work(capsys, tmp_path, *LONG, **ALONE)
    step = checkpoints.steps(tmp_path)[-1]
    assert 10 <= step < 4000 and f"trained: {step:,} steps" in out and "continue with" not in out
    assert "starting at" not in work(capsys, tmp_path, *LONG, **ALONE)
    more = ALONE | dict(minutes=(step // 2 + 2) / 60)
    assert f"resuming at step {step:,}" in work(capsys, tmp_path, *LONG, **more)
    assert metrics(tmp_path)["starts"] == [0, step]
    assert metrics(tmp_path)["train"]["step"] > step


@pytest.mark.parametrize("total, says", [
    (6, " of 100 minutes; continue with: python"),
    (1, "no row is logged yet; continue with: python"),
])
def test_training_stops_before_the_command_ends(
    small, played, tmp_path, capsys, monkeypatch, total, says
):
    def monotonic():  # A minute per row.
        return 60.0 * len(read_metrics(tmp_path))

    monkeypatch.setattr(run, "time", types.SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(run, "TO_SAVE", 60.0)
    out = work(capsys, tmp_path, *LONG, total_minutes=total, **ALONE | dict(minutes=100))
    step = checkpoints.steps(tmp_path)[-1]
    assert 2 * (total - 1) <= step < 4000 and says in out
    assert "weights" not in metrics(tmp_path)


def test_another_signal_ends_the_command(small, tmp_path, capsys, monkeypatch):
    def interrupted(config, workdir):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(loop, "train", interrupted)
    with pytest.raises(SystemExit) as end:
        work(capsys, tmp_path)
    assert end.value.code == 143


def test_weights_are_read_back_rounded_to_bfloat16(tmp_path):
    model, shape = tiny_unet(), (8, 8, 1)
    config = run.config_of([
        f"--config={CONFIG}", "--config.model.channels=8", "--config.model.dropout=0.0",
        "--config.model.num_groups=0",
    ])
    params = nonzero_params(model)
    trained = Trained(params, model, schedule_lib.linear(), process.Parameterization(), shape)
    record = stages.Record(tmp_path, 90_000)
    job = Job(evaluate_lib.settings_of(config), 1, trained, tmp_path, False, None)
    record.add("train", {"config": json.loads(config.to_json())})
    record.add("weights", stages.weights(config, job, record, None))
    names = json.loads((tmp_path / "metrics.json").read_text())["weights"]["files"]
    sizes = [(tmp_path / name).stat().st_size for name in names]
    assert len(names) > 2 and max(sizes) <= 90_000
    again = stages.read_weights(tmp_path)
    assert (again.model, again.image_shape) == (model.copy(num_groups=None), shape)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(again.params), strict=True):
        assert_array_equal(after, before.astype(ml_dtypes.bfloat16).astype(np.float32), strict=True)
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    apply = jax.jit(lambda params: model.apply({"params": params}, x, np.full(2, 500), train=False))
    one, other = apply(params), apply(again.params)
    # Weights keep eight bits: each product moves by 0.4 %, their sum by less.
    assert 0 < np.abs(one - other).max() < 0.02 * np.abs(one).max()
    (tmp_path / names[0]).unlink()
    with pytest.raises(ValueError, match="weights_1_of"):
        stages.read_weights(tmp_path)


def test_a_file_that_is_too_long_is_refused(tmp_path):
    record = stages.Record(tmp_path, 2**19)
    (tmp_path / "long.gif").write_bytes(bytes(600_000))
    with pytest.raises(ValueError, match="--file_mib=0.5: long.gif has 0.6 MiB; write"):
        record.add("process", {"files": ["long.gif"]})
    assert record.metrics == {}


@pytest.mark.parametrize("name", settings.CANDIDATES)
def test_candidates_have_the_papers_network_and_objective(name):
    config, paper = settings.get_config(name), cifar10.get_config()
    validation.validate(config, num_devices=1)
    assert validation.warnings(config) == []
    assert config.model.dtype == "bfloat16"
    config.model.dtype = "float32"
    for group in ("data", "model", "diffusion", "sample"):
        assert config[group] == paper[group]
    own = {"batch_size", "learning_rate", "warmup_steps", "ema_decay", "ema_warmup"}
    changed = {key for key, value in config.train.items() if value != paper.train[key]}
    kept = {"checkpoint_every", "eval_every", "sample_every"}
    assert changed - kept == set(settings.CANDIDATES[name]) <= own
    # As many images per checkpoint at any batch size.
    assert config.train.checkpoint_every * config.train.batch_size == 256_000


def test_an_unknown_candidate_is_refused():
    with pytest.raises(ValueError, match="settings.py:best is not known; use one of paper, fast"):
        settings.get_config("best")


def entry(loss, each, **changed):
    config = cifar10.get_config()
    config.train.update(changed)
    bits = {"value": np.mean(each), "standard_error": np.std(each, ddof=1) / len(each) ** 0.5,
            "each": each, "protocol": {"num_images": len(each), "split": "test", "seed": 0}}
    train = {"step": 47_000, "minutes": 25.04, "images_per_second": 4012.0, "loss": loss,
             "device": "1 H200 (gpu)", "config": json.loads(config.to_json())}
    return {"train": train, "held_out": {"value": loss + 1e-3}, "bits": bits}


def test_records_stand_side_by_side():
    others = entry(0.0291, [3.8, 3.95, 3.9])
    others["bits"]["protocol"]["images"] = "sha256:0123456789abcdef"
    table = compare.table({
        "paper": entry(0.0295, [3.9, 4.1, 4.0]),
        "fast": entry(0.0291, [3.8, 3.95, 3.9], batch_size=256),
        "none": {"train": entry(0.03, [1.0, 1.0])["train"]},
        "few": entry(0.0291, [3.8, 3.95]), "others": others,
    })
    head, rule, *lines = [[cell.strip() for cell in line.split("|")[1:-1]]
                          for line in table.splitlines()]
    assert head[:2] == ["record", "train.batch_size"] and len(rule) == len(head) == 10
    paper, fast, none, few, others = (dict(zip(head, line, strict=True)) for line in lines)
    assert paper["bits/dim"] == "4.0000 +- 0.0577" and paper["difference"] == ""
    assert (paper["train.batch_size"], fast["train.batch_size"]) == ("128", "256")
    assert fast["held-out loss"] == "0.0301" and fast["steps"] == "47,000"
    assert fast["difference"] == "-0.1167 +- 0.0167"  # Of -0.1, -0.15 and -0.1.
    assert none["bits/dim"] == none["held-out loss"] == "none yet" and none["difference"] == ""
    assert few["difference"] == others["difference"] == "other images"


def test_records_that_do_not_compare_are_refused(tmp_path, capsys):
    other = entry(1.0, [1.0, 2.0])
    other["train"]["config"]["data"]["name"] = "digits"
    with pytest.raises(ValueError, match="b is of digits and a of cifar10"):
        compare.table({"a": entry(1.0, [1.0, 2.0]), "b": other})
    (tmp_path / "metrics.json").write_text("{}")
    for folder, says in ((tmp_path, "has no training row"),
                         (tmp_path / "none", "has no metrics.json")):
        with pytest.raises(SystemExit):
            compare.main([str(folder)])
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("more, says", [
    (["--minutes=0"], "--minutes=0 must be above 0; leave it out for 25."),
    (["--file_mib=-1"], "--file_mib=-1 must be above 0; leave it out for 16."),
    (["--config.train.batchsize=3"], "batchsize"),
    (["--config.train.batch_size=many"], "many"),
    (["more"], "'more' is not a flag; settings are --config.GROUP.NAME=VALUE."),
    (["--config.train.learning_rate=-1.0"], "config.train.learning_rate=-1"),
])
def test_mistakes_are_one_line(tmp_path, capsys, more, says):
    with pytest.raises(SystemExit) as end:
        run.main([f"--config={CONFIG}", f"--workdir={tmp_path}", *more])
    assert end.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
