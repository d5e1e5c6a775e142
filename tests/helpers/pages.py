"""Pages of the documentation: their blocks of code, and a process in which they run."""

import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
BLOCK = re.compile(
    r"(?:<!-- no-run: (?P<reason>[^>]+) -->\n+)?```(?P<language>\w*)\n(?P<code>.*?)```", re.DOTALL
)
# What pages expect in runs/: small models whose parameters are those of an initialization.
MODELS = """
from ddpm_jax.training import state
from ddpm_jax.training import run as run_lib
from ddpm_jax.workdir import checkpoints
from ddpm_jax.configs import digits, digits_conditional, digits_vectors

for module in (digits, digits_conditional, digits_vectors):
    config, name = module.get_config(), module.__name__.rpartition(".")[2]
    config.model.channels, config.model.channel_multipliers = 4, (1,)
    config.model.attention_resolutions, config.model.num_groups = (), 1
    run = run_lib.prepare(config, f"runs/{name}", None)
    run_lib.store_config(run)
    with checkpoints.Checkpoints(run.workdir) as saved:
        saved.save(1, state.to_saved(run_lib.fresh_state(run)), run.metadata())
"""
RUNNER = """
import json, traceback

errors = {}
for name, code in json.load(open("programs.json")).items():
    try:
        exec(compile(code, name, "exec"), {"__name__": name})
    except BaseException:
        errors[name] = traceback.format_exc()
json.dump(errors, open("errors.json", "w"))
"""


def blocks(text):
    """(language, code, why it does not run or None) of each block of a page."""
    matches = list(BLOCK.finditer(text))
    assert text.count("```") == 2 * len(matches)
    return [(m["language"], m["code"], m["reason"]) for m in matches]


def run(programs, folder, **env):
    """Runs each program in its own namespace after `MODELS`; tracebacks by name.

    All run in one process with one device: eight compile longer.
    """
    programs = {"models": MODELS} | programs
    (folder / "programs.json").write_text(json.dumps(programs))
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"} | env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    errors = json.loads((folder / "errors.json").read_text())
    assert "models" not in errors, errors["models"]
    return errors
