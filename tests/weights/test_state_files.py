"""State dicts from mappings and lists of files, and what is refused in one bounded line."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_array_equal

import ddpm_jax
from ddpm_jax.weights import state_files
from wrapped_models import FOLDER, from_state_dict, params, refused, weights


class TorchLike:
    """A parameter of PyTorch in bfloat16, on an accelerator: NumPy cannot read it."""

    def __init__(self, array, done=()):
        self.array, self.shape, self.done = array, array.shape, done

    def __array__(self, *_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def detach(self):
        return TorchLike(self.array, (*self.done, "detach"))

    def cpu(self):
        return TorchLike(self.array, (*self.done, "cpu"))

    def float(self):
        return TorchLike(np.float32(self.array), (*self.done, "float"))

    def numpy(self):
        assert self.done == ("detach", "cpu", "float")
        return self.array


@pytest.mark.parametrize("convert, dtype", [
    (np.asarray, np.float32), (jnp.asarray, np.float32), (TorchLike, np.float32),
    (lambda x: x.astype(ml_dtypes.bfloat16), ml_dtypes.bfloat16),
    (lambda x: jnp.asarray(x, jnp.bfloat16), ml_dtypes.bfloat16),
    (lambda x: TorchLike(x.astype(ml_dtypes.bfloat16)), ml_dtypes.bfloat16),
    (lambda x: x.astype(ml_dtypes.float8_e4m3fn), ml_dtypes.float8_e4m3fn),
    (np.float64, np.float32),
], ids=["numpy", "jax", "torch", "numpy bf16", "jax bf16", "torch bf16", "fp8", "float64"])
def test_a_mapping_of_any_arrays(convert, dtype):
    state = weights()
    rounded = {name: np.float32(x.astype(dtype)) for name, x in state.items()}
    found = from_state_dict({name: convert(x) for name, x in state.items()})
    jax.tree.map(assert_array_equal, found.params, from_state_dict(rounded).params)
    assert {x.dtype for x in jax.tree.leaves(found.params)} == {np.dtype(np.float32)}


def test_parts_of_several_kinds(tmp_path):
    state = weights()
    names = sorted(state)
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({name: state[name] for name in names[::2]}, path)
    found = from_state_dict([path, {name: state[name] for name in names[1::2]}])
    jax.tree.map(assert_array_equal, found.params, params())


def test_numbers_beside_the_weights_in_a_safetensors(tmp_path):
    extra = {"step": np.int64(3), "initted": np.bool_(True), "ids": np.arange(3, dtype=np.int32)}
    path = tmp_path / "a.safetensors"
    content = {f"ema_model.{name}": x for name, x in weights().items()}
    safetensors.numpy.save_file(content | {k: np.asarray(x) for k, x in extra.items()}, path)
    found = from_state_dict(path)
    jax.tree.map(assert_array_equal, found.params, params())


@pytest.mark.parametrize("source, message", [
    (5, "path=5 is neither a path nor a dict of weights"), (None, "path=None is neither"),
    ([3], r"path=\[3\] is neither"), (np.ones(3), "is neither"), ({}, "known format .* nothing"),
    ([], "known format .* nothing"), ({"a": 1}, "known format"), ({"a": np.ones(2)}, "example a"),
    ("none.safetensors", "damaged, missing"), (FOLDER, "is a folder; .* by from_pretrained"),
])
def test_what_holds_no_weights_is_refused(source, message):
    refused(message, from_state_dict, source)


def copied():
    return {name: x.copy() for name, x in weights().items()}


HUGE = {f"layer{i}.{'x' * 300}.weight": np.ones(2, np.float32) for i in range(1000)}
MISFITS = {name: np.ones((*x.shape, 3), np.float32) for name, x in weights().items()}
NAMES = [f"{'é' * 5000}\n{i}" for i in range(1000)]


@pytest.mark.parametrize("state", [
    HUGE, weights() | HUGE, {"a": HUGE, "b": HUGE}, MISFITS, dict.fromkeys(NAMES, np.ones(2)),
    weights() | dict.fromkeys(NAMES, np.ones(2)), {name: copied() for name in NAMES[:9]},
    {f"{name}_ema": copied() for name in NAMES[:9]},
    {"ema": [np.ones(2)] * 1000, "model": weights()}, {NAMES[0]: {"ema": [np.ones(2)] * 1000}},
    {"time_embedding.linear_1.weight": np.ones(2), NAMES[0]: 1},
    {name: "x" * 10**6 for name in weights()},
    {name: x.astype(int) for name, x in weights().items()},
    {name: TorchLike(x).detach() for name, x in weights().items()}, NAMES, "x" * 10**5,
    [dict.fromkeys(NAMES, 1)] * 3, {"a": {"b": np.ones(1)}, "a.b": NAMES},
])
def test_every_message_is_bounded(state):
    with pytest.raises(ddpm_jax.errors.UserError) as error:
        from_state_dict(state)
    assert len(str(error.value)) <= 2003 and "\n" not in str(error.value)


def test_an_index_names_its_shards():
    index = FOLDER / "shards" / "diffusion_pytorch_model.safetensors.index.json"
    names = state_files.shards(index)
    assert names == [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
