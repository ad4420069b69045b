"""The settings of a run apart from its stages: what is wrong in them is found before torch is imported."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pgc3d.clip_text import split_rule
from pgc3d.errors import ConfigError
from pgc3d.export_config import ExportConfig
from pgc3d.image_config import InputImageConfig
from pgc3d.layers import merge, structured
from pgc3d.run_config import LoggingConfig, ModelConfig, RunConfig
from pgc3d.view_config import ViewConfig
from pgc3d.yaml_text import check_values, one_line, parse_override, read_yaml

STAGE_NUMBERS = ("steps", "resolution", "resolution_until")  # also below `run`, for the last stage
STAGE_KEYS = (*STAGE_NUMBERS, "start", "representation", "objectives", "optimizer", "init")


@dataclass(frozen=True)
class EarlyConfig:
    """The fields of `config.Config` whose classes are cheap to import."""

    run: RunConfig = field(default_factory=RunConfig)
    models: dict[str, ModelConfig] = field(default_factory=dict)
    image: InputImageConfig = field(default_factory=InputImageConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


EARLY_KEYS = tuple(item.name for item in fields(EarlyConfig))


def check_early(files: Sequence[Path], overrides: Sequence[str], *, rule: str | None = None) -> None:
    """Refuse what is wrong whatever the other layers are.

    Args:
        files: YAML files.
        overrides: `key=value`, as of `config.load_config`.
        rule: short text of a clipping rule.

    Raises:
        ConfigError: a file cannot be read, or a key, the type of a value or the rule is wrong; with the text
            of `load_config` and `clip_rules.parse_rule`.
    """
    if rule is not None:
        split_rule(rule)
    tree = structured(EarlyConfig)
    layers = [(str(file), read_yaml(file)) for file in files]
    layers += [("--set", parse_override(override)) for override in overrides]
    for source, layer in layers:
        tree = merge(tree, _early_part(layer, source), EarlyConfig, source)


def _early_part(layer: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The part of a layer apart from the settings of stages."""
    one_line(lambda: check_values(layer), source)
    one_line(lambda: check_stage_names(layer), source)
    part = {key: value for key, value in layer.items() if key in EARLY_KEYS}
    if isinstance(part.get("run"), Mapping):
        part["run"] = {key: value for key, value in part["run"].items() if key not in STAGE_NUMBERS}
    return part


def check_stage_names(layer: Mapping[str, Any]) -> None:
    """Refuse a misspelt key at the top and below `run`, where OmegaConf would not suggest those of a stage.

    Raises:
        ConfigError: there is one.
    """
    _check_names("", layer, {*EARLY_KEYS, "stages"}, "Config", STAGE_KEYS)
    if isinstance(layer.get("run"), Mapping):
        known = {item.name for item in fields(RunConfig)}
        _check_names("run.", layer["run"], known, RunConfig.__name__, STAGE_NUMBERS)


def _check_names(
    path: str, layer: Mapping[str, Any], known: Collection[str], owner: str, more: Sequence[str]
) -> None:
    for key in layer:
        close = [] if key in known else get_close_matches(key, [*known, *more], n=1)
        if close and close[0] != key:
            raise ConfigError(f"{path}{key}: Key {key!r} not in {owner!r}. Did you mean: {close[0]!r}?")
