"""Batches are given by seed and number, and the same wherever the images are kept."""

import contextlib
import itertools

import jax
import numpy as np
import pytest

from ddpm_jax.data import batching, image_pairs, loading
from ddpm_jax.data import source as source_lib
from ddpm_jax.runtime import memory, parallel
from ddpm_jax.training import loop
from data_sets import numbered, take
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
    """The CPU's devices pass for an accelerator, where `batching` asks."""
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
    """Across two epochs, and from any batch on."""
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


# Batches of the host.


def test_batch_is_a_function_of_seed_and_number():
    source = source_lib.from_array(numbered(10))
    first = take(source, 8)
    np.testing.assert_array_equal(first, take(source, 8))
    assert first.dtype == np.uint8 and first.shape == (8, 4, 2, 3, 1)
    assert not np.array_equal(first, take(source, 8, seed=1))
    for start in (1, 3, 7):
        np.testing.assert_array_equal(take(source, 1, start=start)[0], first[start])
    assert take(source, 1, start=10**12).shape == (1, 4, 2, 3, 1)


def test_start_reads_nothing_before_it():
    asked = []
    images = numbered(50)

    def read(indices):
        asked.extend(indices)
        return images[indices]

    source = source_lib.Source(50, (2, 3, 1), read, in_memory=True)
    order = take(source_lib.from_array(images), 8)[..., 0, 0, 0]
    take(source, 1, start=5)
    assert asked[:4] == list(order[5]) and not set(order[:5].ravel()) & set(asked[:12])


@pytest.mark.parametrize("batch_size", [4, 25])
def test_an_epoch_shows_each_image_once_in_an_order_of_its_own(batch_size):
    images = numbered(10)
    seen = take(source_lib.from_array(images), 50 // batch_size * 2, batch_size=batch_size)
    order = seen.reshape(-1, *images.shape[1:])[..., 0, 0, 0]
    epochs = order[: len(order) // 10 * 10].reshape(-1, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert tuple(epochs[0]) != tuple(range(10))
    np.testing.assert_array_equal(seen.reshape(-1, 2, 3, 1), images[order])


@pytest.mark.parametrize("process_count", [2, 4])
def test_shares_of_the_processes_make_up_the_batch(process_count):
    source = source_lib.from_array(numbered(13))
    settings = {"batch_size": 8, "seed": 3, "start": 2}
    whole = take(source, 5, **settings)
    shares = [
        take(source, 5, process_index=i, process_count=process_count, **settings)
        for i in range(process_count)
    ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


def test_a_single_image_is_repeated():
    assert take(source_lib.from_array(numbered(1)), 3).shape == (3, 4, 2, 3, 1)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 6, "process_count": 4}, r"batch_size=6: .*train\.batch_size=8"),
        ({"batch_size": 0}, "batch_size=0: .*batch_size=1"),
        ({"seed": -1}, "config.seed=-1"),
    ],
)
def test_impossible_batches_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        take(source_lib.from_array(numbered(3)), 1, **settings)
