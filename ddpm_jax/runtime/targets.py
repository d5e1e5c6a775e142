"""Accelerators that are not here: devices that XLA compiles for but that do not run, by name.

XLA's compilers for TPUs (libtpu) and for NVIDIA's GPUs (JAX's CUDA plugin) need no such device.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from ddpm_jax.errors import UserError, one_line
from ddpm_jax.runtime import devices as devices_lib

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for, and what each of them has.

    Attributes:
        name: for example "v5e:2x4".
        devices: for `parallel.pmap`.
        memory: bytes that a program may use.
        clock: cycles per second of a TPU; 0 for a GPU.
        bandwidth: bytes per second of a GPU's memory; 0 for a TPU.
    """

    name: str
    devices: tuple[Any, ...]
    memory: int
    clock: float = 0.0
    bandwidth: float = 0.0

    @property
    def platform(self) -> str:
        """What JAX calls it: "tpu" or "cuda"."""
        return self.devices[0].platform

    def __str__(self) -> str:
        devices, memory = self.devices, self.memory / _GIB
        return f"{self.name}: {len(devices)} {devices[0].device_kind}, {memory:.2f} GiB each"


@dataclasses.dataclass(frozen=True)
class _Tpu:
    """A generation of TPUs.

    Attributes:
        memory: GiB of a device, that is of a core of v2, v3 and 7x, and of a chip of the others.
            libtpu 0.0.52 names it where a program needs more: 0.25 to 1.3 GiB below what is sold.
        clock: GHz. Of v2 and v3 from Jouppi et al. (2020), of v4 from Jouppi et al. (2023). Of the
            others it is the peak in bfloat16 on Google's pages over what the matrix units do in a
            cycle, which is twice as much for v6e and 7x as their number and size say.
        axes: numbers in the shape of a slice.
        most: chips in a pod.
        options: of `get_topology_desc`.
    """

    memory: float
    clock: float
    axes: int
    most: int
    options: tuple[tuple[str, Any], ...] = ()


_TPUS = {
    "v2": _Tpu(7.48, 0.7, 2, 256),
    "v3": _Tpu(15.48, 0.94, 2, 1024),
    "v4": _Tpu(30.75, 1.05, 3, 4096, (("chip_config_name", "megacore"),)),
    "v5e": _Tpu(15.75, 1.5, 2, 256),
    "v5p": _Tpu(95.73, 1.75, 3, 8960),
    "v6e": _Tpu(31.24, 1.75, 2, 256),
    "tpu7x": _Tpu(94.74, 2.2, 3, 9216),
}
_EXAMPLES = {2: "2x4", 3: "2x2x1"}  # Of a shape, by the number of its axes.
# XLA's description of a GPU (`xla.GpuTargetConfigProto`): limits of a kernel, and what it has.
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 151397597184 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  name: "NVIDIA H200 141GB HBM3e" driver_version: "13.0.0" runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200 141GB HBM3e"
"""
_SHARE = 0.75  # Of a GPU's memory that JAX takes by default.
_GPUS = {"h200": _H200}


def find(name: str) -> Target:
    """The target of this name: a slice of TPUs by its shape in chips, such as "v5e:2x4", or "h200".

    JAX itself should run on a CPU (`devices.use_cpu`): it would keep a device of its own busy.

    Raises:
        UserError: the name is unknown, the shape is impossible, or the compiler is not installed.
    """
    if name in _GPUS:
        return _gpu(name)
    kind, _, shape = name.partition(":")
    if kind not in _TPUS:
        raise _refused(name, f"is not known; TPUs are {', '.join(_TPUS)}, and GPUs "
                       f"{', '.join(_GPUS)}", _nearest(name))
    tpu = _TPUS[kind]
    works = f"{kind}:{_EXAMPLES[tpu.axes]}"
    if not re.fullmatch("x".join([r"[0-9]{1,4}"] * tpu.axes), shape):
        raise _refused(name, f"must have the shape of the slice, {tpu.axes} numbers of chips",
                       works)
    if not 1 <= math.prod(map(int, shape.split("x"))) <= tpu.most:
        raise _refused(name, f"must have 1 to {tpu.most:,} chips, a pod of them", works)
    if not importlib.util.find_spec("libtpu") and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            "needs the compiler for TPUs, which is not installed here; run pip install libtpu, "
            "best in an environment of its own.", field="--target", value=name,
        )
    devices_lib.quiet_libtpu()
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # It need not lock: nothing runs.
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **dict(tpu.options)
        )
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        why = one_line(error).partition("INVALID_ARGUMENT: ")[2][:200]
        raise _refused(name, f"is no slice that libtpu knows ({why})", works) from error
    return Target(name, tuple(described.devices), int(tpu.memory * _GIB), clock=tpu.clock * 1e9)


def _gpu(name):
    description = _GPUS[name]
    plugins = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
    if not importlib.util.find_spec("jax_plugins") or not any(
        map(importlib.util.find_spec, plugins)
    ):
        raise UserError(
            "needs JAX's plugin for NVIDIA's GPUs, which is not installed here; run "
            f'pip install "jax[cuda13]=={jax.__version__}", best in an environment of its own.',
            field="--target", value=name,
        )
    jax.devices()  # Registers the plugin.
    described = topologies.get_topology_desc(
        platform="cuda", topology_name=name, target_config=description, topology="1x1x1"
    )
    sizes = {key: int(value) for key, value in re.findall(r"(\w+): (\d+)", description)}
    return Target(
        name, tuple(described.devices), int(_SHARE * sizes["device_memory_size"]),
        bandwidth=float(sizes["memory_bandwidth"]),
    )


def _nearest(name):
    """A target that was likely meant by a name that is none."""
    kind, shape = re.fullmatch(r"(.*?)(?:[:_-](\w*))?", name, re.S).groups()
    known = [*_TPUS, *_GPUS]
    alike = difflib.get_close_matches(kind.lower(), known, 1) or ["v5e"]
    if alike[0] in _GPUS:
        return alike[0]
    axes = _TPUS[alike[0]].axes
    fits = re.fullmatch(r"\d+(x\d+)+", shape or "") and shape.count("x") == axes - 1
    return f"{alike[0]}:{shape if fits else _EXAMPLES[axes]}"


def _refused(name, rule, works):
    return UserError(rule, field="--target", value=name, instead={"--target": works})
