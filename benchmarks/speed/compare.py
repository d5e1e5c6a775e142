"""How fast is this package compared with its peers? All are measured in turn on one machine.

    python -m benchmarks.speed [--suite=small|full] [--peers=PYTHON] [--tasks=train,ancestral]
        [--networks=cifar10,digits] [--set model.channels=64 data.image_size=24]
        [--batch_sizes=8,32] [--rounds=5] [--dropout=0.1]

`networks` are names of configs; fashion_mnist is a small one, as people train on CPUs. `set` gives
settings of all of them other values. `peers` is the Python of an environment with PyTorch,
diffusers and denoising_diffusion_pytorch. The result says which of them are missing. Writes
`benchmarks/results/speed_DEVICE.md` and `.json`. docs/speed.md says what is measured.
"""

import argparse
import ast
import datetime
import functools
import importlib
import json
import os
import pathlib
import platform
import shlex
import sys
import tempfile

import jax
import jax.numpy as jnp

from benchmarks.speed import contest, tables
from ddpm_jax import config as config_lib
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.runtime import huge_pages
from ddpm_jax.weights import diffusers_export

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
NETWORKS = ("cifar10", "digits")
# diffusers has one number of groups for all norms.
SETTINGS = {
    "cifar10": {}, "digits": {},
    "fashion_mnist": {"model.channels": 32, "model.dropout": 0.0, "model.num_groups": 8},
}
WITH_BATCHES = ("train", "ancestral", "ddim", "bits_per_dim", "data")
CONFIGS = tuple(sorted(path.stem for path in (ROOT / "configs").glob("[a-z]*.py")))
SMALL = [("train", "cifar10"), ("ancestral", "cifar10"), ("ddim", "digits"), ("data", "cifar10"),
         ("checkpoint", "cifar10"), ("logging", "digits"), ("start", "cifar10")]
TASKS = (*WITH_BATCHES, "checkpoint", "logging", "start")
DIGITS = {"ancestral": 1000, "ddim": 50, "bits_per_dim": 1000}
SMALL_OF_OTHERS = ("train", "ancestral")
CALLS = {  # Network calls per image; a CPU would need hours for all of a large network's.
    "cpu": {"ancestral": 10, "ddim": 10, "bits_per_dim": 10},
    "gpu": {"ancestral": 100, "ddim": 50, "bits_per_dim": 100},
}
PEERS = ("diffusers_", "lucidrains_")
MODES = ("eager", "channels_last", "compiled")
SUITES = {  # (contestant, mode) by task; ours is always measured.
    "full": {
        **{task: [(peer, mode) for peer in PEERS for mode in MODES]
           for task in ("train", "ancestral", "ddim")},
        "start": [(peer, mode) for peer in PEERS for mode in ("eager", "compiled")],
    },
    "small": {
        **{task: [("diffusers_", "channels_last"), ("diffusers_", "compiled"),
                  ("lucidrains_", "channels_last")] for task in ("train", "ancestral", "ddim")},
        "start": [("diffusers_", "eager"), ("diffusers_", "compiled")],
    },
}
EVERYWHERE = {
    "bits_per_dim": [], "data": [("diffusers_", "one_process"), ("diffusers_", "workers")],
    "checkpoint": [("diffusers_", "eager")], "logging": [],
}


def network_facts(network, dropout, dtype, overrides=()):
    """The description of a network in a task, for ours and for the peers."""
    config = importlib.import_module(f"configs.{network}").get_config()
    settings = SETTINGS.get(network, {}) | dict(overrides) | {"model.dtype": dtype}
    settings |= {} if dropout is None else {"model.dropout": dropout}
    config.update_from_flattened_dict(settings)
    shape = height, width, channels = config_lib.image_shape(config)
    model = config_lib.model(config, channels)

    def init():
        x, t = jnp.zeros((1, *shape)), jnp.zeros((1,), jnp.int32)
        return model.init(jax.random.key(0), x, t, train=False)["params"]

    trained = trained_lib.Trained(
        jax.eval_shape(init), model, config_lib.schedule(config),
        config_lib.parameterization(config), shape,
    )
    return {
        "network": network, "settings": settings, "dtype": dtype,
        "shape": (channels, height, width), "dropout": config.model.dropout,
        "unet": diffusers_export.network_settings(trained),
        "process": diffusers_export.process_settings(trained, clip=True),
        "parameters": trained_lib.num_params(trained.params),
        "learning_rate": config.train.learning_rate, "warmup_steps": config.train.warmup_steps,
        "random_flip": config.data.random_flip,
    }


def command(module, peers):
    python = sys.executable if module == "ours" else peers
    return [python, "-m", f"benchmarks.speed.contestants.{module}"]


def started(module, peers, task, caches):
    """Starts a contestant with its own caches; it allocates GPU memory as needed."""
    env = {"CUDA_VISIBLE_DEVICES": "0", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ | {
        "JAX_COMPILATION_CACHE_DIR": f"{caches}/jax",
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/torch",
    } | (huge_pages.environment() if module == "ours" else {})  # Like the command line.
    return contest.Contestant(command(module, peers), task, env, ROOT)


def measured(task, chosen, peers, rounds):
    """The results of `contest.in_turn` by (contestant, mode)."""
    with tempfile.TemporaryDirectory() as folder:
        return contest.in_turn({
            (module, mode): functools.partial(
                started, module, peers, task | {"mode": mode}, f"{folder}/{module}{mode}"
            ) for module, mode in chosen
        }, rounds)


def starts(task, chosen, peers, rounds):
    """Seconds until the end of the first step, by cache, then by (contestant, mode)."""
    results = {
        cache: {who: {"facts": {}, "seconds": []} for who in chosen} for cache in ("cold", "warm")
    }
    for _ in range(rounds):
        for module, mode in chosen:
            with tempfile.TemporaryDirectory() as caches:
                for there in (results[cache][module, mode] for cache in results):
                    try:
                        with started(module, peers, task | {"mode": mode}, caches) as contestant:
                            there["seconds"].append(contestant.seconds)
                            there |= contestant.ask("end")
                    except contest.Failed as error:
                        there["failed"] = str(error)
    return results


def cases(arguments):
    """Yields (task, network, batch size) in the order of measurement."""
    for task in arguments.tasks:
        for network in arguments.networks:
            small = task in SMALL_OF_OTHERS if network not in NETWORKS else (task, network) in SMALL
            if arguments.suite == "full" or small:
                sizes = arguments.batch_sizes
                for size in sizes if task in WITH_BATCHES else sizes[:1]:
                    yield task, network, size


def peaks(peers, rounds):
    """The facts of each contestant with its peak FLOP/s, and why others are absent."""
    facts, absent = {}, {}
    for dtype in ("float32", "bfloat16"):
        chosen = [(module, "eager") for module in ("ours", *PEERS) if module not in absent]
        answers = measured({"task": "peak", "dtype": dtype}, chosen, peers, rounds)
        for (module, _), answer in answers.items():
            if "failed" in answer:
                absent[module] = answer["failed"]
                continue
            about = facts.setdefault(module, answer["facts"] | {"peak": {}})
            about["peak"][dtype] = contest.summary(answer["seconds"])["high"]
        if facts["ours"]["platform"] == "cpu":
            break
    ours = facts["ours"]["platform"]
    for module, about in facts.items():
        if about["platform"] != ours:
            absent[module] = f"it runs on {about['platform']} here, and ours on {ours}"
    return {module: about for module, about in facts.items() if module not in absent}, absent


def override(text):
    """(setting, value) of "GROUP.NAME=VALUE"."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be GROUP.NAME=VALUE.")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def read_arguments():
    def names(known):
        def read(text):
            chosen = text.split(",")
            if unknown := set(chosen) - set(known):
                raise argparse.ArgumentTypeError(
                    f"{unknown.pop()!r} is not known; use some of {','.join(known)}."
                )
            return chosen
        return read

    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--suite", choices=SUITES, default="small")
    parser.add_argument("--peers", default=sys.executable, help="Python of their environment")
    parser.add_argument("--tasks", type=names(TASKS), default=TASKS)
    parser.add_argument("--networks", type=names(CONFIGS), default=NETWORKS)
    parser.add_argument("--set", type=override, nargs="*", default=[], metavar="GROUP.NAME=VALUE",
                        help="another value for a setting of the networks")
    parser.add_argument("--batch_sizes", type=lambda text: [int(n) for n in text.split(",")],
                        help="default 8,32 on a CPU, else 128,512; small: the first")
    parser.add_argument("--rounds", type=int, help="default 3; full suite: 5")
    parser.add_argument("--dropout", type=float, help="instead of the config's")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    return parser, parser.parse_args()


def main():
    parser, arguments = read_arguments()
    jax.config.update("jax_platforms", "cpu")  # This process only counts shapes.
    rounds = arguments.rounds or {"small": 3, "full": 5}[arguments.suite]
    about, absent = peaks(arguments.peers, rounds)
    kind = "cpu" if about["ours"]["platform"] == "cpu" else "gpu"
    dtype = "float32" if kind == "cpu" else "bfloat16"
    sizes = {"cpu": [8, 32], "gpu": [128, 512]}[kind]
    arguments.batch_sizes = arguments.batch_sizes or sizes[: 1 + (arguments.suite == "full")]
    matches, modes = [], SUITES[arguments.suite] | EVERYWHERE
    for task, network, batch_size in cases(arguments):
        calls = (DIGITS if network == "digits" else CALLS[kind]).get(task, 1)
        described = network_facts(network, arguments.dropout, dtype, arguments.set) | {
            "task": task, "batch_size": batch_size, "calls": calls,
        }
        chosen = [who for who in [("ours", ""), *modes[task]] if who[0] not in absent]
        if task == "start":
            once = 1 if arguments.suite == "small" else rounds  # It recompiles everything.
            results = starts(described, chosen, arguments.peers, once)
        else:
            results = {"": measured(described, chosen, arguments.peers, rounds)}
        for cache, entries in results.items():
            matches.append({
                "task": f"start, {cache} cache" if cache else task,
                "network": " ".join([network, *(f"{name}={v}" for name, v in arguments.set)]),
                "batch_size": batch_size, "calls": calls, "dropout": described["dropout"],
                "entries": [{"who": who, "mode": mode} | entry
                            for (who, mode), entry in entries.items()],
            })
            print(tables.match_table(matches[-1], about, dtype), flush=True)
            write(arguments, kind, {  # After each: a suite takes hours and may be stopped.
                "command": shlex.join(["python", "-m", "benchmarks.speed", *sys.argv[1:]]),
                "date": datetime.date.today().isoformat(), "machine": machine(), "dtype": dtype,
                "rounds": rounds, "about": about, "absent": absent, "matches": matches,
            })
    if not matches:
        parser.error("the small suite has none of these; write --suite=full.")


def write(arguments, kind, results):
    """Writes the page and its JSON, named by the device."""
    device = results["about"]["ours"]["device"]
    stem = arguments.results / f"speed_{'cpu' if kind == 'cpu' else device}"
    stem = stem.with_name(stem.name.lower().replace(" ", "_"))
    arguments.results.mkdir(exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(tables.page(results))


def machine():
    """The processor, the number of cores that this process may use, and the Python version."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
