"""The configuration that results from a command and its options: presets, files, options, overrides."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pgc3d.build.models import local_image_model
from pgc3d.build.run import resolve_device
from pgc3d.choices import GuidanceName, Quality
from pgc3d.clip_rules import ClipConfig
from pgc3d.config import Config, ObjectiveConfig, StageConfig, load_config, preset
from pgc3d.diffusion.aliases import ALIASES
from pgc3d.diffusion.hub import POSES, is_hub_id
from pgc3d.diffusion.latent import Layout
from pgc3d.diffusion.models import local_model, model_layout
from pgc3d.errors import ConfigError, InputError, WeightsNotFoundError
from pgc3d.given_settings import Given, flat, kept_by_files, overridden_options, settings_of
from pgc3d.pipelines import Pipeline, find_pipeline
from pgc3d.yaml_text import read_yaml

# Guidances whose fast quality starts from views that are sampled together: their depth ControlNet is bundled.
FAST_FROM_VIEWS = ("mini",)


@dataclass(frozen=True)
class Command:
    """The presets and guidances of a command."""

    name: str
    presets: str  # prefix of their names
    entry: str  # of `models`, for the model of its guidance
    layouts: tuple[Layout, ...]  # its guidances beside `mini`; the first one is `auto` on a CUDA device
    defaults: Mapping[str, Any] = field(default_factory=dict)  # settings over the presets


TEXT = Command(name="text", presets="", entry="text", layouts=("sdxl", "sd"))
IMAGE = Command(name="image", presets="image-", entry="image", layouts=("zero123",))
TEXTURE = Command(name="texture", presets="texture-", entry="text", layouts=("sdxl", "sd"))


def configure(  # noqa: PLR0913 - one for each layer
    command: Command = TEXT,
    *,
    guidance: GuidanceName = "auto",
    model: str | None = None,
    quality: Quality | None = None,
    pipeline: str | None = None,
    clip: ClipConfig | None = None,
    prompted: bool = False,
    refine: bool = False,
    sync: bool | None = None,
    files: Sequence[Path] = (),
    options: Mapping[str, Any] | None = None,
    resolution: int | None = None,
    every_objective: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Config, list[str]]:
    """Choose the guidance and its presets, and combine all layers of the configuration.

    Args:
        command: text, image or texture.
        guidance: `auto` is that of a named model's layout, else the command's first one where there are a
            CUDA device and local weights, else mini.
        model: a folder, file or hub id instead of the guidance's own model.
        quality: the preset of the guidance; None is standard.
        pipeline: see `pipelines`; None for the guidance's own presets.
        clip: of the objectives with a diffusion model, over the files.
        prompted: whether there is a prompt in addition to an image, for which there is a preset.
        refine: whether a texture is refined, for which there is a preset.
        sync: whether the colours start from views that are sampled together, for which there is a preset;
            None leaves it to the quality.
        files: YAML files over the presets.
        options: a nested mapping over the files.
        resolution: of the last phase of the last stage in pixels; the earlier phases keep their ratio to it.
        every_objective: a nested mapping for each of the objectives, over the files; initial views have its
            negative prompt too.
        overrides: `key=value`, over all other layers.

    Returns:
        The configuration, and a line about each automatic choice and each option without effect.

    Raises:
        ConfigError: a key, a value or a combination is wrong.
        WeightsNotFoundError: the layout of a model on the hub cannot be read.
    """
    if quality == "fast" and command.name != TEXTURE.name:
        raise ConfigError(f"--quality fast must go with pgc3d texture, got pgc3d {command.name}; use draft")
    given = Given(files=files, options=options or {}, overrides=overrides, model=model)
    found = find_pipeline(command.name, pipeline) if pipeline is not None else None
    staged = found if found is not None and found.files else None
    if staged is not None:
        full = load_config(staged.files)
        _require_fitting_options(command, staged, full, quality=quality, prompted=prompted)
        command = _of_pipeline(command, full)
    chosen, named, notes = _choose(command, guidance, given)
    layers: list[Path | Mapping[str, Any]]
    names = _preset_names(chosen, quality, prompted=prompted, refine=refine, sync=sync)
    if staged is None:
        layers = [preset(f"{command.presets}{name}") for name in names]
    else:
        layers = [*staged.files, *(staged.mini if chosen == "mini" else ())]
    layers.append(command.defaults)
    if command.entry == IMAGE.entry:
        layers.append(_training_cameras(load_config(layers), named))
    requested: dict[str, Any] = {key: dict(value) for key, value in given.options.items()}
    requested.setdefault("models", {}).setdefault(command.entry, {})["name"] = named
    if resolution is not None or every_objective or clip is not None:
        below = load_config([*layers, *files])  # these options depend on the layers below
        if resolution is not None:
            requested.setdefault("run", {})["resolution"] = list(below.last.scaled_to(resolution))
        requested["stages"] = {
            name: {
                "objectives": {
                    key: dict(every_objective or {}) | _clip_of(objective, clip)
                    for key, objective in stage.objectives.items()
                }
            }
            | _of_initial_views(stage, every_objective or {})
            for name, stage in below.stages.items()
        }
    config = load_config([*layers, *files], options=requested, overrides=overrides)
    last = list(config.stages)[-1]
    overridden = settings_of(last, requested, *given.by_key).keys()
    if quality is not None:
        settings = _of_quality(command, chosen, quality, last, names)
        notes += kept_by_files(f"--quality {quality}", settings, given, overridden, last)
    file_model = _name(command, given.by_file)
    if file_model not in {None, named} and (guidance != "auto" or model is not None):
        option = f"--guidance {chosen}" if model is None else f"--model {model}"
        settings = settings_of(last, *map(_plain, layers))
        notes += kept_by_files(option, settings, given, overridden, last, made_for=f"the model {file_model}")
    return config, [*notes, *overridden_options(command.entry, given, last)]


def _clip_of(objective: ObjectiveConfig, clip: ClipConfig | None) -> dict[str, Any]:
    """The layer of an objective with another clip; the view of an input image is not clipped."""
    return {"clip": asdict(clip)} if clip is not None and objective.guidance.requires().models else {}


def _of_initial_views(stage: StageConfig, every_objective: Mapping[str, Any]) -> dict[str, Any]:
    """The layer of a stage's initial views, which have the negative prompt of its objectives."""
    negative = every_objective.get("guidance", {}).get("negative_prompt")
    return {} if stage.init is None or negative is None else {"init": {"negative_prompt": negative}}


def _require_fitting_options(
    command: Command, pipeline: Pipeline, full: Config, *, quality: Quality | None, prompted: bool
) -> None:
    """Raise ConfigError for a quality, and for an image's prompt without use or a missing one."""
    name = pipeline.name
    if quality is not None:
        raise ConfigError(
            f"--quality must go without --pipeline {name}, which has its own steps and sizes, got "
            f"--quality {quality}; use --set"
        )
    if command.entry != IMAGE.entry or full.requires().prompt == prompted:
        return
    if prompted:
        raise ConfigError(f"--prompt must go with a pipeline that uses it, got --pipeline {name}; remove one")
    raise ConfigError(f"--pipeline {name} must have a prompt, got none; add --prompt")


def _of_pipeline(command: Command, full: Config) -> Command:
    """The command with the layout of the pipeline's own model first, which `auto` is then."""
    own = _layout(full.models[command.entry].name, command, query_hub=False)
    return replace(command, layouts=tuple(sorted(command.layouts, key=lambda layout: layout != own)))


def split_backgrounds(values: Sequence[str]) -> tuple[list[str], Path | None]:
    """The values of `--background` as names for the configuration, and the file of the name "image" or None.

    A value with a dot or a slash in it is a file.

    Raises:
        InputError: there are several files.
    """
    files = list(dict.fromkeys(value for value in values if "." in value or "/" in value))
    if len(files) > 1:
        raise InputError(f"--background must name at most one image file, got {', '.join(files)}")
    names = ["image" if value in files else value for value in values]
    return names, Path(files[0]) if files else None


def _training_cameras(config: Config, model: str) -> dict[str, Any]:
    """A layer with the cameras that a novel-view model was trained with, as far as its folder states them."""
    folder = local_image_model(model)
    view = dict(folder.cameras) if folder else {}
    image = {"border": view.pop("border")} if "border" in view else {}
    cameras = {key: [value, value] for key, value in view.items()}
    stages = {
        name: {
            "objectives": {
                key: {"cameras": cameras} if objective.cameras.kind == "orbit" else {}
                for key, objective in stage.objectives.items()
            }
        }
        for name, stage in config.stages.items()
    }
    return {"view": view, "image": image, "stages": stages}


def _choose(command: Command, guidance: GuidanceName, given: Given) -> tuple[GuidanceName, str, list[str]]:
    """The guidance, the name of its model, and lines about the choice."""
    named_by_key = _name(command, given.by_key)
    by_user = named_by_key or given.model
    if guidance == "mini" and given.model is not None:
        raise ConfigError(
            f"--model must go with --guidance {' or '.join(command.layouts)}, got --guidance mini, which "
            "brings its own model"
        )
    named = by_user or _name(command, given.by_file)
    layout = None if named in {None, "mini"} else _layout(str(named), command, query_hub=guidance == "auto")
    if guidance == "auto" and named is None:
        settings = flat(*given.by_file, given.options, *given.by_key)
        guidance, note = _choose_by_device(command, str(settings.get("run.device") or "auto"))
        return guidance, guidance, [note]
    if guidance == "auto":
        guidance = "mini" if named == "mini" else layout or command.layouts[0]
    elif named is None or (guidance == "mini") != (named == "mini"):
        if by_user is not None:
            raise ConfigError(
                f"the model must go with --guidance {guidance}, got {by_user}; remove one of both"
            )
        named = guidance
    elif layout not in {guidance, None}:
        raise ConfigError(
            f"the model must have the layout of --guidance {guidance}, got {named} with that of {layout}; "
            f"use --guidance {layout}"
        )
    return guidance, str(named), []


def _preset_names(
    guidance: str, quality: Quality | None, *, prompted: bool, refine: bool, sync: bool | None
) -> list[str]:
    """The presets, later ones over earlier ones."""
    fast = quality == "fast" and guidance in FAST_FROM_VIEWS
    if sync is None:
        sync = fast and not refine
    names = [guidance, *([f"{guidance}-refine"] if refine else []), *([f"{guidance}-sync"] if sync else [])]
    names += [] if quality in {None, "standard"} else [f"{guidance}-{quality}"]
    names += [f"{guidance}-fast-sync"] if fast and sync else []
    return [*names, f"{guidance}-prompt"] if prompted else names


def _choose_by_device(command: Command, device: str) -> tuple[GuidanceName, str]:
    """The guidance that `auto` is on this computer, and a line with the reason."""
    large = command.layouts[0]
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


def _layout(model: str, command: Command, *, query_hub: bool) -> Layout | None:
    """The layout of a model, from its alias, its files, or with `query_hub` the small files on the hub.

    None where a folder does not exist, for which loading it fails later, or where the hub is not queried.

    Raises:
        ConfigError: it is another kind of model, or the command has no guidance for it.
        WeightsNotFoundError: the hub cannot be reached.
    """
    layout: Layout | None
    if model in ALIASES:
        text: Layout = "sdxl" if model.startswith("sdxl") else "sd"
        layout = "zero123" if ALIASES[model] in POSES else text
    elif is_hub_id(model) and not Path(model).is_dir():
        layout = _hub_layout(model, command) if query_hub else getattr(local_model(model), "layout", None)
    else:
        try:
            layout = model_layout(model)
        except WeightsNotFoundError:
            layout = None
    if layout is not None and layout not in command.layouts:
        raise ConfigError(
            f"the model must be in the layout of {' or '.join(command.layouts)} here, got {model} in that of "
            f"{layout}"
        )
    return layout


def _name(command: Command, layers: Sequence[Mapping[str, Any]]) -> str | None:
    """The model that layers name, None where they name none, or where the value is not text."""
    name = flat(*layers).get(f"models.{command.entry}.name")
    return name if isinstance(name, str) else None


def _plain(layer: Path | Mapping[str, Any]) -> Mapping[str, Any]:
    return read_yaml(layer) if isinstance(layer, Path) else layer


def _of_quality(
    command: Command, guidance: str, quality: Quality, last: str, names: Sequence[str]
) -> dict[str, Any]:
    """The settings of a quality; of the standard one, those that another quality changes.

    Args:
        command: with its presets.
        guidance: the chosen one.
        quality: the chosen one.
        last: name of the last stage.
        names: of the presets in use.
    """

    def of(*names: str) -> dict[str, Any]:
        return settings_of(last, *(read_yaml(preset(f"{command.presets}{name}")) for name in names))

    if quality != "standard":
        return of(*(name for name in names if name.startswith(f"{guidance}-{quality}")))
    others = ["draft", "high", *(["fast"] if command.name == TEXTURE.name else [])]
    standard, keys = of(guidance), {key for other in others for key in of(f"{guidance}-{other}")}
    return {key: standard[key] for key in standard if key in keys}


def _hub_layout(model: str, command: Command) -> Layout:
    try:
        return model_layout(model)
    except WeightsNotFoundError as error:
        names = " or ".join(f"--guidance {layout}" for layout in command.layouts)
        raise WeightsNotFoundError(
            f"the model's layout must be known ({names} sets it), but {error}"
        ) from error
