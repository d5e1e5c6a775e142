"""How fast could a training step be? Times its products alone, the whole step, and a profile.

    python -m benchmarks.ceiling [--network=cifar10] [--batch_size=8] [--dtype=float32]
        [--set GROUP.NAME=VALUE ...]

Every matrix product and convolution of the forward and backward pass is timed alone. With the same
kernels, no step can be faster than their sum. A trace of the operations shows what else the step
does. Writes benchmarks/results/ceiling_NETWORK_DEVICE.md and .json; docs/speed.md says how to read
them. Uses one device and takes a few minutes.
"""

import argparse
import collections
import dataclasses
import datetime
import json
import pathlib
import re
import shlex
import statistics
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from jax.profiler import ProfileData

from benchmarks.speed import compare, contest, flops
from benchmarks.speed.contestants import ours
from ddpm_jax.runtime import compilation, huge_pages
from ddpm_jax.workdir.checkpoints import library_versions

COPIES = 4  # Products per call, each with other numbers, so that the call's start matters less.
SECONDS = 0.3  # Repeat a product for at least this long.
FEWEST_FLOPS = 1e-3  # Leave out products with a smaller share of the step's FLOPs.
STEPS = 5  # Steps that are timed, and traced.
SHOWN = 20  # Products on the page.
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][a-z\-]*)\((.*)")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="[^"]*(?:conv|gemm|matmul|dnn|fmha)', re.IGNORECASE)
_AROUND = {"while", "call", "conditional"}  # What they run has its own events.
_MOVES = {"copy", "transpose", "pad", "concatenate", "slice", "dynamic-slice", "reverse", "gather",
          "dynamic-update-slice", "broadcast", "iota", "reshape", "copy-start", "copy-done"}
_NOTHING = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element"}


@dataclasses.dataclass(frozen=True)
class Product:
    """One convolution or matrix product, without its numbers.

    Attributes:
        primitive: the primitive of JAX.
        params: its settings, (name, value) pairs.
        inputs: (shape, dtype) of each input.
        flops: its floating-point operations.
    """

    primitive: Any
    params: tuple
    inputs: tuple
    flops: int

    def __str__(self):
        shapes = " and ".join(f"{dtype}{list(shape)}" for shape, dtype in self.inputs)
        return f"{self.primitive.name} of {shapes}"

    def seconds(self) -> float:
        """The time of one product, with `COPIES` of them in a program."""
        program = jax.jit(lambda copies: [
            self.primitive.bind(*copy, **dict(self.params)) for copy in copies
        ])
        rng = np.random.default_rng(0)
        copies = jax.device_put([
            [np.asarray(rng.standard_normal(shape), dtype) for shape, dtype in self.inputs]
            for _ in range(COPIES)
        ])
        jax.block_until_ready(program(copies))
        calls, began = 0, time.perf_counter()
        while not calls or time.perf_counter() - began < SECONDS:
            jax.block_until_ready(program(copies))
            calls += 1
        return (time.perf_counter() - began) / (calls * COPIES)


def products(jaxpr: Any, times: int = 1) -> collections.Counter:
    """Counts each `Product` in a jaxpr and in the programs that it calls."""
    counts = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name in flops.PRODUCTS:
            counts[Product(
                equation.primitive, tuple(equation.params.items()),
                tuple((v.aval.shape, v.aval.dtype) for v in equation.invars),
                flops.of_equation(equation),
            )] += times
        for turns, inner in flops.inside(equation):
            counts += products(inner, times * turns)
    return counts


def kinds(text: str) -> dict[str, str]:
    """The purpose of each operation of a compiled program, by its name in the program's text.

    One of "products", "sums" (over pixels, groups, keys), "random bits", "exchange" (between
    devices), "copies" (moved, not computed) and "elementwise" (the rest).
    """
    computations, instructions = collections.defaultdict(set), {}
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            inside = computations[match[1]]
        elif match := _INSTRUCTION.match(line):
            name, opcode, rest = match.groups()
            instructions[name] = opcode, rest
            inside.add(opcode)
    return {
        name: _kind({opcode}.union(*(computations[called] for called in _CALLED.findall(rest)
                                     if opcode == "fusion")), rest)
        for name, (opcode, rest) in instructions.items() if opcode not in _AROUND | _NOTHING
    }


def _kind(opcodes, rest):
    if opcodes & {"convolution", "dot"} or _TARGET.search(rest):
        return "products"
    if any(opcode.startswith(("all-", "collective-")) for opcode in opcodes):
        return "exchange"
    if "xor" in opcodes:
        return "random bits"
    if opcodes & {"reduce", "reduce-window"}:
        return "sums"
    return "copies" if opcodes <= _MOVES | _NOTHING | {"fusion"} else "elementwise"


def operations(folder: pathlib.Path):
    """Yields (name, seconds) of every operation in a trace; on a GPU, of every kernel."""
    path, = folder.rglob("*.xplane.pb")
    planes = list(ProfileData.from_file(str(path)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        lines = list(plane.lines)
        wanted = [line for line in lines if line.name.startswith(("Stream", "XLA Ops"))]
        for line in wanted if devices else lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op", event.name) if devices else event.name
                yield str(name), event.duration_ns / 1e9


def measured(task: dict) -> dict:
    """Measures the step, its start, its products alone, and its operations by purpose."""
    run, step_fn, state, *inputs = ours.program(task)
    counted = products(jax.make_jaxpr(step_fn)(state, *inputs).jaxpr)
    total = sum(product.flops * times for product, times in counted.items())
    compiled = compilation.ahead(step_fn, state, *inputs)
    known = kinds(compiled.as_text())

    def step():
        nonlocal state
        (state, metrics), started = contest.timed(lambda: compiled(state, *inputs))
        jax.block_until_ready(metrics)
        return started

    step()
    started, seconds = zip(*(contest.timed(step) for _ in range(STEPS)))
    by_kind = collections.Counter()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(STEPS):
                step()
        on_cpu = jax.default_backend() == "cpu"
        for name, taken in operations(pathlib.Path(folder)):
            if name in known or not on_cpu:  # A CPU's trace also has events of the host.
                by_kind[known.get(name, "without a name")] += taken / STEPS
    del state
    alone = [
        {"product": str(product), "times": times, "flops": product.flops,
         "seconds": product.seconds()}
        for product, times in counted.items() if product.flops * times >= FEWEST_FLOPS * total
    ]
    return {
        "shape": run.source.image_shape, "flops": total, "step": statistics.median(seconds),
        "low": min(seconds), "high": max(seconds), "start": statistics.median(started),
        "kinds": dict(by_kind),
        "products": sorted(alone, key=lambda product: -product["seconds"] * product["times"]),
    }


def page(results: dict) -> str:
    """The results as Markdown."""
    peak, total, step = results["peak"], results["flops"], results["step"]
    alone = sum(product["seconds"] * product["times"] for product in results["products"])
    timed = sum(product["flops"] * product["times"] for product in results["products"])

    def row(name, seconds, flops):
        rate = flops / seconds
        return f"| {name} | {1e3 * seconds:,.4g} | {rate / 1e9:,.4g} | {rate / peak:.0%} |"

    traced = sum(results["kinds"].values())
    return "\n".join([
        f"# Ceiling of {results['network']}, batch {results['batch_size']}", "",
        f"`{results['command']}`, {results['date']}.", "",
        f"{results['device']} ({results['machine']['processor']}, "
        f"{results['machine']['cores']} cores), Python {results['machine']['python']}, "
        + ", ".join(f"{name} {v}" for name, v in sorted(results["versions"].items()))
        + f". Torso in {results['dtype']}.", "",
        "| | ms | GFLOP/s | of the fastest product of large matrices |", "|---|---|---|---|",
        row(f"a training step, median of {STEPS}", step, total),
        row(f"its products, each alone ({timed / total:.1%} of the FLOPs)", alone, timed), "",
        f"A step took {1e3 * results['low']:,.4g} to {1e3 * results['high']:,.4g} ms. The host "
        f"needed {1e3 * results['start']:,.3g} ms of that to start it. The fastest product "
        f"reached {peak / 1e9:,.4g} GFLOP/s.", "",
        "## The purpose of a step's operations", "",
        "| purpose | ms, summed over parallel operations | share |", "|---|---|---|",
        *(f"| {kind} | {1e3 * seconds:,.4g} | {seconds / traced:.0%} |"
          for kind, seconds in sorted(results["kinds"].items(), key=lambda item: -item[1])), "",
        f"## The {min(SHOWN, len(results['products']))} slowest products", "",
        "| product | times | ms each, alone | GFLOP/s |", "|---|---|---|---|",
        *(f"| {product['product']} | {product['times']} | {1e3 * product['seconds']:,.3g} | "
          f"{product['flops'] / product['seconds'] / 1e9:,.4g} |"
          for product in results["products"][:SHOWN]), "",
    ])


def main():
    huge_pages.use()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="cifar10", help="name of a config")
    parser.add_argument("--batch_size", type=int, help="default 8 on a CPU, else 128")
    parser.add_argument("--dtype", help="of the torso; default float32 on a CPU, else bfloat16")
    parser.add_argument("--set", type=compare.override, nargs="*", default=[],
                        metavar="GROUP.NAME=VALUE", help="another value for a setting")
    parser.add_argument("--results", type=pathlib.Path, default=compare.RESULTS)
    arguments = parser.parse_args()
    on_cpu = jax.default_backend() == "cpu"
    task = {
        "network": arguments.network, "batch_size": arguments.batch_size or (8 if on_cpu else 128),
        "dtype": arguments.dtype or ("float32" if on_cpu else "bfloat16"),
    }
    settings = dict(arguments.set) | {"model.dtype": task["dtype"]}
    _, peak = ours.peak(task)
    rate = max(run["count"] / run["seconds"] for run in (peak() for _ in range(3)))
    device = jax.devices()[0].device_kind
    results = task | measured(task | {"settings": settings}) | {
        "peak": rate, "device": device, "machine": compare.machine(),
        "versions": library_versions(),
        "command": shlex.join(["python", "-m", "benchmarks.ceiling", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }
    arguments.results.mkdir(exist_ok=True)
    stem = arguments.results / f"ceiling_{task['network']}_{device}".lower().replace(" ", "_")
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
