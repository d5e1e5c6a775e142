"""The devices that JAX starts with: those asked for, or on a CPU one for each core."""

import contextlib
import glob
import importlib.metadata
import importlib.util
import os

import jax

from ddpm_jax.errors import UserError, one_line
from ddpm_jax.runtime import memory

FEWEST_IMAGES = 8  # With fewer per device, updating a state each takes longer than it saves.
_XLA_DEVICES = "xla_force_host_platform_device_count"
# XLA ends the process where a device waits for 40 s for another, whose core may have other work.
_PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=86400"
_WITHOUT_TPU = {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}
_EXTRAS = {"cuda": "cuda13", "gpu": "cuda13", "tpu": "tpu"}


def use_cores(num_images: int, num_bytes: int) -> None:
    """Gives JAX a CPU device for each core; call it before anything else of JAX.

    The operations of a small network cannot keep several cores busy, but a device can use one. JAX
    gets as many as divide the images into parts of `FEWEST_IMAGES` or more, and as fit into a
    quarter of the memory.

    Does nothing where a GPU or TPU may be used, if JAX has started, if this is one of several
    processes, or if the user has chosen: JAX_NUM_CPU_DEVICES=1 turns it off.

    Args:
        num_images: that one step takes at a time, on all devices.
        num_bytes: that each device holds besides them.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    chosen = jax.config.jax_num_cpu_devices != -1 or _XLA_DEVICES in flags
    if chosen or not _only_cpu() or jax.distributed.is_initialized():
        return
    most = min(
        num_cores(), num_images // FEWEST_IMAGES, memory.host_total() // 4 // max(num_bytes, 1)
    )
    num_devices = max((k for k in range(1, most + 1) if num_images % k == 0), default=1)
    if num_devices > 1:
        with contextlib.suppress(RuntimeError):  # JAX has started.
            jax.config.update("jax_num_cpu_devices", num_devices)
            os.environ["XLA_FLAGS"] = f"{_PATIENCE} {flags}".rstrip()


def use_cpu() -> None:
    """Makes JAX use CPUs alone; call it before anything else of JAX."""
    jax.config.update("jax_platforms", "cpu")


def leave_out_libtpu() -> None:
    """Keeps JAX from starting libtpu, or libtpu from warning, where it is installed without a TPU.

    As it is for `--mode=plan --target=v5e:2x4`. Call it before anything else of JAX. The user's
    JAX_PLATFORMS comes first.
    """
    if not jax.config.jax_platforms and importlib.util.find_spec("libtpu"):
        quiet_libtpu()
        if _only_cpu():
            use_cpu()


def quiet_libtpu() -> None:
    """Where there is no TPU, libtpu asks Google's cloud for these, and warns without an answer."""
    for variable, value in () if has_tpu() else _WITHOUT_TPU.items():
        os.environ.setdefault(variable, value)


def has_tpu() -> bool:
    """Whether this machine may have a TPU."""
    # JAX sets the variable at its import where it finds none.
    files = [*glob.glob("/dev/accel*"), *glob.glob("/dev/vfio/[0-9]*")]
    return bool(files) or os.environ.get("TPU_SKIP_MDS_QUERY") != "1"


def _only_cpu() -> bool:
    """Whether JAX will use CPUs, as far as can be told before it has started."""
    asked = jax.config.jax_platforms
    if asked:
        return asked == "cpu"
    return _plugins() == [] and not (importlib.util.find_spec("libtpu") and has_tpu())


def num_cores() -> int:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Not on every system.
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def check() -> None:
    """Starts JAX's devices.

    Raises:
        UserError: there are none of the kind that JAX_PLATFORMS asks for.
    """
    leave_out_libtpu()
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # The first where a plugin is missing.
        asked = jax.config.jax_platforms
        if not asked:
            raise
        raise UserError(f"JAX_PLATFORMS={asked}: {_found(error)}; {_remedy(asked)}") from error


def _found(error) -> str:
    """What there is, and why JAX says that this is not enough."""
    names = ", ".join(["cpu", *_plugins()])
    why = f" ({one_line(error).partition(' (set ')[0][:200]})" if str(error) else ""
    return f"JAX finds no such device here{why}, and is installed for {names}"


def _plugins() -> list[str]:
    """The names of the devices besides CPUs and TPUs that JAX is installed for."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return sorted({plugin.name for plugin in plugins})


def _remedy(asked: str) -> str:
    name = asked.partition(",")[0].lower()
    if name in _EXTRAS:
        return (
            f'install JAX for it, pip install -U "jax[{_EXTRAS[name]}]", or unset JAX_PLATFORMS to '
            "use what there is."
        )
    return (
        "write cpu, cuda or tpu, or unset JAX_PLATFORMS to use what there is; other devices: "
        "https://docs.jax.dev/en/latest/installation.html."
    )
