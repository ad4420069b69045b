"""The layers of a user's settings, and lines about settings that another layer keeps or overrides."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pgc3d.config import STAGE_NUMBERS
from pgc3d.yaml_text import parse_override, read_yaml

SHOWN = 6  # settings that a message names at most


@dataclass(frozen=True)
class Given:
    """The user's settings, apart from the guidance."""

    files: Sequence[Path]
    options: Mapping[str, Any]
    overrides: Sequence[str]
    model: str | None

    @cached_property
    def by_file(self) -> list[dict[str, Any]]:
        """The layers of the files."""
        return [read_yaml(path) for path in self.files]

    @cached_property
    def by_key(self) -> list[dict[str, Any]]:
        """The layers of `--set`."""
        return [parse_override(override) for override in self.overrides]


def flat(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested mappings, without None, by names with dots; later layers override earlier ones."""
    values: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping):
                values |= {f"{key}.{name}": inner for name, inner in flat(value).items()}
            elif value is not None:
                values[str(key)] = list(value) if isinstance(value, tuple) else value
    return values


def settings_of(last: str, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """`flat` with the same name for a setting at the top of a layer, below `run` and in the stage `last`."""
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in flat(layer).items():
            key = name.removeprefix(f"stages.{last}.")
            values[f"run.{key}" if key in STAGE_NUMBERS else key] = value
    return values


def kept_by_files(
    option: str,
    settings: Mapping[str, Any],
    given: Given,
    overridden: Collection[str],
    last: str,
    *,
    made_for: str = "",
) -> list[str]:
    """A line about the settings of an option that have other values in the files, and are not overridden."""
    in_files = {
        key: (value, path)
        for path, layer in zip(given.files, given.by_file, strict=True)
        for key, value in settings_of(last, layer).items()
    }
    unchanged = [
        key
        for key, value in settings.items()
        if key not in overridden and key in in_files and in_files[key][0] != value
    ]
    if not unchanged:
        return []
    more = f" and {len(unchanged) - SHOWN} more" if len(unchanged) > SHOWN else ""
    names = ", ".join(unchanged[:SHOWN]) + more
    paths = ", ".join(dict.fromkeys(str(in_files[key][1]) for key in unchanged))
    origin = f", which is for {made_for}" if made_for else ""
    stay = "stays" if len(unchanged) == 1 else "stay"
    return [
        f"{option} does not override --config: {names} {stay} as in {paths}{origin}; "
        "remove them there, or use --set"
    ]


def overridden_options(entry: str, given: Given, last: str) -> list[str]:
    """A line for each option that `--set` overrides with another value; `entry` is of `models`."""
    named = {f"models.{entry}.name": given.model} if given.model is not None else {}
    keyed = settings_of(last, *given.by_key)
    return [
        f"--set {key} overrides an option: {keyed[key]} instead of {value}"
        for key, value in (settings_of(last, given.options) | named).items()
        if key in keyed and keyed[key] != value
    ]
