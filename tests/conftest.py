"""Eight CPU devices, strict ranks and checked keys, set before anything imports jax.

Programs are compiled fast, not for speed. Compiled programs are cached for the session, for other
tests of the same worker and the programs that they start.
"""

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile

if "PYTEST_XDIST_WORKER" in os.environ:  # Writing an entry is not atomic: one cache per worker.
    CACHE = os.path.join(
        os.environ["JAX_COMPILATION_CACHE_DIR"], os.environ["PYTEST_XDIST_WORKER"]
    )
else:
    CACHE = tempfile.mkdtemp(prefix="ddpm_jax_tests_")
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["EPATH_USE_TF"] = "false"  # gs:// is fsspec's even with TensorFlow installed.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # Later versions do not know the flag.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # Halves the time to compile.
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # configs

import jax  # noqa: E402
import pytest  # noqa: E402
from object_store import bucket  # noqa: E402, F401

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs map memory, and a process may have 65,530 maps."""
    yield
    jax.clear_caches()


@pytest.fixture
def strict_dtypes():
    """Refuses implicit dtype promotion, in tests of our own arithmetic."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Of what depends on the platform, programs take a GPU's branch."""
    yield from take_branch("cuda", monkeypatch)


@pytest.fixture
def as_on_a_tpu(monkeypatch):
    """Of what depends on the platform, programs take a TPU's branch."""
    yield from take_branch("tpu", monkeypatch)


def take_branch(platform, monkeypatch):
    def taken(*operands, default, **branches):
        return branches.get(platform, default)(*operands)

    jax.clear_caches()
    monkeypatch.setattr(jax.lax, "platform_dependent", taken)
    yield
    jax.clear_caches()


@pytest.fixture
def draw_given(monkeypatch):
    """install(noises [steps, b, h, w, c]) makes chains draw these; returns the keys of the images.

    A draw is found by the address with which its key was folded.
    """
    import jax.numpy as jnp

    from ddpm_jax.diffusion import randomness

    base = jax.random.key(0)

    def install(noises):
        table = jnp.stack([
            jax.random.key_data(jax.random.fold_in(base, i)) for i in range(len(noises))
        ])

        def given(rngs, shape):
            found = jnp.all(jax.random.key_data(rngs)[:1] == table, axis=1)
            return jnp.asarray(noises)[jnp.argmax(found)]

        monkeypatch.setattr(randomness, "standard_normal", given)
        return jnp.stack([base] * noises.shape[1])

    with jax.debug_key_reuse(False):  # The same key for every image, on purpose.
        yield install


@pytest.fixture
def tiny(monkeypatch):
    """A run's network is a TinyNet, whatever its config says."""
    from ddpm_jax import config, validation
    from nonzero import TinyNet

    monkeypatch.setattr(config, "model", lambda config, channels: TinyNet())
    monkeypatch.setattr(validation, "check_images", lambda config, shape: None)


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    from matplotlib.figure import Figure

    saved, savefig = [], Figure.savefig

    def noted(figure, *args, **kwargs):
        saved.append(figure)
        return savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", noted)
    return saved


@pytest.fixture
def terminal(monkeypatch):
    """Progress is a bar, as on a terminal."""
    from ddpm_jax.runtime import progress

    monkeypatch.setattr(progress, "on_screen", lambda: True)
