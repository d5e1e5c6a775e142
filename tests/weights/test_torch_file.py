"""PyTorch's files, compared with what PyTorch wrote, and files that are an attack."""

import os
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ddpm_jax.weights import torch_file

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
LAYOUTS = ["tensors.pth", "tensors_legacy.pth"]


def tensor(offset=0, shape=(2,), strides=(1,), size=4, kind="FloatStorage", key="0"):
    """One tensor as a text pickle without its end."""
    def numbers(values):
        return "(" + "".join(f"I{n}\n" for n in values) + "t"

    storage = f"(S'storage'\nctorch\n{kind}\nS'{key}'\nS'cpu'\nI{size}\ntQ"
    view = f"I{offset}\n{numbers(shape)}{numbers(strides)}"
    return f"ctorch._utils\n_rebuild_tensor_v2\n({storage}{view}I00\nNtR"


def state(**values):
    """A dict as a text pickle; values without their end."""
    return "(d" + "".join(f"S'{name}'\n{value}s" for name, value in values.items()) + "."


@pytest.fixture
def write(tmp_path):
    """Writes PyTorch's zip around a pickle; storage '0' is [1, 2, 3, 4] in float32."""
    numbers = np.float32([1, 2, 3, 4]).tobytes()

    def write(pickled, storage=numbers, byteorder=b"little", **options):
        path = tmp_path / "file.pth"
        with zipfile.ZipFile(path, "w", **options) as archive:
            archive.writestr("file/data.pkl", pickled)
            archive.writestr("file/byteorder", byteorder)
            if storage is not None:
                archive.writestr("file/data/0", storage)
        return path

    return write


def refused(path, reason):
    """Asserts the one line that says why a file is refused."""
    with pytest.raises(ValueError, match=reason) as error:
        torch_file.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert "torch.save" in str(error.value)  # The remedy.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_what_pytorch_wrote(layout):
    arrays = torch_file.read(FIXTURES / layout)
    with np.load(FIXTURES / "tensors.npz") as stored:
        expected = dict(stored)
    assert arrays["bfloat16"].dtype == ml_dtypes.bfloat16
    arrays["bfloat16"] = np.float32(arrays["bfloat16"])
    assert set(arrays) == set(expected)
    for name, value in expected.items():
        assert arrays[name].dtype == value.dtype and arrays[name].shape == value.shape, name
        assert arrays[name].flags.c_contiguous and arrays[name].base is None, name
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)


def test_the_fixture_has_every_type():
    with np.load(FIXTURES / "tensors.npz") as stored:
        types = {value.dtype for value in stored.values()}
    types.add(np.dtype(ml_dtypes.bfloat16))
    assert types == {np.dtype(dtype) for dtype in torch_file.DTYPES.values()}


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_runs_nothing(tmp_path, write):
    marker = tmp_path / "marker"
    attack = Attack(f"touch {marker}")
    pickle.loads(pickle.dumps(attack))
    assert marker.exists()  # The attack would work.
    marker.unlink()
    for pickled in (pickle.dumps(attack), pickle.dumps({"a": {"b": attack}})):
        refused(write(pickled), r"it names (posix|nt)\.system, which is not run")
        legacy = tmp_path / "legacy.pth"
        legacy.write_bytes(
            pickle.dumps(torch_file.LEGACY_MAGIC) + pickle.dumps(torch_file.LEGACY_PROTOCOL)
            + pickle.dumps({"little_endian": True}) + pickled
        )
        refused(legacy, r"it names (posix|nt)\.system, which is not run")
        legacy.write_bytes(pickled)
        refused(legacy, r"it names (posix|nt)\.system, which is not run")
    assert not marker.exists()


@pytest.mark.parametrize("name", [
    "builtins eval", "builtins getattr", "torch load", "torch._utils _rebuild_qtensor",
    "torch QInt8Storage", "collections Counter", "ddpm_jax.weights read",
])
def test_refuses_every_other_name(name, write):
    module, name = name.split()
    refused(write(f"c{module}\n{name}\n."), rf"it names {module}\.{name}, which")
    dotted = b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93."
    refused(write(dotted), "it names collections.OrderedDict.fromkeys, which")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_refuses_every_cut(layout, tmp_path):
    whole = (FIXTURES / layout).read_bytes()
    path = tmp_path / "cut.pth"
    for length in [*range(0, len(whole), 13), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path, "not a whole PyTorch file")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_is_a_value_error_or_no_matter(layout, tmp_path):
    whole, random = (FIXTURES / layout).read_bytes(), np.random.default_rng(0)
    path, raised = tmp_path / "damaged.pth", 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            torch_file.read(path)
        except ValueError:
            raised += 1
    assert raised > 100


def test_reads_to_the_last_element(write):
    read = torch_file.read(write(state(x=tensor(2), y=tensor(1, (2, 2), (1, 1)))))
    np.testing.assert_array_equal(read["x"], [3, 4])
    np.testing.assert_array_equal(read["y"], [[2, 3], [3, 4]])
    assert torch_file.read(write(state(x=tensor(4, (0, 5), (5, 1)))))["x"].shape == (0, 5)


@pytest.mark.parametrize("view, reason", [
    (tensor(3), r"shape \[2\] reaches beyond its storage '0' of 4 elements"),
    (tensor(0, (2,), (4,)), "reaches beyond"),
    (tensor(0, (2, 3), (3, 1)), "reaches beyond"),
    (tensor(0, (10**9,), (0,)), "reaches beyond"),
    (tensor(10**30, (1,), (1,)), "reaches beyond"),
    (tensor(-1), "no sizes"),
    (tensor(3, (2,), (-1,)), "no sizes"),
    (tensor(0, (2,), ()), "no storage, shape and strides"),
    (tensor(0, (2,), (1,), size=-4), "no valid name and size"),
    (tensor(size=5), "storage '0' has 16 bytes for 5 elements"),
    (tensor(kind="DoubleStorage"), "storage '0' has 16 bytes for 4 elements"),
    (tensor(key="1"), "file/data/1"),
    (tensor(key="../data.pkl"), r"file/data/\.\./data\.pkl"),
])
def test_refuses_tensors_beyond_their_storage(view, reason, write):
    refused(write(state(x=view)), reason)


@pytest.mark.parametrize("pickled, reason", [
    (tensor() + ".", "it is a Tensor, not a dict"),
    ("(l" + tensor() + "a.", "it is a list, not a dict"),
    (state(model="(d", epoch="I3\n"), "'epoch' is a value of type int, not a tensor"),
    (state(a="(dI1\nI2\ns"), "'a.1' is a value of type int"),
    (state(a=f"(dS'b'\n{tensor()}s", **{"a.b": tensor()}), "two tensors are called 'a.b'"),
    (state(a=tensor(), b=tensor(kind="IntStorage")), "storage '0' has two types or sizes"),
    (state(a="(dp0\nS'a'\ng0\ns"), "recursion"),
    (state(a="(S'storage'\ntQ"), "not enough values"),
    ("garbage", "truncated"),
])
def test_refuses_everything_but_tensors_in_dicts(pickled, reason, write):
    refused(write(pickled), reason)


def test_nested_dicts_are_joined_by_dots(write):
    inner = f"(dS'w'\n{tensor(2)}s"
    model = f"(dS'conv'\n{inner}s"
    read = torch_file.read(write(state(b=tensor(), model=model, none="(d")))
    assert list(read) == ["b", "model.conv.w"]
    np.testing.assert_array_equal(read["model.conv.w"], [3, 4])


def test_refuses_other_files(tmp_path, write):
    missing = tmp_path / "missing.pth"
    refused(missing, "cannot be read .No such file")
    refused(tmp_path, "cannot be read .Is a directory")
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    refused(tmp_path / "a.npz", "a zip, but without PyTorch's data.pkl")
    for content in (b"", b"hello\n", b"\x80\x02K\x01."):
        (tmp_path / "other").write_bytes(content)
        refused(tmp_path / "other", "not a whole PyTorch file")
    refused(write(state(x=tensor()), byteorder=b"big"), "big-endian")
    refused(write(state(x=tensor()), compression=zipfile.ZIP_DEFLATED), "'0' is compressed")
    refused(write(state(x=tensor()), storage=None), "file/data/0")
