"""Batches of images that live on the devices: those of the host's, bit for bit."""

import contextlib
import itertools

import jax
import numpy as np
import pytest

from ddpm_jax.data import batching, image_pairs, loading
from ddpm_jax.data import source as source_lib
from ddpm_jax.runtime import memory, parallel
from ddpm_jax.training import loop
from records import lasting, rows, saved
from tiny_run import tiny_config

RNG = np.random.default_rng(0)


def pictures(n=37, size=4):
    """Colour pictures with labels, and conditions of two channels."""
    return source_lib.from_array(
        RNG.integers(0, 256, (n, size, size, 3), np.uint8), labels=np.arange(n) % 5,
        condition=RNG.integers(0, 256, (n, size, size, 2), np.uint8),
    )


@pytest.fixture
def accelerator(monkeypatch):
    """The CPU's devices pass for those of another kind, in what is decided here."""
    def fits(source, fits=batching.fits_on_device):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: "gpu")
            return fits(source)

    monkeypatch.setattr(batching, "fits_on_device", fits)


def some(source, count=6, **settings):
    settings = {"seed": 3, "batch_size": 16, "on_device": True, **settings}
    with contextlib.closing(batching.device_batches(source, **settings)) as batches:
        return list(itertools.islice(batches, count))


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert set(one) == set(other)
        for name in one:
            assert one[name].dtype == other[name].dtype, name
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("source", [
    pictures(),
    image_pairs.noisy(source_lib.from_array(loading.digits("train")[0][:9]), seed=1, training=True),
], ids=["labels and conditions", "noises of its own"])
def test_batches_are_the_hosts(accelerator, source, start):
    """Over the border of epochs, and from any batch on."""
    host = batching.batches(source, seed=3, batch_size=16, start=start)
    wanted = [parallel.shard(batch) for batch in itertools.islice(host, 6)]
    found = some(source, start=start)
    assert_same(found, wanted)
    assert all(isinstance(x, jax.Array) for batch in found for x in batch.values())
    assert all(len(x.devices()) == jax.local_device_count() for x in found[0].values())
    sent = some(source, start=start, on_device=False)
    assert_same(sent, wanted)
    assert all(isinstance(x, np.ndarray) for batch in sent for x in batch.values())


def test_each_process_has_its_own_share(accelerator, monkeypatch):
    whole = some(pictures_once := pictures(), count=3, batch_size=32)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index, on_device in itertools.product((0, 1), (True, False)):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        share = some(pictures_once, count=3, batch_size=32, on_device=on_device)
        assert_same(share, [
            {name: x.reshape(2, 8, 2, *x.shape[2:])[index] for name, x in batch.items()}
            for batch in jax.device_get(whole)
        ])


def test_the_images_are_sent_once(accelerator):
    source, read = pictures(), []

    def counted(indices):
        read.append(len(indices))
        return source.read(indices)

    some(source.__class__(len(source), source.image_shape, counted, in_memory=True))
    assert read == [len(source)]


def test_they_live_on_accelerators_that_have_the_room(accelerator, monkeypatch):
    source = pictures(n=8, size=2)  # 8 x 4 pixels of 3 and 2 channels are 160 bytes.
    monkeypatch.setattr(memory, "device_total", lambda: 16 * 160)
    assert batching.fits_on_device(source)
    streamed = source_lib.Source(len(source), source.image_shape, source.read)
    assert not batching.fits_on_device(streamed)
    monkeypatch.setattr(memory, "device_total", lambda: 16 * 160 - 1)
    assert not batching.fits_on_device(source)
    assert isinstance(some(source, count=1)[0]["images"], np.ndarray)


def test_a_cpu_has_them_already():
    assert not batching.fits_on_device(pictures())


def test_a_run_and_its_resumption_are_the_hosts(accelerator, tiny, tmp_path):
    settings = {"data.random_flip": True, "train.checkpoint_every": 3}
    loop.train(tiny_config(**settings, **{"data.on_device": False}), tmp_path / "host")
    for num_steps in (3, 6):
        loop.train(
            tiny_config(**settings, **{"train.num_steps": num_steps}), tmp_path / "device"
        )
    host, device = (list(map(lasting, rows(tmp_path / name))) for name in ("host", "device"))
    assert [row["loss"] for row in host] == [row["loss"] for row in device] and len(host) == 6
    for a, b in zip(saved(tmp_path / "host", 6), saved(tmp_path / "device", 6), strict=True):
        np.testing.assert_array_equal(a, b)
