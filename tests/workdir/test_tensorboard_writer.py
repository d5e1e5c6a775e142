"""Event files on a disk and in a store, where files cannot grow."""

from ddpm_jax.workdir import tensorboard_writer
from clock import Clock
from object_store import Store, local_copy, objects
from records import events


def scalars(bucket, folder):
    """(step, value) of every event file in the store."""
    return [(e.step, e.value) for e in events(local_copy(bucket, folder)).Scalars("loss")]


def test_event_files_are_copied_every_minute(bucket, tmp_path):
    clock = Clock()
    folder = bucket / "tensorboard"
    with tensorboard_writer.EventFiles(folder, purge_step=1, clock=clock) as written:
        scratch = written.folder
        for step in range(1, 6):
            clock.now += 25
            written.scalar("loss", step, step)
        assert len(Store.writes) == 1 and scalars(bucket, tmp_path) == [(1, 1), (2, 2), (3, 3)]
        written.flush()
        assert len(scalars(bucket, tmp_path)) == 5
        written.flush()
        assert len(Store.writes) == 2  # Nothing has grown.
        written.scalar("loss", 6, 6)
    assert len(scalars(bucket, tmp_path)) == 6 and not scratch.exists()
    assert len(objects()) == 1


def test_a_long_file_is_not_copied_again_and_again(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard_writer, "FULL", 1000)
    with tensorboard_writer.EventFiles(bucket / "tensorboard", purge_step=1) as written:
        for step in range(1, 41):
            written.scalar("loss", step, step)
            if step % 10 == 0:
                written.flush()
    sizes = [len(Store.store[name].getvalue()) for name in objects()]
    assert len(sizes) > 1 and max(sizes) < 2000
    assert scalars(bucket, tmp_path) == [(step, step) for step in range(1, 41)]


def test_local_event_files_are_written_where_they_belong(tmp_path):
    with tensorboard_writer.EventFiles(tmp_path / "tensorboard", purge_step=1) as written:
        assert written.folder == tmp_path / "tensorboard"
        written.scalar("loss", 1, 1)
        written.flush()
        assert len(events(tmp_path).Scalars("loss")) == 1
