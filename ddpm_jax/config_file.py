"""A config file of the user's: its mistakes as one line with file, line and setting."""

import importlib.machinery
import inspect
import os
import re
import sysconfig
import traceback
import types
from typing import Any

import ml_collections

from ddpm_jax import configs
from ddpm_jax.errors import UserError, one_line

_CONFIG_DICT = inspect.getfile(ml_collections.ConfigDict)
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
LISTED = "configs/cifar10.py lists all of them."
_START = "it starts with `config = cifar10.get_config()`, changes that, and returns it."


def named(name: str) -> ml_collections.ConfigDict:
    """The config of a file, "mine.py", or that of the package of this name, "digits".

    Raises:
        UserError: there is none, or the file has a mistake.
    """
    path = os.path.expanduser(name)
    bundled = os.path.join(os.path.dirname(configs.__file__), f"{name}.py")
    if name.isidentifier() and not os.path.isfile(path) and os.path.isfile(bundled):
        path = bundled
    check_path(path)
    return read(path)


def check_path(path: str) -> None:
    """Raises UserError unless `path`, FILE or FILE:ARGUMENT, names a file that can be read."""
    file = path.partition(":")[0]
    if os.path.isdir(file):
        raise UserError(
            f"--config={path} is a folder; name a file, for example {os.path.join(file, 'my.py')}."
        )
    if not os.path.isfile(file):
        raise UserError(
            f"--config={path} does not exist; name a file, for example configs/digits.py, or a "
            "config of the package, for example digits."
        )
    if not os.access(file, os.R_OK):
        raise UserError(f"--config={path} may not be read by this user; chmod +r {file}.")


def read(path: str) -> ml_collections.ConfigDict:
    """What `get_config` of the file returns; FILE:ARGUMENT passes it one.

    Raises:
        UserError: the file has a mistake.
    """
    file, _, argument = path.partition(":")
    module = types.ModuleType("config_file")
    module.__file__ = file
    try:
        importlib.machinery.SourceFileLoader("config_file", file).exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise UserError(f"has no function get_config; {_START}")
        config = module.get_config(*([argument] if argument else []))
    except UserError as error:
        raise error.located(_where(error, file)) from None
    except Exception as error:  # Whatever the user's code raises.
        raise UserError(_rule(error, file), where=_where(error, file)) from None
    if not is_config(config):
        kind = "nothing" if config is None else f"a {type(config).__name__}"
        raise UserError(f"get_config returns {kind}, not a ConfigDict; {_START}", where=file)
    return config


def is_config(config: Any) -> bool:
    """Whether this is a config, and one whose settings can be set."""
    frozen = isinstance(config, ml_collections.FrozenConfigDict)
    return isinstance(config, ml_collections.ConfigDict) and not frozen


def _where(error, file: str) -> str:
    """The file and the line of the user's code where this was raised."""
    if isinstance(error, SyntaxError):
        name, line = error.filename, error.lineno
    else:
        name, line, _ = _frame(error, file)
    return f"{name}, line {line}" if line else str(name or file)


def _frame(error, file: str) -> tuple[str, int | None, str]:
    """(file, line, its text) of the innermost call that is in the user's code."""
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file or not _is_library(frame.filename)
    ]
    return (own[-1].filename, own[-1].lineno, own[-1].line or "") if own else (file, None, "")


def _is_library(filename: str) -> bool:
    inside = os.path.dirname(__file__) + os.sep
    return filename == configs.__file__ or filename.startswith(("<", inside, *_LIBRARIES))


def _rule(error, file: str) -> str:
    """What is wrong, by the kind of the error."""
    message = one_line(error)[:300]
    if isinstance(error, SyntaxError):
        text = (error.text or "").strip()[:80]
        return f"{error.msg}{text and f': {text}'}; a config is a file of Python."
    if isinstance(error, ModuleNotFoundError):
        return f"{message}; {_to_import(error.name or '', file)}"
    if traceback.extract_tb(error.__traceback__)[-1].filename == _CONFIG_DICT:
        return _setting_rule(one_line(error), _frame(error, file)[2])
    is_python = file.endswith(".py") and "null bytes" not in message  # Python before 3.11.4.
    python = "" if is_python else "; a config is a file of Python."
    return f"{type(error).__name__}: {message}{python}"


def _to_import(module: str, file: str) -> str:
    """What to do about a module that is not found."""
    folder, name = os.path.dirname(os.path.abspath(file)), module.partition(".")[0]
    beside = os.path.join(folder, name)
    if name and (os.path.isfile(f"{beside}.py") or os.path.isdir(beside)):
        return f"it is beside the file: start in {folder}, or add that to PYTHONPATH."
    return "install it, or start where it can be imported."


def _setting_rule(message: str, line: str) -> str:
    """What a ConfigDict says of one setting, in fewer words.

    Args:
        message: of the error that it raised.
        line: of the user's code, for the group of the setting.
    """
    key = re.search(r"(?:Key|field) \W*(\w+)", message) or re.match(r"\W*(\w+)", message)
    if key is None:
        return message[:300]
    written = re.search(rf"[\w.]*\b{key[1]}\b[\w.]*", line)
    name = written[0].partition(".")[2] if written and "." in written[0] else key[1]
    kinds = re.search(r"\. (.*) is of original type .*'(.*)'.* to type <class '(.*)'>", message)
    if kinds is None:
        return f"config.{name} is no setting; did you mean config.{configs.nearest(name)}? {LISTED}"
    value, given, wanted = kinds.groups()
    words = {kind.__name__: words for kind, words in configs.KINDS.items()}
    return f"config.{name} must be {words.get(wanted, 'a group')}, not {value[:80]} ({given})."
