"""An object store in memory behind `gs://`, with the limits of a real one.

An object cannot be appended to and appears when it is closed. A folder exists while there is an
object below it.
"""

import io

import pytest
from etils import epath
from fsspec.implementations import memory
from fsspec.registry import _registry


class Store(memory.MemoryFileSystem):
    """fsspec's `memory://` with the behaviour of gcsfs."""

    protocol = ("gcs", "gs")
    root_marker = ""
    store, pseudo_dirs, writes = {}, [""], []

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("gs://").strip("/")

    def mkdir(self, path, create_parents=True, **_):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def rmdir(self, path):
        pass

    def cp_file(self, path1, path2, **_):
        if self.isfile(path1):
            super().cp_file(path1, path2)

    def _open(self, path, mode="rb", **_):
        if mode == "wb":
            return _Upload(self, path)
        if mode != "rb":
            raise io.UnsupportedOperation(f"mode {mode}: objects are written whole")
        if path not in self.store:
            raise FileNotFoundError(path)
        return io.BytesIO(self.store[path].getvalue())


class _Upload(io.BytesIO):
    """An object that appears when it is closed."""

    def __init__(self, store, path):
        super().__init__()
        self._store, self._path = store, path

    def close(self):
        if not self.closed:
            self._store.writes.append(self._path)
            self._store.store[self._path] = memory.MemoryFile(
                self._store, self._path, self.getvalue())
        super().close()


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket, as a path."""
    for scheme in Store.protocol:
        monkeypatch.setitem(_registry, scheme, Store)  # As `fsspec.register_implementation` does.
    Store.store.clear(), Store.writes.clear()
    return epath.Path("gs://bucket")


def objects():
    """The names of all objects."""
    return sorted(Store.store)


def local_copy(path, folder):
    """Copies the objects below a path to a folder, which is returned."""
    prefix = Store._strip_protocol(str(path)) + "/"
    for name, content in Store.store.items():
        if name.startswith(prefix):
            target = folder / name.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.getvalue())
    return folder
