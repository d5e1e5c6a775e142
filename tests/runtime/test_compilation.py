"""A program compiled before its first call, and what that leaves behind."""

import gc
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.runtime import compilation


def test_the_program_does_what_the_function_does():
    function = jax.jit(lambda x, y: (x @ y, x + 1), donate_argnums=0)
    x, y = jnp.arange(6.0).reshape(2, 3), jnp.ones((3, 2))
    program = compilation.compiled(compilation.lowered(function, x, y))
    assert not x.is_deleted()
    product, more = program(x, y)
    np.testing.assert_array_equal(product, [[3, 3], [12, 12]])
    np.testing.assert_array_equal(more, [[1, 2, 3], [4, 5, 6]])
    with pytest.raises(TypeError):
        program(jnp.ones((1, 3)), y)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_garbage_collector_rests_while_a_function_is_traced(enabled, fails):
    seen = []

    def function(x):
        seen.append(gc.isenabled())
        if fails:
            raise ValueError("no")
        return x

    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        try:
            compilation.lowered(jax.jit(function), 1.0)
        except ValueError:
            assert fails
        assert seen == [False] and gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read on Linux")
def test_freed_memory_goes_back_to_the_system():
    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    blocks = [bytearray(60_000) for _ in range(4000)]  # Below the size that is mapped by itself.
    held = resident()
    del blocks[:-1]  # The last one keeps the heap from shrinking at its end.
    compilation.compiled(compilation.lowered(jax.jit(lambda x: x + 1), 1.0))
    assert held - resident() > 100_000_000
