"""A start finds what the one before it compiled, each in its own process.

Without a place for the cache nothing else changes, and there is no warning.
"""

import json
import os
import pathlib
import subprocess
import sys
import zlib

import jax
import pytest

from ddpm_jax.runtime import compilation_cache
from program import ROOT

PROGRAM = """
import collections, json, resource, sys, jax
from ddpm_jax.runtime import compilation_cache

asked = sys.argv[1:]
before = dict(jax.config.values)
if "enabled" in asked:
    compilation_cache.enable()
if "full" in asked:  # Files end at 4 KiB: a write stops in the middle, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.split("/")[-1]]))
value = jax.jit(lambda x: jax.random.normal(jax.random.key(0), (9,)).sum() + x)(3.0)
print(json.dumps({
    "hits": counts["cache_hits"], "value": float(value).hex(),
    "folder": jax.config.jax_compilation_cache_dir,
    "changed": sorted(k for k, v in jax.config.values.items() if before[k] != v),
}))
"""
# The command line, around a network that compiles in a second.
COMMAND = """
import collections, jax
from ddpm_jax import cli, config, validation
from nonzero import TinyNet

config.model = lambda config, channels: TinyNet()
validation.check_images = lambda config, shape: None
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.split("/")[-1]]))
cli.main()
print("hits", counts["cache_hits"], "compiled", counts["compile_requests_use_cache"])
"""


def environment(cache_home, **more):
    """This process's, without the cache of these tests; every program is kept."""
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return kept | {
        "JAX_NUM_CPU_DEVICES": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(cache_home), "PYTHONPATH": f"{ROOT}:{ROOT}/tests/helpers", **more,
    }


def start(cache_home, *asked, **more):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *asked], env=environment(cache_home, **more), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )


def end(process):
    """The JSON that it printed, and nothing else."""
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), err
    return json.loads(out)


@pytest.fixture
def nothing_chosen():
    """JAX as it starts if the environment names no folder."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def entries(cache_home):
    return sorted(pathlib.Path(cache_home).rglob("*-cache"))


def test_the_second_start_finds_what_the_first_compiled(tmp_path):
    first = end(start(tmp_path, "enabled"))
    second = end(start(tmp_path, "enabled"))
    assert first["hits"] == 0 and second["hits"] == len(entries(tmp_path)) > 0
    assert second["value"] == first["value"]
    assert first["changed"] == ["jax_compilation_cache_dir"]
    folder, = (tmp_path / "ddpm_jax/xla").iterdir()
    assert first["folder"] == second["folder"] == str(folder)
    assert folder.name.endswith(compilation_cache.cpu_type()) and folder.stat().st_mode & 0o77 == 0

    for path in entries(tmp_path):  # Cut off, as by a process that was killed or is still writing.
        path.write_bytes(path.read_bytes()[:-9])
    torn = end(start(tmp_path, "enabled"))
    assert torn["hits"] == 0 and torn["value"] == first["value"]


def test_several_at_once_do_not_disturb_one_another(tmp_path):
    starts = [start(tmp_path, "enabled") for _ in range(3)]
    values = {end(process)["value"] for process in starts}
    assert len(values) == 1
    for path in entries(tmp_path):
        zlib.decompress(path.read_bytes())  # Whole: it ends in its checksum.
    last = end(start(tmp_path, "enabled"))
    assert last["hits"] == len(entries(tmp_path)) and {last["value"]} == values


def test_an_import_changes_nothing(tmp_path):
    found = end(start(tmp_path))
    assert found["changed"] == [] and found["folder"] is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, value", [
    ("JAX_ENABLE_COMPILATION_CACHE", "false"), ("JAX_COMPILATION_CACHE_DIR", "elsewhere"),
    ("JAX_COMPILATION_CACHE_DIR", ""),
])
def test_a_choice_of_the_users_stays(tmp_path, name, value):
    value = value and str(tmp_path / value) if "DIR" in name else value
    found = end(start(tmp_path / "home", "enabled", **{name: value}))
    assert found["changed"] == [] and not (tmp_path / "home").exists()
    assert (tmp_path / "elsewhere").exists() == value.endswith("elsewhere")


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    found = end(start(tmp_path / "file", "enabled"))
    assert found["folder"] is None and found["changed"] == []


def test_without_a_home_there_is_no_cache(monkeypatch, nothing_chosen):
    """As in a container whose user is a number without a name."""
    def fails():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compilation_cache.pathlib.Path, "home", fails)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None


def test_a_full_disk_is_no_error(tmp_path):
    full = end(start(tmp_path, "enabled", "full"))
    assert max(path.stat().st_size for path in entries(tmp_path)) == 4096
    after = end(start(tmp_path, "enabled"))
    assert after["value"] == full["value"]
    assert after["hits"] == sum(path.stat().st_size < 4096 for path in entries(tmp_path))


def test_the_folder_follows_the_standard(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for named, want in {
        "/fast": "/fast", "": "/home/someone/.cache", "relative": "/home/someone/.cache",
    }.items():
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert compilation_cache.folder() == pathlib.Path(want, "ddpm_jax/xla")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert compilation_cache.folder() == pathlib.Path("/home/someone/.cache/ddpm_jax/xla")


X86 = """processor\t: {place}
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R)
microcode\t: 0x{place}
cpu MHz\t\t: 2{place}00.132
flags\t\t: fpu sse2 {flags}

processor\t: 9
flags\t\t: none
"""
ARM = """processor\t: {place}
BogoMIPS\t: {place}.00
Features\t: fp asimd {flags}
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


@pytest.mark.parametrize("text", [X86, ARM])
def test_a_kind_of_cpu_is_its_model_and_its_instructions(tmp_path, monkeypatch, text):
    def kind(**values):
        (tmp_path / "cpuinfo").write_text(text.format(**values))
        return compilation_cache.cpu_type()

    monkeypatch.setattr(compilation_cache, "CPUINFO", tmp_path / "cpuinfo")
    assert kind(place=0, flags="avx2") == kind(place=5, flags="avx2")
    assert kind(place=0, flags="avx2") != kind(place=0, flags="avx512f")
    first = kind(place=0, flags="avx2")
    text = text.replace("Xeon", "Core").replace("0xd40", "0xd4f")
    assert kind(place=0, flags="avx2") != first
    monkeypatch.setattr(compilation_cache, "CPUINFO", tmp_path / "none")
    assert len(compilation_cache.cpu_type()) == 8


def test_what_was_longest_not_read_goes(tmp_path):
    ages = {"old/a-cache": 5, "new/b-cache": 1, "old/c-cache": 3, "new/d-cache": 4}
    for name, age in ages.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10))
        os.utime(path, (1e9 - age, 1e9 - 100))  # Read, written.
    compilation_cache.prune(tmp_path, 40)
    assert len(entries(tmp_path)) == 4
    compilation_cache.prune(tmp_path, 39)
    assert {str(p.relative_to(tmp_path)) for p in entries(tmp_path)} == set(ages) - {"old/a-cache"}
    compilation_cache.prune(tmp_path, 20)
    assert [p.name for p in entries(tmp_path)] == ["b-cache", "c-cache"]
    os.utime(tmp_path / "new/b-cache", (1, 1e9))  # Written since; some disks do not note reads.
    compilation_cache.prune(tmp_path, 10)
    assert [p.name for p in entries(tmp_path)] == ["b-cache"]


def test_a_folder_over_its_limit_is_pruned_at_the_start(tmp_path, monkeypatch, nothing_chosen):
    path = tmp_path / "ddpm_jax/xla/jax_0.1/big-cache"  # Of an older release.
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(10))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for limit, stays in ((10, True), (9, False)):
        monkeypatch.setattr(compilation_cache, "MAX_BYTES", limit)
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.enable()
        assert path.exists() == stays


def test_the_command_line_starts_warm_and_trains_the_same(tmp_path):
    counts, rows = [], []
    for name in ("cold", "warm"):
        arguments = [
            f"--config={ROOT}/configs/digits.py", f"--workdir={tmp_path / name}",
            "--config.train.num_steps=6", "--config.train.log_every=1",
            "--config.train.eval_images=0", "--config.train.sample_images=1",
            "--config.diffusion.num_timesteps=20", "--config.diffusion.beta_end=0.999",
        ]
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments], env=environment(tmp_path / "cache"),
            capture_output=True, text=True, cwd=ROOT,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        counts.append(done.stdout.splitlines()[-1].split())
        rows.append(losses(tmp_path / name))
    assert rows[0] == rows[1] and len(rows[0]) == 6
    assert counts[0] != counts[1] and counts[1][1] == counts[1][3] == counts[0][3]


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(row["loss"], row["grad_norm"]) for row in map(json.loads, lines)]
