"""This package as a contestant: `python -m benchmarks.speed.contestants.ours`, see `contest.py`.

Training is `pmap_train_step` in a loop like that of `train`. Sampling and bits/dim are the public
functions.
"""

import collections
import importlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

import ddpm_jax
from benchmarks.speed import flops
from benchmarks.speed.contest import product_size, resident_peak, serve, stretch, timed
from ddpm_jax import config as config_lib
from ddpm_jax.data import batching, pixels
from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import randomness
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.runtime import compilation, devices, parallel
from ddpm_jax.training import loop
from ddpm_jax.training import run as run_lib
from ddpm_jax.training import sharding
from ddpm_jax.training import state as state_lib
from ddpm_jax.training.step import pmap_train_step
from ddpm_jax.workdir.checkpoints import Checkpoints, library_versions
from ddpm_jax.workdir.logs import Logs, Rate

NUM_IMAGES = 50_000  # In the data task, as in CIFAR-10.


def prepare(task):
    return TASKS[task["task"]](task)


def config_of(task):
    """The network's config with the task's batch, dropout and precision."""
    config = importlib.import_module(f"configs.{task['network']}").get_config()
    config.update_from_flattened_dict(task["settings"])
    config.train.batch_size = task["batch_size"]
    return config


def run_of(task):
    config = config_of(task)
    shape = config_lib.image_shape(config)
    images = np.random.default_rng(0).integers(0, 256, (task["batch_size"], *shape), np.uint8)
    return run_lib.prepare(config, None, images)


def trained_of(run, schedule):
    return trained_lib.Trained(
        run_lib.fresh_state(run).params, run.model, schedule,
        run.step_settings.parameterization, run.source.image_shape,
    )


def network_facts(run, params, first):
    """The facts about the network of a task, with the seconds of its first call."""
    x = jax.ShapeDtypeStruct((1, *run.source.image_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    forward = flops.count(lambda x, t: run.model.apply({"params": params}, x, t, train=False), x, t)
    return {"parameters": trained_lib.num_params(params), "flops": forward, "first_call": first}


def program(task):
    """The run, its training step and the step's inputs: the state as held, a batch, the key."""
    run = run_of(task)
    step_fn = pmap_train_step(
        schedule=run.schedule, learning_rate=run.learning_rate, settings=run.step_settings
    )
    batch = parallel.shard(run.source.examples(np.arange(task["batch_size"])))
    (state,) = sharding.hold(run_lib.fresh_state(run), shard_update=False)
    return run, step_fn, state, batch, run.rng(randomness.STEP)


def steps(task):
    """The run and a function that makes one training step with its batch."""
    run, step_fn, state, *inputs = program(task)
    compiled = None

    def step():
        nonlocal state, compiled
        compiled = compiled or compilation.ahead(step_fn, state, *inputs)
        state, metrics = compiled(state, *inputs)
        return state, metrics

    return run, step


def start(task):
    """Is ready after the first step; the driver measures the time."""
    jax.block_until_ready(steps(task)[1]())
    return {}, lambda: {}


def train(task):
    run, step = steps(task)
    (state, _), first = timed(lambda: jax.block_until_ready(step()))
    params = sharding.whole((state,), "params").params
    facts, in_flight = network_facts(run, params, first), collections.deque()
    del state  # It is donated to the next step.

    def call():
        in_flight.append(step()[1])
        if len(in_flight) > loop.IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())

    return facts, stretch(call, task["batch_size"], lambda: jax.block_until_ready(list(in_flight)))


def sampling(task):
    devices.check()  # Before training would, which starts them otherwise.
    run, batch_size = run_of(task), task["batch_size"]
    trained = trained_of(run, run.schedule)

    def draw():
        return ddpm_jax.sample(
            trained, 0, batch_size, sampler=task["task"], num_steps=task["calls"]
        )

    _, first = timed(draw)
    return network_facts(run, trained.params, first), stretch(draw, batch_size, fewest=1)


def bits_per_dim(task):
    devices.check()
    run, batch_size = run_of(task), task["batch_size"]
    config = config_of(task)
    config.diffusion.num_timesteps = task["calls"]
    trained = trained_of(run, config_lib.schedule(config))
    images = run.source.examples(np.arange(batch_size))["images"]

    def measured():
        return ddpm_jax.bits_per_dim(trained, 0, images)

    _, first = timed(measured)
    return network_facts(run, trained.params, first), stretch(measured, batch_size, fewest=1)


def batches(task):
    """Shuffled batches as floats on the device."""
    shape = config_lib.image_shape(config_of(task))
    images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, *shape), np.uint8)
    source = source_lib.from_array(images)
    shuffled = batching.batches(source, seed=0, batch_size=task["batch_size"])
    as_float = jax.jit(pixels.to_float)

    def call():
        return jax.block_until_ready(as_float(next(shuffled)["images"]))

    _, first = timed(call)
    return {"first_call": first}, stretch(call, task["batch_size"])


def checkpoint(task):
    """Measures how long `save` blocks the loop, and as `on_disk` how long until all is written."""
    run = run_of(task)
    state = parallel.replicate(run_lib.fresh_state(run))

    def measure():
        with tempfile.TemporaryDirectory() as folder:
            with Checkpoints(folder) as saved:
                began = time.perf_counter()
                saved.save(1, state_lib.to_saved(state), run.metadata())
                stalled = time.perf_counter() - began
            on_disk = time.perf_counter() - began
        return {"seconds": stalled, "count": 1, "on_disk": on_disk}

    first = measure()["on_disk"]
    return {"parameters": trained_lib.num_params(state.params), "on_disk": first}, measure


def logging(task):
    """Measures how long a row blocks the loop, once its metrics are computed."""
    run, step = steps(task)
    metrics, first = timed(lambda: jax.block_until_ready(step()[1]))
    rate = Rate(start_step=0, num_steps=2, batch_size=task["batch_size"])

    def measure():
        with tempfile.TemporaryDirectory() as folder:
            with Logs(folder, start_step=0, num_steps=2, progress=False) as logs:
                return stretch(
                    lambda: logs.write(1, loop.finite_row(metrics) | rate.read(1)), 1
                )()

    return {"first_call": first}, measure


def peak(task):
    """Measures the rate of a large matrix product; a thing is one FLOP."""
    device = jax.devices()[0]
    size = product_size(device.platform)
    x = jnp.full((size, size), 1e-3, task["dtype"])
    product = jax.jit(lambda a, b: a @ b)

    def call():
        return jax.block_until_ready(product(x, x))

    call()
    return {
        "platform": device.platform, "device": device.device_kind,
        "versions": library_versions(),
    }, stretch(call, 2 * size**3)


def peak_bytes():
    """The peak memory of the device if it counts, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or resident_peak()


TASKS = {
    "train": train, "ancestral": sampling, "ddim": sampling, "bits_per_dim": bits_per_dim,
    "data": batches, "checkpoint": checkpoint, "logging": logging, "start": start, "peak": peak,
}

if __name__ == "__main__":
    serve(prepare, peak_bytes)
