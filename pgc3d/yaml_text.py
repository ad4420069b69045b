"""YAML from an untrusted source, as plain keys and values: no tags, no interpolation, limited in size."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pgc3d.errors import ConfigError
from pgc3d.ranges import check_text, shown

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_DIGITS = 1000  # of a whole number
MAX_VALUES = 10_000  # including those that aliases repeat
LONGEST = 400  # characters of a library's message
EVENTS: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, not checked against the configuration's classes.

    Raises:
        ConfigError: there is no such file, or it is not a YAML mapping, or exceeds a limit.
    """
    layer = _load(path)
    if not isinstance(layer, dict):
        raise ConfigError(f"{path} must hold keys and values, got a {type(layer).__name__}")
    one_line(lambda: check_values(layer), str(path))
    return cast("dict[str, Any]", layer)


def read_yaml_list(path: Path) -> list[Any]:
    """The entries of a YAML file that holds a list; mappings among them have text as keys.

    Raises:
        ConfigError: there is no such file, or it is not a YAML list, or exceeds a limit.
    """
    entries = _load(path)
    if not isinstance(entries, list):
        raise ConfigError(f"{path} must hold a list, got a {type(entries).__name__}; begin each entry with -")
    for entry in entries:
        if isinstance(entry, dict):
            one_line(partial(check_values, entry), str(path))
    return entries


def _load(path: Path) -> Any:
    text = one_line(lambda: _read_text(path), "")
    return one_line(lambda: _parse(text, lambda: OmegaConf.load(StringIO(text))), str(path))


def parse_override(override: str) -> dict[str, Any]:
    """The nested mapping of `key=value`, whose key has dots between the names.

    Raises:
        ConfigError: it has another form, or the value is not YAML.
    """
    key, equals, text = override.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise ConfigError(f"--set must be key=value, got {shown(override)}")
    if len(names) > MAX_DEPTH:
        raise ConfigError(f"--set must have at most {MAX_DEPTH} names with dots between, got {len(names)}")
    layer = one_line(lambda: _parse(text, lambda: OmegaConf.from_dotlist([f"value={text}"])), f"--set {key}")
    value = layer["value"]
    for name in reversed(names):
        value = {name: value}
    return cast("dict[str, Any]", value)


def check_values(layer: Mapping[Any, Any], path: str = "") -> None:
    """Raise ConfigError where a key is not text, or a string is not allowed (see `check_text`).

    Args:
        layer: a nested mapping.
        path: of the mapping, for messages, with a dot at its end.
    """
    for key, value in layer.items():
        where = f"{path}{key}"
        if not isinstance(key, str):
            place = f"a key of {path[:-1]}" if path else "a key"
            raise ConfigError(f"{place} must be text, got {shown(key)}; put it in quotes")
        if isinstance(value, Mapping):
            check_values(value, f"{where}.")
        for entry in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(entry, str):
                one_line(partial(check_text, where, entry), "")


def one_line(action: Callable[[], Any], source: str) -> Any:
    """The result of `action`, whose errors (of OmegaConf, YAML and `__post_init__`) become a ConfigError.

    Args:
        action: takes no arguments.
        source: start of the message, as the name of a file; may be empty.
    """
    try:
        return action()
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from error
    except OmegaConfBaseException as error:
        where = [part for part in (source, error.full_key) if part]
        raise ConfigError(_shortened(": ".join([*where, str(error).splitlines()[0]]))) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} must be YAML, got: {_shortened(str(error))}") from error
    except OSError as error:
        raise ConfigError(f"{source or error.filename}: {error.strerror or error}") from error
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from error


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def _require_yaml_file(path: Path) -> None:
    """Check that a path is a file.

    Raises:
        ConfigError: it is not.
    """
    if path.is_dir():
        raise ConfigError(f"the configuration must be a YAML file, but {path} is a folder")
    if not path.exists():
        raise ConfigError(f"the configuration file must exist, but {path} does not; give a YAML file")
    if not path.is_file():
        raise ConfigError(f"the configuration must be a YAML file, but {path} is a device or a pipe")


def _read_text(path: Path) -> str:
    _require_yaml_file(path)
    with path.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ConfigError(f"a configuration file must have at most {MAX_BYTES >> 20} MiB, got more in {path}")
    # PowerShell's `>` writes UTF-16 with a byte order mark.
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"a configuration file must be UTF-8 text, got {path}, which is not at byte "
            f"{error.start}; save it as UTF-8"
        ) from error


def _parse(text: str, parse: Callable[[], Any]) -> Any:
    """The plain values that `parse` returns, after a check of the text's YAML events."""
    _check_events(text)
    return OmegaConf.to_container(parse())


def _check_events(text: str) -> None:
    """Raise ValueError for tags, interpolation and sizes above the limits, before values are constructed."""
    sizes = [0]  # number of values so far in every open collection
    names: list[str | None] = []  # their anchors
    anchors: dict[str, int] = {}  # number of values of each anchor
    for event in yaml.parse(text, Loader=EVENTS):
        place = f"line {event.start_mark.line + 1}"
        if (tag := getattr(event, "tag", None)) is not None:
            raise ValueError(f"a configuration must have no tags, got {shown(tag)} in {place}; remove it")
        match event:
            case yaml.CollectionStartEvent():
                sizes.append(1)
                names.append(event.anchor)
            case yaml.CollectionEndEvent():
                size, name = sizes.pop(), names.pop()
                sizes[-1] += size
                anchors |= {name: size} if name is not None else {}
            case yaml.AliasEvent():
                sizes[-1] += anchors.get(event.anchor, 1)
            case yaml.ScalarEvent():
                sizes[-1] += 1
                check_text(place, event.value)
                _check_digits(place, event.value)
            case _:
                pass  # start or end of the stream or a document
        _check_size(sizes, place)


def _check_size(sizes: Sequence[int], place: str) -> None:
    if len(sizes) > MAX_DEPTH + 1:
        raise ValueError(f"a configuration must be nested at most {MAX_DEPTH} deep, got more in {place}")
    if sum(sizes) > MAX_VALUES:
        raise ValueError(f"a configuration must have at most {MAX_VALUES} values, got more in {place}")


def _check_digits(place: str, text: str) -> None:
    """Raise ValueError for a whole number that Python would refuse to read, with advice about itself."""
    if len(text) > MAX_DIGITS and re.fullmatch(r"[-+]?[0-9_]+", text):
        raise ValueError(f"a number must have at most {MAX_DIGITS} digits, got {len(text)} in {place}")
