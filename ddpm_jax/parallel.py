"""Devices: the axis that `pmap` names, replication and sharding.

State is replicated without an extra axis (`in_axes=None`, `out_axes=None`); batches are
[local_devices, b, ...]. Everything below `training` and `sampling` knows nothing of devices.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def replicate(tree: Any) -> Any:
    """Copies `tree` to every local device without adding an axis to its arrays."""
    mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(tree: Any) -> Any:
    """Splits the leading axis of every array over the local devices: [n, ...] -> [d, n/d, ...]."""
    num_devices = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), tree)


def places(batch_size: int) -> jax.Array:
    """Where this device's images stand in the global batch, int32 [batch_size]; under `pmap`."""
    return jax.lax.axis_index(AXIS) * batch_size + jax.numpy.arange(batch_size)
