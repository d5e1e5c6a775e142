"""Checkpoints are restored as they were saved; damage costs one checkpoint, never the run."""

import json
import logging as python_logging
import resource
import shutil
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import logging
from etils import epath

from ddpm_jax.workdir import checkpoints
from ddpm_jax.workdir.checkpoints import Checkpoints, restore_part
from saved_state import METADATA, tree_of


def save_all(workdir, steps, **options):
    with Checkpoints(workdir, **options) as run:
        for step in steps:
            run.save(step, tree_of(step), METADATA)


def names(workdir) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def warnings(monkeypatch):
    """The warnings about damage; Orbax has others."""
    logged = []

    def warning(text, *args):
        if "is damaged" in text:
            logged.append(text % args)

    monkeypatch.setattr(logging, "warning", warning)
    return logged


def test_state_comes_back_with_its_containers(tmp_path):
    save_all(str(tmp_path), [5])
    with Checkpoints(tmp_path) as run:
        step, tree = run.restore(jax.eval_shape(lambda: tree_of(0)))
    assert step == 5
    assert_same(tree, tree_of(5))


def test_nothing_to_restore_is_none(tmp_path):
    with Checkpoints(tmp_path) as run:
        assert run.restore(tree_of(0)) is None


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    # 4 MB, so that the save is still under way while the buffers are used again.
    tree = {"params": jnp.zeros((1024, 1024)), "step": jnp.int32(0)}
    with Checkpoints(tmp_path) as run:
        run.save(1, tree, METADATA)
        for _ in range(20):
            tree = update(tree)
        step, got = run.restore(tree)
    assert step == 1 and not got["params"].any() and got["step"] == 0
    assert (np.asarray(tree["params"]) == 20).all()


def test_newest_and_every_so_many_stay(tmp_path):
    save_all(tmp_path, [5, 8, 10, 12, 14, 16], keep=2, keep_every=10)
    assert names(tmp_path) == {"10", "14", "16"}


def save_each(workdir, steps, **options):
    """Saves the steps; those that are negative as timed."""
    with Checkpoints(workdir, **options) as run:
        for step in steps:
            run.save(abs(step), tree_of(abs(step)), METADATA, timed=step < 0)


def test_of_those_by_time_the_newest_stays_and_pushes_out_no_other(tmp_path):
    """Also where the run was started again in between, and where it is among those to stay."""
    kept = dict(keep=2, keep_every=10)
    save_each(tmp_path, [4, -5, -6, 7, -8, -9], **kept)
    assert names(tmp_path) == {"4", "7", "9"}
    save_each(tmp_path, [-10, -11, 12], **kept)
    assert names(tmp_path) == {"7", "10", "11", "12"}
    save_each(tmp_path, [-13, -14, 15, 16], **kept)
    assert names(tmp_path) == {"10", "14", "15", "16"}
    assert checkpoints.newest_metadata(tmp_path) == METADATA


def test_one_by_time_that_is_damaged_is_saved_again_by_step(tmp_path, warnings):
    save_each(tmp_path, [4, -6])
    shutil.rmtree(tmp_path / "checkpoints/6/state")
    with Checkpoints(tmp_path) as run:
        assert run.restore(tree_of(0))[0] == 4
        for step in (6, 8):
            run.save(step, tree_of(step), METADATA)
    assert names(tmp_path) == {"6", "8", "6.corrupt"}


def test_only_newest_stay_by_default(tmp_path):
    save_all(tmp_path, [5, 10, 15, 20])
    assert names(tmp_path) == {"15", "20"}


def test_saving_a_step_again_changes_nothing(tmp_path):
    with Checkpoints(tmp_path) as run:
        run.save(3, tree_of(3), METADATA)
        run.save(3, tree_of(9), METADATA)
        assert_same(run.restore(tree_of(0))[1], tree_of(3))


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    save_all(tmp_path, [3])
    leftover = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "3", leftover)
    with Checkpoints(tmp_path) as run:
        assert names(tmp_path) == {"3"}
        assert run.restore(tree_of(0))[0] == 3


def _largest_data(path):
    return max((path / "state" / "d").iterdir(), key=lambda file: file.stat().st_size)


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def _halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _empty(path):
    shutil.rmtree(path)
    path.mkdir()


DAMAGE = {
    "manifest gone": lambda path: (path / "state" / "manifest.ocdbt").unlink(),
    "manifest truncated": lambda path: _halve(path / "state" / "manifest.ocdbt"),
    "all data gone": lambda path: _empty(path / "state" / "d"),
    "_METADATA gone": lambda path: (path / "state" / "_METADATA").unlink(),
    "_METADATA truncated": lambda path: _halve(path / "state" / "_METADATA"),
    "state gone": lambda path: shutil.rmtree(path / "state"),
    "metadata gone": lambda path: shutil.rmtree(path / "metadata"),
    "step directory empty": _empty,
    "json truncated": lambda path: _halve(path / "metadata" / "metadata"),
    "data truncated": lambda path: _halve(_largest_data(path)),
    "byte flipped": lambda path: _flip(_largest_data(path)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_said_set_aside_and_written_again(tmp_path, warnings, damage):
    save_all(tmp_path, [4, 6])
    DAMAGE[damage](tmp_path / "checkpoints" / "6")

    with Checkpoints(tmp_path) as run:
        step, tree = run.restore(tree_of(0))
        assert step == 4
        assert_same(tree, tree_of(4))
        assert len(warnings) == 1 and "\n" not in warnings[0]
        assert str(tmp_path / "checkpoints" / "6") in warnings[0]
        assert names(tmp_path) == {"4", "6.corrupt"}
        run.save(6, tree_of(6), METADATA)

    assert names(tmp_path) == {"4", "6", "6.corrupt"}
    with Checkpoints(tmp_path) as run:
        step, tree = run.restore(tree_of(0))
    assert step == 6
    assert_same(tree, tree_of(6))
    assert len(warnings) == 1


def test_a_second_damage_of_a_step_keeps_the_first(tmp_path, warnings):
    save_all(tmp_path, [4, 6])
    for _ in range(3):
        DAMAGE["step directory empty"](tmp_path / "checkpoints" / "6")
        with Checkpoints(tmp_path) as run:
            assert run.restore(tree_of(0))[0] == 4
            run.save(6, tree_of(6), METADATA)
    assert names(tmp_path) == {"4", "6", "6.corrupt", "6.corrupt1", "6.corrupt2"}


def test_corrupt_directories_count_for_nothing(tmp_path, warnings):
    save_all(tmp_path, [4, 6])
    DAMAGE["state gone"](tmp_path / "checkpoints" / "6")
    with Checkpoints(tmp_path) as run:
        run.restore(tree_of(0))
        for step in (6, 8):
            run.save(step, tree_of(step), METADATA)
    assert names(tmp_path) == {"6", "8", "6.corrupt"}


def test_all_damaged_is_none(tmp_path, warnings):
    save_all(tmp_path, [4, 6])
    for step in ("4", "6"):
        DAMAGE["state gone"](tmp_path / "checkpoints" / step)
    with Checkpoints(tmp_path) as run:
        assert run.restore(tree_of(0)) is None
    assert names(tmp_path) == {"4.corrupt", "6.corrupt"} and len(warnings) == 2


def _without_bias():
    tree = tree_of(0)
    del tree["params"]["conv"]["bias"]
    return tree


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (lambda: tree_of(0, width=5), "ema_params/conv/bias is [4] there and [5]"),
        (lambda: tree_of(0) | {"more": jnp.zeros(2)}, "no more, which is [2]"),
        (_without_bias, "it has params/conv/bias [4]"),
    ],
)
def test_another_model_is_refused_and_nothing_renamed(tmp_path, warnings, wanted, words):
    save_all(tmp_path, [4, 6])
    with Checkpoints(tmp_path) as run:
        with pytest.raises(ValueError, match="--workdir") as error:
            run.restore(wanted())
    assert words in str(error.value) and "\n" not in str(error.value)
    assert names(tmp_path) == {"4", "6"} and not warnings


def test_closing_twice_is_closing_once(tmp_path):
    with Checkpoints(tmp_path) as run:
        run.save(1, tree_of(1), METADATA)
        run.close()
    assert names(tmp_path) == {"1"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("at", ["save", "close"])
def test_a_limit_on_files_is_raised_and_costs_one_save(tmp_path, at):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"noise": np.random.default_rng(0).normal(size=100_000)}  # 800 kB, incompressible.
    run = Checkpoints(tmp_path)
    run.save(1, big, METADATA)
    assert run.restore(big)[0] == 1  # It waits until the checkpoint is there.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large.*that of step 1 is whole"):
            run.save(2, big, METADATA)
            if at == "save":
                run.save(3, big, METADATA)
            run.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        run.close()
    with Checkpoints(tmp_path) as run:
        assert run.restore(big)[0] == 1
        run.save(2, big, METADATA)
    assert names(tmp_path) == {"1", "2"}


def test_a_folder_that_cannot_be_written_is_raised(tmp_path):
    run = Checkpoints(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").write_text("a file where the folder was")
    with pytest.raises(OSError):
        run.save(2, tree_of(2), METADATA)


@pytest.mark.parametrize("name", [
    "exp[1]", "Drive [2024]", "a*b?", "back\\slash", "{a,b}", "it's 50% #1", "new\nline", "a|b",
    "\udcff", "été",
])
def test_a_path_may_hold_any_characters(tmp_path, warnings, name):
    for decoy in ("exp1", "Drive 2", "axbx", "back"):  # What the names match as patterns.
        save_all(tmp_path / decoy, [9])
    save_all(tmp_path / name / "run", [4, 6])
    leftover = tmp_path / name / "run" / "checkpoints" / "8.orbax-checkpoint-tmp"
    leftover.mkdir()
    with Checkpoints(tmp_path / name / "run") as run:
        step, tree = run.restore(tree_of(0))
        assert step == 6 and not leftover.exists()
        assert_same(tree, tree_of(6))
        run.save(8, tree_of(8), METADATA)
    assert names(tmp_path / name / "run") == {"6", "8"} and not warnings
    step, ema, metadata = restore_part(tmp_path / name / "run", "ema_params")
    assert (step, metadata) == (8, METADATA)
    assert_same(ema, tree_of(8)["ema_params"])
    assert checkpoints.newest_metadata(tmp_path / name / "run") == METADATA
    assert list(restore_part(tmp_path / "exp1", "params")[:1]) == [9]


@pytest.mark.parametrize("damage", ["manifest gone", "all data gone", "state gone"])
def test_what_cannot_be_read_back_replaces_nothing(tmp_path, monkeypatch, damage):
    save_all(tmp_path, [4, 6])
    finalize = ocp.CompositeCheckpointHandler.finalize

    def damaged(handler, directory):
        finalize(handler, directory)
        DAMAGE[damage](directory)

    monkeypatch.setattr(ocp.CompositeCheckpointHandler, "finalize", damaged)
    with pytest.raises(OSError, match="cannot be read back.*that of step 6 is whole"):
        with Checkpoints(tmp_path) as run:
            run.save(8, tree_of(8), METADATA)
    assert checkpoints.steps(tmp_path) == [4, 6]
    monkeypatch.undo()
    save_all(tmp_path, [8])
    assert names(tmp_path) == {"6", "8"}


def test_the_check_of_what_was_written_sees_other_arrays(tmp_path, monkeypatch):
    save_all(tmp_path, [4])
    save = ocp.PyTreeCheckpointHandler.async_save

    async def halved(handler, directory, args):
        del args.item["ema_params"]
        return await save(handler, directory, args=args)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "async_save", halved)
    with pytest.raises(OSError, match="other arrays than those to save"):
        with Checkpoints(tmp_path) as run:
            run.save(6, tree_of(6), METADATA)
    assert checkpoints.steps(tmp_path) == [4]


def test_a_part_is_read_alone_and_nothing_is_written(tmp_path, monkeypatch):
    save_all(tmp_path, [4, 6])
    # The data of the other parts are never read.
    read, restore = [], ocp.PyTreeCheckpointHandler.restore

    def noted(handler, path, *, args):
        read.append(set(args.item))
        return restore(handler, path, args=args)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", noted)
    for folder in tmp_path.rglob("*"):
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    try:
        step, ema, metadata = restore_part(str(tmp_path), "ema_params")
    finally:
        for folder in tmp_path.rglob("*"):
            folder.chmod(0o755)
    assert step == 6 and metadata == METADATA and read == [{"ema_params"}]
    assert_same(ema, tree_of(6)["ema_params"])
    assert restore_part(tmp_path, "params", step=4)[0] == 4


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_part_of_a_damaged_checkpoint_is_read_from_the_one_before(
    tmp_path, warnings, damage
):
    save_all(tmp_path, [4, 6])
    DAMAGE[damage](tmp_path / "checkpoints" / "6")
    step, ema, _ = restore_part(tmp_path, "ema_params")
    assert step == 4 and len(warnings) == 1
    assert_same(ema, tree_of(4)["ema_params"])
    assert names(tmp_path) == {"4", "6"}


def test_what_cannot_be_read_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="--mode=train"):
        restore_part(tmp_path, "ema_params")
    save_all(tmp_path, [4])
    with pytest.raises(ValueError, match=r"step 5.*\[4\]"):
        restore_part(tmp_path, "ema_params", step=5)
    with pytest.raises(ValueError, match="no 'ema'.*ema_params"):
        restore_part(tmp_path, "ema")


def test_the_folder_is_absolute_and_a_bucket_stays_one(tmp_path, monkeypatch, bucket):
    monkeypatch.chdir(tmp_path)
    assert str(checkpoints.checkpoints_folder("a")) == str(tmp_path / "a" / "checkpoints")
    assert str(checkpoints.checkpoints_folder("gs://bucket/a")) == "gs://bucket/a/checkpoints"
    save_all("a", [1])
    assert restore_part(epath.Path("a"), "params")[0] == 1


def hooks():
    return sys.unraisablehook, threading.excepthook, list(logging.get_absl_logger().filters)


def test_what_orbax_prints_is_hidden_only_while_it_is_used(tmp_path, warnings):
    before = hooks()
    run = Checkpoints(tmp_path)
    during = hooks()
    assert all(now != then for now, then in zip(during, before))
    run.save(1, tree_of(1), METADATA)
    assert run.restore(tree_of(0))[0] == restore_part(tmp_path, "params")[0] == 1
    assert hooks() == during
    run.close()
    assert hooks() == before
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path):
        raise KeyboardInterrupt
    assert hooks() == before
    DAMAGE["data truncated"](tmp_path / "checkpoints" / "1")
    with pytest.raises(ValueError, match="no checkpoint"):
        restore_part(tmp_path, "params")
    assert hooks() == before


def test_what_others_print_is_not_hidden(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    monkeypatch.setattr(threading, "excepthook", printed.append)
    mine, orbax = threading.Thread(), type("Saver", (), {"__module__": "orbax.checkpoint"})()
    failed = (ValueError, ValueError("x"), None)
    with checkpoints.quiet_orbax():
        for message in ("Event loop is closed", "mine"):
            sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(message)))
        for thread in (orbax, mine):
            threading.excepthook(types.SimpleNamespace(thread=thread))
        passed = [
            (path, level) for path in ("orbax/a.py", "ours.py")
            for level, error in ((python_logging.INFO, None), (python_logging.WARNING, None),
                                 (python_logging.ERROR, failed))
            if logging.get_absl_logger().filter(
                python_logging.LogRecord("absl", level, path, 1, "", (), error))
        ]
    assert [str(p.exc_value) for p in printed[:1]] == ["mine"] and printed[1].thread is mine
    assert len(printed) == 2
    assert passed == [
        ("orbax/a.py", python_logging.WARNING), ("ours.py", python_logging.INFO),
        ("ours.py", python_logging.WARNING), ("ours.py", python_logging.ERROR),
    ]


def test_library_versions_are_json_and_complete():
    versions = json.loads(json.dumps(checkpoints.library_versions()))
    assert versions["jax"] == jax.__version__ and versions["numpy"] == np.__version__
    assert {"jaxlib", "flax", "optax", "orbax-checkpoint", "ddpm_jax"} <= set(versions)
