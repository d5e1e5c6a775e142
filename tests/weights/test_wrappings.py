"""Weights in the wrappings that programs put around them, from PyTorch's own files and by hand."""

import os
import pickle
import zipfile

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ddpm_jax.weights import wrappings
from wrapped_models import (
    FOLDER, OUTPUTS, assert_is, from_state_dict, params, quietly, refused, weights,
)


def under(prefix, state):
    return {f"{prefix}{name}": x for name, x in state.items()}


def test_the_fixtures_differ():
    model, average, half = (OUTPUTS[name] for name in ("model", "average", "half"))
    assert min(np.abs(model - average).max(), np.abs(model - half).max()) > 1e-4


def test_the_running_average_is_taken_and_said():
    """torch.compile's model, an optimizer, and diffusers' EMAModel, which is a list."""
    path = FOLDER / "checkpoint.pt"
    trained, lines = quietly(from_state_dict, path)
    assert_is(trained, "average")
    assert lines == [
        f"{path} holds a model and its running average: the average, 'ema.shadow_params', is "
        "taken; for the model itself write prefix='model'."
    ]
    trained, lines = quietly(from_state_dict, path, prefix="model")
    assert_is(trained, "model")
    assert lines == []


def test_the_list_of_ddim():
    trained, lines = quietly(from_state_dict, FOLDER / "states.pth")
    assert_is(trained, "average")
    assert "'ema.module', is taken; for the model itself write prefix='model.module'" in lines[0]
    assert_is(from_state_dict(FOLDER / "states.pth", prefix="model"), "model")


RAW, EMA = weights("unet"), weights("unet_ema")
NUMBERS = {"epoch": 3, "loss": 0.5, "name": "x", "none": None, "size": (1, 2), "rng": np.ones(3)}
ADAM = {"state": {0: {"exp_avg": np.ones(3), "step": np.ones(())}}, "param_groups": [{"lr": 1.0}]}


@pytest.mark.parametrize("wrapped", [
    RAW, under("_orig_mod.", RAW), under("module.", RAW), under("module._orig_mod.", RAW),
    under("_orig_mod.module.model.", RAW), {"state_dict": under("model.", RAW), **NUMBERS},
    {"net": {"module": {"model": RAW}}, "optimizer": ADAM}, {"checkpoint": [RAW, ADAM, 3]},
    {name.replace(".conv1.", "._orig_mod.conv1."): x for name, x in RAW.items()},
    {name.replace("resnets.0.", "resnets.0._fsdp_wrapped_module."): x for name, x in RAW.items()},
    {"model": under("unet.", RAW) | {"betas": np.ones(10), "logvar": np.ones(10)}},
    {"model": RAW, "best": RAW},  # The same tensors.
    {"model": RAW, "optimizer_state_dict": {"exp_avg": RAW}, "grads": RAW},
    {"ema.online_model": RAW}, {"state": under("ema.", {"online_model.net": RAW})},
])
def test_one_network_is_found_in_whatever_holds_it(wrapped):
    trained, lines = quietly(from_state_dict, wrapped)
    jax.tree.map(assert_array_equal, trained.params, params())
    assert lines == []


@pytest.mark.parametrize("wrapped, at, model", [
    ({"model": RAW, "ema": EMA}, "ema", "model"),
    ({"ema": {"shadow": under("module.", EMA)}, "state_dict": under("module.", RAW)},
     "ema.shadow.module", "state_dict.module"),
    ({"model": RAW, "ema": under("online_model.", RAW) | under("ema_model.", EMA)},
     "ema.ema_model", "model"),
    ({"state_dict": RAW, "state_dict_ema": EMA}, "state_dict_ema", "state_dict"),
    ({"model": RAW, "ModelEMA": EMA}, "ModelEMA", "model"),
    ({"model": RAW, "swa_model": under("module.", EMA) | {"n_averaged": np.ones(())}},
     "swa_model.module", "model"),
    ({"model": RAW, "ema": {"decay": 0.9, "shadow_params": [EMA[name] for name in RAW],
                            "collected_params": None}}, "ema.shadow_params", "model"),
    ({"model": RAW, "ema": [EMA[name] for name in RAW]}, "ema", "model"),
    (RAW | {"ema": {"shadow_params": [EMA[name] for name in RAW]}}, "ema.shadow_params", ""),
    # Latent diffusion's average has names without dots.
    (under("model.net.", RAW) | {f"model_ema.net{name.replace('.', '')}": x
                                 for name, x in EMA.items()}, "model_ema", "model.net"),
    (under("_orig_mod.", RAW) | under("ema_0.999.", EMA), "ema_0.999", ""),
])
def test_of_a_model_and_its_average_the_average_is_taken(wrapped, at, model):
    trained, lines = quietly(from_state_dict, wrapped)
    jax.tree.map(assert_array_equal, trained.params, params("unet_ema"))
    assert lines == [
        f"the state dict holds a model and its running average: the average, {at!r}, is taken; "
        f"for the model itself write prefix={model!r}."
    ]
    trained, lines = quietly(from_state_dict, wrapped, prefix=model)
    jax.tree.map(assert_array_equal, trained.params, params())


class Whole:
    """A model that was pickled with its code."""

    named = "yolo.Model"


@pytest.mark.parametrize("average, name", [
    (Whole(), "ema"), ({"a.weight": np.ones(2)}, "ema.a.weight"), (np.ones(30), "ema"),
    ({"conv_in.weight": np.ones(2), "online": RAW}, "ema.conv_in.weight"),
])
def test_an_average_that_cannot_be_read_is_said(average, name):
    trained, lines = quietly(from_state_dict, {"model": RAW, "ema": average, "ema_step": 3})
    jax.tree.map(assert_array_equal, trained.params, params())
    assert lines == [
        f"the state dict holds a running average that cannot be read, {name!r}: the model itself, "
        "'model', is taken."
    ]


def test_a_model_and_its_average_in_two_files(tmp_path):
    average = {"decay": 0.9, "shadow_params": [EMA[name] for name in RAW]}
    trained, lines = quietly(from_state_dict, [RAW, average])
    jax.tree.map(assert_array_equal, trained.params, params("unet_ema"))
    assert len(lines) == 1


def test_what_is_not_clear_is_refused():
    averages = {"model": RAW, "ema_0.99": EMA, "ema_0.999": RAW}
    refused("several networks: 'ema_0.99', 'ema_0.999'; choose one and write prefix='ema_0.99'",
            from_state_dict, averages)
    jax.tree.map(assert_array_equal, from_state_dict(averages, prefix="ema_0.99").params,
                 params("unet_ema"))
    refused("several networks: 'a', 'b'; .* write prefix='a'", from_state_dict,
            {"a": RAW, "b": EMA})
    refused("prefix='c' has no weights there; it has those of 'a'; write prefix='a'",
            from_state_dict, {"a": RAW}, prefix="c")
    values = [EMA[name] for name in RAW]
    refused("'shadow_params' is a list of 112 tensors without names; give the model's weights too",
            from_state_dict, {"shadow_params": values})
    refused("'ema' is a list of 111 tensors .* has others; .* write prefix='model'",
            from_state_dict, {"model": RAW, "ema": values[:-1]})
    refused("'ema' is a list of 112 tensors", from_state_dict, {"model": RAW, "ema": values[::-1]})
    refused("two weights are called 'conv_in.bias'", from_state_dict,
            RAW | {"_orig_mod.conv_in.bias": RAW["conv_in.bias"]})
    refused("extra.bias has no place", from_state_dict, {"model": RAW | {"extra.bias": np.ones(2)}})


class Attack:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_objects_beside_the_weights_are_neither_run_nor_in_the_way(tmp_path):
    """Every way in which a pickle builds an object, beside the real file's weights."""
    marker, path = tmp_path / "marker", tmp_path / "attack.pt"
    with zipfile.ZipFile(FOLDER / "checkpoint.pt") as theirs:
        entries = {entry: theirs.read(entry) for entry in theirs.namelist()}
    name = next(entry for entry in entries if entry.endswith("data.pkl"))
    # Its dict stays open below the end: "stop" becomes more entries of it.
    assert entries[name].endswith(b"u.")
    more = pickle.dumps([Attack(marker), {Attack(marker): 1}, zipfile.ZipInfo("x")], protocol=2)
    entries[name] = entries[name][:-1] + b"X\x06\x00\x00\x00attack" + more[2:-1] + b"s."
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    trained, _ = quietly(from_state_dict, path)
    assert_is(trained, "average")
    assert not marker.exists()
    whole = {"model": Attack(marker), "epoch": 1}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(whole))
    refused(r"it names (posix|nt)\.mkdir, which is not run", from_state_dict, path)
    assert not marker.exists()


def test_names_are_few_and_differ():
    assert wrappings.named({"a": [1, {"b": 2}], 3: (4,)}) == {"a.0": 1, "a.1.b": 2, "3.0": 4}
    refused("two tensors are called 'a.b'", from_state_dict, {"a": {"b": 1}, "a.b": 2})
    bomb = {}
    for _ in range(40):
        bomb = {"a": bomb, "b": bomb}
    refused("more than 1,000,000 values", from_state_dict, bomb)
    loop = {}
    loop["a"] = loop
    refused("recursion", from_state_dict, loop)
