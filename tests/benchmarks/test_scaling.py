"""What the devices of a training step exchange, and the table of measurements."""

import jax
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


def test_the_table_of_measurements():
    row = {"devices": 2, "batch_size": 10, "num_params": 9, "seconds": 0.5,
           "processor_seconds": 0.2, "collectives": [["all-gather", 40], ["all-reduce", 1200]]}
    assert scaling.measured_table([row], 0.01).splitlines()[-1] == (
        "| 2 | 10 | 1, 1,200 bytes | 1, 40 bytes | 500 | 20.00 | 2.00 |"
    )
