"""How the command line ends: one line for a mistake or a failing disk, a traceback for a bug."""

import errno
import os

import pytest

import exhausting
from ddpm_jax import cli, errors


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_other_files_that_cannot_be_written_are_one_line_too(capsys, number):
    """Whichever library writes them."""
    with pytest.raises(SystemExit) as stopped, cli.exits("runs/x"):
        raise OSError(number, os.strerror(number))
    [line] = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert os.strerror(number) in line and "--workdir=runs/x" in line


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "x"), ValueError("x"),
                                   FloatingPointError("x")])
def test_errors_of_libraries_keep_their_traceback(error):
    """They are no mistakes of the user, wherever they are raised."""
    with pytest.raises(type(error)), cli.exits("runs/x"):
        raise error


@pytest.mark.parametrize("error", [errors.UserError, errors.NotFiniteError,
                                   errors.NotWrittenError])
def test_our_own_errors_are_one_line(capsys, error):
    with pytest.raises(SystemExit), cli.exits("runs/x"):
        raise error("write this instead")
    assert capsys.readouterr().err == "error: write this instead\n"


def test_a_full_device_is_an_error_of_the_device(capsys):
    """/dev/full: what a write to a full disk raises is what the command line expects."""
    with pytest.raises(SystemExit), cli.exits("runs/x"), open("/dev/full", "w") as file:
        file.write("x")
    assert "No space left on device" in capsys.readouterr().err


def test_a_device_without_memory_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped, cli.exits("runs/x"):
        exhausting.run_out()
    [line] = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert "where 1,024.00 GiB was asked for and each device has " in line
    assert "lower config.train.batch_size, config.sample.batch_size or" in line
