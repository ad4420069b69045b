"""The range and the unit of every number in a configuration, declared with its field and checked when made.

    batch: int = number(4, 1, 1024, unit="views")

The range is part of the field's metadata, from which documentation and tests read it. It bounds the number
itself, each entry of a tuple or mapping of numbers, and the values (not the progress) of a schedule.
"""

import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from pgc3d.records import is_utf8

Number: TypeAlias = int | float
KEY = "range"
# Metadata of a string, or of a tuple of strings, that may be the path of a file or folder; "names" are words
# of a tuple that are no paths.
PATH = {"path": True}
MAX_ENTRIES = 256  # of a tuple or a mapping
LEAST_EPS = 1e-30  # of Adam: less is 0 in single precision, and a gradient of zero would give NaN
MAX_RATE = 1.0  # of a learning rate: Adam's steps have about that length, and parameters are of order 1
MAX_WEIGHT = 1e6  # of a term of the loss


@dataclass(frozen=True)
class Range:
    """An interval [low, high] of allowed numbers; `above` and `below` exclude an end."""

    low: Number
    high: Number
    above: bool = False  # low is exclusive
    below: bool = False  # high is exclusive
    unit: str = ""
    also: Mapping[int, str] = field(default_factory=dict)  # allowed values outside, with their meaning
    multiple: int = 1
    schedule: bool = False  # see `PiecewiseLinear`
    pair: bool = False  # [low, high] of a random draw

    def holds(self, value: Number) -> bool:
        """Whether a number is allowed; NaN is not."""
        if value in self.also:
            return True
        low = self.low < value if self.above else self.low <= value
        high = value < self.high if self.below else value <= self.high
        return low and high and (self.multiple == 1 or value % self.multiple == 0)

    def __str__(self) -> str:
        """As in "lie in [8, 4096], a multiple of 8, or be 0 for the model's own"; without the unit."""
        left, right = "(" if self.above else "[", ")" if self.below else "]"
        text = f"lie in {left}{_plain(self.low)}, {_plain(self.high)}{right}"
        if self.multiple > 1:
            text += f", a multiple of {self.multiple}"
        return text + "".join(f", or be {value} for {meaning}" for value, meaning in self.also.items())


def number(default: Any, low: Number, high: Number, **options: Any) -> Any:
    """A dataclass field for a number, or a tuple of numbers, with its range; `Range` has the options."""
    return field(default=default, metadata={KEY: Range(low, high, **options)})


def schedule(default: tuple[Number, ...], low: Number, high: Number, **options: Any) -> Any:
    """A dataclass field for a schedule (see `PiecewiseLinear`), with the range of its values."""
    return number(default, low, high, schedule=True, **options)


def span(default: tuple[Number, Number], low: Number, high: Number, **options: Any) -> Any:
    """A dataclass field for the ends [low, high] of a random draw, with the range of both."""
    return number(default, low, high, pair=True, **options)


def ranges(config: Any) -> dict[str, Range]:
    """The ranges of a configuration class, or of an instance, by the name of the field."""
    metadata = {item.name: item.metadata[KEY] for item in fields(config) if KEY in item.metadata}
    # `pgc.py`, which imports no other module, has a mapping in place of a `Range`.
    return {name: value if isinstance(value, Range) else Range(**value) for name, value in metadata.items()}


def is_schedule(kind: Any, name: str) -> bool:
    """Whether a setting of a configuration class, or of another type without settings, is a schedule."""
    known = ranges(kind) if is_dataclass(kind) else {}
    return name in known and known[name].schedule


def check(config: Any) -> None:
    """Raise ValueError, in one line, where a number or a string of a configuration is not allowed."""
    kind: Any = type(config)
    known, hints = ranges(config), _hints(kind)
    for item in fields(config):
        value = getattr(config, item.name)
        for entry in _strings(value):
            check_text(item.name, entry)
        if isinstance(value, (tuple, list, dict)) and len(value) > MAX_ENTRIES:
            raise ValueError(f"{item.name} must have at most {MAX_ENTRIES} entries, got {len(value)}")
        if item.name in known:
            _check_number(item.name, value, known[item.name], whole=int in hints[item.name])


def check_text(name: str, text: str) -> None:
    """Raise ValueError where a string would not survive being written to a file and read again.

    Args:
        name: of the setting, for the message.
        text: its value.
    """
    if "${" in text:
        raise ValueError(
            f"{name} must be written out, since ${{...}} is not replaced by anything, got {shown(text)}"
        )
    if text.lstrip("\\") == "???":
        raise ValueError(f"{name} must be given, got {shown(text)}")
    if not is_utf8(text):
        raise ValueError(f"{name} must be UTF-8 text, got {shown(text)}")


def shown(value: Any) -> str:
    """A value for an error message: its `repr`, shortened to about 120 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # whole numbers of more digits than Python prints
        text = f"a {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def _check_number(name: str, value: Any, limits: Range, *, whole: bool) -> None:
    entries = list(_numbers(value))
    for entry in entries:
        if type(entry) not in ((int,) if whole else (int, float)):
            raise ValueError(f"{name} must be {'whole' if whole else 'plain'} numbers, got {shown(entry)}")
    checked: Any = entries
    if limits.schedule:
        checked = _schedule_values(name, value)
    if not all(limits.holds(entry) for entry in checked):
        raise ValueError(f"{name} must {limits}, got {_found(value)}")
    if limits.pair and entries[0] > entries[1]:
        raise ValueError(f"{name} must be [low, high] with low <= high, got {_found(value)}")


def _schedule_values(name: str, knots: Any) -> tuple[Number, ...]:
    try:
        from pgc3d.schedules import PiecewiseLinear  # with torch, which reading a file does not need

        return PiecewiseLinear(tuple(float(knot) for knot in knots)).values
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from error


def _numbers(value: Any) -> Iterator[Any]:
    """The entries of nested tuples and mappings; a number alone is its only entry."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for entry in value:
            yield from _numbers(entry)
    else:
        yield value


def _strings(value: Any) -> Iterator[str]:
    """The strings of a setting, with the names of a mapping."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (name for name in value if isinstance(name, str))
        yield from (entry for entry in value.values() if isinstance(entry, str))
    elif isinstance(value, (tuple, list)):
        yield from (entry for entry in value if isinstance(entry, str))


def _found(value: Any) -> str:
    return shown(list(value) if isinstance(value, tuple) else value)


def _plain(value: Number) -> str:
    """A number as text: whole ones without a decimal point, and without an exponent up to ten digits."""
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e10):
        return str(int(value)) if value != 2**63 - 1 else "2^63 - 1"
    return f"{value:g}"


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, set[Any]]:
    """The plain types that occur in the type of each field."""

    def plain(hint: Any) -> set[Any]:
        parts = typing.get_args(hint)
        return set().union(*(plain(part) for part in parts)) if parts else {hint}

    return {name: plain(hint) for name, hint in typing.get_type_hints(kind).items()}
