"""`benchmarks.speed.ceiling`: products of a program, kinds of its operations, and the page."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.speed import ceiling, flops
from benchmarks.speed.contestants import ours
from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.network import convolution
from nonzero import TinyNet


def convolve(x, kernel):
    return convolution.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=convolution.NHWC)


def of(fn, *args):
    return ceiling.products(jax.make_jaxpr(fn)(*args).jaxpr)


def test_products_are_counted_where_they_are():
    """In a loop, once per iteration; products of the same shapes are one entry."""
    a, b = jnp.ones((4, 4)), jnp.ones((4, 6))

    def fn(a, b):
        a = jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, a), None), a, length=5)[0]
        return jnp.tanh(a @ a) @ b

    counted = {each.inputs[1][0]: (each.flops, times) for each, times in of(fn, a, b).items()}
    assert counted == {(4, 4): (2 * 4**3, 6), (4, 6): (2 * 4 * 4 * 6, 1)}


@pytest.mark.parametrize("shape, names", [
    ((1, 43, 16, 32), {"conv3x3": 2, "kernel3x3": 1}), ((1, 4, 4, 32), {"conv_general_dilated": 3}),
])
def test_a_convolution_and_its_gradients_are_three_products(shape, names, monkeypatch):
    """With the direct convolution and with Winograd's alike."""
    monkeypatch.setattr(convolution, "FEWEST_PRODUCTS", 2**20)
    monkeypatch.setattr(convolution, "FEWEST_PIXELS", 512)
    x, kernel = jnp.ones(shape), jnp.ones((3, 3, 32, 48))
    gradients = jax.grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k))), (0, 1))
    products = of(gradients, x, kernel)
    assert all(isinstance(str(product), str) for product in products)
    counted = {}
    for product, times in products.items():
        name = product.primitive.name
        counted[name] = counted.get(name, 0) + times
        assert product.flops == 2 * np.prod(shape[:3]) * 9 * 32 * 48
        assert product.seconds() > 0
    assert counted == names
    assert flops.count(gradients, x, kernel) == 3 * product.flops


def test_a_product_alone_is_that_of_its_settings(monkeypatch):
    """Each copy has its own numbers and is computed; a call of all copies takes a second."""
    seen = []
    monkeypatch.setattr(jax, "block_until_ready", lambda x: seen.append(x) or x)
    monkeypatch.setattr(ceiling.time, "perf_counter", lambda: float(len(seen)))
    monkeypatch.setattr(ceiling, "SECONDS", 2.5)
    product, = of(lambda a, b: jax.lax.dot_general(a, b, (((0,), (1,)), ((), ()))),
                  jnp.ones((3, 2)), jnp.ones((5, 3)))
    assert product.seconds() == 1 / ceiling.COPIES
    rng = np.random.default_rng(0)
    assert len(seen[0]) == ceiling.COPIES
    for outputs in seen[0]:
        a, b = np.float32(rng.standard_normal((3, 2))), np.float32(rng.standard_normal((5, 3)))
        np.testing.assert_allclose(outputs, a.T @ b.T, rtol=1e-5, atol=1e-6)  # Rounding.


def test_kinds_of_a_compiled_programs_operations():
    def fn(x, rng):
        noise = jax.random.normal(rng, x.shape)
        return jnp.tanh((x + noise) @ x), jnp.sort(x.T + 1, axis=0).sum(0), jnp.pad(x, 3)

    text = jax.jit(fn).lower(jnp.ones((64, 64)), jax.random.key(0)).compile().as_text()
    kinds = ceiling.kinds(text)
    assert {"products", "random bits", "sums", "copies", "elementwise"} == set(kinds.values())
    for name, kind in kinds.items():
        assert re.search(rf"%?{re.escape(name)} = ", text)
        assert (" dot(" in line(text, name)) <= (kind == "products")


def line(text, name):
    return next(line for line in text.splitlines() if f"{name} = " in line)


GPU = """HloModule jit__fun, is_scheduled=true

%fused_norm (p: f32[8,4]) -> f32[8] {
  %p = f32[8,4]{1,0} parameter(0)
  %c = f32[] constant(0)
  ROOT %r = f32[8]{0} reduce(%p, %c), dimensions={1}, to_apply=%add
}

%gemm_fusion_dot (p: bf16[8,4], q: bf16[4,8]) -> bf16[8,8] {
  %p.1 = bf16[8,4]{1,0} parameter(0)
  %q.1 = bf16[4,8]{1,0} parameter(1)
  ROOT %d = bf16[8,8]{1,0} dot(%p.1, %q.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_transpose (p: bf16[8,4]) -> bf16[4,8] {
  %p.2 = bf16[8,4]{1,0} parameter(0)
  ROOT %t = bf16[4,8]{1,0} transpose(%p.2), dimensions={1,0}
}

%fused_threefry (p: u32[8]) -> u32[8] {
  %p.3 = u32[8]{0} parameter(0)
  ROOT %b = u32[8]{0} xor(%p.3, %p.3)
}

ENTRY %main (x: bf16[8,4], w: bf16[4,8]) -> f32[8] {
  %x = bf16[8,4]{1,0} parameter(0)
  %w = bf16[4,8]{1,0} parameter(1)
  %cudnn-conv.1 = (f32[8]{0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$convForward"
  %gemm_fusion = bf16[8,8]{1,0} fusion(%x, %w), kind=kCustom, calls=%gemm_fusion_dot
  %all-reduce-start.2 = f32[8]{0} all-reduce-start(%y), replica_groups={}, to_apply=%add
  %loop_transpose = bf16[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused_transpose
  %loop_xor_fusion = u32[8]{0} fusion(%k), kind=kLoop, calls=%fused_threefry
  %sort.1 = f32[8]{0} custom-call(%x), custom_call_target="__cub$DeviceRadixSort"
  ROOT %input_reduce_fusion = f32[8]{0} fusion(%x), kind=kInput, calls=%fused_norm
}
"""


def test_kinds_of_what_a_gpu_runs():
    """Libraries are custom calls, XLA's own kernels are fusions. The text is written by hand."""
    kinds = ceiling.kinds(GPU)
    assert {name: kinds[name] for name in (
        "cudnn-conv.1", "gemm_fusion", "all-reduce-start.2", "loop_transpose", "sort.1",
        "input_reduce_fusion", "loop_xor_fusion",
    )} == {
        "cudnn-conv.1": "products", "gemm_fusion": "products", "all-reduce-start.2": "exchange",
        "loop_transpose": "copies", "sort.1": "elementwise", "input_reduce_fusion": "sums",
        "loop_xor_fusion": "random bits",
    }
    assert not {"x", "w", "p", "c"} & set(kinds)


def test_a_trace_names_the_operations(tmp_path):
    fn = jax.jit(lambda x: jnp.sum(jnp.sin(x @ x), axis=0))
    x = jnp.ones((256, 256))
    compiled = fn.lower(x).compile()
    jax.block_until_ready(compiled(x))
    with jax.profiler.trace(tmp_path):
        jax.block_until_ready(compiled(x))
    known = ceiling.kinds(compiled.as_text())
    traced = [(known[name], seconds) for name, seconds in ceiling.operations(tmp_path)
              if name in known]
    assert {kind for kind, _ in traced} >= {"products", "sums"}
    assert all(0 < seconds < 60 for _, seconds in traced)


def test_the_whole(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(config_lib, "model", lambda config, channels: TinyNet())
    monkeypatch.setattr(validation, "check_images", lambda config, shape: None)
    monkeypatch.setattr(ceiling, "SECONDS", 0.0)
    monkeypatch.setattr(ceiling.huge_pages, "use", lambda: None)  # It would restart the program.
    monkeypatch.setattr(
        ours, "peak", lambda task: ({}, lambda: {"seconds": 2.0, "count": 2e12}))
    monkeypatch.setattr(sys, "argv", [
        "ceiling.py", "--network=digits", "--batch_size=16", f"--results={tmp_path}"])
    ceiling.main()
    results = json.loads((tmp_path / "ceiling_digits_cpu.json").read_text())
    page = (tmp_path / "ceiling_digits_cpu.md").read_text()
    assert capsys.readouterr().out.startswith(page)
    conv = 2 * 2 * 64 * 9 * 4  # Two images a device.
    heavy = [product["flops"] * product["times"] for product in results["products"]]
    assert heavy.count(conv) == 5  # Two forward, two for kernels, one for the image.
    assert sum(heavy) <= results["flops"] < 5.1 * conv
    assert 0 < results["start"] < 60  # Seconds; on a busy machine it may exceed another step.
    assert 0 < results["low"] <= results["step"] <= results["high"] < 60
    assert set(results["kinds"]) > {"products", "elementwise"} and "without a name" not in page
    assert all(seconds > 0 for seconds in results["kinds"].values())
    assert results["command"] in page and "of the fastest product" in page


def test_the_page_adds_up():
    page = ceiling.page({
        "network": "cifar10", "batch_size": 8, "dtype": "float32", "command": "python", "date": "d",
        "device": "cpu", "machine": {"processor": "P", "cores": 2, "python": "3"}, "versions": {},
        "peak": 100e9, "flops": 40e9, "step": 0.8, "low": 0.7, "high": 1.0, "start": 0.005,
        "kinds": {"sums": 0.25, "products": 0.75}, "products": [
            {"product": "a", "times": 2, "flops": 15e9, "seconds": 0.2},
            {"product": "b", "times": 1, "flops": 8e9, "seconds": 0.1},
        ],
    })
    assert "| a training step, median of 5 | 800 | 50 | 50% |" in page
    assert "| its products, each alone (95.0% of the FLOPs) | 500 | 76 | 76% |" in page
    assert "took 700 to 1,000 ms. The host needed 5 ms of that to start it." in page
    assert "| products | 750 | 75% |\n| sums | 250 | 25% |" in page
    assert "| a | 2 | 200 | 75 |\n| b | 1 | 100 | 80 |" in page
