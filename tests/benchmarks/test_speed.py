"""The comparison with other programs: turns, failures, medians, FLOPs, tables, and our own side.

`FAKE` stands in for the other programs and needs no framework.
"""

import argparse
import importlib
import json
import math
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nonzero import TinyNet, tiny_unet

from benchmarks.speed import compare, contest, flops, tables
from benchmarks.speed.contestants import ours
from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.workdir.logs import Logs

ROOT = pathlib.Path(__file__).parents[2]
# Writes its turns to a file. `dies`: the turn in which it fails; `seconds`: the time of each turn.
FAKE = """
import itertools, pathlib, sys
from benchmarks.speed import contest

numbers = itertools.count()

def prepare(task):
    def measure():
        with open(task["log"], "a") as log:
            log.write(task["name"])
        turn = next(numbers)
        if task.get("dies") == turn:
            raise RuntimeError("out of luck")
        return {"seconds": task["seconds"][turn % len(task["seconds"])], "count": 10}

    print("a library greets", flush=True)
    if task.get("dies") == "early":
        sys.exit("module 'torch' is missing")
    return {"parameters": task.get("parameters", 5), "flops": 100, "first_call": 2.0,
            "platform": task.get("platform", "cpu"), "device": "cpu",
            "versions": {task["name"]: "1.0"}}, measure

contest.serve(prepare, lambda: 2**30)
"""


@pytest.fixture
def fake(tmp_path):
    """(name, seconds, ...) -> a function that starts such a contestant."""
    (tmp_path / "fake.py").write_text(FAKE)

    def starts(name, seconds=(10.0,), **changes):
        task = {"name": name, "seconds": seconds, "log": str(tmp_path / "log")} | changes
        command = [sys.executable, str(tmp_path / "fake.py")]
        return lambda: contest.Contestant(command, task, {"PYTHONPATH": str(ROOT)}, tmp_path)

    return starts


def test_contestants_measure_in_turn(fake, tmp_path):
    results = contest.in_turn({
        "a": fake("a", seconds=(10.0, 20.0, 5.0)), "b": fake("b", parameters=6),
    }, rounds=3)
    assert (tmp_path / "log").read_text() == "ababab"
    assert results["a"]["seconds"] == [1.0, 2.0, 0.5] and results["b"]["seconds"] == [1.0] * 3
    assert (results["a"]["facts"]["parameters"], results["b"]["facts"]["parameters"]) == (5, 6)
    assert results["a"]["peak_bytes"] == 2**30


def test_one_that_fails_is_a_line_and_the_others_go_on(fake, tmp_path):
    results = contest.in_turn({
        "early": fake("e", dies="early"), "late": fake("l", dies=1), "sound": fake("s"),
        "missing": lambda: contest.Contestant(["/no/python"], {}, {}, tmp_path),
    }, rounds=3)
    assert (tmp_path / "log").read_text() == "lslss"
    assert results["early"] == {"failed": "status 1: module 'torch' is missing"}
    assert results["late"] == {"failed": "status 1: RuntimeError: out of luck"}
    assert "No such file" in results["missing"]["failed"]
    assert results["sound"]["seconds"] == [1.0] * 3


def test_processes_end_with_the_contest(fake, monkeypatch):
    """An interrupted contest, too."""
    there = []

    def starts():
        there.append(fake("a")())
        return there[-1]

    contest.in_turn({"a": starts}, rounds=1)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        contest.in_turn({"a": starts, "b": interrupted}, rounds=1)
    assert [contestant.process.poll() is None for contestant in there] == [False, False]


def test_a_contestant_knows_how_long_it_took_to_be_ready(fake):
    began = contest.time.perf_counter()
    with fake("a")() as contestant:
        assert 0 < contestant.seconds <= contest.time.perf_counter() - began


@pytest.mark.parametrize("takes, fewest, calls", [(0.75, 2, 3), (5.0, 2, 2), (5.0, 1, 1)])
def test_a_stretch_has_its_length_and_waits(monkeypatch, takes, fewest, calls):
    """Of calls that take `takes` seconds each, with 0.5 s of waiting after the last."""
    clock = [100.0]
    monkeypatch.setattr(contest, "SECONDS", 2.0)
    monkeypatch.setattr(
        contest, "time", types.SimpleNamespace(perf_counter=lambda: clock[0])
    )

    def passes(seconds):
        clock[0] += seconds

    measure = contest.stretch(lambda: passes(takes), 8, lambda: passes(0.5), fewest)
    for _ in range(2):  # No stretch counts calls of the one before.
        assert measure() == {"seconds": calls * takes + 0.5, "count": 8 * calls}


def test_medians_are_of_rates():
    assert contest.summary([0.5, 1.0, 0.125]) == {"median": 2.0, "low": 1.0, "high": 8.0}


# FLOPs: a multiplication and an addition are two.


def test_flops_of_products_and_convolutions():
    x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))

    def convolved(x, w, stride=1):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    one = 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)
    assert flops.count(convolved, x, w) == one
    assert flops.count(lambda x: convolved(x, w, stride=2), x) == one // 4
    q = jnp.ones((2, 7, 4))
    scores = 2 * (2 * 7 * 7) * 4
    assert flops.count(lambda q: jnp.einsum("bnc,bmc->bnm", q, q), q) == scores
    assert flops.count(lambda q: q @ jnp.ones((4, 6)) + 1, q) == 2 * (2 * 7 * 6) * 4


def test_flops_inside_of_other_programs():
    a = jnp.ones((4, 4))

    def chain(a):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, a), None), a, length=5)[0]

    assert flops.count(chain, a) == 5 * 2 * 4**3
    assert flops.count(jax.vmap(jax.checkpoint(chain)), a[None]) == 5 * 2 * 4**3


def test_flops_of_a_gradient_are_three_forward_passes():
    w = jnp.ones((4, 4))

    def loss(w):  # Two products with the weights, neither of the input.
        return jnp.sum(((w @ w) @ w) ** 2)

    assert flops.count(jax.grad(loss), w) == flops.TRAINING * flops.count(loss, w)


def test_flops_of_a_network_are_those_xla_counts():
    """Except for norms and activations, which are a large share with 8 channels."""
    model = tiny_unet()
    x, t = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1,), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x, t, train=False))

    def forward(params, x, t):
        return model.apply(params, x, t, train=False)

    counted = flops.count(forward, params, x, t)
    xla = jax.jit(forward).lower(params, x, t).cost_analysis()["flops"]
    # XLA leaves out the taps of a convolution that fall on padding, up to a third at 4x4.
    assert 0.7 * counted < xla < 1.3 * counted


def test_flops_of_a_choice_are_those_of_its_default():
    """A GPU's branch is not counted beside that of all others."""
    def product(x):
        return x @ x

    def choice(x):
        return jax.lax.platform_dependent(x, cuda=lambda x: product(x) @ x, default=product)

    x = jnp.ones((3, 3))
    assert flops.count(choice, x) == flops.count(product, x) == 2 * 27


@pytest.mark.parametrize("network, counted", [
    ("cifar10", 12_443_713_536), ("digits", 32_366_592),
])
def test_flops_of_a_network_are_those_pytorch_counts(network, counted):
    """`torch.utils.flop_counter` (torch 2.13.0) on `UNet2DModel` (diffusers 0.42.1), one image.

    `benchmarks/speed/contestants/pytorch.py` reports these. Ours has more: the first pixel, mean
    and mean square of a norm's groups are products with a [c, c] matrix.
    """
    config = importlib.import_module(f"configs.{network}").get_config()
    shape = config_lib.image_shape(config)
    model = config_lib.model(config, shape[-1])
    x, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)

    def forward(x, t):
        return model.init_with_output(jax.random.key(0), x, t, train=False)

    params = jax.tree_util.tree_leaves_with_path(jax.eval_shape(forward, x, t)[1])
    norms = [leaf.size for path, leaf in params if path[-1].key == "scale"]
    assert flops.count(forward, x, t) == counted + sum(3 * 2 * c**2 for c in norms)


# The driver and its tables.


@pytest.mark.parametrize("network, parameters", [("cifar10", 35_746_307), ("digits", 701_345)])
def test_peers_get_the_same_network(network, parameters):
    facts = compare.network_facts(network, dropout=0.25, dtype="bfloat16")
    json.dumps(facts)  # It goes through a pipe.
    assert facts["parameters"] == parameters
    assert facts["unet"]["dropout"] == facts["settings"]["model.dropout"] == 0.25
    assert facts["settings"]["model.dtype"] == "bfloat16"
    config = ours.config_of(facts | {"batch_size": 24})
    assert (config.train.batch_size, config.model.dropout) == (24, 0.25)
    groups = config.model.num_groups or 32  # In every norm of the large network.
    assert facts["unet"]["norm_num_groups"] == groups
    facts = compare.network_facts("cifar10", None, "float32")
    assert facts["unet"]["dropout"] == 0.1  # The paper's.


def test_a_network_of_other_settings():
    plain = compare.network_facts("fashion_mnist", None, "float32")
    assert plain["parameters"] == 1_623_169 and plain["shape"] == (1, 28, 28)
    overrides = [compare.override(text) for text in (
        "data.image_size=24", "model.channel_multipliers=(1, 2)",
        "model.attention_resolutions=(12,)", "model.downsample_padding=symmetric",
    )]
    facts = compare.network_facts("fashion_mnist", None, "float32", overrides)
    config = ours.config_of(facts | {"batch_size": 8})
    assert config.model.downsample_padding == "symmetric" and facts["shape"] == (1, 24, 24)
    assert facts["unet"]["block_out_channels"] == (32, 64) and facts["unet"]["sample_size"] == 24
    with pytest.raises(argparse.ArgumentTypeError, match="'x' must be GROUP.NAME=VALUE"):
        compare.override("x")


def test_the_small_suite_and_choices_of_the_full_one():
    def chosen(suite, tasks=compare.TASKS, networks=compare.NETWORKS, batch_sizes=(8, 32)):
        return list(compare.cases(types.SimpleNamespace(
            suite=suite, tasks=tasks, networks=networks, batch_sizes=batch_sizes
        )))

    assert sorted(case[:2] for case in chosen("small", batch_sizes=(8,))) == sorted(compare.SMALL)
    assert len(chosen("full")) == 2 * (5 * 2 + 3)  # Checkpoints, rows and starts have no batch.
    digits = [("train", "digits", 8), ("train", "digits", 32)]
    assert chosen("full", ["train"], ["digits"]) == digits
    assert chosen("small", ["train"], ["digits"]) == []
    others = [(task, "lsun_cat256", 8) for task in ("train", "ancestral")]
    assert chosen("small", networks=["lsun_cat256"], batch_sizes=(8,)) == others


def entry(who, mode, seconds, **facts):
    return {
        "who": who, "mode": mode, "seconds": seconds, "peak_bytes": 3 * 2**29, "facts": facts,
    }


def match(task="train", **changed):
    return {"task": task, "network": "cifar10", "batch_size": 8, "calls": 1, "dropout": 0.1,
            "entries": [
                entry("ours", "", [0.5, 0.25, 1.0], flops=10, parameters=1234, first_call=9.5),
                entry("diffusers_", "eager", [4.0]), entry("diffusers_", "compiled", [1.0]),
                {"who": "lucidrains_", "mode": "eager", "failed": "no luck"},
            ]} | changed


ABOUT = {
    "ours": {"platform": "cpu", "device": "cpu", "versions": {"jax": "1"},
             "peak": {"float32": 150.0}},
    "diffusers_": {"platform": "cpu", "device": "cpu", "versions": {"torch": "2"},
                   "peak": {"float32": 200.0}},
}


def rows(table):
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in table.splitlines() if line.startswith("|")]


def test_ratios_are_to_the_fastest_other():
    best, times = tables.fastest_other(match())
    assert (best["mode"], times) == ("compiled", 2.0)
    assert tables.ratio_row(match()) == (
        "| train | cifar10 | 8 | 2.00 | diffusers, compiled |"
    )
    alone = match(entries=match()["entries"][:1])
    assert tables.fastest_other(alone) == (None, None)
    assert len(rows(tables.ratio_row(alone))[0]) == 5


def test_a_row_has_rate_share_of_peak_memory_and_first_call():
    table = rows(tables.match_table(match(), ABOUT, "float32"))
    # 2 images/s of 3 x 10 FLOP, of the larger peak, 200 FLOP/s.
    assert table[2] == [
        "ddpm_jax", "2", "1 to 4", "1.00", "6e-08", "30%", "1.50", "9.5", "1,234"
    ]
    assert table[3][:4] == ["diffusers, eager", "0.25", "0.25 to 0.25", "8.00"]
    assert table[5][:2] == ["denoising_diffusion_pytorch, eager", "failed: no luck"]
    assert {len(row) for row in table} == {9}


def test_flops_of_samples_are_those_of_their_calls():
    sampled = match("ddim", calls=50)
    table = rows(tables.match_table(sampled, ABOUT, "float32"))
    assert table[2][4:6] == ["1e-06", "500%"]  # 2 images/s of 50 x 10 FLOP


def test_starts_and_saves_are_in_seconds():
    saved = match("checkpoint")
    saved["entries"][0]["facts"]["on_disk"] = 7.25
    table = tables.match_table(saved, ABOUT, "float32")
    assert rows(table)[0][1] == "seconds"
    assert rows(table)[2][1:4] == ["0.5", "0.25 to 1", "1.00"]
    assert "Until everything is on disk: ddpm_jax 7.25 s." in table


def fake_program(monkeypatch, tmp_path, **changed):
    """Makes every contestant `FAKE`, with the task changed by `changed[module]`."""
    (tmp_path / "fake.py").write_text(FAKE)
    real = compare.started

    def started(module, peers, task, caches):
        played = {"name": module, "seconds": [2.0 if module == "ours" else 4.0],
                  "log": str(tmp_path / "log")} | changed.get(module, {})
        return real(module, peers, task | played, caches)

    monkeypatch.setattr(compare, "started", started)
    monkeypatch.setattr(
        compare, "command", lambda module, peers: [sys.executable, str(tmp_path / "fake.py")]
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)  # Of the driver's process.


def run(monkeypatch, tmp_path, *flags):
    monkeypatch.setattr(sys, "argv", ["speed", f"--results={tmp_path / 'results'}", *flags])
    compare.main()
    stem = tmp_path / "results" / "speed_cpu"
    return json.loads(stem.with_suffix(".json").read_text()), stem.with_suffix(".md").read_text()


def test_the_whole_with_fake_programs(monkeypatch, tmp_path, capsys):
    fake_program(monkeypatch, tmp_path, lucidrains_={"dies": "early"})
    results, page = run(monkeypatch, tmp_path, "--rounds=2", "--networks=cifar10")
    tasks = [entry["task"] for entry in results["matches"]]
    assert tasks == ["train", "ancestral", "data", "checkpoint", "start, cold cache",
                     "start, warm cache"]
    assert results["absent"] == {"lucidrains_": "status 1: module 'torch' is missing"}
    assert "denoising_diffusion_pytorch was left out: status 1: module 'torch' is missing" in page
    train, started = results["matches"][0], results["matches"][4]
    assert [(entry["who"], entry["mode"], entry["seconds"]) for entry in train["entries"]] == [
        ("ours", "", [0.2, 0.2]), ("diffusers_", "channels_last", [0.4, 0.4]),
        ("diffusers_", "compiled", [0.4, 0.4]),
    ]
    assert (train["calls"], results["matches"][1]["calls"]) == (1, 10)
    assert "| train | cifar10 | 8 | 2.00 |" in page
    assert all(0 < entry["seconds"][0] < 60 and len(entry["seconds"]) == 1
               for entry in started["entries"])
    assert results["command"].startswith("python -m benchmarks.speed --results=")
    assert results["command"] in page and results["machine"]["processor"] in page
    assert "| train | cifar10" not in capsys.readouterr().out  # Printed when it was done.


def test_a_peer_on_another_device_is_left_out(monkeypatch, tmp_path):
    fake_program(monkeypatch, tmp_path, diffusers_={"platform": "gpu"})
    results, page = run(
        monkeypatch, tmp_path, "--rounds=1", "--tasks=train", "--networks=cifar10"
    )
    assert results["absent"] == {"diffusers_": "it runs on gpu here, and ours on cpu"}
    who = [entry["who"] for entry in results["matches"][0]["entries"]]
    assert who == ["ours", "lucidrains_"] and set(results["about"]) == {"ours", "lucidrains_"}


def test_mistakes_are_one_line(monkeypatch, tmp_path, capsys):
    fake_program(monkeypatch, tmp_path)
    for flags, says in (
        (["--tasks=trian"], "'trian' is not known; use some of train,"),
        (["--tasks=train", "--networks=digits", "--rounds=1"], "write --suite=full"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, tmp_path, *flags)
        assert says in capsys.readouterr().err


def test_caches_are_cold_and_then_warm(monkeypatch, tmp_path):
    """Each contestant and round has its own folder, the same for the cold and the warm start."""
    seen = []

    class Contestant:
        seconds = 1.0

        def __init__(self, command, task, env, folder):
            caches = [env["JAX_COMPILATION_CACHE_DIR"], env["TORCHINDUCTOR_CACHE_DIR"]]
            seen.append((command[2], caches))
            assert folder == ROOT and env["HOME"] and task["mode"] in ("", "eager")

        def ask(self, what):
            return {"peak_bytes": 1}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setenv("HOME", "/home")
    monkeypatch.setattr(contest, "Contestant", Contestant)
    by_cache = compare.starts({}, [("ours", ""), ("diffusers_", "eager")], "python", rounds=2)
    modules = ["ours"] * 2 + ["diffusers_"] * 2
    assert [module for module, _ in seen] == [
        f"benchmarks.speed.contestants.{name}" for name in modules * 2
    ]
    folders = [tuple(caches) for _, caches in seen]
    assert folders[::2] == folders[1::2] and len(set(folders)) == 4
    assert all(len(entry["seconds"]) == 2 for cache in by_cache.values()
               for entry in cache.values())


# Our own side, with a network of three layers.


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(config_lib, "model", lambda config, channels: TinyNet())
    monkeypatch.setattr(validation, "check_images", lambda config, shape: None)
    monkeypatch.setattr(contest, "SECONDS", 0.0)


def our_task(task, **settings):
    return {"task": task, "network": "digits", "batch_size": 16, "calls": 3,
            "settings": {"diffusion.num_timesteps": 20} | settings}


@pytest.mark.parametrize("task, counted", [
    ("train", 2 * 16), ("ancestral", 16), ("ddim", 16), ("bits_per_dim", 16),
])
def test_our_tasks_count_their_images(tiny, task, counted):
    facts, measure = ours.prepare(our_task(task))
    conv = 2 * 8 * 8 * 9 * (1 * 4 + 4 * 1)
    assert facts["parameters"] == 9 * 4 + 4 + 2 * 4 + 9 * 4 + 1
    assert facts["flops"] == conv + 2 * 4 and facts["first_call"] > 0
    measured = measure()
    assert measured["count"] == counted and measured["seconds"] > 0


def test_training_continues_and_starting_makes_one_step(tiny, monkeypatch):
    made = []
    real = ours.compilation.compiled

    def counted(lowered):
        step_fn = real(lowered)

        def step(state, batch, rng):
            state, metrics = step_fn(state, batch, rng)
            made.append((int(state.step), float(metrics["loss"])))
            assert jax.tree.leaves(batch)[0].shape[:2] == (8, 2)
            return state, metrics

        return step

    monkeypatch.setattr(ours.compilation, "compiled", counted)
    assert ours.prepare(our_task("start"))[0] == {}
    assert [step for step, _ in made] == [1]
    made.clear()
    ours.prepare(our_task("train"))[1]()
    assert [step for step, _ in made] == [1, 2, 3]
    assert all(math.isfinite(loss) for _, loss in made)


def test_sampling_makes_as_many_calls_as_the_task_says(tiny, monkeypatch):
    calls = []
    monkeypatch.setattr(
        ours.ddpm_jax, "sample",
        lambda trained, rng, n, **settings: calls.append((n, settings)) or np.zeros(n),
    )
    ours.prepare(our_task("ddim"))
    assert calls == [(16, {"sampler": "ddim", "num_steps": 3})]
    bits = []
    monkeypatch.setattr(
        ours.ddpm_jax, "bits_per_dim",
        lambda trained, rng, pixels: bits.append((trained.schedule.num_timesteps, pixels.shape)),
    )
    ours.prepare(our_task("bits_per_dim"))
    assert bits == [(3, (16, 8, 8, 1))]


def test_our_batches_and_saves(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(ours, "NUM_IMAGES", 100)
    assert ours.prepare(our_task("data"))[1]()["count"] == 32
    facts, measure = ours.prepare(our_task("checkpoint"))
    measured = measure()
    assert 0 < measured["seconds"] < measured["on_disk"] and measured["count"] == 1
    assert facts["on_disk"] > 0


def test_our_rows(tiny, monkeypatch, capsys):
    rows, write = [], Logs.write
    monkeypatch.setattr(
        Logs, "write", lambda self, step, row: rows.append(row) or write(self, step, row)
    )
    _, measure = ours.prepare(our_task("logging"))
    measured = measure()
    assert measured["count"] == 2 == len(rows) and measured["seconds"] > 0
    assert np.isfinite(rows[0]["loss"]) and {"grad_norm", "images_per_second"} <= set(rows[0])
    assert capsys.readouterr().out.count("step 1 of 2") == 2  # The line that a user sees.


def test_our_peak_is_of_a_product(monkeypatch):
    monkeypatch.setattr(contest, "SECONDS", 0.0)
    monkeypatch.setattr(ours, "product_size", lambda platform: {"cpu": 8}[platform])
    facts, measure = ours.prepare({"task": "peak", "dtype": "bfloat16"})
    assert facts["platform"] == "cpu" and facts["versions"]["jax"] == jax.__version__
    assert measure()["count"] == 2 * 2 * 8**3


def test_peak_memory_is_that_of_the_process_where_the_device_keeps_no_count():
    mine = contest.resident_peak()
    assert 50 * 2**20 < mine == ours.peak_bytes()
