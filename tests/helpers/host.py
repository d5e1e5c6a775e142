"""One process of a job of `test_hosts.py`: trains, samples and evaluates a tiny model.

    python tests/helpers/host.py FOLDER LAYOUT [COORDINATOR NUM_PROCESSES PROCESS_ID]

The results of process I go to FOLDER/LAYOUT/I.pkl; FOLDER has the workdirs of all layouts.
"""

import contextlib
import io
import pathlib
import pickle
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

import ddpm_jax
from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.configs import digits
from ddpm_jax.data import loading
from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.evaluation import inception_features, references
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.inference import conditions, sample_command
from ddpm_jax.inference import bits_per_dim as bits_lib
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network import inception
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import parallel, partial_results, progress
from ddpm_jax.training import run as run_lib
from ddpm_jax.training import sharding
from ddpm_jax.weights import inception_weights
from ddpm_jax.workdir import checkpoints, run_folder
from nonzero import SHAPE, TinyNet, nonzero_params

POOL, SPATIAL = 12, 8
ELASTIC = {"1x4": 8, "2x2": 14, "1x1": 20}  # The step to which each layout continues the same run.
SHARED = {"1x4": True, "2x2": True, "1x1": False}  # Whether the devices share the state of another.
METRICS = ("bpd", "fid", "nearest_pixels", "sweep")


def config(**settings):
    """A config of 20 steps of 8 images, each of them logged."""
    config = digits.get_config()
    config.update_from_flattened_dict({
        "diffusion.num_timesteps": 10, "diffusion.beta_end": 0.6,
        "train.num_steps": 20, "train.batch_size": 8, "train.log_every": 1,
        "train.warmup_steps": 5, "train.eval_every": 10, "train.eval_images": 13,
        "train.checkpoint_every": 4, "train.sample_every": 10, "train.sample_images": 4,
        "train.t_sampling": "importance", "train.matmul_precision": "highest",
        "sample.sampler": "ddim", "sample.num_steps": 4, "sample.batch_size": 8,
        "evaluate.metrics": METRICS, "evaluate.num_images": 11, "evaluate.num_samples": 13,
        "evaluate.rounding": False,  # A rounding error could change a grey level.
        "evaluate.references": ("test",), "evaluate.batch_size": 8,
        "evaluate.sweep_metric": "frechet_pixels", "evaluate.sweep_samplers": ("ddim",),
        "evaluate.sweep_steps": (2,),
    } | settings)
    return config


class Features(nn.Module):
    """In place of Inception: three linear maps."""

    @nn.compact
    def __call__(self, uint8):
        rows = uint8.mean(axis=-1).reshape(len(uint8), -1) / 255
        return inception.Features(*(nn.Dense(n)(rows) for n in (POOL, SPATIAL, 5)))


def features_params(path=None, *, sha256=None):
    rows = jnp.zeros((1, *SHAPE))
    return jax.device_get(Features().init(jax.random.key(3), rows)["params"])


class Net(TinyNet):
    """Says of what type it is, as evaluations record it."""

    dtype: str = "float32"


def install():
    """The tiny network for every config, and the tiny features."""
    config_lib.model = lambda config, channels: Net(dropout=0.2)
    validation.check_images = lambda config, shape: None
    conditions.columns = lambda model: 5
    sharding.SMALLEST = 16  # The last convolution has 36 numbers, of 4 input channels.
    inception.Inception, inception_weights.load = Features, features_params
    for module in (inception_features, references):
        module.POOL, module.SPATIAL = POOL, SPATIAL


def model():
    """A network with every leaf non-zero, the same everywhere."""
    net = Net()
    return Trained(
        nonzero_params(net), net, schedule_lib.linear(10, 0.01, 0.6), process.Parameterization(),
        SHAPE,
    )


def watched(source, log):
    """The same images, and a log of those that were read."""
    def read(places):
        log.append(np.array(places))
        return source.read(places)

    return source_lib.Source(len(source), source.image_shape, read, in_memory=True)


def leaves(params):
    """(path, array) of each, however the tree is nested."""
    return [(jax.tree_util.keystr(path), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)]


def train(folder, layout):
    """A whole run, with what was read for it."""
    reads, held = [], []
    train_images, test_images = (loading.load("digits", split=s) for s in ("train", "test"))
    original = run_lib.open_data
    run_lib.open_data = lambda *_: (
        watched(train_images, reads), watched(test_images, held)
    )
    trained = ddpm_jax.train(config(), folder / f"run_{layout}")
    run_lib.open_data = original
    return dict(reads=reads[:21], held=held, params=trained.params)


def elastic(folder, layout):
    """A part of one run that goes on from layout to layout."""
    trained = ddpm_jax.train(config(**{"train.num_steps": ELASTIC[layout]}), folder / "elastic")
    return dict(params=trained.params)


def shared(folder, layout):
    """As `elastic`, of devices that share the state in some layouts."""
    trained = ddpm_jax.train(config(**{
        "train.num_steps": ELASTIC[layout], "train.shard_update": SHARED[layout]
    }), folder / "shared")
    return dict(params=trained.params)


def draw(folder, layout):
    """Images of `sample` and of a stochastic chain, bits/dim, and which images were read."""
    trained, reads = model(), []
    progress.PERIOD = 0.0  # A line after each batch but the last.
    source = watched(loading.load("digits", split="test").select(np.arange(11)), reads)
    terms = bits_lib.terms(trained, 5, source, batch_size=8)
    whole, way = sample_lib.sample(trained, 3, 11, trajectory=(5, 0), batch_size=8, progress=True)
    return dict(
        images=sample_lib.sample(trained, 0, 11), steps=whole, x_t=way.x_t, reads=reads,
        uint8=sample_lib.sample(trained, seeds=[4, 5, 6], sampler="dpm_solver_pp", num_steps=4,
                                output="uint8"),
        bits=bits_lib.bits_per_dim(trained, 5, loading.digits("test")[0][:11]), vlb=terms.vlb,
    )


def measure(folder, layout):
    """Rows of `evaluate` on one checkpoint, twice, and what it says."""
    workdir = folder / f"measured_{layout}"
    outputs = [io.StringIO(), io.StringIO()]
    rows = []
    for text in outputs:
        with contextlib.redirect_stdout(text):
            rows.append(evaluate_lib.evaluate(config(), workdir))
    return dict(rows=rows[0], again=rows[1], outputs=[text.getvalue() for text in outputs])


def edit(folder, layout):
    """`--mode=sample` on a picture."""
    settings = {"sample.task": "img2img", "sample.inputs": (str(folder / "digit.png"),)}
    return dict(written=sample_command.run(config(**settings), folder / f"measured_{layout}"))


def store(workdir):
    """A workdir with a checkpoint of `model()`, for `measure` and `edit`."""
    workdir = run_folder.create(workdir)
    run_folder.store_config(config(), workdir)
    with checkpoints.Checkpoints(workdir) as kept:
        kept.save(20, {"ema_params": model().params}, {"config": run_folder.dump(config())})


def agree(folder, layout):
    """What the processes tell one another."""
    index = jax.process_index()
    errors = []
    for call in (
        lambda: parallel.from_first(lambda: ddpm_jax.load(folder / "nowhere")),
        lambda: parallel.check_same(config=config(seed=index), data=7),
        lambda: ddpm_jax.train(config(seed=index), folder / f"disagreed_{layout}"),
        lambda: parallel.check_same(config=config()),
    ):
        try:
            errors.append(call())
        except ValueError as error:
            errors.append(str(error))
    own = folder / f"parts_{index}"
    partial_results.keep(own, 0, {"rows": np.arange(3)})
    return dict(
        parts=list(partial_results.finished(own)), errors=errors,
        index=parallel.from_first(lambda: index),
        large=parallel.from_first(lambda: np.full(3 * 2**18, index, np.float64)),
        everywhere=[parallel.everywhere(holds) for holds in (True, index == 0, index == 1)],
        first=parallel.is_first(), gathered=parallel.gather({"a": np.full((2, 3), index)}),
    )


def damage(folder, layout):
    """A run goes on where one process cannot read the newest checkpoint."""
    original = ocp.PyTreeCheckpointHandler.restore

    def restore(handler, path, **settings):
        if path.parent.name == "20" and jax.process_index() == 1:
            raise OSError("a bad disk")
        return original(handler, path, **settings)

    ocp.PyTreeCheckpointHandler.restore = restore
    ddpm_jax.train(config(), folder / f"run_{layout}")
    ocp.PyTreeCheckpointHandler.restore = original
    return {}


JOBS = (train, elastic, shared, draw, measure, edit)


def main(folder, layout, coordinator=None, num_processes=0, process_id=0):
    if coordinator:
        parallel.initialize(coordinator, int(num_processes), int(process_id))
    install()
    jax.config.update("jax_default_matmul_precision", "highest")
    folder = pathlib.Path(folder)
    jobs = JOBS + ((agree, damage) if coordinator else ())
    results = {job.__name__: job(folder, layout) for job in jobs}
    results["devices"] = (jax.device_count(), jax.local_device_count())
    path = folder / layout / f"{jax.process_index()}.pkl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(results))
    parallel.barrier("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
