"""What do training and sampling take on accelerators that are not here? Compiles, runs nothing.

    python -m benchmarks.speed.accelerators
    python -m benchmarks.speed.accelerators --targets=v5e:2x4,v5e:4x8,v5e:16x16 --train=256,1024
    python -m benchmarks.speed.accelerators --config=celebahq256 --targets=v4:2x2x1 --train=64
    python -m benchmarks.speed.accelerators --targets=h200 --train=128,512

TPUs need libtpu, and the H200 JAX's CUDA plugin, each best in an environment of its own. A program
is compiled as `--mode=plan --target=` compiles it, which takes one to ten minutes; docs/scaling.md
says how to read the numbers. A row is written as soon as it is known to
benchmarks/results/accelerators.json, and the table to accelerators.md. Rows that are there are not
compiled again unless the package's code has changed since. So a table goes on where it was
interrupted, and grows with each command.
"""

import argparse
import datetime
import hashlib
import json
import pathlib
import time

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
TARGETS = "v3:2x2,v5e:2x2,v6e:2x2"
KINDS = ("convolutions", "norms", "attention", "randomness", "optimizer", "timestep", "other")
# Ho, Jain and Abbeel 2020, Appendix B: v3-8, 21 steps/s at batch 128 and 256 images in 17 s.
PAPER = {("cifar10", "v3:2x2", "train", 128): 1e3 / 21, ("cifar10", "v3:2x2", "sample", 256): 17.0}
NAMED = ("config", "dtype", "set", "target", "program", "batch_size")  # What a row is of.
GIB = 2**30


def code() -> str:
    """A fingerprint of the package's code and its configs."""
    digest = hashlib.sha256()
    for folder in ("ddpm_jax", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def config_of(name: str, dtype: str, batch_size: int, changes: list[str]):
    """A config with this precision and batch, and other settings as "GROUP.NAME=VALUE"."""
    import ast
    import importlib

    config = importlib.import_module(f"ddpm_jax.configs.{name}").get_config()
    settings = dict(change.split("=", 1) for change in changes)
    config.update_from_flattened_dict(
        {"model.dtype": dtype, "train.batch_size": batch_size, "data.dir": "/nowhere"}
        | {setting: ast.literal_eval(value) for setting, value in settings.items()}
    )
    return config


def measured(program, target) -> dict:
    """What a compiled program takes: a step of its longest loop, or all of it where it has none."""
    from ddpm_jax import forecast

    times, body = program.block.longest_loop or (1, program.block)
    whole = forecast.seconds(program, target)
    return {
        "memory": program.memory, "steps": times, "cycles": body.cycles,
        "once": program.block.cycles - times * body.cycles, "kernels": len(body.operations),
        "num_bytes": body.num_bytes, "milliseconds": 1e3 * whole / times,
        "kinds": body.by(lambda operation: operation.kind),
        "collectives": [[each.opcode, each.num_bytes] for each in body.collectives],
        "sent": body.sent,
    }


def compile_row(row: dict, target) -> dict:
    """The row with what its program takes, or why there is none."""
    import jax

    from ddpm_jax import lowering
    from ddpm_jax.runtime import compiled, memory

    began = time.time()
    config = config_of(row["config"], row["dtype"], row["batch_size"], row["set"])
    parts = lowering.programs(config, target)
    try:
        program = compiled.program(getattr(parts, row["program"])(row["batch_size"]))
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_exhausted(error):
            raise
        found = {"failed": "does not fit"}
    else:
        found = measured(program, target)
    return row | found | {
        "devices": len(target.devices), "room": target.memory, "jax": jax.__version__,
        "compile_seconds": time.time() - began, "date": datetime.date.today().isoformat(),
    }


def table(rows: list[dict]) -> str:
    """A Markdown table of all rows."""
    lines = [
        "| config | program | batch | target | GiB of a device | M cycles | kernels | GB moved | "
        "floor, ms | the paper, ms | split | exchange | sent, MB |",
        "|" + "---|" * 13,
    ]
    for row in rows:
        program = ", ".join([row["program"], *row["set"]])
        name = (row["config"], program, row["batch_size"], row["target"])
        about = " | ".join(map(str, name))
        if "failed" in row:
            lines.append(f"| {about} | {row['failed']} |" + " |" * 8)
            continue
        paper = PAPER.get((row["config"], row["target"], program, row["batch_size"]))
        shares = ", ".join(
            f"{kind} {row['kinds'][kind]:.0%}" for kind in KINDS if row["kinds"].get(kind, 0) > .005
        )
        opcodes = [opcode for opcode, _ in row["collectives"]]
        exchange = ", ".join(f"{opcodes.count(each)} {each}" for each in sorted(set(opcodes)))
        is_tpu = row["cycles"] > 0
        lines.append(
            f"| {about} | {row['memory'] / GIB:.2f} of {row['room'] / GIB:.2f} | "
            + (f"{row['cycles'] / 1e6:.2f} | | | " if is_tpu else
               f"| {row['kernels']:,} | {row['num_bytes'] / 1e9:.1f} | ")
            + f"{row['milliseconds']:.2f} | {f'{paper:.1f}' if paper else ''} | {shares} | "
            f"{exchange} | {row['sent'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


def page(rows: list[dict], fingerprint: str) -> str:
    """The whole page."""
    versions = ", ".join(sorted({f"jax {row['jax']}" for row in rows}))
    older = sum(row["code"] != fingerprint for row in rows)
    return "\n".join([
        "# Compiled for accelerators", "",
        f"`python -m benchmarks.speed.accelerators`, {max(row['date'] for row in rows)}; "
        f"{versions}. "
        "Nothing was run: these are the estimates of XLA's compilers, for each device. Of `sample` "
        "and `bits_per_dim` a row is one of their steps. docs/scaling.md says how to read them."
        + (f" {older} of the rows are of an earlier version of the code." if older else ""),
        "", table(rows), "",
    ])


def wanted(args: argparse.Namespace) -> list[dict]:
    """The rows that the flags ask for, without what they have to find out."""
    return [
        dict(config=args.config, dtype=args.dtype, set=args.set, target=target, program=program,
             batch_size=int(batch))
        for target in args.targets.split(",")
        for program in ("train", "sample", "bits_per_dim")
        for batch in filter(None, getattr(args, program).split(","))
    ]


def named(row: dict) -> tuple:
    """What a row is of."""
    return tuple(json.dumps(row[name]) for name in NAMED)


def write(rows: dict[tuple, dict], folder: pathlib.Path, fingerprint: str) -> None:
    """Writes the rows and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = [rows[name] for name in sorted(rows)]
    (folder / "accelerators.json").write_text(json.dumps(ordered, indent=1) + "\n")
    (folder / "accelerators.md").write_text(page(ordered, fingerprint))


def main(argv: list[str] | None = None) -> None:
    """Compiles the rows that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=TARGETS, help=f"for example {TARGETS}")
    parser.add_argument("--train", default="128,1024", help="batches of training, or none")
    parser.add_argument("--sample", default="256", help="batches of sampling, or none")
    parser.add_argument("--bits_per_dim", default="", help="batches of bits/dim, or none")
    parser.add_argument("--config", default="cifar10")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--set", nargs="*", default=[], metavar="GROUP.NAME=VALUE")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)

    from ddpm_jax.errors import UserError
    from ddpm_jax.runtime import devices, targets

    devices.use_cpu()
    file, fingerprint = args.results / "accelerators.json", code()
    rows = {named(row): row for row in json.loads(file.read_text())} if file.exists() else {}
    for row in wanted(args):
        label = f"{row['config']} {row['program']} {row['batch_size']} on {row['target']}"
        if rows.get(named(row), {}).get("code") == fingerprint:
            print(f"{label}: known")
            continue
        print(f"{label} ...", flush=True)
        try:
            found = compile_row(row, targets.find(row["target"]))
        except UserError as error:
            print(f"  left out: {error}")
            continue
        rows[named(row)] = found | {"code": fingerprint}
        write(rows, args.results, fingerprint)
        print(f"  {found['compile_seconds']:.0f} s", flush=True)
    if rows:
        print(table(list(rows.values())))


if __name__ == "__main__":
    main()
