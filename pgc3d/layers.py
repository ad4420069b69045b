"""Layers of a configuration over each other, and the result checked part by part.

A family is a union of dataclasses that differ in `kind`; a layer that names another kind replaces that entry
by the defaults of the new one. A kind alone stands for an entry with that kind: `formula: csd` for
`formula: {kind: csd}`.
"""

import difflib
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf, read_write

from pgc3d.errors import ConfigError
from pgc3d.ranges import MAX_ENTRIES, is_schedule, shown
from pgc3d.yaml_text import one_line


def structured(kind: Any) -> DictConfig:
    """A new structured configuration with the defaults of a dataclass.

    It is a copy of one that is kept: reading the types of all fields takes five times as long.
    """
    return deepcopy(_defaults(kind))


@cache
def _defaults(kind: Any) -> DictConfig:
    return typing.cast(DictConfig, OmegaConf.structured(kind))


def merge(tree: DictConfig, layer: Mapping[str, Any], schema: Any, source: str) -> DictConfig:
    """The tree with a layer over it.

    Args:
        tree: a structured configuration, which must not be used any more.
        layer: a nested mapping; its values override those of the tree.
        schema: the dataclass that the tree is made from.
        source: name of the layer in errors, as a file.

    Raises:
        ConfigError: the layer does not fit the dataclasses.
    """
    whole = one_line(lambda: _prepare(tree, layer, schema, ""), source)
    merged = one_line(lambda: OmegaConf.unsafe_merge(tree, whole), source)
    return typing.cast(DictConfig, merged)


def build(tree: DictConfig) -> Any:
    """The dataclass of a structured configuration.

    Raises:
        ConfigError: a part cannot be built; the message has the place of the innermost one.
    """
    try:
        return one_line(lambda: OmegaConf.to_object(tree), "")
    except ConfigError:
        one_line(lambda: _check_parts(tree), "")  # one part after another takes twice as long
        raise


def _check_parts(node: Any, path: str = "") -> None:
    """Build every part on its own, inner ones first.

    Raises:
        ConfigError: a part cannot be built.
    """
    for key in node:
        child = node[key]
        if isinstance(child, DictConfig):
            _check_parts(child, f"{path}.{key}" if path else str(key))
    if is_dataclass(OmegaConf.get_type(node)):
        one_line(lambda: OmegaConf.to_object(node), path)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message, "; did you mean ...?", with the closest known name; "" without one."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _prepare(node: Any, layer: Mapping[str, Any], schema: Any, path: str) -> dict[str, Any]:
    """Insert defaults where a layer names a new kind of a family or a new entry of a mapping.

    Returns:
        The layer written out: a number for a schedule stands for a constant one, and a text for a member of a
        family for the defaults of that kind.
    """
    result = dict(layer)
    for key, entry in layer.items():
        expected = _field_type(schema, key)
        where = f"{path}{key}"
        if expected is None:
            continue
        if not (is_dataclass(_members(expected)[0]) or typing.get_origin(expected) is dict):
            if is_schedule(schema, key) and type(entry) in (int, float):
                result[key] = [entry]
            _check_leaf(where, expected, result[key])
            continue
        if entry is None and types.NoneType in typing.get_args(expected):
            continue
        value = {"kind": entry} if isinstance(entry, str) and _is_family(expected) else entry
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must hold keys and values, got {shown(value)}")
        if len(value) > MAX_ENTRIES:
            raise ConfigError(f"{where} must have at most {MAX_ENTRIES} entries, got {len(value)}")
        expected = _enter(node, key, value, expected, where)
        result[key] = _prepare(node[key], value, expected, f"{where}.")
    return result


def _enter(node: Any, key: str, value: Mapping[str, Any], expected: Any, where: str) -> Any:
    """The class of the entry that a layer sets, which is inserted where it is missing or of another kind."""
    if "kind" in value:
        members = {_kind(member): member for member in _members(expected)}
        if not isinstance(value["kind"], str) or value["kind"] not in members:
            raise ConfigError(
                f"{where}.kind must be one of {', '.join(members)}, got {shown(value['kind'])}"
                f"{nearest(str(value['kind']), members)}"
            )
        member = members[value["kind"]]
        if key not in node or node[key] is None or node[key].kind != value["kind"]:
            _assign(node, key, member)
        return member
    if key not in node or node[key] is None:
        member = _members(expected)[0]
        _assign(node, key, member)
        return member
    current = OmegaConf.get_type(node[key])
    return current if is_dataclass(current) else expected


def _check_leaf(where: str, expected: Any, value: Any) -> None:
    """Refuse a value that OmegaConf would silently convert to a string, a boolean or a list."""
    if typing.get_origin(expected) is tuple:
        _check_entries(where, typing.get_args(expected), value)
        return
    if value is None and types.NoneType in typing.get_args(expected):
        return
    plain = {_plain_type(kind) for kind in _members(expected)}
    if plain == {str} and not isinstance(value, str):
        advice = "; put it in quotes" if isinstance(value, (int, float)) else ""
        raise ConfigError(f"{where} must be text, got {shown(value)}{advice}")
    if plain == {bool} and not isinstance(value, (bool, str)):
        raise ConfigError(f"{where} must be true or false, got {shown(value)}")
    if plain <= {int, float} and isinstance(value, bool):
        raise ConfigError(f"{where} must be a number, got {str(value).lower()}")
    if plain == {float} and isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ConfigError(f"{where} must be a smaller number, got {shown(value)}")


def _check_entries(where: str, kinds: Sequence[Any], value: Any) -> None:
    """Refuse a value that is not a list of such types; an ellipsis at the end repeats the last one."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ConfigError(f"{where} must be a list, got {shown(value)}")
    if kinds[-1] is not ... and len(value) != len(kinds):
        raise ConfigError(f"{where} must have {len(kinds)} entries, got {len(value)}")
    last = len(kinds) - (2 if kinds[-1] is ... else 1)
    for index, entry in enumerate(value[:MAX_ENTRIES]):
        kind = kinds[min(index, last)]
        _check_leaf(f"{where}[{index}]", kind, entry)
        if kind in {int, float} and not _is_number(entry, kind):
            named = "a whole number" if kind is int else "a number"
            raise ConfigError(f"{where}[{index}] must be {named}, got {shown(entry)}")


def _is_number(value: Any, kind: type[int | float]) -> bool:
    """Whether OmegaConf converts a value to a number of this kind; its own error would not name the entry."""
    try:
        kind(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return kind is float or isinstance(value, (int, str))


def _plain_type(kind: Any) -> Any:
    """The type of a leaf; that of its choices for a Literal."""
    return type(typing.get_args(kind)[0]) if typing.get_origin(kind) is typing.Literal else kind


def _assign(node: Any, key: str, member: Any) -> None:
    with read_write(node):
        node[key] = structured(member)


def _field_type(schema: Any, key: str) -> Any:
    """The type of an entry: of a dataclass field, or of a mapping's values; None where there is none."""
    if is_dataclass(schema):
        return typing.get_type_hints(schema).get(key)
    if typing.get_origin(schema) is dict:
        return typing.get_args(schema)[1]
    return None


def _members(family: Any) -> tuple[Any, ...]:
    if typing.get_origin(family) in (types.UnionType, typing.Union):
        return tuple(member for member in typing.get_args(family) if member is not types.NoneType)
    return (family,)


def _is_family(expected: Any) -> bool:
    members = _members(expected)
    return len(members) > 1 and all(is_dataclass(member) for member in members)


def _kind(member: Any) -> str:
    return next(str(item.default) for item in fields(member) if item.name == "kind")
