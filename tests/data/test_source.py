"""Sources of images, whatever they come from."""

import numpy as np
import pytest

from ddpm_jax.data import batching
from ddpm_jax.data import source as source_lib
from ddpm_jax.data.source import spread
from data_sets import numbered


@pytest.mark.parametrize("first, last, num, wanted", [
    (0, 9, 4, [0, 3, 6, 9]),
    (9, 0, 4, [9, 6, 3, 0]),
    (0, 10, 4, [0, 3, 7, 10]),  # The nearest of 3 1/3 and 6 2/3.
    (0, 5, 3, [0, 2, 5]),  # The even neighbour of 2 1/2.
    (0, 9, 1, [0]),
    (9, 0, 1, [9]),
    (0, 2, 7, [0, 1, 2]),
    (4, 4, 3, [4]),
])
def test_numbers_are_spread_evenly(first, last, num, wanted):
    found = spread(first, last, num)
    assert found.dtype == np.int64 and found.tolist() == wanted


def test_fractions_can_be_dropped():
    assert spread(0, 10, 4, truncate=True).tolist() == [0, 3, 6, 10]
    for size in range(1, 200):  # The names of caches on disk depend on these.
        named = np.unique(np.linspace(0, size - 1, 64).astype(np.int64))
        np.testing.assert_array_equal(spread(0, size - 1, 64, truncate=True), named)


def test_arrays_with_labels_and_conditions():
    images = numbered(6)
    source = source_lib.from_array(images, labels=[0, 1, 2, 0, 1, 2], condition=images[..., [0, 0]])
    some = source.select(np.array([4, 2]))
    assert len(some) == 2 and some.num_classes == 3 and some.condition_channels == 2
    examples = some.examples(np.array([1, 0]))
    np.testing.assert_array_equal(examples["labels"], [2, 1])
    np.testing.assert_array_equal(examples["condition"][..., :1], images[[2, 4]])
    np.testing.assert_array_equal(examples["images"], images[[2, 4]])
    for labels in ([0, 1], range(7)):
        with pytest.raises(ValueError, match="labels for 6 images"):
            source_lib.from_array(images, labels=labels)
    for condition in (images[:5], images[:, :1]):
        with pytest.raises(ValueError, match="must go with images"):
            source_lib.from_array(images, condition=condition)
    batch = next(batching.batches(source, seed=0, batch_size=4))
    rows = batch["images"][:, 0, 0, 0]
    np.testing.assert_array_equal(batch["labels"], rows % 3)
    np.testing.assert_array_equal(batch["condition"][:, 0, 0, 0], rows)
