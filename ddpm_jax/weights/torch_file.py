"""Reads arrays from PyTorch checkpoints, without PyTorch and without running code of the file.

`torch.save` writes a pickle, and a pickle may call any function of the machine that opens
it. Here it may name only the parts of a dict of tensors; anything else is never run: it is refused
or, beside the weights that are asked for, left out.
Both layouts are read: since PyTorch 1.6 a zip (`*/data.pkl`, and a file for every storage in
`*/data/`); before, five pickles in a row and then the storages.
"""

import functools
import io
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ddpm_jax.errors import UserError, one_line
from ddpm_jax.runtime import files
from ddpm_jax.weights import wrappings

DTYPES = {
    "BFloat16Storage": ml_dtypes.bfloat16,
    "BoolStorage": np.bool_,
    "ByteStorage": np.uint8,
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# What pickle, zipfile and the look-ups below raise on a damaged file; the rules below raise
# UnpicklingErrors.
DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error,
    AttributeError, EOFError, LookupError, MemoryError, OverflowError, RuntimeError,
    TypeError, ValueError,
)


class _Storage(NamedTuple):
    """A run of numbers in the file: its name there, PyTorch's class for it, its length."""

    key: str
    kind: str  # A key of DTYPES.
    size: int  # Elements.


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Unread:
    """Stands for whatever else a pickle names: takes anything, and does nothing."""

    named = ""  # Its name in the file.

    def __new__(cls, *arguments, **keywords):
        return object.__new__(cls)

    def __init__(self, *arguments, **keywords):
        pass

    def _take(self, *arguments):
        pass

    __setstate__ = __setitem__ = append = extend = add = _take


Select = Callable[[dict[str, Any]], dict[str, Any]]


def read(path: Any, select: Select | None = None) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, by name; each becomes a C-contiguous array of its own.

    The file holds a dict of tensors; dicts and lists inside it are flattened, their names joined
    by dots: {"model": {"conv.weight": ...}} gives "model.conv.weight". Tensors may be strided,
    share a storage or be parameters; bfloat16 keeps its type (that of ml_dtypes).

    Args:
        path: a file that `torch.save` wrote, in any PyTorch since 0.4; local or remote.
        select: chooses what to read from everything in the file, by name: tensors, which have a
            `shape`, numbers, strings, and `Unread` objects. None: tensors must be all there is.

    Raises:
        UserError: there is no such file, it is damaged or something else, or what is to be read
            is anything but tensors of the types in `DTYPES`.
    """
    path = files.path(path)
    try:
        with path.open("rb") as file:
            lenient = select is not None
            tree, load = (_read_zip if _is_zip(file) else _read_legacy)(file, lenient)
            _check_content(tree, lenient)
            return _arrays(tree, load, select or (lambda values: values))
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror or error}); write the path of a checkpoint made "
            "by torch.save.", where=path,
        ) from error
    except DAMAGE as error:
        raise UserError(
            f"not a whole PyTorch file of tensors in dicts ({one_line(error)[:300]}); download it "
            "again, or make one by torch.save(model.state_dict(), path).", where=path,
        ) from error


class _Unpickler(pickle.Unpickler):
    """Builds dicts of `_Tensor`; `storages` collects what they need, by key."""

    def __init__(self, file, lenient=False):
        super().__init__(file)
        self.lenient = lenient
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module, name):
        """The class or function for a name in the file: ours, or for a storage its name."""
        if module == "torch" and name in DTYPES:
            return name
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
            "torch._tensor._rebuild_from_type_v2": self._typed,
        }
        if f"{module}.{name}" in known:
            return known[f"{module}.{name}"]
        if not self.lenient:
            raise pickle.UnpicklingError(_not_run(f"{module}.{name}"))
        return type("Unread", (Unread,), {"named": f"{module}.{name}"})

    def persistent_load(self, pid):
        """A storage: ("storage", class, key, device, elements) and, before 1.6, None."""
        if self.lenient and isinstance(pid[1], type):
            return pid[1]()  # A kind of storage that weights do not have.
        _, kind, key, _, size = pid[:5]
        storage = _Storage(key, kind, size)
        if pid[0] != "storage" or kind not in DTYPES or pid[5:] not in ((), (None,)):
            raise pickle.UnpicklingError(f"storage {key!r} is of an unknown kind")
        if not isinstance(key, str) or type(size) is not int or size < 0:
            raise pickle.UnpicklingError(f"storage {key!r} has no valid name and size")
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key!r} has two types or sizes")
        return storage

    def _tensor(self, storage, offset, shape, strides, requires_grad, hooks, metadata=None):
        del requires_grad, hooks, metadata  # For training.
        if isinstance(storage, Unread):
            return storage
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise pickle.UnpicklingError("a tensor has no storage, shape and strides")
        if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
            raise pickle.UnpicklingError("a tensor's offset, shape or strides are no sizes")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
        count = math.prod(shape)  # Above the storage's, it was expanded, or made to fill memory.
        if count > storage.size or (count and last >= storage.size):
            raise pickle.UnpicklingError(
                f"a tensor of shape {list(shape)} reaches beyond its storage "
                f"{storage.key!r} of {storage.size} elements"
            )
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    def _parameter(self, tensor, requires_grad, hooks, state=None):
        del requires_grad, hooks, state
        return tensor

    def _typed(self, build, kind, arguments, state):
        del kind, state  # A tensor with attributes of its own.
        return build(*arguments) if build == self._tensor else Unread()


def _not_run(name):
    return f"it names {name}, which is not run"


def _is_zip(file):
    start = file.read(4)
    file.seek(0)
    return start == b"PK\3\4"


def _read_zip(file, lenient):
    """The content of the pickle, and a function that reads a storage as a 1-D array."""
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise pickle.UnpicklingError("a zip, but without PyTorch's data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in names:  # Since PyTorch 2.1.
        _check_order(archive.read(f"{root}byteorder") == b"little")
    with archive.open(pickles[0]) as pickled:
        tree = _Unpickler(pickled, lenient).load()

    def load(storage):
        entry = archive.getinfo(f"{root}data/{storage.key}")
        if entry.compress_type != zipfile.ZIP_STORED:  # Only zip bombs are compressed.
            raise pickle.UnpicklingError(f"storage {storage.key!r} is compressed")
        return _numbers(storage, archive.read(entry))

    return tree, load


def _read_legacy(file, lenient):
    """As `_read_zip`; the file has magic number, protocol, machine, dict, keys, sizes and data."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    if [_Unpickler(file).load() for _ in range(2)] != [LEGACY_MAGIC, LEGACY_PROTOCOL]:
        raise pickle.UnpicklingError("it does not begin as one")
    _check_order(_Unpickler(file).load()["little_endian"])
    unpickler = _Unpickler(file, lenient)
    tree = unpickler.load()
    storages = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        (size,) = struct.unpack("<q", file.read(8))
        length = storage.size * np.dtype(DTYPES[storage.kind]).itemsize
        if size != storage.size or length > end - file.tell():
            raise pickle.UnpicklingError(f"storage {key!r} is cut short or of another size")
        storages[storage] = _numbers(storage, file.read(length))
    return tree, storages.__getitem__


def _check_order(little_endian):
    if little_endian is not True:
        raise pickle.UnpicklingError("written by a big-endian machine")


def _numbers(storage, data):
    dtype = np.dtype(DTYPES[storage.kind])
    if len(data) != storage.size * dtype.itemsize:
        raise pickle.UnpicklingError(
            f"storage {storage.key!r} has {len(data)} bytes for {storage.size} elements"
        )
    return np.frombuffer(data, dtype)


def _arrays(tree, load, select):
    load, arrays = functools.cache(load), {}
    for name, tensor in select(wrappings.named(tree)).items():
        if hasattr(tensor, "named"):
            raise pickle.UnpicklingError(_not_run(tensor.named))
        if not isinstance(tensor, _Tensor):
            raise pickle.UnpicklingError(
                f"{name!r} is a value of type {type(tensor).__name__}, not a tensor"
            )
        numbers = load(tensor.storage)
        strides = [stride * numbers.itemsize for stride in tensor.strides]
        arrays[name] = np.array(
            np.lib.stride_tricks.as_strided(numbers[tensor.offset:], tensor.shape, strides),
            order="C",
        )
    return arrays


def _check_content(tree, lenient):
    if hasattr(tree, "named"):  # A whole model, for example.
        raise pickle.UnpicklingError(_not_run(tree.named))
    if not isinstance(tree, (dict, list) if lenient else dict):
        kind = type(tree).__name__.strip("_")
        raise pickle.UnpicklingError(f"it is a {kind}, not a dict")
