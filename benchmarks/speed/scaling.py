"""How does a training step scale over devices? Counts exchanges, and times on a CPU.

    python -m benchmarks.speed.scaling

Counts the collectives in the compiled training step of a small network on 1, 2, 4 and 8 CPU
devices, each in its own process. Times the step: weak scaling with 8 images per device, strong
scaling with 64 in total. The devices share the machine's cores, so this checks the program, not the
hardware: with equally many images each, n devices should need n times the processor time of one.
`accelerators.py` has what accelerators take. Writes benchmarks/results/scaling.md and scaling.json.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import time

DEVICES = (1, 2, 4, 8)
WEAK, STRONG = 8, 64  # Images per device, and in total.
RESULTS = pathlib.Path(__file__).parents[1] / "results"
_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "f64": 8, "s64": 8}
_COLLECTIVE = re.compile(
    r" = (?P<shapes>.+?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all"
    r"|collective-permute|collective-broadcast)(?:-start)?\("
)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def collectives(text: str) -> list[tuple[str, int]]:
    """(kind, bytes of its result) of each collective in a compiled program's text.

    The result of an asynchronous collective (`-start`) also holds its operands, unless it is an
    all-reduce; then the bytes count both.
    """
    return [
        (match["kind"], sum(map(_num_bytes, _SHAPE.findall(match["shapes"]))))
        for match in map(_COLLECTIVE.search, text.splitlines()) if match
    ]


def _num_bytes(shape):
    kind, sizes = shape
    num_bytes = _BYTES[kind]
    for size in filter(None, sizes.split(",")):
        num_bytes *= int(size)
    return num_bytes


def compiled_step(batch_size: int):
    """A small network's compiled training step on all devices, and the arguments of a call.

    Args:
        batch_size: images on all devices.
    """
    import jax
    import numpy as np

    from ddpm_jax.runtime import parallel
    from ddpm_jax.training import run as run_lib
    from ddpm_jax.training import step as step_lib
    from ddpm_jax.configs import digits

    config = digits.get_config()
    config.model.channels, config.model.attention_resolutions = 16, ()
    config.train.batch_size = batch_size
    run = run_lib.prepare(config, None, np.zeros((64, 16, 16, 1), np.uint8))
    step = step_lib.pmap_train_step(
        schedule=run.schedule, learning_rate=run.learning_rate, settings=run.step_settings
    )
    batch = parallel.shard({"images": np.zeros((batch_size, 16, 16, 1), np.uint8)})
    arguments = parallel.replicate(run_lib.fresh_state(run)), batch, jax.random.key(0)
    return step.lower(*arguments).compile(), arguments


def measure(batch_size: int, num_steps: int) -> dict:
    """The collectives and the median time of a step, in this process, on all of its devices.

    Args:
        batch_size: images on all devices.
        num_steps: number of timed steps, after two that are not timed.
    """
    import jax

    step, (state, batch, rng) = compiled_step(batch_size)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    seconds, processor = [], []
    for _ in range(num_steps + 2):
        began, used = time.perf_counter(), time.process_time()
        state, _ = jax.block_until_ready(step(state, batch, rng))
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return {
        "devices": jax.device_count(), "batch_size": batch_size, "num_params": num_params,
        "collectives": collectives(step.as_text()),
        "seconds": statistics.median(seconds[2:]),
        "processor_seconds": statistics.median(processor[2:]),
    }


def in_process(devices: int, batch_size: int, num_steps: int) -> dict:
    """The result of `measure` in a process with this number of CPU devices."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.scaling", f"--batch_size={batch_size}",
         f"--num_steps={num_steps}"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE, text=True, check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measured_table(rows: list[dict], per_image: float) -> str:
    """A Markdown table of results of `measure`.

    Args:
        rows: the results.
        per_image: processor seconds per image on one device, to compare with.
    """
    lines = ["| devices | images | all-reduce of gradients | all-gathers | ms per step | "
             "processor ms per image | relative to one device |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        reduced = [size for kind, size in row["collectives"] if kind == "all-reduce"]
        gathered = [size for kind, size in row["collectives"] if kind == "all-gather"]
        an_image = row["processor_seconds"] / row["batch_size"]
        lines.append(
            f"| {row['devices']} | {row['batch_size']} | {len(reduced)}, {sum(reduced):,} bytes | "
            f"{len(gathered)}, {sum(gathered):,} bytes | {1e3 * row['seconds']:.0f} | "
            f"{1e3 * an_image:.2f} | {an_image / per_image:.2f} |"
        )
    return "\n".join(lines)


def main():
    """Measures each row in its own process, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_steps", type=int, default=20, help="number of timed steps")
    parser.add_argument("--batch_size", type=int, help="measure only this batch, and print JSON")
    args = parser.parse_args()
    if args.batch_size:
        print(json.dumps(measure(args.batch_size, args.num_steps)))
        return
    from benchmarks.speed import compare  # Imports JAX, which a child must not do before its setup.
    from ddpm_jax.workdir.checkpoints import library_versions

    weak = [in_process(n, n * WEAK, args.num_steps) for n in DEVICES]
    strong = [in_process(n, STRONG, args.num_steps) for n in DEVICES]
    tables = {}
    for name, rows in (("Weak", weak), ("Strong", strong)):
        one = rows[0]["processor_seconds"] / rows[0]["batch_size"]
        tables[f"{name} scaling, {os.cpu_count()} cores"] = measured_table(rows, one)
    text = "\n\n".join(f"## {title}\n\n{table}" for title, table in tables.items())
    print(text)
    RESULTS.mkdir(exist_ok=True)
    about = {"command": shlex.join(["python", "-m", "benchmarks.speed.scaling", *sys.argv[1:]]),
             "date": datetime.date.today().isoformat(), "machine": compare.machine(),
             "versions": library_versions()}
    (RESULTS / "scaling.md").write_text(
        f"# Scaling\n\n`{about['command']}`, {about['date']}; "
        f"{about['machine']['processor']}, Python {about['machine']['python']}, "
        f"jax {about['versions']['jax']}; {weak[0]['num_params']:,} parameters.\n\n{text}\n"
    )
    (RESULTS / "scaling.json").write_text(
        json.dumps(about | {"weak": weak, "strong": strong}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
