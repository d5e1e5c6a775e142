"""What the devices of a training step exchange, and the arithmetic of the predictions."""

import jax
import numpy as np
import pytest

from benchmarks.speed import scaling
from ddpm_jax.data import loading
from ddpm_jax.runtime import parallel
from nonzero import TinyNet
from training_step import BATCH, small_config, state_of, step_of


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradients_go_through_one_all_reduce(accumulate):
    """Besides, only the loss and t of each image are gathered, with micro-batches too."""
    config = small_config(accumulate=accumulate)
    state = parallel.replicate(state_of(config, TinyNet()))
    batch = parallel.shard({"images": loading.digits("train")[0][:BATCH]})
    text = step_of(config).lower(state, batch, jax.random.key(0)).compile().as_text()
    exchanged = sorted(scaling.collectives(text))
    # Two biases, of conv_in and temb, have the same gradient, which XLA sends once.
    num_sent = sum(leaf.size for leaf in jax.tree.leaves(state.params)) - 4
    assert exchanged == [
        ("all-gather", 4 * BATCH), ("all-gather", 4 * BATCH), ("all-reduce", 4 * num_sent)
    ]


def test_collectives_are_read_from_the_compiled_text():
    text = """
  %all-reduce.1 = (f32[3,3,1,4]{3,2,1,0}, bf16[4]{0}, f32[]) all-reduce(%a, %b, %c), channel_id=1
  ROOT %all-gather.9 = s32[16]{0} all-gather(%wrapped_convert), channel_id=1, dimensions={0}
  %start = f32[8]{0} all-reduce-start(%x), to_apply=%add
  %done = f32[8]{0} all-reduce-done(%start)
  %fusion = f32[8]{0} fusion(%all-reduce.1), metadata={op_name="all-reduce(x)"}
"""
    assert scaling.collectives(text) == [
        ("all-reduce", 4 * 36 + 2 * 4 + 4), ("all-gather", 64), ("all-reduce", 32)
    ]


def test_a_ring_sends_each_byte_almost_twice():
    """Against a loop over the ring: n - 1 sends of an n-th to sum, as many to distribute."""
    for devices in (1, 2, 5):
        sent = sum(60 / devices for _ in range(2) for _ in range(devices - 1))
        assert scaling.all_reduce_seconds(60, devices, 3.0) == pytest.approx(sent / 3)


def test_predictions_are_those_made_by_hand():
    machine = scaling.Machine("m", devices=4, flops=1e12, bytes_per_second=1e9)
    work = scaling.Work("w", batch_size=8, flops=1e9, num_params=1_000_000)
    prediction = scaling.predict(work, machine, 0.5)
    # 3 x 1e9 x 8 / (4 x 5e11) = 12 ms; 1.5 x 4e6 / 1e9 = 6 ms.
    assert prediction == pytest.approx(
        {"compute": 0.012, "all_reduce": 0.006, "step": 0.018, "efficiency": 2 / 3}
    )


def test_the_page_has_the_predictions():
    tpu, h200 = (scaling.all_reduce_seconds(4 * 35_746_307, m.devices, m.bytes_per_second)
                 for m in scaling.MACHINES)
    np.testing.assert_allclose([tpu, h200], [2.681e-3, 5.561e-4], rtol=1e-3)  # by hand
    page = (scaling.RESULTS.parents[1] / "docs/scaling.md").read_text()
    assert scaling.predicted_table() in page


def test_the_table_of_measurements():
    row = {"devices": 2, "batch_size": 10, "num_params": 9, "seconds": 0.5,
           "processor_seconds": 0.2, "collectives": [["all-gather", 40], ["all-reduce", 1200]]}
    assert scaling.measured_table([row], 0.01).splitlines()[-1] == (
        "| 2 | 10 | 1, 1,200 bytes | 1, 40 bytes | 500 | 20.00 | 2.00 |"
    )
