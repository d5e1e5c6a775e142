"""`export(trained, path, n)`: a whole chain with its weights, in one file to be run by jax alone.

The file is a zip. `chain.bin` is a serialized `jax.export` artifact (StableHLO): keys in, images
out. `about.json` says what it is. `READER` draws with it where this package is not installed; jax
itself needs `flatbuffers` for that.
"""

import importlib.util
import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ddpm_jax import errors
from ddpm_jax.errors import UserError
from ddpm_jax.inference import conditions, guided
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import devices, files
from ddpm_jax.samplers.settings import Settings

VERSION = 1  # Of the file.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
READER = '''\
import json, sys, zipfile
import jax, jax.export

file = zipfile.ZipFile(sys.argv[1])
about = json.loads(file.read("about.json"))
if about["version"] != 1:
    sys.exit(f"version {about['version']} of the file, and this reads version 1")
chain = jax.export.deserialize(bytearray(file.read("chain.bin")))
rng, number = jax.random.key(0), jax.numpy.arange(about["n"])
keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, number)
images = chain.call(jax.random.key_data(keys))        # float32 [n, h, w, c] in [-1, 1]
'''


def export(
    trained: Trained,
    path: Any,
    n: int,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    settings: Settings | None = None,
    **fields: Any,
) -> str:
    """Writes the chain that draws n images at a time, for platforms that need not be here.

    It takes n keys, uint32 [n, 2], those of `jax.random.key_data`, and then, as `about.json` lists
    them, the labels, vectors (as in the data) and condition (float in [-1, 1]) of a conditional
    model. With the keys fold_in(rng, i) it gives the images of `sample(trained, rng, n)`, but for
    roundings. It runs on one device.

    Args:
        trained: what `load` and `train` return.
        path: of the file, by custom a `.zip`.
        n: images of one call.
        platforms: where it is to run, of `PLATFORMS`.
        settings, **fields: the sampler, as of `sample`.

    Returns:
        The path.

    Raises:
        UserError: an argument is wrong, the package flatbuffers is missing, or the file cannot be
            written.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError('export needs the package flatbuffers; pip install "ddpm_jax[export]".')
    devices.check()
    trained_lib.check(trained)
    n, platforms = errors.whole_number("n", n, low=1), _checked(platforms)
    settings = sample_lib.settings_of(settings, fields, "export")
    settings.check()
    trained.diffusion.check(trained.schedule)
    trained_lib.check_params(trained)
    reverse = settings.chain(trained.schedule)
    inputs = _inputs(trained, n)
    # Class 0 and vectors of ones: as when something is given.
    some = {name: np.full(x.shape, name != "labels", int) for name, x in inputs.items()}
    guided.check(settings, trained, some, reverse.timesteps)
    shapes = [jax.ShapeDtypeStruct((n, 2), jnp.uint32), *inputs.values()]
    chain = jax.jit(_chain(trained, n, settings, reverse, inputs))
    exported = jax.export.export(chain, platforms=platforms)(*shapes)
    about = {
        "format": "ddpm_jax chain", "version": VERSION, "n": n,
        "image_shape": list(trained.image_shape), "value_range": list(trained.value_range),
        "inputs": {name: [list(x.shape), str(x.dtype)] for name, x in inputs.items()},
        "sampler": settings.sampler, "num_steps": reverse.num_calls, "platforms": platforms,
        "jax": jax.__version__, "calling_convention": exported.calling_convention_version,
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:  # Weights do not compress.
        file.writestr("about.json", json.dumps(about, indent=2) + "\n")
        file.writestr("chain.bin", bytes(exported.serialize()))
    path = files.path(path)
    try:
        files.write(path, content.getvalue())
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); name a file in a folder that "
            "can be written to."
        ) from None
    return str(path)


def _chain(trained, n, settings, reverse, inputs):
    """(keys, *what `inputs` names) -> images, closed over the parameters and tables."""
    draw = sample_lib.chain_of(
        (trained.model,), (trained.diffusion,), tuple(trained.image_shape), settings
    )
    tables = jax.tree.map(jnp.asarray, reverse)

    def chain(keys, *given):
        model_kwargs = dict(zip(inputs, given, strict=True))
        if "vectors" in model_kwargs:
            mean, std = (jnp.asarray(x, jnp.float32) for x in trained.vector_scale)
            numbers = (model_kwargs["vectors"] - mean[None]) / std[None]
            model_kwargs["vectors"] = jnp.concatenate([jnp.ones((n, 1)), numbers], axis=1)
        rngs = jax.random.wrap_key_data(keys)
        return draw((trained.params,), tables, rngs, model_kwargs)[0]

    return chain


def _checked(platforms):
    """The platforms as a list, once each is known."""
    platforms = [platforms] if isinstance(platforms, str) else list(platforms)
    wrong = [name for name in platforms if name not in PLATFORMS]
    if wrong or not platforms:
        raise UserError(
            f"must be some of {', '.join(PLATFORMS)}", field="platforms", value=platforms,
            instead={"platforms": ("cpu", "cuda")},
        )
    return platforms


def _inputs(trained, n):
    """Shapes of what the chain takes besides keys, by the names of `sample`."""
    model, inputs = trained.model, {}
    if getattr(model, "num_classes", 0):
        inputs["labels"] = jax.ShapeDtypeStruct((n,), jnp.int32)
    if conditions.takes_vectors(model):
        inputs["vectors"] = jax.ShapeDtypeStruct((n, model.vector_size), jnp.float32)
    if channels := getattr(model, "condition_channels", 0):
        shape = (n, *trained.image_shape[:2], channels)
        inputs["condition"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return inputs
