"""What is read of compiled programs: from texts for a TPU and a GPU, and from the CPU's own.

The texts are those of `function` of tests/fixtures/make_compiled.py.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.runtime import compiled, parallel

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
CHANNELS, IMAGES = 16, 4 * 8 * 8 * 16  # Of a device.


def text_of(kind):
    return (FIXTURES / f"compiled_{kind}.txt").read_text()


@pytest.fixture(scope="module", params=["v5e", "h200"])
def block(request):
    return compiled.read(text_of(request.param))


def test_a_loop_counts_as_often_as_it_runs(block):
    [(times, body)] = block.loops
    assert times == 7 and block.longest_loop == (7, body)
    own = compiled.Block(block.operations, block.collectives)
    assert block.cycles == own.cycles + 7 * body.cycles
    assert block.num_bytes == own.num_bytes + 7 * body.num_bytes > 0


def test_cycles_are_all_those_of_the_text_but_for_a_branch_that_is_not_taken():
    block = compiled.read(text_of("v5e"))
    [(_, body)] = block.loops
    in_all = sum(
        int(part.partition('"')[0]) for part in text_of("v5e").split('"estimated_cycles":"')[1:]
    )
    assert in_all == sum(o.cycles for o in (*block.operations, *body.operations))


def test_bytes_of_a_kernel_are_those_of_its_operands_and_its_result():
    _, body = compiled.read(text_of("h200")).longest_loop
    convolution, = (o for o in body.operations if o.opcode.startswith("__cudnn"))
    kernel = 9 * CHANNELS**2
    # The images, the noise that is added to them, the kernel, the bias, and the images again.
    assert convolution.num_bytes == 4 * (3 * IMAGES + kernel + CHANNELS)
    assert convolution.kind == "convolutions"


def test_operations_are_of_the_kinds_of_the_function(block):
    kinds = block.by(lambda operation: operation.kind)
    assert {"randomness", "norms", "convolutions", "optimizer"} <= set(kinds)
    assert set(kinds) <= set(compiled.KINDS)
    np.testing.assert_allclose(sum(kinds.values()), 1)
    assert list(kinds.values()) == sorted(kinds.values(), reverse=True)
    _, body = block.longest_loop
    assert "optimizer" not in body.by(lambda operation: operation.kind)


@pytest.mark.parametrize("name, kind", [
    ("jit(_fun)/shard_map/jvp(UNet)/UNet.up/UNet.res_block/up_0_block_1/conv1/reduce_sum",
     "convolutions"),
    ("jit(_fun)/shard_map/jvp(UNet)/UNet.up/up_0_block_1/conv1/convert_element_type",
     "convolutions"),
    ("jit(_fun)/shard_map/jvp(UNet)/UNet.up/UNet.upsample/broadcast_in_dim", "convolutions"),
    ("jit(_fun)/shard_map/jvp(UNet)/UNet.down/down_2_block_1/Dropout_0/vmap()/ge", "randomness"),
    ("jit(_fun)/shard_map/jvp(vmap(jit(_normal)))/jit(_normal_real)/mul", "randomness"),
    ("jit(_fun)/shard_map/jvp(UNet)/UNet.down/UNet.attend/down_1_attn_0/norm/sub", "norms"),
    ("jit(_fun)/shard_map/transpose(jvp(UNet))/norm_out/jvp(UNet)/norm_out/dot_general", "norms"),
    ("jit(_fun)/shard_map/jvp(UNet)/UNet.middle/mid_attn_0/nqd,nkd->nqk/dot_general", "attention"),
    ("jit(_fun)/shard_map/jvp(UNet)/UNet.embed/temb_dense_0/dot_general", "timestep"),
    ("jit(_fun)/shard_map/cond/branch_1_fun/cond/branch_1_fun/jit(updated)/add", "optimizer"),
    ("jit(_fun)/shard_map/reduce_sum", "optimizer"),
    ("jit(_fun)/shard_map/convert_element_type", "other"),
])
def test_the_kind_of_an_operation_of_the_network(name, kind):
    assert compiled.Operation("fusion", name, 1, 1).kind == kind


def test_places_are_alike_in_all_blocks():
    first, second = (
        compiled.Operation("fusion", f"jit(f)/transpose(jvp(UNet))/up_{i}_block_0/norm2/mul", 1, 1)
        for i in (0, 3)
    )
    assert first.place == second.place == "gradient of norm#/mul (fusion)"


def test_what_devices_exchange():
    """In a ring each sends every part but its own, and for a sum receives and sends them again."""
    def function(x):
        rows = jax.lax.all_gather(x, parallel.AXIS, tiled=True)
        return jax.lax.psum(x, parallel.AXIS), rows

    n = jax.device_count()
    program = parallel.pmap(function, in_axes=(0,)).lower(
        jax.ShapeDtypeStruct((n, 100), jnp.float32)
    )
    exchanges = {
        each.opcode: each for each in compiled.program(program).block.collectives
    }
    assert {each.num_devices for each in exchanges.values()} == {n}
    assert {each.num_bytes for each in exchanges.values()} == {400}
    assert exchanges["all-reduce"].sent == 2 * 400 * (n - 1) // n
    assert exchanges["all-gather"].sent == 400 * (n - 1)


def test_a_program_of_this_machine():
    """Eleven products of 64x64, in a loop of them, and the memory of both operands."""
    def function(a, b):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ b), None), a, length=11)[0]

    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    program = compiled.program(jax.jit(function).lower(shape, shape))
    times, body = program.block.longest_loop
    assert times == 11
    assert program.memory >= 3 * 4 * 64**2
    assert body.num_bytes >= 3 * 4 * 64**2 and program.block.cycles == 0
