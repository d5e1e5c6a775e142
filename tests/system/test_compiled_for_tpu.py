"""What must stay true of the programs that XLA makes for a TPU, of a small network on v5e:2x2.

It is as wide as the paper's: in a narrower one the products weigh less beside the rest.

    pip install libtpu; pytest -m slow -s tests/system/test_compiled_for_tpu.py
"""

import importlib.util
import re

import jax
import pytest

from ddpm_jax import lowering
from ddpm_jax.configs import cifar10
from ddpm_jax.runtime import compiled, targets

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs pip install libtpu"),
]
BATCH, NUM_DEVICES = 256, 4
MOST = 0.05  # Of the cycles, for any operation of these kinds.
LAYOUT = r"\((copy|transpose|broadcast|reshape|concatenate)\)$|/(transpose|broadcast_in_dim) \("


@pytest.fixture(scope="module")
def parts():
    config = cifar10.get_config()
    config.update_from_flattened_dict({
        "data.dir": "/nowhere", "model.channels": 128, "model.channel_multipliers": (1, 2),
        "model.num_res_blocks": 1, "model.dtype": "bfloat16", "train.batch_size": BATCH,
    })
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")  # Those of the tests are for CPUs, and libtpu refuses them.
        yield lowering.programs(config, targets.find("v5e:2x2"))


@pytest.fixture(scope="module", params=["train", "sample", "bits_per_dim"])
def program(request, parts):
    """(its name, its text, what is read of it), compiled."""
    lowered = getattr(parts, request.param)(BATCH)
    text = lowered.compile().as_text()
    return request.param, text, compiled.read(text)


def test_each_operation_of_randomness_or_layout_takes_little(program):
    name, _, block = program
    places = block.by(lambda operation: f"{operation.kind}: {operation.place}")
    kinds = block.by(lambda operation: operation.kind)
    print(f"\n{name}: {block.cycles:,} cycles;", {k: f"{v:.1%}" for k, v in kinds.items()})
    bounded = {
        place: share for place, share in places.items()
        if place.startswith("randomness") or re.search(LAYOUT, place)
    }
    for place, share in list(bounded.items())[:5]:
        print(f"  {share:.1%} {place}")
    assert bounded and max(bounded.values()) < MOST


def test_gradients_are_exchanged_once(program, parts):
    """Besides them the loss, t and weight of each image, for the log.

    XLA sends the equal gradients of two biases once.
    """
    name, _, block = program
    exchanges = block.collectives
    assert not any(body.collectives for _, body in block.loops)
    if name != "train":
        assert not exchanges
        return
    leaves = jax.tree.leaves(parts.state.params)
    gradients = sum(4 * leaf.size for leaf in leaves)
    print(f"\n{gradients:,} bytes of gradients;", exchanges)
    assert {each.opcode for each in exchanges} <= {"all-reduce", "all-gather"}
    assert {each.num_devices for each in exchanges} == {NUM_DEVICES}
    small = [each for each in exchanges if each.num_bytes <= 4 * 3 * BATCH]
    assert len(exchanges) - len(small) == 1
    in_all = sum(each.num_bytes for each in exchanges)
    assert 0.99 * gradients <= in_all <= gradients + 4 * 3 * BATCH


def test_kernels_are_cast_to_bfloat16_before_the_loop_of_sampling(program):
    """Then the loop carries them so, and of the float32 ones those alone that are no kernel."""
    name, text, _ = program
    if name != "sample":
        return
    [loop] = re.findall(r"= (\(.*\)) while\(", text)
    kernels = re.findall(r"(\w+)\[3,3,\d+,\d+\]", loop)
    print("\nkernels in the loop:", len(kernels), set(kernels))
    assert set(kernels) == {"bf16"}
