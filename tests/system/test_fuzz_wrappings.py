"""Random wrappings of a state dict give the same parameters to the bit, or one bounded line.

`DDPM_JAX_FUZZ=1000` draws 1,000 new ones.
"""


import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ddpm_jax.errors import UserError
from ddpm_jax.weights import torch_file
from fuzz import settings
from wrapped_models import FOLDER, from_state_dict, params, quietly, weights

RAW, EMA = weights("unet"), weights("unet_ema")
WORDS = st.one_of(
    st.sampled_from(["model", "module", "state_dict", "net", "unet", "denoise_fn", "0", "weights"]),
    st.text("abcXYZ_", min_size=1, max_size=5),
).filter(lambda word: not any(
    part in word.lower() for part in ("ema", "swa", "avg", "opt", "grad", "exp_avg", "shadow")))
AVERAGES = st.sampled_from(["ema", "ema_model", "model_ema", "EMA", "swa_model", "ema.shadow"])
# Every way to put something before all names: a key, a wrapper's prefix, one inside the names.
KEY, PREFIX, INSIDE = "key", "prefix", "inside"
STEPS = st.lists(st.one_of(
    st.tuples(st.sampled_from([KEY, PREFIX]), WORDS),
    st.sampled_from([(PREFIX, "_orig_mod"), (INSIDE, "_orig_mod"), (INSIDE, "_fsdp_wrapped_module"),
                     (PREFIX, "online_model")]),
), max_size=4)
BESIDE = st.dictionaries(
    st.sampled_from(["epoch", "optimizer", "lr", "args", "betas", "scaler", "history"]),
    st.sampled_from([
        3, 0.5, None, "x", [1, 2], np.ones(3, np.float32), np.int64(3), {}, {"step": [1.0] * 9},
        {"state": {0: {"exp_avg": np.ones(2)}}, "param_groups": [{"lr": 1.0}]},
        {"exp_avg": RAW}, {"grads": RAW},
    ]), max_size=4)


def wrapped(state, steps):
    """`state` with each step around the last."""
    for kind, word in steps:
        if kind == KEY:
            state = {word: state}
        elif kind == PREFIX:
            state = {f"{word}.{name}": x for name, x in state.items()}
        else:
            state = {name.replace(".bias", f".{word}.bias"): x for name, x in state.items()}
    return state


def found(*arguments, **keywords):
    """The parameters that are read, or None after one bounded line; and the lines said."""
    try:
        trained, lines = quietly(from_state_dict, *arguments, **keywords)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) <= 2003
        return None, []
    return trained.params, lines


@settings(15)
@hypothesis.given(steps=STEPS, beside=BESIDE)
@hypothesis.example(steps=[(PREFIX, "_orig_mod"), (PREFIX, "module")], beside={})
@hypothesis.example(steps=[(INSIDE, "_orig_mod"), (KEY, "0")], beside={"optimizer": {"a": RAW}})
def test_one_network_is_found(steps, beside):
    if all(kind == INSIDE or word == "_orig_mod" for kind, word in steps):
        steps = [*steps, (KEY, "model")]  # Else tensors beside the weights are the network's.
    read, lines = found(beside | wrapped(RAW, steps))
    assert lines == []
    jax.tree.map(assert_array_equal, read, params())


@settings(15)
@hypothesis.given(steps=STEPS, inner=STEPS, average=AVERAGES, name=WORDS, beside=BESIDE,
                  kind=st.sampled_from(["dict", "list", "online too"]))
@hypothesis.example(steps=[], inner=[], average="ema", name="model", beside={}, kind="list")
def test_the_average_is_found_and_said_or_refused(steps, inner, average, name, beside, kind):
    inner = [step for step in inner if step != (PREFIX, "online_model")]
    averages = {"dict": lambda: wrapped(EMA, inner), "list": lambda: list(EMA[n] for n in RAW),
                "online too": lambda: {"online": RAW, "ema_model": EMA}}[kind]()
    read, lines = found(beside | wrapped({name: RAW, average: averages}, [
        step for step in steps if step[0] == KEY]))
    assert len(lines) == 1
    jax.tree.map(assert_array_equal, read, params("unet_ema"))


@settings(20)
@hypothesis.given(states=st.lists(st.tuples(STEPS, st.sampled_from([RAW, EMA])), max_size=3),
                  average=st.lists(AVERAGES, max_size=2), beside=BESIDE)
def test_anything_is_read_or_refused(states, average, beside):
    tree = dict(beside)
    for i, (steps, state) in enumerate(states):
        tree |= wrapped(state, [*steps, (KEY, average[i])] if i < len(average) else steps)
    read, _ = found(tree)
    if read is not None:
        first = jax.tree.leaves(read)[0]
        assert any(np.array_equal(first, jax.tree.leaves(params(n))[0]) for n in (
            "unet", "unet_ema"))


CONTENT = (FOLDER / "states.pth").read_bytes()


@settings(30)
@hypothesis.given(changes=st.lists(
    st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_damaged_checkpoint_is_read_or_refused(tmp_path_factory, changes):
    damaged = bytearray(CONTENT)
    for place, value in changes:
        damaged[place % 20_000] = value  # The pickles.
    path = tmp_path_factory.mktemp("damaged") / "states.pth"
    path.write_bytes(damaged)
    try:
        torch_file.read(path, lambda values: {
            name: x for name, x in values.items() if hasattr(x, "shape")})
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) <= 2003


def test_the_average_differs():
    with pytest.raises(AssertionError):
        jax.tree.map(assert_array_equal, params(), params("unet_ema"))
