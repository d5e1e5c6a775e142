"""The table of compiled programs: its rows, how it goes on, and what it says of them.

The CPU's devices stand in for a target.
"""

import json

import jax
import pytest

from benchmarks.speed import accelerators
from ddpm_jax import lowering
from ddpm_jax.runtime import compiled
from ddpm_jax.runtime import targets
from ddpm_jax.runtime.compiled import Block, Collective, Operation, Program
from ddpm_jax.runtime.targets import Target

FLAGS = [
    "--config=digits", "--dtype=float32", "--train=8,16", "--sample=8", "--targets=v3:2x2", "--set",
    "model.channels=8", "model.channel_multipliers=(1,)", "model.attention_resolutions=()",
    "model.num_res_blocks=1", "model.num_groups=0", "diffusion.num_timesteps=20",
    "diffusion.beta_end=0.4",
]


@pytest.fixture
def asked(monkeypatch):
    """The programs that were to be compiled, of a table for the CPU's devices."""
    programs = []
    body = Block((Operation("fusion", "f/conv1/add", 0, 10),), ())
    target = Target("v3:2x2", tuple(jax.devices()), 2**34, bandwidth=1e12)

    def program(lowered):
        programs.append(lowered)
        return Program(Block((), (), ((20, body),)), 2**30)

    monkeypatch.setattr(compiled, "program", program)
    for name in ("train", "sample"):  # tests/test_forecast.py has what they are.
        monkeypatch.setattr(lowering.Programs, name, lambda self, batch_size: batch_size)
    monkeypatch.setattr(targets, "find", lambda name: target)
    return programs


def test_a_table_goes_on_where_it_was_interrupted(asked, tmp_path, monkeypatch, capsys):
    accelerators.main([*FLAGS[:2], "--train=8", "--sample=", f"--results={tmp_path}", *FLAGS[4:]])
    assert len(asked) == 1
    accelerators.main([f"--results={tmp_path}", *FLAGS])
    assert len(asked) == 3
    accelerators.main([f"--results={tmp_path}", *FLAGS])
    assert len(asked) == 3 and capsys.readouterr().out.count(": known") == 1 + 3
    rows = json.loads((tmp_path / "accelerators.json").read_text())
    assert [(row["program"], row["batch_size"]) for row in rows] == [
        ("sample", 8), ("train", 16), ("train", 8)
    ]
    assert {row["devices"] for row in rows} == {8} and rows[0]["steps"] == 20
    assert (tmp_path / "accelerators.md").read_text().count("\n| digits | ") == 3
    monkeypatch.setattr(accelerators, "code", lambda: "changed")
    accelerators.main([f"--results={tmp_path}", *FLAGS[:2], "--train=8", "--sample=", *FLAGS[4:]])
    assert len(asked) == 4
    assert " 2 of the rows are of an earlier version" in (tmp_path / "accelerators.md").read_text()


def test_a_row_without_its_compiler_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    accelerators.main(["--targets=v3:2x2", "--train=128", "--sample=", f"--results={tmp_path}"])
    assert "left out: --target='v3:2x2' needs" in capsys.readouterr().out
    assert not (tmp_path / "accelerators.json").exists()


def test_a_row_is_of_a_step_of_the_loop():
    body = Block((Operation("fusion", "f/conv1/add", 4 * 10**6, 10),),
                 (Collective("all-reduce", 100, 4),))
    whole = Block((Operation("copy", "", 2 * 10**6, 10),), (), ((500, body),))
    target = Target("v3:2x2", (None,) * 8, 2**34, clock=1e9)
    row = accelerators.measured(Program(whole, 2**30), target)
    assert (row["cycles"], row["once"], row["steps"]) == (4 * 10**6, 2 * 10**6, 500)
    assert row["milliseconds"] == pytest.approx((4e6 + 2e6 / 500) / 1e9 * 1e3)
    row |= {"config": "cifar10", "program": "sample", "batch_size": 256, "target": "v3:2x2",
            "room": 2**34, "set": []}
    assert accelerators.table([row]).splitlines()[-1] == (
        "| cifar10 | sample | 256 | v3:2x2 | 1.00 of 16.00 | 4.00 | | | 4.00 | 17.0 | "
        "convolutions 100% | 1 all-reduce | 0.0 |"
    )
    changed = accelerators.table([row | {"set": ["train.shard_update=True"]}]).splitlines()[-1]
    assert changed.startswith("| cifar10 | sample, train.shard_update=True | 256 |")
    assert "17.0" not in changed  # The paper's is of its own settings.
    failed = row | {"failed": "does not fit"}
    line = accelerators.table([failed]).splitlines()[-1]
    assert "does not fit" in line and line.count("|") == 14
