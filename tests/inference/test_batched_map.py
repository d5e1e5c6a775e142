"""Batches have equal sizes, parts that run at the same time, and one bar."""

import os
import signal
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tqdm

import ddpm_jax
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.inference import batched_map
from ddpm_jax.runtime import devices, parallel
from nonzero import SHAPE, TinyNet, nonzero_params

PATIENCE = 60  # Seconds that a test waits before it fails.


@pytest.fixture
def cores(monkeypatch):
    """Sets the number of cores, and so of parts, on eight devices: as if each had its own."""
    return lambda num: monkeypatch.setattr(batched_map, "cores", lambda: num)


@pytest.fixture(scope="module")
def trained():
    model = TinyNet()
    return ddpm_jax.Trained(
        nonzero_params(model), model, schedule_lib.linear(6, 1e-2, 0.6),
        process.Parameterization(), SHAPE,
    )


def doubling(called=lambda: None, num_steps=2):
    """A chain of two steps that doubles and adds; `called` runs once in every part."""
    report = batched_map.on_step(num_steps, progress=True)

    def chain(more, x):
        first = jax.lax.axis_index(parallel.AXIS) == 0
        jax.lax.cond(first, lambda: jax.debug.callback(called), lambda: None)
        jax.lax.scan(lambda _, t: (None, report(t)), None, jnp.arange(num_steps)[::-1])
        return {"doubled": 2 * x + more, "shape": jnp.ones_like(x) * len(x)}

    return jax.pmap(chain, axis_name=parallel.AXIS, in_axes=(None, 0))


def run(chain, n, batch, progress=False, **kwargs):
    """The batches of a chain of `doubling`."""
    return list(batched_map.run(
        chain, (jnp.float32(0.5),), lambda places: (np.float32(places),), n, batch,
        num_steps=2, progress=progress, **kwargs,
    ))


# Sizes.


@pytest.mark.parametrize("n, wanted, batch", [
    (1, None, 8), (8, None, 8), (9, None, 16), (2048, None, 2048), (2049, None, 1032),
    (20, 8, 8), (20, 16, 16), (17, 16, 16), (33, 32, 24), (20, 3, 8), (5, 100, 8),
])
def test_batches_are_of_equal_size(trained, n, wanted, batch):
    """The fewest batches, and of these the least padding to eight devices."""
    assert batched_map.batch_size(trained, n, wanted) == batch


@pytest.mark.parametrize("n, num_cores, each, num_parts", [
    (1, 4, 1, 1), (16, 4, 2, 2), (24, 2, 3, 1), (24, 4, 3, 3), (32, 4, 4, 4), (48, 4, 6, 3),
    (64, 4, 8, 4), (56, 4, 7, 1), (8 * 15, 2, 15, 1), (8 * 17, 2, 18, 2), (8 * 31, 4, 31, 1),
    (8 * 33, 4, 36, 4),
])
def test_a_batch_has_a_part_for_each_core_where_that_costs_little(
    trained, cores, n, num_cores, each, num_parts
):
    """Parts are equal; from eight images per core each is padded by one if necessary."""
    cores(num_cores)
    batch = batched_map.batch_size(trained, n, n)
    assert batch == 8 * each and batched_map.num_parts(batch) == num_parts


def test_few_large_images_go_through_at_a_time():
    def batch(size, channels):
        model = types.SimpleNamespace(channels=channels)
        large = types.SimpleNamespace(image_shape=(size, size, 3), model=model)
        return batched_map.batch_size(large, 10_000)

    assert batch(32, 128) > batch(64, 128) > batch(256, 128) > batch(256, 512) == 8
    assert batch(2048, 512) == 8  # At least one per device.


@pytest.mark.parametrize("platform, num_devices, expected", [
    ("cpu", 1, 6), ("cpu", 2, 1), ("gpu", 1, 1),
])
def test_the_cores_are_those_of_one_cpu(monkeypatch, platform, num_devices, expected):
    cores = set(range(6))
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda pid: cores, raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: num_devices)
    assert batched_map.cores() == expected
    monkeypatch.delattr(devices.os, "sched_getaffinity")
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 6)
    assert batched_map.cores() == expected


# Parts.


@pytest.mark.parametrize("num_cores, each", [(1, 3), (2, 3), (3, 1)])
def test_every_image_has_its_place(cores, num_cores, each):
    """In one part of three images per device, or in three parts of one."""
    cores(num_cores)
    batches = run(doubling(), 40, 24)
    assert [len(part["doubled"]) for part in batches] == [24, 16]
    doubled = np.concatenate([part["doubled"] for part in batches])
    np.testing.assert_array_equal(doubled, 2 * np.arange(40) + 0.5)
    assert set(np.concatenate([part["shape"] for part in batches])) == {each}


def test_images_left_out_are_not_read(cores):
    cores(3)
    batches = run(doubling(), 40, 24, done=30)
    np.testing.assert_array_equal(batches[0]["doubled"], 2 * np.arange(30, 40) + 0.5)


def test_samples_do_not_depend_on_the_cores(trained, cores):
    """Except for rounding: four images per device, at once and in two or four parts."""
    images = {}
    for num_cores in (1, 2, 4):
        cores(num_cores)
        images[num_cores] = ddpm_jax.sample(trained, 0, 32)
    assert np.std(images[1], axis=0).min() > 0.01
    for num_cores in (2, 4):
        # Six steps of a tiny network whose sums are in another order.
        np.testing.assert_allclose(images[num_cores], images[1], rtol=1e-5, atol=1e-5)


MEETING = """
import threading

import jax
import numpy as np

from ddpm_jax.inference import batched_map
from ddpm_jax.runtime import devices, parallel

batched_map.cores = lambda: 3
meeting, compiled, counts = threading.Barrier(3, timeout={patience}), [], []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None)


def chain(more, x):
    jax.debug.callback(meeting.wait)
    return x + more


chain = jax.pmap(chain, axis_name=parallel.AXIS, in_axes=(None, 0))
for _ in range(2):
    batches = batched_map.run(
        chain, (np.float32(1),), lambda places: (np.float32(places),), 9, 6, num_steps=1,
        progress=False)
    assert np.concatenate(list(batches)).tolist() == list(range(1, 10))
    counts.append(len(compiled))
print(*counts)
"""


def test_parts_run_at_the_same_time_and_are_compiled_once():
    """On one device: each program waits until all three run, in the first batch too."""
    done = subprocess.run(
        [sys.executable, "-c", MEETING.format(patience=PATIENCE)], capture_output=True, text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
    )
    assert done.stdout == "1 1\n", done.stderr


def test_parts_are_compiled_under_the_callers_settings(cores):
    """Evaluation needs exact products after training has sampled with fast ones."""
    cores(3)

    def precision(more, x):
        return x + more + (jax.config.jax_default_matmul_precision == "highest")

    chain = jax.pmap(precision, axis_name=parallel.AXIS, in_axes=(None, 0))
    for name, expected in (("default", 0.5), ("highest", 1.5), ("default", 0.5)):
        with jax.default_matmul_precision(name):
            np.testing.assert_array_equal(run(chain, 24, 24)[0], np.arange(24) + expected)


class Recording:
    """A compiled chain that notes the threads which start its program."""

    def __init__(self, chain):
        self.chain, self.started = chain, []

    def lower(self, *args):
        return types.SimpleNamespace(compile=lambda: self.start)

    def start(self, *args):
        self.started.append(threading.get_ident())
        return self.chain(*args)


def test_each_part_is_started_by_a_thread_of_its_own(cores):
    """Programs that one thread starts run in turn, though the start itself may take no time."""
    cores(3)
    chain = Recording(doubling())
    run(chain, 48, 24)
    assert len(chain.started) == 6 and len(set(chain.started)) == 3


@pytest.mark.parametrize("num_cores", [1, 3])
def test_an_error_in_a_part_is_raised_and_the_next_call_works(cores, num_cores):
    cores(num_cores)
    raised = []

    def fail():
        if not raised:
            raised.append(True)
            raise ValueError("of a callback")

    chain = doubling(fail)
    with pytest.raises(Exception, match="of a callback"):
        run(chain, 24, 24)
    np.testing.assert_array_equal(run(chain, 24, 24)[0]["doubled"], 2 * np.arange(24) + 0.5)


def test_an_interrupt_does_not_wait_for_the_end_of_a_chain(cores):
    cores(3)
    begun, going_on, ended = [], threading.Event(), []

    def interrupted():
        begun.append(True)
        if len(begun) == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        ended.append(going_on.wait(PATIENCE))

    # A process started in the background of a shell ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(doubling(interrupted), 24, 24)
        assert not ended
    finally:
        signal.signal(signal.SIGINT, before)
        going_on.set()


# The bar.


@pytest.mark.parametrize("num_cores", [1, 3])
def test_a_bar_goes_to_its_end_and_no_further(cores, num_cores, capsys, terminal):
    """Two batches of two steps, whether in one part or in three."""
    cores(num_cores)
    run(doubling(), 40, 24, progress=True)
    shown = capsys.readouterr().err
    assert "4/4" in shown and "5/" not in shown and "6/" not in shown
    run(doubling(), 40, 24)
    assert not capsys.readouterr().err


def test_a_bar_goes_by_the_part_that_is_ahead(capsys):
    """Reports of two parts, of four steps each, in any order."""
    running = batched_map.RunningBar()
    with tqdm.tqdm(total=8) as bar:
        for before in (0, 4):
            assert bar.n == before
            with running.moves(bar):
                for num_steps, n in ((1, 1), (1, 1), (2, 2), (1, 2), (4, 4), (3, 4), (4, 4)):
                    running.reached(num_steps)
                    assert bar.n == before + n


def test_a_bar_is_moved_in_its_context_alone(capsys):
    """After an inner context, even with an error, the outer bar moves again; later none does."""
    running = batched_map.RunningBar()
    with tqdm.tqdm(total=4) as outer, tqdm.tqdm(total=4) as inner:
        with running.moves(outer):
            with pytest.raises(KeyError), running.moves(inner):
                running.reached(3)
                raise KeyError
            running.reached(1)
        running.reached(4)
        assert (outer.n, inner.n) == (1, 3)


def test_batches_within_batches_leave_the_bar_alone(capsys, terminal):
    """Samples go through Inception between two batches of their own chain."""
    def chain(x):
        report = batched_map.on_step(2, progress=True)
        jax.lax.scan(lambda _, t: (None, report(t)), None, jnp.arange(2))
        return x

    outer = jax.pmap(chain, axis_name="batch")
    inner = jax.pmap(lambda x: 2 * x, axis_name="batch")
    doubled = []
    for x in batched_map.run(
        outer, (), lambda places: (np.float32(places),), 20, 8, num_steps=2, progress=True
    ):
        doubled += [
            y for y in batched_map.run(
                inner, (), lambda places: (x[places],), len(x), 8, num_steps=1, progress=False)
        ]
    np.testing.assert_array_equal(np.concatenate(doubled), 2 * np.arange(20))
    assert "6/6" in capsys.readouterr().err
