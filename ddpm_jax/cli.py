"""The command line: flags, checks, and the one call that does the work.

JAX is imported only when the work begins, so `--help` and mistakes in flags are instant.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from ddpm_jax import arguments
from ddpm_jax.errors import NotFiniteError, NotWrittenError, UserError, one_line

_HELP = """\
Train a diffusion model, sample from one, or measure it.

  python main.py --config=configs/digits.py --mode=plan
  python main.py --config=configs/digits.py --workdir=runs/digits
  python main.py --config=configs/digits.py --workdir=runs/digits --mode=sample
  python main.py --config=configs/digits.py --workdir=runs/digits --mode=evaluate

  --config=FILE           what to train: a file of your own, or the name of a config of the
                          package, for example digits. Once a run has begun its workdir holds its
                          own, and every mode does without it.
  --config.GROUP.NAME=V   another value for one setting, of that config or of the run's own;
                          tuples as "(1, 2, 2)".
  --workdir=FOLDER        checkpoints, samples and logs; a second start continues.
  --mode=train|sample|evaluate|plan|distill|config|report
                          train is the default; sample writes config.sample.num_images images to
                          FOLDER/samples as a PNG grid and as .npz (arr_0, uint8 [n, h, w, c]),
                          or does config.sample.task with the files of config.sample.inputs;
                          evaluate measures config.evaluate.metrics, e.g. "('bpd', 'fid')";
                          plan prints the memory and the hours that all of this would take, from
                          a few real steps; it writes nothing and needs no workdir;
                          distill teaches students of config.distill.teacher, another workdir, to
                          draw in 128, 64, ... 1 steps, each in FOLDER/steps_N; without --config
                          they are trained as the teacher was;
                          config prints every setting as it would be used, one a line;
                          report writes what FOLDER holds as one page, FOLDER/report.html; of
                          several, --workdir=A,B,C, it compares them.
  --report=FILE           with --mode=report: another file for the page.
  --target=NAME           with --mode=plan: the same for accelerators that are not here, compiled
                          and not run: TPUs as v5e:2x4, v4:2x2x1, v3:2x2 (chips; pip install
                          libtpu), or h200 (JAX's CUDA plugin). It takes minutes.
  --multihost             one process per host on TPU pods and under Slurm; they find each other.
  --coordinator=HOST:PORT --num_processes=N --process_id=I
                          the same by hand: the address of process 0, the number of processes,
                          and which one this is. All get the same other flags and the same workdir.

  --version               of this package, and of JAX and Flax.

Every setting, its value and its meaning: configs/cifar10.py. Compiled programs are cached in
~/.cache/ddpm_jax, unless JAX_ENABLE_COMPILATION_CACHE=false."""

FLAG_ERRORS = (flags.Error, TypeError, ValueError)  # What reading a setting's value raises.
MODES = ("train", "sample", "evaluate", "plan", "distill", "config", "report")
_START = "--config=configs/digits.py --workdir=runs/digits"
# A file system that is full, over its quota or its files' size, read-only or failing.
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class _WholeNumber(flags.IntegerParser):
    """Reads a setting that is a whole number: 1000, 1e3, 5.0."""

    def convert(self, argument: Any) -> int:
        try:
            return super().convert(argument)
        except ValueError:
            with contextlib.suppress(ValueError, OverflowError):
                if (number := float(argument)).is_integer():
                    return int(number)
            raise ValueError("must be a whole number, for example 10 or 1e3") from None


config_flags.register_flag_parser_for_type(int, _WholeNumber())
_config = config_flags.DEFINE_config_file("config", lock_config=True)
_workdir = flags.DEFINE_string("workdir", None, "Folder of the run.")
_mode = flags.DEFINE_string("mode", "train", "What to do.")
_report = flags.DEFINE_string("report", None, "File of the page of --mode=report.")
_target = flags.DEFINE_string("target", None, "Devices to plan for.")
_multihost = flags.DEFINE_boolean("multihost", False, "Join the processes of a cluster.")
_coordinator = flags.DEFINE_string("coordinator", None, "Address of process 0, as host:port.")
_num_processes = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_process_id = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")


def main() -> None:
    """Runs the command line; exits with 0 only when the work was done."""
    if any(argument in ("--help", "-h", "--helpfull") for argument in sys.argv[1:]):
        print(_HELP)
        return
    if "--version" in sys.argv[1:]:
        print(_versions())
        return
    if len(sys.argv) == 1:
        _exit(f"nothing to do; start with {_START}, then add --mode=sample. --help lists the rest.")
    from ddpm_jax.runtime import huge_pages

    huge_pages.use()
    sys.path.insert(0, os.getcwd())  # A config file imports its neighbours as configs.x.
    app.run(_run, flags_parser=_parse)


def _versions() -> str:
    from importlib import metadata

    named = (f"{name} {metadata.version(name)}" for name in ("ddpm_jax", "jax", "flax"))
    return f"{', '.join(named)}, Python {sys.version.split()[0]}"


def _parse(argv):
    logging.set_verbosity(logging.ERROR)
    try:
        return _parse_flags(arguments.with_stored(arguments.with_bundled(argv), MODES))
    except UserError as error:
        _exit(error)


def _parse_flags(argv):
    from ddpm_jax import config_file

    path = arguments.last(argv, "config")
    if path is not None:
        config_file.check_path(path)
    overrides = arguments.overrides(argv)
    if overrides and path is None:
        raise UserError(f"{overrides[0]} changes a config, but none is given; add --config=FILE.")
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:  # Whatever the code of a config file raises.
        if path is not None:
            config_file.read(path)  # Names the line, if the mistake is in there.
        if isinstance(error, (AttributeError, KeyError)):
            raise UserError(_unknown_setting(path, overrides)) from None
        raise UserError(one_line(error)) from None
    if path is not None and not config_file.is_config(_config.value):
        config_file.read(path)
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag; settings are --config.GROUP.NAME=VALUE.")
    _check_flags()
    return rest


def _check_flags():
    if _mode.value not in MODES:
        raise UserError(f"--mode={_mode.value} is not known; use one of {', '.join(MODES)}.")
    if not _workdir.value and _mode.value not in ("plan", "config"):
        raise UserError("--workdir is missing; write for example --workdir=runs/digits.")
    if _target.value and _mode.value != "plan":
        raise UserError(f"--target={_target.value} is for --mode=plan; leave one of them out.")
    if _report.value and _mode.value != "report":
        raise UserError(f"--report={_report.value} is for --mode=report; leave one of them out.")
    if _mode.value == "report":
        _check_report()
    if _mode.value == "plan" and _joins():
        raise UserError("--mode=plan is for one process; leave --multihost and --coordinator out.")
    if _multihost.value and _by_hand():
        raise UserError("--multihost finds the processes, and --coordinator, --num_processes and "
                        "--process_id name them; leave one or the other out.")
    needs_config = _mode.value in ("train", "distill") or not _workdir.value
    if needs_config and _config.value is None:
        raise UserError("--config is missing; write for example --config=configs/digits.py.")


def _check_report():
    """It reads what there is, so no flag but --workdir and --report has a use."""
    if _config.value is not None:
        raise UserError("--mode=report takes the configs of its workdirs; leave --config out.")
    if _joins():
        raise UserError("--mode=report is for one process; leave --multihost and --coordinator "
                        "out.")


def _by_hand() -> dict:
    """The flags that describe the processes of this job, by name."""
    named = (_coordinator, _num_processes, _process_id)
    return {flag.name: flag.value for flag in named if flag.value is not None}


def _joins() -> bool:
    return bool(_multihost.value or _by_hand())


def _unknown_setting(path, overrides) -> str:
    """The message for the override that names no setting, with what it may have meant."""
    from ddpm_jax import config_file, configs

    names = list(_settings(config_file.read(path)))
    for override in overrides:
        flag, _, value = override.partition("=")
        name = flag.lstrip("-").removeprefix("config.")
        if name not in names:
            return (
                f"--config.{name}={value} is no setting; did you mean "
                f"--config.{configs.nearest(name)}? {config_file.LISTED}"
            )
    return f"{path} cannot be read as a config."


def _settings(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _exit(error):
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _run(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    from ddpm_jax.runtime import compilation_cache, devices

    devices.leave_out_libtpu()
    if not _target.value:  # JAX cannot read programs for devices that are not here.
        compilation_cache.enable()
    work = {"train": _train, "sample": _sample, "evaluate": _evaluate, "plan": _plan,
            "distill": _distill, "config": _print_config, "report": _write_report}
    with exits(_workdir.value), _joined():
        return work[_mode.value](_config.value, _workdir.value)


@contextlib.contextmanager
def exits(workdir: str | None) -> Iterator[None]:
    """Ends the process with one line on a user's mistake, a lack of room or Ctrl-C inside.

    Any other error keeps its traceback.

    Args:
        workdir: the run's, named where it cannot be written to.
    """
    try:
        yield
    except (UserError, NotFiniteError, NotWrittenError) as error:
        _exit(error)
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        _exit(f"{error}: --workdir={workdir} cannot be written to any more; make room, and start "
              "the same command again.")
    except Exception as error:
        from ddpm_jax.runtime import memory

        if not memory.is_exhausted(error):
            raise
        _exit(f"{memory.shortage(error)}; lower config.train.batch_size, config.sample.batch_size "
              "or config.evaluate.batch_size, whichever this mode reads.")
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the newest checkpoint", flush=True)
        os._exit(130)  # A normal exit would wait for a checkpoint that is being written.


@contextlib.contextmanager
def _joined():
    """Joins this process to those of its job, where the flags ask for it."""
    if not _joins():
        yield
        return
    from ddpm_jax.runtime import parallel

    parallel.initialize(**_by_hand(), preemptible=_mode.value in ("train", "distill"))
    if not parallel.is_first():
        logging.set_verbosity(logging.ERROR)
    yield
    parallel.barrier("done")  # A process that leaves long before the first would end it.


def _train(config, workdir):
    from ddpm_jax.training import loop, run

    return _status(lambda: loop.complete(run.prepare(config, workdir, None))[1])


def _distill(config, workdir):
    from ddpm_jax.training import phases

    return _status(lambda: phases.distill(config, workdir))


def _status(train) -> int:
    """0, or 1 where something beside the steps failed; leaves at once where it was interrupted."""
    from ddpm_jax.runtime import interruption

    try:
        return 1 if train() else 0
    except interruption.Interrupted as interrupted:
        sys.exit(interrupted.status)


def _sample(config, workdir):
    from ddpm_jax.inference import sample_command
    from ddpm_jax.runtime import devices
    from ddpm_jax.workdir import run_folder

    devices.check()
    sample_command.run(run_folder.config_for(config, workdir), workdir)


def _evaluate(config, workdir):
    from ddpm_jax.evaluation import evaluate
    from ddpm_jax.runtime import devices
    from ddpm_jax.workdir import run_folder

    devices.check()
    evaluate.evaluate(run_folder.config_for(config, workdir), workdir)


def _plan(config, workdir):
    from ddpm_jax import planning
    from ddpm_jax.workdir import run_folder

    config = config or run_folder.stored_config(workdir)
    print(_forecast(config) if _target.value else planning.table(planning.plan(config)))


def _print_config(config, workdir):
    import shlex

    from ddpm_jax import config as config_lib
    from ddpm_jax import validation
    from ddpm_jax.workdir import run_folder

    stored = run_folder.find_config(run_folder.files.path(workdir)) if workdir else None
    if config is None:
        config = run_folder.stored_config(workdir)
    elif stored is not None:
        config = run_folder.filled(config, stored, workdir)
    for name, value in config_lib.leaves(validation.checked(config)):
        print(shlex.quote(f"--config.{name}={value}"))


def _write_report(config, workdir):
    del config
    from ddpm_jax.reporting import report

    folder = report.files.path(workdir)  # A comma may be part of its name.
    workdirs = [workdir] if folder.exists() else [name for name in workdir.split(",") if name]
    print(report.report(workdirs, _report.value))


def _forecast(config):
    from ddpm_jax.runtime import devices, targets

    devices.use_cpu()  # An accelerator that is here has nothing to do.
    from ddpm_jax import forecast

    target = targets.find(_target.value)
    return forecast.table(forecast.forecast(
        config, target, say=lambda line: print(line, file=sys.stderr, flush=True)
    ))
