"""From what a user asks for on the command line to a configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pgc3d.build import resolve_device
from pgc3d.cameras import OrbitConfig
from pgc3d.config import Config, load_config, preset, read_yaml
from pgc3d.diffusion.hub import ALIASES, POSES, is_hub_id
from pgc3d.diffusion.latent import Layout
from pgc3d.diffusion.models import local_model, model_layout
from pgc3d.errors import ConfigError, InputError, WeightsNotFoundError
from pgc3d.teachers import local_image_model

GuidanceName = Literal["auto", "mini", "sdxl", "sd", "zero123"]
Quality = Literal["draft", "standard", "high"]


@dataclass(frozen=True)
class Family:
    """What the commands of one kind of input choose between."""

    presets: str  # their prefix
    section: str  # of the configuration, where the model is named
    layouts: tuple[Layout, ...]  # the guidances beside `mini`, the first one for `auto` on a CUDA device


TEXT = Family(presets="", section="model", layouts=("sdxl", "sd"))
IMAGE = Family(presets="image-", section="image_model", layouts=("zero123",))
TEXTURE = Family(presets="texture-", section="model", layouts=("sdxl", "sd"))


def configure(  # noqa: PLR0913 - one for each layer
    family: Family = TEXT,
    *,
    guidance: GuidanceName = "auto",
    model: str | None = None,
    quality: Quality = "standard",
    prompted: bool = False,
    files: Sequence[Path] = (),
    options: Mapping[str, Any] | None = None,
    resolution: int | None = None,
    every_objective: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Config, str]:
    """Choose the guidance and its presets, and put the layers of the configuration together.

    Args:
        family: what the asset is made from.
        guidance: `auto` is what a named model's layout asks for, else the family's first one where there are
            a CUDA device and local weights, else mini.
        model: a folder or hub id instead of the guidance's own model.
        quality: which preset of the guidance.
        prompted: whether a prompt stands beside a picture, for which there is a preset over the others.
        files: YAML files over the presets.
        options: a nested mapping over the files.
        resolution: of the last stage; the earlier ones keep their proportion to it.
        every_objective: a nested mapping for each of the objectives, over the files.
        overrides: `key=value` over everything.

    Returns:
        The configuration, and one line about a choice that was made for the user, or nothing.

    Raises:
        ConfigError: a key, a value or a combination is wrong.
    """
    if guidance == "mini" and model is not None:
        raise ConfigError(
            f"--model must go with --guidance {' or '.join(family.layouts)}, got --guidance mini, which "
            "brings its own model"
        )
    named = model or _named_model(files, family.section)
    layout = None if named in {None, "mini"} else _layout(str(named), family, ask=guidance == "auto")
    note = ""
    if guidance == "auto" and named is not None:
        guidance = "mini" if named == "mini" else layout or family.layouts[0]
    elif guidance == "auto":
        guidance, note = _choose(family, str((options or {}).get("run", {}).get("device") or "auto"))
    elif named is None or (guidance == "mini") != (named == "mini"):
        named = guidance
    elif layout not in {guidance, None}:
        raise ConfigError(
            f"the model must have the layout of --guidance {guidance}, {named} has that of {layout}; use "
            f"--guidance {layout}"
        )
    names = [guidance, *([f"{guidance}-{quality}"] if quality != "standard" else [])]
    names += [f"{guidance}-prompt"] if prompted else []
    layers: list[Path | Mapping[str, Any]] = [preset(f"{family.presets}{name}") for name in names]
    if family == IMAGE:
        layers.append(_training_cameras(load_config(layers), named or guidance))
    asked: dict[str, Any] = {key: dict(value) for key, value in (options or {}).items()}
    asked.setdefault(family.section, {})["name"] = named or guidance
    if resolution is not None:
        stages = load_config([*layers, *files]).run.scaled_to(resolution)
        asked.setdefault("run", {})["resolution"] = list(stages)
    if every_objective:
        objectives = load_config([*layers, *files]).objectives
        asked["objectives"] = dict.fromkeys(objectives, every_objective)
    return load_config([*layers, *files], options=asked, overrides=overrides), note


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
        name: {"cameras": cameras} if isinstance(objective.cameras, OrbitConfig) else {}
        for name, objective in config.objectives.items()
    }
    return {"view": said, "photo": photo, "objectives": objectives}


def _choose(family: Family, device: str) -> tuple[GuidanceName, str]:
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


def _hub_layout(model: str, family: Family) -> Layout:
    try:
        return model_layout(model)
    except WeightsNotFoundError as error:
        names = " or ".join(f"--guidance {layout}" for layout in family.layouts)
        raise WeightsNotFoundError(
            f"the presets follow the model's layout ({names} says it): {error}"
        ) from error


def _named_model(files: Sequence[Path], section: str) -> str | None:
    """The model that the files ask for; the last one wins."""
    models = [read_yaml(path).get(section) for path in files]
    names = [model.get("name") for model in models if isinstance(model, dict)]
    return next((str(name) for name in reversed(names) if name is not None), None)
