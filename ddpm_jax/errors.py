"""Errors that the command line prints as one line; every room may raise them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any


class UserError(ValueError):
    """A user's mistake: the setting and its value, the rule, and what to write instead.

    With a field the line is "field=value rule; write other=value." Without one `rule` is the
    whole line.

    Args:
        rule: what the value breaks; it ends with a full stop unless `instead` follows.
        field: the argument or setting, such as "eta"; "config.sample.eta" is the setting of a
            config, for which the line names the flag.
        value: the value of that field.
        instead: other values that would work, by field.
    """

    def __init__(
        self, rule: str, *, field: str = "", value: Any = None,
        instead: Mapping[str, Any] | None = None,
    ):
        line = f"{field}={value!r} {rule}" if field else rule
        if instead:
            line += f"; write {', '.join(_written(*item) for item in instead.items())}."
        super().__init__(line)
        self.rule, self.field, self.value, self.instead = rule, field, value, instead

    def renamed(self, setting_of: Callable[[str], str]) -> "UserError":
        """The same mistake with each field named by `setting_of`."""
        if not self.field:
            return self
        instead = {setting_of(field): value for field, value in (self.instead or {}).items()}
        return UserError(
            self.rule, field=setting_of(self.field), value=self.value, instead=instead
        )


class NotFiniteError(FloatingPointError):
    """Training that stopped because too many steps in a row had no finite loss and gradient."""


class NotWrittenError(OSError):
    """A file of a run that could not be written."""


@contextlib.contextmanager
def renamed(setting_of: Callable[[str], str]) -> Iterator[None]:
    """Names the field of any `UserError` raised inside by `setting_of`."""
    try:
        yield
    except UserError as error:
        raise error.renamed(setting_of) from None


def one_line(error: BaseException) -> str:
    """The message of an error as one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _written(field: str, value: Any) -> str:
    """How to write a setting: as a flag if it is one of a config, else as an argument."""
    if not field.startswith("config."):
        return f"{field}={value!r}"
    return f'--{field}="{value}"' if isinstance(value, tuple) else f"--{field}={value}"
