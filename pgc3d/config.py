"""The typed configuration of a run and how it is put together.

Layers, later ones win: defaults, the presets of guidance and quality in `configs/`, the cameras that a
novel-view model's folder names, `--config` files, command-line options, `--set key=value`. A layer that
names another `kind` replaces that entry by the defaults of the new kind. A file that names objectives
replaces the default set of objectives, and one that names stages the set of stages: a new stage begins as a
copy of the last one so far. A file without `stages` has one, `main`; settings of a stage at the top of a
layer (`steps`, `resolution`, `representation`, `objectives`, `optimizer`, ...) belong to the last stage.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf, read_write

from pgc3d.early_config import STAGE_KEYS, STAGE_NUMBERS, check_stage_names
from pgc3d.errors import ConfigError
from pgc3d.export_config import ExportConfig
from pgc3d.image_config import InputImageConfig
from pgc3d.layers import build, merge, nearest, structured
from pgc3d.ranges import shown
from pgc3d.requirements import Requirements
from pgc3d.run_config import LoggingConfig, ModelConfig, RunConfig
from pgc3d.stage_config import NAME, ObjectiveConfig, OptimizerConfig, StageConfig
from pgc3d.view_config import ViewConfig
from pgc3d.yaml_text import check_values, one_line, parse_override, read_yaml

__all__ = [
    "STAGE_NUMBERS",
    "ExportConfig",
    "LoggingConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "RunConfig",
    "StageConfig",
    "read_yaml",
]

PRESETS = Path(__file__).parent / "configs"
MAIN = "main"  # name of the only stage of a configuration without `stages`


@dataclass(frozen=True)
class Config:
    """All settings of a run; its inputs are a `Task`."""

    run: RunConfig = field(default_factory=RunConfig)
    models: dict[str, ModelConfig] = field(
        default_factory=lambda: {"text": ModelConfig(), "image": ModelConfig()}
    )
    image: InputImageConfig = field(default_factory=InputImageConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    stages: dict[str, StageConfig] = field(default_factory=lambda: {MAIN: StageConfig()})
    export: ExportConfig = field(default_factory=ExportConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages must hold at least one entry, got none")
        for kind, names in (("stages", self.stages), ("models", self.models)):
            for name in names:
                if not NAME.fullmatch(name):
                    raise ValueError(
                        f"the names of {kind} must be up to 64 letters, digits, - and _, got {shown(name)}"
                    )
        for name, stage in self.stages.items():
            self._check_stage(name, stage)

    def _check_stage(self, name: str, stage: StageConfig) -> None:
        for entry in stage.requires().models:
            if entry not in self.models:
                raise ValueError(
                    f"models must hold {entry!r}, which stages.{name} uses, got {', '.join(self.models)}"
                    f"{nearest(entry, self.models)}"
                )
        self._check_devices(name, stage)
        names = list(self.stages)
        if stage.start in names and names.index(stage.start) >= names.index(name):
            raise ValueError(
                f"stages.{name}.start must be a stage before it, or the folder of a run, got {stage.start!r}"
            )

    def _check_devices(self, name: str, stage: StageConfig) -> None:
        """Raise ValueError where models that work together name different devices."""
        for key, objective in stage.objectives.items():
            found = {self.models[entry].device for entry in objective.requires().models}
            if len(found) > 1:
                raise ValueError(
                    f"the models of stages.{name}.objectives.{key} must have one device, got "
                    f"{' and '.join(sorted(found))}"
                )
        for entry in stage.init.requires().models if stage.init is not None else ():
            if self.models[entry].device != "auto":
                raise ValueError(
                    f"models.{entry}.device must be auto for the initial views of stages.{name}, got "
                    f"{self.models[entry].device}; name another entry in its init.model"
                )

    @property
    def first(self) -> StageConfig:
        """The first stage."""
        return next(iter(self.stages.values()))

    @property
    def last(self) -> StageConfig:
        """The last stage, whose result is exported."""
        return next(reversed(self.stages.values()))

    def of_one_process(self, processes: int) -> "Config":
        """The settings with the most views that one of several processes has of each step."""
        if processes == 1:
            return self
        stages = {
            name: replace(
                stage,
                objectives={
                    key: replace(objective, batch=-(-objective.batch // processes))
                    for key, objective in stage.objectives.items()
                },
            )
            for name, stage in self.stages.items()
        }
        return replace(self, stages=stages)

    def memory_settings(self) -> list[str]:
        """The options and settings with which the memory of a step grows, with their values."""
        largest = max(max(stage.resolution) for stage in self.stages.values())
        own = [
            f"stages.{name}.representation.{setting} (now {getattr(stage.representation, setting)})"
            for name, stage in self.stages.items()
            for setting in stage.representation.memory_settings
        ]
        return [f"--resolution (now {largest})", *own]

    def requires(self) -> Requirements:
        """The requirements of all stages together."""
        return reduce(or_, (stage.requires() for stage in self.stages.values()))


def load_config(
    files: Sequence[Path | Mapping[str, Any]] = (),
    *,
    options: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """The configuration that results from the defaults and the layers over them.

    Args:
        files: YAML files, or nested mappings with the content of one; later ones override earlier ones.
        options: a nested mapping over the files; entries that are None are ignored.
        overrides: `key=value` with dots between the names of a nested key, over all other layers.

    Raises:
        ConfigError: a key or a value is wrong; the message has the key and the nearest valid one.
    """
    tree = structured(Config)
    for file in files:
        layer = read_yaml(file) if isinstance(file, Path) else file
        tree = _with_layer(tree, layer, str(file) if isinstance(file, Path) else "", whole=True)
    if options:
        tree = _with_layer(tree, _without_none(options), "")
    for override in overrides:
        tree = _with_layer(tree, parse_override(override), "--set")
    return cast("Config", build(tree))


def _with_layer(
    tree: DictConfig, layer: Mapping[str, Any], source: str, *, whole: bool = False
) -> DictConfig:
    """The tree with a layer over it; a `whole` one, a file, replaces the sets of stages and objectives."""
    one_line(lambda: check_values(layer), source)
    layer = one_line(lambda: _in_stages(layer, list(tree.stages)), source)
    stages = layer.get("stages")
    if whole and isinstance(stages, dict):
        _take_stages(tree, stages)
        for name, stage in stages.items():
            own = stage.get("objectives") if isinstance(stage, dict) else None
            if isinstance(own, dict) and own:
                _keep_only(tree.stages[name].objectives, own)
    return merge(tree, layer, Config, source)


def _in_stages(layer: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The layer with the stage settings at its top moved into the last stage."""
    check_stage_names(layer)
    layer = dict(layer)
    own = {key: layer.pop(key) for key in STAGE_KEYS if key in layer}
    if isinstance(layer.get("run"), Mapping):
        run = layer["run"]
        numbers = {key: run[key] for key in STAGE_NUMBERS if key in run}
        _require_once(own, numbers, "at the top and below run")
        own |= numbers
        layer["run"] = {key: value for key, value in run.items() if key not in STAGE_NUMBERS}
    stages = layer.get("stages") or {}
    if not own or not isinstance(stages, Mapping):
        return layer
    last = list(stages or names)[-1]
    nested = stages.get(last, {})
    if not isinstance(nested, Mapping):
        raise ConfigError(f"stages.{last} must hold keys and values, got {shown(nested)}")
    _require_once(own, nested, f"for the last stage and in stages.{last}")
    return {**layer, "stages": {**stages, last: {**own, **nested}}}


def _require_once(first: Mapping[str, Any], second: Mapping[str, Any], places: str) -> None:
    twice = sorted(first.keys() & second.keys())
    if twice:
        raise ConfigError(f"{twice[0]} must be set in one place, got it {places}; remove one of both")


def _take_stages(tree: DictConfig, stages: Mapping[str, Any]) -> None:
    """Replace the tree's stages by those of a layer; a new stage is a copy of the last one so far."""
    before = [str(name) for name in tree.stages]
    if set(stages) <= set(before) and len(before) > 1:
        return  # the layer changes some of the stages
    known = {name: tree.stages[name] for name in before}
    with read_write(tree.stages):
        for name in before:
            del tree.stages[name]
        for name in stages:
            tree.stages[name] = known[name] if name in known else deepcopy(known[before[-1]])


def _keep_only(tree: DictConfig, names: Collection[str]) -> None:
    with read_write(tree):
        for name in set(tree) - set(names):
            del tree[name]


def dump_config(config: Config, *, ascii_only: bool = False) -> str:
    """The configuration as YAML, from which `load_config` makes an equal one.

    Args:
        config: any configuration.
        ascii_only: write other characters as escapes.
    """
    tree = OmegaConf.structured(config)
    if ascii_only:
        return str(yaml.safe_dump(OmegaConf.to_container(tree), sort_keys=False))
    return OmegaConf.to_yaml(tree)


def preset(name: str) -> Path:
    """The YAML file of a preset that is part of the package.

    Args:
        name: as "sdxl" or "image-mini-draft".

    Raises:
        ConfigError: there is no preset of that name.
    """
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        raise ConfigError(f"a preset must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    return path


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    cleaned = {
        key: _without_none(value) if isinstance(value, Mapping) else value for key, value in options.items()
    }
    return {key: value for key, value in cleaned.items() if value is not None and value != {}}
