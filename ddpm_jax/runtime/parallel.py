"""Devices and processes: `pmap` and its axis, replication, shares, and agreement.

State is replicated without an extra axis (`in_axes=None`, `out_axes=None`); batches are
[local_devices, b, ...]. A job of several processes has one on each host, with the same number of
devices each; every process makes the same calls in the same order, and works on its share. Only
the first, process 0, prints and writes, and decides what must be read or looked up.
"""

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.errors import UserError, one_line

AXIS = "batch"
_LOOPBACK = ("127.0.0.1", "localhost")
PATIENCE = 60  # Seconds for which a process that ends waits for the others; then JAX ends them.
_CHUNK = 2**20  # Bytes sent at a time; one size, so that one program is compiled.


def initialize(
    coordinator: str | None = None, num_processes: int | None = None,
    process_id: int | None = None, *, preemptible: bool = True,
) -> None:
    """Joins this process to the others of its job; call it before anything else of JAX.

    Without arguments, JAX finds them: on TPU pods, under Slurm, Open MPI and Kubernetes. On one
    machine each process needs its own devices, for example by CUDA_VISIBLE_DEVICES.

    A process that ends, by an error or because it is done, waits a minute for the others; then
    JAX ends them too, and after 100 seconds those of a host that does not answer. A script whose
    processes end far apart should call `barrier` at its end.

    Args:
        coordinator: "host:port" of process 0, where the others can reach it; the port is not
            protected, so it belongs on a private network.
        num_processes: of the job.
        process_id: of this process, 0..num_processes-1.
        preemptible: leave SIGTERM, and the platform's notices, to `train`, which saves and
            stops in all processes at the same step; nothing else gets them. False leaves
            SIGTERM as it is, for work that has nothing to save.

    Raises:
        UserError: only some of the three are given, they are out of range, or there is no
            cluster in which JAX finds them.
    """
    given = dict(coordinator=coordinator, num_processes=num_processes, process_id=process_id)
    shown = ", ".join(f"{name}={value}" for name, value in given.items())
    if None in given.values() and set(given.values()) != {None}:
        raise UserError(
            f"{shown}: these go together; write for example --coordinator=10.0.0.1:1234 "
            "--num_processes=2 --process_id=0, or --multihost in a cluster that knows them."
        )
    host, _, port = (coordinator or "").rpartition(":")
    if coordinator and not (host and port.isdigit() and 0 <= process_id < num_processes):
        raise UserError(
            f"{shown}: must be host:port, a number of processes, and one of 0..num_processes-1; "
            "write for example --coordinator=10.0.0.1:1234 --num_processes=2 --process_id=0."
        )
    jax.config.update("jax_enable_preemption_service", preemptible)
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, shutdown_timeout_seconds=PATIENCE,
            # Other addresses may exist only outside of this host.
            coordinator_bind_address=coordinator if host in _LOOPBACK else None,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{shown}: no other processes were found ({one_line(error)[:200]}); write "
            "--coordinator=host:port --num_processes=N --process_id=I, or leave them out for one."
        ) from None


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process calls it.

    Args:
        name: of the place in the program, the same in every process.
    """
    multihost_utils.sync_global_devices(f"ddpm_jax.{name}")


def from_first(produce: Callable[[], Any]) -> Any:
    """What `produce` returns in the first process; the others do not call it, but get its result.

    For what the processes must agree on but might see differently: files that are being
    written, or that not all of them have.

    Args:
        produce: returns something that can be pickled.

    Raises:
        ValueError, OSError: in every process, if `produce` raises one.
    """
    if jax.process_count() == 1:
        return produce()
    message = pickle.dumps(_outcome(produce)) if is_first() else b""
    num_chunks = int(multihost_utils.broadcast_one_to_all(np.int32(-(-len(message) // _CHUNK))))
    padded = np.frombuffer(message.ljust(num_chunks * _CHUNK), np.uint8).reshape(-1, _CHUNK)
    chunks = [multihost_utils.broadcast_one_to_all(chunk) for chunk in padded]
    value, error = pickle.loads(np.concatenate(chunks))  # A pickle knows its own end.
    if error is not None:
        raise error
    return value


def _outcome(produce):
    """(the result, None), or (None, the error)."""
    try:
        return produce(), None
    except (ValueError, OSError) as error:
        return None, error


def everywhere(holds: bool) -> bool:
    """Whether something holds in all processes."""
    return bool(np.all(multihost_utils.process_allgather(np.int32(holds))))


class FailedElsewhereError(RuntimeError):
    """Another process of this job failed in what all of them do together."""


def check_all_well() -> None:
    """Raises FailedElsewhereError where another process has failed inside its `attempt`.

    It stands before each collective inside an attempt, so that no process waits there for one
    that failed.
    """
    if jax.process_count() > 1 and not everywhere(True):
        raise FailedElsewhereError("another process of this job failed; see what it says")


def attempt(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """(what `work` returns, None), or (None, the error): a failure of one process is one of all.

    Args:
        work: may call `gather` and programs with a `psum`, each after `check_all_well`.
    """
    try:
        result = work()
    except FailedElsewhereError as error:
        return None, error
    except Exception as error:
        if jax.process_count() > 1:
            everywhere(False)
        return None, error
    try:
        check_all_well()
    except FailedElsewhereError as error:
        return None, error
    return result, None


def gather(tree: Any) -> Any:
    """The shares of all processes, in order, in every process.

    Args:
        tree: NumPy arrays [n/p, ...] of p processes, of 32 bits or fewer.

    Returns:
        NumPy arrays [n, ...].
    """
    return multihost_utils.process_allgather(tree, tiled=True)


def check_same(**values: Any) -> None:
    """Raises UserError unless all processes have the same values.

    Args:
        **values: compared by their `repr`, each with its name for the message.
    """
    ours = {name: repr(value) for name, value in values.items()}
    wanted = from_first(lambda: ours)
    if everywhere(ours == wanted):
        return
    other = [name for name in ours if ours[name] != wanted[name]]
    if other:
        raise UserError(
            f"the processes disagree about {' and '.join(other)}; start each with the same flags, "
            "on the same data."
        )
    raise UserError(
        "another process of this job was started with other flags or data; see what it says."
    )


@contextlib.contextmanager
def first_goes_ahead() -> Iterator[None]:
    """Runs the inside in the first process, then in the others, which find what it has fetched."""
    if not is_first():
        barrier("ahead")
    try:
        yield
    finally:
        if is_first():
            barrier("ahead")


def pmap(
    function: Callable[..., Any],
    *,
    in_axes: tuple[int | None, ...],
    out_axes: int | None | tuple[int | None, ...] = 0,
    donate_argnums: tuple[int, ...] = (),
    devices: Sequence[Any] | None = None,
) -> Callable[..., Any]:
    """`function` on every device at once, along `AXIS`. Nothing else calls `jax.pmap`.

    Args:
        function: what one device does with its share.
        in_axes: one entry per argument: 0 for arrays [local_devices, ...], one row per device;
            None for what every device gets whole.
        out_axes: 0 for a row from each device, None if all devices return the same; one entry,
            or one per output.
        donate_argnums: arguments whose memory the outputs may reuse.
        devices: those of `targets.find`, for which the result can be compiled but not called;
            None is every device.
    """
    return jax.pmap(
        function, axis_name=AXIS, in_axes=in_axes, out_axes=out_axes,
        donate_argnums=donate_argnums, devices=devices,
    )


def share(places: np.ndarray) -> np.ndarray:
    """This process's share of the places in a batch, [n] -> [n/p]."""
    return np.split(places, jax.process_count())[jax.process_index()]


def replicate(tree: Any) -> Any:
    """Copies `tree` to every local device without adding an axis to its arrays."""
    mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def spread(tree: Any) -> Any:
    """Places one row of every array on each device.

    Args:
        tree: NumPy arrays [n, ...], a row for each device of all processes.

    Returns:
        The rows of this process's devices, [d, ...].
    """
    mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
    return jax.device_put(
        jax.tree.map(share, tree), NamedSharding(mesh, PartitionSpec(AXIS))
    )


def shard(tree: Any) -> Any:
    """Splits the leading axis of every array over the local devices: [n, ...] -> [d, n/d, ...]."""
    num_devices = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), tree)


def places(batch_size: int) -> jax.Array:
    """The places of this device's images in the global batch, int32 [batch_size]; under `pmap`."""
    return jax.lax.axis_index(AXIS) * batch_size + jax.numpy.arange(batch_size)
