"""Targets: names, shapes and compilers that are missing, without any compiler."""

import importlib.util
import types

import jax
import pytest
from jax.experimental import topologies

from ddpm_jax.errors import UserError
from ddpm_jax.runtime import targets

GIB = 2**30


@pytest.fixture
def libtpu(monkeypatch):
    """A libtpu that describes what it is asked for; returns what that was."""
    asked = []

    def described(**kwargs):
        asked.append(kwargs)
        device = types.SimpleNamespace(device_kind="TPU", platform=kwargs["platform"])
        return types.SimpleNamespace(devices=[device] * 4)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr(topologies, "get_topology_desc", described)
    return asked


@pytest.mark.parametrize("name, memory, clock", [
    ("v3:2x2", 15.48, 0.94e9), ("v4:2x2x1", 30.75, 1.05e9), ("v5e:16x16", 15.75, 1.5e9),
    ("v6e:1x1", 31.24, 1.75e9),
])
def test_a_slice_is_described_by_its_name(libtpu, name, memory, clock):
    target = targets.find(name)
    assert (target.memory, target.clock) == (int(memory * GIB), clock)
    assert target.platform == "tpu" and len(target.devices) == 4
    # JAX takes both cores of a v4 chip for one device.
    megacore = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
    assert libtpu == [dict(platform="tpu", topology_name=name) | megacore]
    assert str(target) == f"{name}: 4 TPU, {memory:.2f} GiB each"


@pytest.mark.parametrize("name, rule, instead", [
    ("v5:2x4", "is not known", "v5p:2x2x1"), ("v5e-8", "is not known", "v5e:2x4"),
    ("v6:4x4", "is not known", "v6e:4x4"), ("V4_2x2x1", "is not known", "v4:2x2x1"),
    ("h100", "is not known", "h200"), ("", "is not known", "v5e:2x4"),
    ("v5e:" + "9" * 5000, "2 numbers of chips", "v5e:2x4"), ("a\nb:c", "is not known", "v5e:2x4"),
    ("v5e", "2 numbers of chips", "v5e:2x4"), ("v5e:8", "2 numbers of chips", "v5e:2x4"),
    ("v5e:2x4x1", "2 numbers of chips", "v5e:2x4"), ("v5e:2x-4", "2 numbers", "v5e:2x4"),
    ("v5e:²x2", "2 numbers", "v5e:2x4"),
    ("v4:2x2", "3 numbers of chips", "v4:2x2x1"), ("v3:0x2", "1 to 1,024 chips", "v3:2x4"),
    ("v5e:32x32", "1 to 256 chips", "v5e:2x4"),
])
def test_a_name_that_is_none_is_one_line(libtpu, name, rule, instead):
    with pytest.raises(UserError) as raised:
        targets.find(name)
    line = str(raised.value)
    assert rule in line and line.endswith(f"; write --target='{instead}'.")
    assert "\n" not in line and len(line) < 500 and not libtpu


def test_what_libtpu_says_of_a_shape_is_one_line(libtpu, monkeypatch):
    def refuses(**kwargs):
        raise jax.errors.JaxRuntimeError('INVALID_ARGUMENT: layout "v3:2x3" is not\ndivisible')

    monkeypatch.setattr(topologies, "get_topology_desc", refuses)
    with pytest.raises(UserError, match='2x3.*knows .layout "v3:2x3" is not divisible.; write'):
        targets.find("v3:2x3")


def test_other_errors_of_libtpu_are_not_taken_for_the_users(libtpu, monkeypatch):
    def fails(**kwargs):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(topologies, "get_topology_desc", fails)
    with pytest.raises(jax.errors.JaxRuntimeError):
        targets.find("v3:2x2")


@pytest.mark.parametrize("name, install", [
    ("v5e:2x4", "pip install libtpu"), ("h200", r'pip install "jax\[cuda13\]=='),
])
def test_a_compiler_that_is_missing_is_one_line(monkeypatch, name, install):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match=f"^--target='{name}' needs .*not installed.*{install}"):
        targets.find(name)


def test_a_gpu_is_described_to_the_compiler(monkeypatch):
    def described(*, platform, target_config, **_):
        assert platform == "cuda" and "memory_bandwidth: 4800000000000" in target_config
        device = types.SimpleNamespace(device_kind="NVIDIA H200", platform="cuda")
        return types.SimpleNamespace(devices=[device])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(topologies, "get_topology_desc", described)
    target = targets.find("h200")
    assert target.platform == "cuda" and not target.clock
    assert target.bandwidth == 4.8e12
    assert 100 * GIB < target.memory < 141e9  # JAX takes three quarters of it.
