"""Several processes over loopback, each with its own devices, have the results of one process.

`host.py` is what each runs: two processes of two devices, one of four, and one of one. Together
they test runtime/parallel.py.
"""

import json
import os
import pathlib
import pickle
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import host
from ddpm_jax.data import loading
from ddpm_jax.runtime import parallel
from ddpm_jax.workdir import checkpoints, pictures
from program import ROOT, free_port

HELPERS = pathlib.Path(host.__file__).parent
LAYOUTS = {"1x4": (1, 4), "2x2": (2, 2), "1x1": (1, 1)}  # (processes, devices per process)


def start(arguments, devices):
    path = os.pathsep.join([str(HELPERS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=env, cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(processes, seconds=300):
    """(exit status, stdout, stderr) of each process; those that are not done by then are killed."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, outputs)]


def one_job(arguments, layout, by_hand):
    """The outputs of the processes of a job, all of which must succeed: [stdout], [stderr]."""
    count, devices = LAYOUTS[layout]
    address = f"127.0.0.1:{free_port()}"
    done = finish([
        start([*arguments, *(by_hand(address, count, i) if count > 1 else ())], devices)
        for i in range(count)
    ])
    for i, (status, out, err) in enumerate(done):
        assert status == 0, f"process {i} of {layout}: {out}{err}"
    return [without_gloo(out) for _, out, _ in done], [err for *_, err in done]


def without_gloo(out):
    """The output without gloo's lines about connections, which come between, and into, ours."""
    pieces = r"\[Gloo\] Rank |\d+ is connected to |\d+ peer ranks\. Expected .*?is : ?\d*\n?"
    return re.sub(pieces, "", out)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of all layouts, and by layout the results and outputs of each process."""
    folder, results = tmp_path_factory.mktemp("hosts"), {}
    pictures.save_png(folder / "digit.png", loading.digits("test")[0][0])
    for layout, (count, _) in LAYOUTS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host.config_lib, "model", lambda config, channels: host.Net())
            host.store(folder / f"measured_{layout}")
        out, err = one_job(
            [HELPERS / "host.py", folder, layout], layout, lambda *address: map(str, address)
        )
        stored = [pickle.loads((folder / layout / f"{i}.pkl").read_bytes()) for i in range(count)]
        results[layout] = [r | {"out": o, "err": e} for r, o, e in zip(stored, out, err)]
    return folder, results


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def column(folder, layout, name):
    return [row[name] for row in rows(folder / f"run_{layout}") if name in row]


def test_the_layouts_have_their_devices(done):
    _, results = done
    assert {k: [r["devices"] for r in v] for k, v in results.items()} == {
        "1x4": [(4, 4)], "2x2": [(4, 2)] * 2, "1x1": [(1, 1)]
    }


@pytest.mark.parametrize("layout", ["2x2", "1x1"])
@pytest.mark.parametrize("name, count", [
    ("loss", 20), ("grad_norm", 20), ("learning_rate", 20), ("heldout_loss", 2)])
def test_every_layout_has_the_same_losses(done, layout, name, count):
    folder, _ = done
    values, wanted = (column(folder, which, name) for which in (layout, "1x4"))
    assert len(wanted) == count and np.std(wanted) > 0.01 * np.mean(np.abs(wanted)) / count
    # Sums over devices run in another order: float32 roundings, grown over 20 steps of Adam.
    np.testing.assert_allclose(values, wanted, rtol=1e-5)


def test_every_row_is_written_once_and_only_the_first_process_prints(done):
    folder, results = done
    for layout in LAYOUTS:
        assert [row["step"] for row in rows(folder / f"run_{layout}")] == list(range(1, 21))
        assert len(list((folder / f"run_{layout}" / "samples").iterdir())) == 2
        assert "step 20 of 20" in results[layout][0]["out"]
    first, second = results["2x2"]
    assert "4 cpu (cpu), batch 8" in first["out"] and second["out"] == ""
    assert "steps  eta" in first["err"] and "steps  eta" not in second["err"]  # Of sampling.
    assert len(list((folder / "run_2x2" / "tensorboard").glob("events*"))) == 2  # From two starts.


def test_no_image_is_read_twice_and_none_is_missing(done):
    _, results = done
    (one,), both = results["1x1"], results["2x2"]
    (seen, *batches), (also_seen, *first), second = (
        r["train"]["reads"] for r in (one, *both))
    np.testing.assert_array_equal(seen, also_seen)  # The range of the pixels is looked at once.
    for batch, *shares in zip(batches, first, second):
        np.testing.assert_array_equal(np.concatenate(shares), batch)
    assert len(batches) == 20
    spread = np.linspace(0, 299, 13).round().astype(int)  # The held-out images, twice.
    held = np.concatenate([
        np.concatenate(pair) for pair in zip(*(r["train"]["held"] for r in both))
    ])
    np.testing.assert_array_equal(np.concatenate([held[:13], held[16:29]]), [*spread, *spread])
    measured = [np.concatenate(pair) for pair in zip(*(r["draw"]["reads"] for r in both))]
    np.testing.assert_array_equal(np.concatenate(measured)[:11], np.arange(11))
    assert all(len(reads) == 4 for r in both for reads in r["draw"]["reads"])


@pytest.mark.parametrize("name", ["images", "steps", "x_t", "bits", "vlb", "uint8"])
def test_every_process_has_all_images_and_they_equal_those_of_one_device(done, name):
    _, results = done
    (wanted,), (four,), both = (
        [r["draw"][name] for r in results[layout]] for layout in ("1x1", "1x4", "2x2")
    )
    assert np.std(wanted) > 0.1 and 11 in wanted.shape or name == "uint8"
    for share in both:  # The same program on the same images per device: equal to the bit.
        np.testing.assert_array_equal(share, four)
    # Another batch size: a convolution sums in another order, in each of 10 steps. Where that
    # falls on the edge between two uint8 levels, they differ by one.
    np.testing.assert_allclose(
        np.float64(four), wanted, rtol=1e-5, atol=1 if name == "uint8" else 2e-5
    )


def test_measurements_are_those_of_one_process_and_are_stored_once(done):
    folder, results = done
    wanted = results["1x1"][0]["measure"]["rows"]
    assert [row["metric"] for row in wanted] == list(host.METRICS)
    for layout in ("1x4", "2x2"):
        path = folder / f"measured_{layout}" / "evaluations.jsonl"
        kept = [json.loads(line) for line in path.read_text().splitlines()]
        for result in results[layout]:
            assert result["measure"]["rows"] == result["measure"]["again"] == kept
        for row, want in zip(kept, wanted, strict=True):
            assert row["protocol"] == want["protocol"]
            for name, value in want.items():
                if isinstance(value, float):  # Differences of samples that agree to 2e-5.
                    np.testing.assert_allclose(row[name], value, rtol=1e-4, err_msg=name)
            if want.get("table"):
                np.testing.assert_allclose(row["table"]["ddim"], want["table"]["ddim"], rtol=1e-4)
    first, second = (result["measure"]["outputs"] for result in results["2x2"])
    assert first[0].count("step 20") == first[1].count("known already") == len(host.METRICS)
    assert second == ["", ""]


def test_only_the_first_process_writes_the_files_of_an_evaluation(done):
    folder, _ = done
    one, two = (
        sorted(path.relative_to(folder / f"measured_{layout}").as_posix()
               for path in (folder / f"measured_{layout}" / "evaluations").rglob("*"))
        for layout in ("1x4", "2x2")
    )
    assert one == two and any(name.endswith("terms.npz") for name in two)
    assert not any("parts" in name for name in two)
    # The second round of 13 images, for each of two samplers.
    rounds = list((folder / "measured_2x2").rglob("samples-*/000000008.npz"))
    assert [len(np.load(path)["arr_0"]) for path in rounds] == [5, 5]


def test_edits_are_written_once(done):
    _, results = done
    assert results["2x2"][1]["edit"]["written"] == []
    arrays = [np.load(results[layout][0]["edit"]["written"][1])["arr_0"] for layout in LAYOUTS]
    assert arrays[0].shape == (1, 1, 4, *host.SHAPE) and arrays[0].std() > 1
    for array in arrays[1:]:
        np.testing.assert_allclose(np.float64(array), arrays[0], atol=1)  # A rounding.


def test_a_run_continues_with_other_processes_and_devices(done):
    """Eight steps on 1x4, six on 2x2 and six on 1x1 equal the uninterrupted run."""
    folder, results = done
    elastic, whole = rows(folder / "elastic"), rows(folder / "run_1x4")
    assert [row["step"] for row in elastic] == list(range(1, 21))
    assert "resuming at step 8 of 14" in results["2x2"][0]["out"]
    assert "resuming at step 14 of 20" in results["1x1"][0]["out"]
    np.testing.assert_allclose(
        [row["loss"] for row in elastic], [row["loss"] for row in whole], rtol=1e-5)
    assert elastic[:8] != whole[:8]  # The times differ.
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in elastic[:8]] == [row[name] for row in whole[:8]]


def test_a_run_continues_with_a_state_that_devices_share(done):
    """Shared in four devices of one process, then of two, then not at all."""
    folder, results = done
    shared, whole = rows(folder / "shared"), rows(folder / "run_1x4")
    assert [row["step"] for row in shared] == list(range(1, 21))
    for row, want in zip(shared, whole):
        for name in {"loss", "grad_norm", "heldout_loss"} & want.keys():
            same = 1e-6 if row["step"] <= 8 else 1e-5  # The other layouts, as above.
            np.testing.assert_allclose(row[name], want[name], rtol=same, err_msg=name)
    for path, leaf in host.leaves(results["1x4"][0]["train"]["params"]):
        again = dict(host.leaves(results["1x1"][0]["shared"]["params"]))[path]
        np.testing.assert_allclose(again, leaf, rtol=1e-5, atol=1e-6, err_msg=path)
    here, there = (dict(host.leaves(r["shared"]["params"])) for r in results["2x2"])
    jax.tree.map(np.testing.assert_array_equal, here, there)


def test_processes_agree(done):
    _, results = done
    first, second = (result["agree"] for result in results["2x2"])
    assert (first["first"], second["first"]) == (True, False)
    for result in (first, second):
        assert result["index"] == 0 and not result["large"].any()
        assert result["large"].shape == (3 * 2**18,)  # Six megabytes, sent in pieces.
        assert result["everywhere"] == [True, False, False]
        np.testing.assert_array_equal(result["gathered"]["a"][:, 0], [0, 0, 1, 1])


def test_parts_are_written_by_the_first_process_and_read_by_all(done):
    folder, results = done
    assert (folder / "parts_0").exists() and not (folder / "parts_1").exists()
    for result in results["2x2"]:
        (part,) = result["agree"]["parts"]
        np.testing.assert_array_equal(part["rows"], [0, 1, 2])


def test_a_mistake_of_one_process_is_an_error_of_all(done):
    folder, results = done
    (missing, other, train, fine), (again, disagree, train_too, fine_too) = (
        result["agree"]["errors"] for result in results["2x2"])
    assert "nothing was trained there" in missing and missing == again
    assert "another process" in other and "another process" in train
    assert "disagree about config; start each with the same flags" in disagree
    assert "data" not in disagree.split(";")[0] and train_too == disagree
    assert fine is None and fine_too is None
    assert not (folder / "disagreed_2x2" / "config.json").exists()


def test_a_checkpoint_that_one_process_cannot_read_is_set_aside_by_all(done):
    folder, results = done
    first, second = results["2x2"]
    assert "20 is damaged (OSError: another process could not read it)" in first["err"]
    assert "20 is damaged (OSError: a bad disk)" in second["err"]
    assert "resuming at step 16 of 20" in first["out"]
    names = {path.name for path in (folder / "run_2x2" / "checkpoints").iterdir()}
    assert names == {"16", "20", "20.corrupt"}
    again = checkpoints.restore_part(folder / "run_2x2", "ema_params", 20)[1]
    for result in (first, second):
        for path, leaf in host.leaves(result["train"]["params"]):
            np.testing.assert_array_equal(dict(host.leaves(again))[path], leaf)


@pytest.mark.parametrize("given, says", [
    (("10.0.0.1:1234", None, None), "coordinator=10.0.0.1:1234, num_processes=None, .*together"),
    ((None, 2, None), "num_processes=2, .*these go together"),
    ((None, 2, 0), "coordinator=None, .*these go together"),
    (("10.0.0.1", 2, 0), "host:port"),
    (("10.0.0.1:x", 2, 0), "host:port"),
    (("10.0.0.1:1234", 2, 2), "process_id=2: must be .*0..num_processes-1"),
    (("10.0.0.1:1234", 2, -1), "process_id=-1: must be"),
])
def test_incomplete_addresses_are_refused(given, says):
    with pytest.raises(ValueError, match=says) as error:
        parallel.initialize(*given)
    assert "--coordinator=10.0.0.1:1234 --num_processes=2 --process_id=0" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flags, says", [
    (["--multihost", "--process_id=1"], "leave one or the other out"),
    (["--mode=plan", "--multihost"], "--mode=plan is for one process"),
    (["--num_processes=two"], "--num_processes=two"),
    (["--num_processes=2"], "num_processes=2, process_id=None: these go together"),
    (["--multihost"], "no other processes were found"),
])
def test_mistakes_in_flags_are_one_line(tmp_path, flags, says):
    (status, out, err), = finish([start(
        ["main.py", "--config=configs/digits.py", f"--workdir={tmp_path}/run", *flags], 1)])
    assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ")
    assert says in err and not (tmp_path / "run").exists()


FAILING = """
import sys
from ddpm_jax.runtime import parallel
parallel.PATIENCE = 3
parallel.initialize(sys.argv[1], 2, int(sys.argv[2]))
parallel.barrier("both")
if sys.argv[2] == sys.argv[3]:
    raise ValueError("a fault")
print("waits", flush=True)
parallel.barrier("never")
print("went on")
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_one_process_ends_the_others(failing):
    address = f"127.0.0.1:{free_port()}"
    ends = finish([start(["-c", FAILING, address, i, failing], 2) for i in range(2)], 120)
    statuses = [status for status, *_ in ends]
    assert 0 not in statuses
    assert "ValueError: a fault" in ends[failing][2]
    assert "waits" in ends[1 - failing][1] and "went on" not in ends[1 - failing][1]


FAULTY = """
import json, sys
from ddpm_jax.runtime import parallel
parallel.initialize(sys.argv[1], 2, int(sys.argv[2]))
import host
from ddpm_jax.data.source import Source
from ddpm_jax.inference import batched_map, conditions
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.training import loop, records, run

def fails_once(owner, name, counts=lambda *arguments: True):
    works, failed = getattr(owner, name), []
    def function(*arguments, **settings):
        if counts(*arguments) and not failed:
            failed.append(True)
            raise RuntimeError(f"{name} has a fault")
        return works(*arguments, **settings)
    setattr(owner, name, function)

host.config_lib.model = lambda config, channels: host.Net()
host.validation.check_images = lambda *_: None
if sys.argv[2] == sys.argv[3]:
    fails_once(conditions, "in_turn")  # Before the chains of the first grid,
    fails_once(batched_map, "num_parts")  # in those of the second, and after those of the third.
    fails_once(sample_lib.pixels, "to_uint8")
    fails_once(records, "save_png")  # In the first process alone.
    fails_once(Source, "examples", lambda source, _: len(source) < 1000)  # The held-out images.
config = host.config(**{"train.num_steps": 5, "train.sample_every": 1, "train.eval_every": 2})
_, failures = loop.complete(run.prepare(config, sys.argv[4], None))
print("failures", json.dumps(failures))
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_a_picture_that_fails_in_one_process_fails_in_all_and_costs_nothing_else(
    tmp_path, failing
):
    address = f"127.0.0.1:{free_port()}"
    ends = finish([start(["-c", FAULTY, address, i, failing, tmp_path], 2) for i in range(2)])
    assert [status for status, *_ in ends] == [0, 0], ends
    failed = [f"the grid of step {step}" for step in range(1, 5 if failing == 0 else 4)]
    failed.insert(2, "the held-out loss of step 2")
    for _, out, _ in ends:
        [line] = [line for line in out.splitlines() if line.startswith("failures")]
        assert sorted(json.loads(line.removeprefix("failures "))) == sorted(failed)
    said = without_gloo(ends[0][1])
    assert said.count("training goes on") == len(failed) and f"{len(failed)} failed beside" in said
    assert ends[1][2].count("has a fault") == (4 if failing == 1 else 0)
    assert checkpoints.steps(tmp_path) == [4, 5]
    assert [row.get("heldout_loss") is not None for row in rows(tmp_path)] == [
        False, False, False, True, True]


@pytest.mark.slow
def test_the_command_line_on_two_hosts(tmp_path):
    settings = {
        "model.channels": 8, "model.channel_multipliers": "(1,)", "model.dropout": 0.2,
        "model.attention_resolutions": "()", "model.num_groups": 0, "diffusion.num_timesteps": 20,
        "diffusion.beta_end": 0.4, "train.batch_size": 16, "train.log_every": 1,
        "train.num_steps": 4, "train.eval_images": 20, "train.sample_images": 4,
        "sample.num_images": 6, "evaluate.num_images": 6,
    }
    results = {}
    for layout in ("2x2", "1x1"):
        workdir = tmp_path / layout
        for mode in ("train", "sample", "evaluate"):
            (first, *others), _ = one_job(
                ["main.py", "--config=configs/digits.py", f"--workdir={workdir}", f"--mode={mode}",
                 *(f"--config.{name}={value}" for name, value in settings.items())],
                layout, lambda *given: [f"--{name}={value}" for name, value in zip(
                    ("coordinator", "num_processes", "process_id"), given)],
            )
            assert first and not any(others)
        evaluations = (workdir / "evaluations.jsonl").read_text().splitlines()
        samples, = (workdir / "samples").glob("ema*.npz")
        results[layout] = (
            [row["loss"] for row in rows(workdir)], np.load(samples)["arr_0"],
            [json.loads(row)["value"] for row in evaluations],
        )
    (losses, drawn, bits), (one, alone, wanted) = results["2x2"], results["1x1"]
    np.testing.assert_allclose(losses, one, rtol=1e-5)
    # After four steps of Adam, which amplifies rounding errors.
    np.testing.assert_allclose(np.float64(drawn), alone, atol=2)
    np.testing.assert_allclose(bits, wanted, rtol=1e-4)
    assert len(bits) == 1 and len(losses) == 4
