"""From what a user asks for on the command line to a configuration."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pgc3d.build.models import local_image_model
from pgc3d.build.run import resolve_device
from pgc3d.choices import GuidanceName, Quality
from pgc3d.config import STAGE_NUMBERS, Config, load_config, preset
from pgc3d.diffusion.hub import ALIASES, POSES, is_hub_id
from pgc3d.diffusion.latent import Layout
from pgc3d.diffusion.models import local_model, model_layout
from pgc3d.errors import ConfigError, InputError, WeightsNotFoundError
from pgc3d.yaml_text import parse_override, read_yaml

SHOWN = 6  # settings that a line names


@dataclass(frozen=True)
class Family:
    """What the commands of one kind of input choose between."""

    presets: str  # their prefix
    entry: str  # of `models`, where the model is named
    layouts: tuple[Layout, ...]  # the guidances beside `mini`, the first one for `auto` on a CUDA device


TEXT = Family(presets="", entry="text", layouts=("sdxl", "sd"))
IMAGE = Family(presets="image-", entry="image", layouts=("zero123",))
TEXTURE = Family(presets="texture-", entry="text", layouts=("sdxl", "sd"))


@dataclass(frozen=True)
class _Given:
    """What the user gave beside the guidance."""

    files: Sequence[Path]
    options: Mapping[str, Any]
    overrides: Sequence[str]
    model: str | None

    @cached_property
    def by_file(self) -> list[dict[str, Any]]:
        """What the files hold."""
        return [read_yaml(path) for path in self.files]

    @cached_property
    def by_key(self) -> list[dict[str, Any]]:
        """What `--set` gives."""
        return [parse_override(override) for override in self.overrides]

    def named_by_file(self, family: Family) -> str | None:
        """The model that the files are for, None where they name none."""
        return _name(family, self.by_file)


def configure(  # noqa: PLR0913 - one for each layer
    family: Family = TEXT,
    *,
    guidance: GuidanceName = "auto",
    model: str | None = None,
    quality: Quality | None = None,
    prompted: bool = False,
    files: Sequence[Path] = (),
    options: Mapping[str, Any] | None = None,
    resolution: int | None = None,
    every_objective: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Config, list[str]]:
    """Choose the guidance and its presets, and put the layers of the configuration together.

    Args:
        family: what the asset is made from.
        guidance: `auto` is what a named model's layout asks for, else the family's first one where there are
            a CUDA device and local weights, else mini.
        model: a folder or hub id instead of the guidance's own model.
        quality: which preset of the guidance; None is standard.
        prompted: whether a prompt stands beside a picture, for which there is a preset over the others.
        files: YAML files over the presets.
        options: a nested mapping over the files.
        resolution: of the last phase of the last stage; its earlier phases keep their proportion to it.
        every_objective: a nested mapping for each of the objectives, over the files.
        overrides: `key=value` over everything.

    Returns:
        The configuration, and a line about each choice that was made for the user or is overridden.

    Raises:
        ConfigError: a key, a value or a combination is wrong.
    """
    given = _Given(files=files, options=options or {}, overrides=overrides, model=model)
    chosen, named, notes = _choose(family, guidance, given)
    layers: list[Path | Mapping[str, Any]] = [
        preset(f"{family.presets}{name}") for name in _preset_names(chosen, quality, prompted=prompted)
    ]
    if family == IMAGE:
        layers.append(_training_cameras(load_config(layers), named))
    asked: dict[str, Any] = {key: dict(value) for key, value in given.options.items()}
    asked.setdefault("models", {}).setdefault(family.entry, {})["name"] = named
    if resolution is not None or every_objective:
        below = load_config([*layers, *files])  # what these two are relative to
        if resolution is not None:
            asked.setdefault("run", {})["resolution"] = list(below.last.scaled_to(resolution))
        if every_objective:
            asked["stages"] = {
                name: {"objectives": dict.fromkeys(stage.objectives, every_objective)}
                for name, stage in below.stages.items()
            }
    config = load_config([*layers, *files], options=asked, overrides=overrides)
    last = list(config.stages)[-1]
    taken = _settings(last, asked, *given.by_key).keys()
    if quality is not None:
        wanted = _of_quality(family, chosen, quality, last)
        notes += _kept_by_files(f"--quality {quality}", wanted, given, taken, last)
    held = given.named_by_file(family)
    if held not in {None, named} and (guidance != "auto" or model is not None):
        option = f"--guidance {chosen}" if model is None else f"--model {model}"
        notes += _kept_by_files(
            option, _settings(last, *map(_plain, layers)), given, taken, last, made_for=f"the model {held}"
        )
    return config, [*notes, *_overridden(family, given, last)]


def split_backgrounds(values: Sequence[str]) -> tuple[list[str], Path | None]:
    """What `--background` was given, as names of the configuration and the picture behind the name "image".

    A value with a dot or a slash in it is a file.

    Raises:
        InputError: there are several files.
    """
    files = list(dict.fromkeys(value for value in values if "." in value or "/" in value))
    if len(files) > 1:
        raise InputError(f"--background must name at most one picture, got {', '.join(files)}")
    names = ["image" if value in files else value for value in values]
    return names, Path(files[0]) if files else None


def _training_cameras(config: Config, model: str) -> dict[str, Any]:
    """A layer with the cameras that a novel-view model knows, as far as its folder says them."""
    folder = local_image_model(model)
    said = dict(folder.cameras) if folder else {}
    photo = {"border": said.pop("border")} if "border" in said else {}
    cameras = {key: [value, value] for key, value in said.items()}
    objectives = {
        name: {"cameras": cameras} if objective.cameras.kind == "orbit" else {}
        for name, objective in config.last.objectives.items()
    }
    return {"view": said, "photo": photo, "objectives": objectives}


def _choose(family: Family, guidance: GuidanceName, given: _Given) -> tuple[GuidanceName, str, list[str]]:
    """The guidance, the name of its model, and what there is to say about the choice."""
    named_by_key = _name(family, given.by_key)
    by_user = named_by_key or given.model
    if guidance == "mini" and given.model is not None:
        raise ConfigError(
            f"--model must go with --guidance {' or '.join(family.layouts)}, got --guidance mini, which "
            "brings its own model"
        )
    named = by_user or given.named_by_file(family)
    layout = None if named in {None, "mini"} else _layout(str(named), family, ask=guidance == "auto")
    if guidance == "auto" and named is None:
        asked = _flat(*given.by_file, given.options, *given.by_key)
        guidance, note = _choose_by_device(family, str(asked.get("run.device") or "auto"))
        return guidance, guidance, [note]
    if guidance == "auto":
        guidance = "mini" if named == "mini" else layout or family.layouts[0]
    elif named is None or (guidance == "mini") != (named == "mini"):
        if by_user is not None:
            raise ConfigError(
                f"the model must go with --guidance {guidance}, got {by_user}; leave one of both away"
            )
        named = guidance
    elif layout not in {guidance, None}:
        raise ConfigError(
            f"the model must have the layout of --guidance {guidance}, {named} has that of {layout}; use "
            f"--guidance {layout}"
        )
    return guidance, str(named), []


def _preset_names(guidance: str, quality: Quality | None, *, prompted: bool) -> list[str]:
    """The presets over each other."""
    names = [guidance, *([] if quality in {None, "standard"} else [f"{guidance}-{quality}"])]
    return [*names, f"{guidance}-prompt"] if prompted else names


def _choose_by_device(family: Family, device: str) -> tuple[GuidanceName, str]:
    """What `auto` means here, and why."""
    large = family.layouts[0]
    if device == "cpu" or resolve_device("auto").type == "cpu":
        return (
            "mini",
            f"guidance: the bundled mini, as there is no CUDA device in use (--guidance {large} to insist)",
        )
    if local_model(large) is None:
        return (
            "mini",
            f"guidance: the bundled mini, as no weights of {large} are on this disk (--guidance {large} gets "
            "them)",
        )
    return large, f"guidance: {large}, as there are a CUDA device and its weights"


def _layout(model: str, family: Family, *, ask: bool) -> Layout | None:
    """The layout of a model, from its alias, its files, or where `ask` says so the small ones on the hub.

    None where a folder is not there, which is said when it is to be used, or where nothing was asked.

    Raises:
        ConfigError: it is another kind of model, or not one of the family.
        WeightsNotFoundError: the hub must be asked and cannot.
    """
    layout: Layout | None
    if model in ALIASES:
        text: Layout = "sdxl" if model.startswith("sdxl") else "sd"
        layout = "zero123" if ALIASES[model] in POSES else text
    elif is_hub_id(model) and not Path(model).is_dir():
        layout = _hub_layout(model, family) if ask else getattr(local_model(model), "layout", None)
    else:
        try:
            layout = model_layout(model)
        except WeightsNotFoundError:
            layout = None
    if layout is not None and layout not in family.layouts:
        raise ConfigError(
            f"the model must be in the layout of {' or '.join(family.layouts)} here, {model} is in that of "
            f"{layout}"
        )
    return layout


def _name(family: Family, layers: Sequence[Mapping[str, Any]]) -> str | None:
    """The model that layers name, None where they do not, or not by a text."""
    name = _flat(*layers).get(f"models.{family.entry}.name")
    return name if isinstance(name, str) else None


def _flat(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested mappings that are not None, by their names with dots between; later ones win."""
    found: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping):
                found |= {f"{key}.{name}": inner for name, inner in _flat(value).items()}
            elif value is not None:
                found[str(key)] = list(value) if isinstance(value, tuple) else value
    return found


def _settings(last: str, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """As `_flat`, with one name for what stands at the top of a layer, below `run` or in the stage `last`."""
    found: dict[str, Any] = {}
    for layer in layers:
        for name, value in _flat(layer).items():
            key = name.removeprefix(f"stages.{last}.")
            found[f"run.{key}" if key in STAGE_NUMBERS else key] = value
    return found


def _plain(layer: Path | Mapping[str, Any]) -> Mapping[str, Any]:
    return read_yaml(layer) if isinstance(layer, Path) else layer


def _of_quality(family: Family, guidance: str, quality: Quality, last: str) -> dict[str, Any]:
    """What a quality stands for: of the standard one, the settings that another one changes."""

    def of(name: str) -> dict[str, Any]:
        return _settings(last, read_yaml(preset(f"{family.presets}{guidance}{name}")))

    if quality != "standard":
        return of(f"-{quality}")
    usual, keys = of(""), of("-draft").keys() | of("-high").keys()
    return {key: usual[key] for key in usual if key in keys}


def _kept_by_files(
    option: str,
    wanted: Mapping[str, Any],
    given: _Given,
    taken: Collection[str],
    last: str,
    *,
    made_for: str = "",
) -> list[str]:
    """A line about the settings that an option stands for and the files give other values."""
    held = {
        key: (value, path)
        for path, layer in zip(given.files, given.by_file, strict=True)
        for key, value in _settings(last, layer).items()
    }
    lost = [key for key in wanted if key not in taken and key in held and held[key][0] != wanted[key]]
    if not lost:
        return []
    names = ", ".join(lost[:SHOWN]) + (f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else "")
    paths = ", ".join(dict.fromkeys(str(held[key][1]) for key in lost))
    origin = f", which is for {made_for}" if made_for else ""
    stay = "stays" if len(lost) == 1 else "stay"
    return [
        f"{option} does not change what --config gives: {names} {stay} as in {paths}{origin}; "
        "remove them there, or use --set"
    ]


def _overridden(family: Family, given: _Given, last: str) -> list[str]:
    """A line for each option that `--set` gives another value."""
    named = {f"models.{family.entry}.name": given.model} if given.model is not None else {}
    keyed = _settings(last, *given.by_key)
    return [
        f"--set {key} wins: {keyed[key]} instead of the {value} that an option gives"
        for key, value in (_settings(last, given.options) | named).items()
        if key in keyed and keyed[key] != value
    ]


def _hub_layout(model: str, family: Family) -> Layout:
    try:
        return model_layout(model)
    except WeightsNotFoundError as error:
        names = " or ".join(f"--guidance {layout}" for layout in family.layouts)
        raise WeightsNotFoundError(
            f"the presets follow the model's layout ({names} says it): {error}"
        ) from error
