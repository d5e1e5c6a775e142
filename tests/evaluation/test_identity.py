"""Digests: of every value, of nothing else, and the same in every process."""

import dataclasses
import subprocess
import sys

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import process, schedule
from ddpm_jax.evaluation import identity
from ddpm_jax.network.trained import Trained
from ddpm_jax.network.unet import UNet
from nonzero import TinyNet, nonzero_params

TRAINED = Trained(
    nonzero_params(TinyNet()), UNet(channels=8), schedule.linear(20), process.Parameterization(),
    (8, 8, 1),
)
CHANGES = {
    "a bit of a weight": lambda t: t.replace(params=changed(t.params, np.nextafter)),
    "another name": lambda t: t.replace(params={"conv_2": t.params["conv_in"], **{
        name: leaf for name, leaf in t.params.items() if name != "conv_in"}}),
    "a field of the model": lambda t: t.replace(model=UNet(channels=8, norm_eps=1e-5)),
    "its dtype": lambda t: t.replace(model=UNet(channels=8, dtype=jnp.bfloat16)),
    "another model": lambda t: t.replace(model=TinyNet(channels=8)),
    "a beta": lambda t: t.replace(schedule=schedule.linear(20, end=0.03)),
    "the steps": lambda t: t.replace(schedule=t.schedule.replace(timesteps=np.arange(20) * 50)),
    "the mean": lambda t: t.replace(diffusion=process.Parameterization("v")),
    "the variance": lambda t: t.replace(diffusion=process.Parameterization("eps", "fixed_small")),
    "the scale of vectors": lambda t: t.replace(vector_scale=((1.0,), (2.0,))),
    "the shape": lambda t: t.replace(image_shape=(8, 8, 3)),
}


def changed(params, change):
    kernel = params["conv_in"]["kernel"].copy()
    kernel.flat[7] = change(kernel.flat[7], np.float32(1))
    return {**params, "conv_in": {**params["conv_in"], "kernel": kernel}}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_differs_in_anything_has_another_digest(name):
    assert identity.of_model(CHANGES[name](TRAINED)) != identity.of_model(TRAINED)


def test_the_order_of_parameters_and_their_container_do_not_matter():
    params = {name: jnp.asarray(leaf) if name == "x" else leaf
              for name, leaf in reversed(TRAINED.params.items())}
    params["temb"] = {name: jnp.asarray(leaf) for name, leaf in params["temb"].items()}
    assert identity.of_model(TRAINED.replace(params=params)) == identity.of_model(TRAINED)


def test_a_field_that_a_later_version_adds_leaves_digests_alone():
    class Old(nn.Module):
        width: int = 3

    class New(nn.Module):
        width: int = 3
        depth: int = 1

    New.__name__ = "Old"
    digests = [
        identity.of_model(TRAINED.replace(model=model))
        for model in (Old(4), New(4), New(4, 2), Old())
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def images(n=100, shape=(4, 4, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def test_images_are_told_apart_by_each_pixel_of_each(monkeypatch):
    known = identity.of_images(source_lib.from_array(images()))
    assert known == identity.of_images(source_lib.from_array(images().copy()))
    for i in range(100):
        other = images()
        other[i, i % 4, 1, 2] ^= 1
        assert identity.of_images(source_lib.from_array(other)) != known
    others = [
        images().reshape(100, 4, 3, 4), images().reshape(50, 8, 4, 3), images()[::-1],
        images()[1:], images()[:-1],
    ]
    constant = [np.zeros((n, 4, 4, 3), np.uint8) for n in (99, 100)]
    digests = [identity.of_images(source_lib.from_array(array)) for array in (*others, *constant)]
    assert len({known, *digests}) == 8
    monkeypatch.setattr(identity, "BLOCK", 7)
    assert identity.of_images(source_lib.from_array(images())) == known


def test_labels_and_conditions_belong_to_images_where_a_network_gets_them():
    labels, condition = np.arange(100) % 7, images(100, (4, 4, 1), 1)
    source = source_lib.from_array(images(), labels=labels, condition=condition)
    assert identity.of_images(source) == identity.of_images(source_lib.from_array(images()))
    digests = {identity.of_images(source, inputs=True)}
    other = labels.copy()
    other[99] = 5
    digests.add(identity.of_images(source.with_labels(other), inputs=True))
    other = condition.copy()
    other[50, 0, 0, 0] ^= 1
    digests.add(identity.of_images(
        source_lib.from_array(images(), labels=labels, condition=other), inputs=True))
    assert len(digests) == 3


def test_images_are_read_in_order_by_several_threads():
    order = []

    def read(places):
        order.append(places)
        return images(10_000, (1, 1, 1))[places]

    source = source_lib.Source(10_000, (1, 1, 1), read)
    expected = identity.of_images(source_lib.from_array(images(10_000, (1, 1, 1))))
    assert identity.of_images(source) == expected
    np.testing.assert_array_equal(np.sort(np.concatenate(order)), np.arange(10_000))


def test_files_are_told_apart_by_their_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert identity.of_file(tmp_path / "a") == "sha256:ba7816bf8f01cfea"  # Of FIPS 180-2.


def test_another_process_has_the_same_digests():
    """Digests hold no address, no hash of Python's and no order of a dict."""
    program = (
        "import jax.numpy as jnp, numpy as np\n"
        "from ddpm_jax.diffusion import process, schedule\n"
        "from ddpm_jax.evaluation import identity\n"
        "from ddpm_jax.network.trained import Trained\n"
        "from ddpm_jax.network.unet import UNet\n"
        "print(identity.of_model(Trained({'a': np.arange(3.0)}, UNet(channels=8, "
        "dtype=jnp.bfloat16), schedule.linear(20), process.Parameterization(), (8, 8, 1))))"
    )
    trained = TRAINED.replace(
        params={"a": np.arange(3.0)}, model=UNet(channels=8, dtype=jnp.bfloat16))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == identity.of_model(trained)
    assert dataclasses.fields(UNet)
