"""Errors that the command line prints as one line; every room may raise them."""

import contextlib
import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

_MOST = 200  # Characters of a value in a message.
_LONGEST = 2000  # Of the message.


class UserError(ValueError):
    """A user's mistake: a field and its value, the rule, and what to write instead.

    Functions that know no config name their arguments, and the config renames them as settings:

        UserError("must lie in 0..1", field="eta", value=2, instead={"eta": 1})
        eta=2 must lie in 0..1; write eta=1.
        config.sample.eta=2 must lie in 0..1; write --config.sample.eta=1.

    Args:
        rule: what the value breaks. It ends with a full stop unless `instead` follows. A name of
            `given` in braces becomes "name=value"; {instead} is where that goes if not at the end.
        field: the argument, for example "eta", or an entry of it, "beta[3]". Without a field the
            rule is the whole line.
        value: the value of that field.
        given: other fields that the rule is about, with their values.
        instead: fields with values that would work, any one of them.
        where: the file or folder in which the mistake is; it stands first in the line.
    """

    def __init__(
        self, rule: str, *, field: str = "", value: Any = None,
        given: Mapping[str, Any] | None = None, instead: Mapping[str, Any] | None = None,
        where: Any = "", setting_of: Callable[[str], str] | None = None,
    ):
        self.rule, self.field, self.value, self.where = rule, field, value, where
        self.given, self.instead, self.setting_of = given or {}, instead or {}, setting_of
        super().__init__(_cut(" ".join(self._line().splitlines()), _LONGEST))

    def renamed(self, setting_of: Callable[[str], str]) -> "UserError":
        """The same mistake with each field named by `setting_of`, unless that was done already."""
        return self if self.setting_of is not None else self._with(setting_of=setting_of)

    def located(self, where: Any) -> "UserError":
        """The same mistake in the file or folder `where`, unless it has one already."""
        return self if self.where else self._with(where=where)

    def _with(self, **changes: Any) -> "UserError":
        parts = dict(
            field=self.field, value=self.value, given=self.given, instead=self.instead,
            where=self.where, setting_of=self.setting_of,
        )
        return type(self)(self.rule, **(parts | changes))

    def __reduce__(self):
        return UserError, (str(self),)  # Other processes need the line only.

    def _line(self) -> str:
        name, rule = self.setting_of or str, self.rule
        if self.instead and "{instead}" not in rule:
            rule += "; write {instead}."
        instead = (_written(name(field), value) for field, value in self.instead.items())
        rule = rule.replace("{instead}", " or ".join(instead))
        for field, value in self.given.items():
            rule = rule.replace(f"{{{field}}}", f"{name(field)}={shown(value)}")
        line = f"{name(self.field)}={shown(self.value)} {rule}" if self.field else rule
        return f"{self.where}: {line}" if self.where else line


class NotFiniteError(FloatingPointError):
    """Training that stopped because too many steps in a row had no finite loss and gradient."""


class StopTraining(Exception):  # noqa: N818
    """Raised by the callback of `train` to end the run after the step in progress."""


class NotWrittenError(OSError):
    """A file of a run that could not be written."""


@contextlib.contextmanager
def renamed(setting_of: Callable[[str], str]) -> Iterator[None]:
    """Names the fields of any `UserError` raised inside by `setting_of`."""
    try:
        yield
    except UserError as error:
        raise error.renamed(setting_of) from None


@contextlib.contextmanager
def located(where: Any) -> Iterator[None]:
    """Names the file or folder `where` in any `UserError` raised inside that names none."""
    try:
        yield
    except UserError as error:
        raise error.located(where) from None


def as_settings(group: str, **others: str) -> contextlib.AbstractContextManager[None]:
    """Names the fields of any `UserError` raised inside as settings of a config.

    Args:
        group: the group whose settings have the names of the fields, for example "sample".
        **others: the setting that holds a field of another name, for example
            height="data.image_size".
    """
    def setting_of(field):
        if field.startswith("config."):
            return field
        field, bracket, index = field.partition("[")
        return f"config.{others.get(field, f'{group}.{field}')}{bracket}{index}"

    return renamed(setting_of)


def named_as(**settings: str) -> contextlib.AbstractContextManager[None]:
    """Names these fields alone, of any `UserError` raised inside, as settings of a config.

    Args:
        **settings: for example batch_size="sample.batch_size".
    """
    return renamed(lambda field: f"config.{settings[field]}" if field in settings else field)


def check_known(field: str, value: Any, known: Collection[Any]) -> None:
    """Raises UserError unless the value of this field is one of `known`."""
    if not any(isinstance(value, type(each)) and value == each for each in known):
        raise UserError(f"is not known; use one of {', '.join(known)}.", field=field, value=value)


def check_floats(**images: Any) -> None:
    """Raises UserError for the first of these arrays that is of integers, by its name.

    The dtype says whether pixels are in 0..255 or in [-1, 1], also while JAX traces.
    """
    for field, array in images.items():
        if getattr(getattr(array, "dtype", None), "kind", "none") in "biu":
            raise UserError(
                f"must be float in [-1, 1]; write ddpm_jax.data.to_float({field}) for uint8.",
                field=field, value=array,
            )


def whole_number(
    field: str, value: Any, *, low: int | None = None, high: int | None = None
) -> int:
    """The value of this field as an int, if it is whole: 5, 5.0, 1e3, a scalar array of one.

    Args:
        field: the argument or setting.
        value: its value; a bool and a string are no numbers.
        low, high: the range, both ends in it; None is open.

    Raises:
        UserError: the value is not whole, or leaves the range.
    """
    number = _as_whole(value)
    least, most = (number if end is None else end for end in (low, high))
    if number is None or not least <= number <= most:
        ends = {
            (True, True): "", (False, True): f" of at least {low}",
            (True, False): f" of at most {high}", (False, False): f" in {low}..{high}",
        }[low is None, high is None]
        raise UserError(
            f"must be a whole number{ends}", field=field, value=value,
            instead={field: _nearest(value if number is None else number, low, high)},
        )
    return number


def whole_numbers(
    field: str, values: Any, *, low: int | None = None, high: int | None = None
) -> tuple[int, ...]:
    """The values of a list as ints, each checked as by `whole_number`.

    Raises:
        UserError: this is no list, or the first entry that is wrong, named "field[3]".
    """
    if not _is_list(values):
        raise UserError(
            "must be a list of whole numbers", field=field, value=values,
            instead={field: [_nearest(_as_whole(values), low, high)]},
        )
    return tuple(
        whole_number(f"{field}[{i}]", value, low=low, high=high) for i, value in enumerate(values)
    )


def number(field: str, value: Any) -> float:
    """The value of this field, if it is a finite number; that of a scalar array as Python's.

    Raises:
        UserError: it is not.
    """
    scalar = _scalar(value)
    if isinstance(scalar, (int, float)) and not isinstance(scalar, bool):
        with contextlib.suppress(OverflowError):  # An int above all floats.
            if math.isfinite(scalar):
                return scalar
    raise UserError("must be a finite number, for example 0.5.", field=field, value=value)


def numbers(field: str, values: Any) -> tuple[float, ...]:
    """The values of a list, each checked as by `number`.

    Raises:
        UserError: this is no list, or the first entry that is wrong, named "field[3]".
    """
    if not _is_list(values):
        raise UserError(
            "must be a list of numbers", field=field, value=values, instead={field: [0.5]}
        )
    return tuple(number(f"{field}[{i}]", value) for i, value in enumerate(values))


def _is_list(values: Any) -> bool:
    text = isinstance(values, (str, bytes, Mapping))
    return isinstance(values, Iterable) and getattr(values, "ndim", 1) == 1 and not text


def flag(field: str, value: Any) -> bool:
    """The value of this field as a bool, if it is True, False, 1 or 0.

    Raises:
        UserError: it is not.
    """
    scalar = _scalar(value)
    if not isinstance(scalar, int) or scalar not in (0, 1):
        raise UserError("must be True or False", field=field, value=value, instead={field: True})
    return bool(scalar)


def _scalar(value: Any) -> Any:
    """The value, that of a scalar array as Python's; None for a typed key or a traced array."""
    try:
        return value.item() if getattr(value, "ndim", None) == 0 else value
    except (TypeError, NotImplementedError):  # From a traced array, and from a typed key.
        return None


def _as_whole(value: Any) -> int | None:
    """The int that this value is, or None."""
    scalar = _scalar(value)
    if isinstance(scalar, float) and scalar.is_integer():
        return int(scalar)
    try:
        return None if isinstance(scalar, (bool, float)) else operator.index(scalar)
    except TypeError:
        return None


def _nearest(value: Any, low: int | None, high: int | None) -> int:
    """A whole number in the range, near to the value where that is a number."""
    try:
        number = round(value if isinstance(value, int) else float(value))
    except (TypeError, ValueError, OverflowError):
        number = 1
    number = number if low is None else max(low, number)
    return number if high is None else min(high, number)


def shown(value: Any) -> str:
    """A value in a message: its repr on one line, the middle of a long one left out."""
    if not isinstance(value, type) and getattr(value, "ndim", 0) and hasattr(value, "dtype"):
        return f"<{value.dtype} {list(value.shape)}>"
    return _cut(" ".join(map(str.strip, repr(value).splitlines())), _MOST)


def _cut(text: str, most: int) -> str:
    """The text, the middle of a long one left out."""
    return text if len(text) <= most else f"{text[:most // 2]}...{text[-most // 2:]}"


def one_line(error: BaseException) -> str:
    """The message of an error as one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _written(field: str, value: Any) -> str:
    """What to write: a flag for a setting of a config, else an argument."""
    if not field.startswith("config."):
        return f"{field}={value!r}"
    quoted = isinstance(value, tuple) or value == ""
    return f'--{field}="{value}"' if quoted else f"--{field}={value}"
