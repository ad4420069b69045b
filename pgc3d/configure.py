"""From what a user asks for on the command line to a configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pgc3d.build import local_model, resolve_device
from pgc3d.config import Config, load_config, preset, read_yaml
from pgc3d.diffusion.latent import Layout
from pgc3d.diffusion.models import ALIASES
from pgc3d.errors import ConfigError

GuidanceName = Literal["auto", "mini", "sdxl", "sd"]
Quality = Literal["draft", "standard", "high"]


def configure(
    *,
    guidance: GuidanceName = "auto",
    model: str | None = None,
    quality: Quality = "standard",
    files: Sequence[Path] = (),
    options: Mapping[str, Any] | None = None,
    resolution: int | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Config, str]:
    """Choose the guidance and its presets, and put the layers of the configuration together.

    Args:
        guidance: `auto` is what a named model's layout asks for, else sdxl where there are a CUDA device and
            local weights, else mini.
        model: a folder or hub id instead of the guidance's own model.
        quality: which preset of the guidance.
        files: YAML files over the presets.
        options: a nested mapping over the files.
        resolution: of the last stage; the earlier ones keep their proportion to it.
        overrides: `key=value` over everything.

    Returns:
        The configuration, and one line about a choice that was made for the user, or nothing.

    Raises:
        ConfigError: a key, a value or a combination is wrong.
    """
    if guidance == "mini" and model is not None:
        raise ConfigError(
            "--model must go with --guidance sdxl or sd, got --guidance mini, which brings its own model"
        )
    named = model or _named_model(files)
    layout = None if named in {None, "mini"} else _layout(str(named))
    note = ""
    if guidance == "auto" and named is not None:
        guidance = "mini" if named == "mini" else layout or "sdxl"
    elif guidance == "auto":
        guidance, note = _choose(str((options or {}).get("run", {}).get("device") or "auto"))
    elif named is None or (guidance == "mini") != (named == "mini"):
        named = guidance
    elif layout not in {guidance, None}:
        raise ConfigError(
            f"the model must have the layout of --guidance {guidance}, {named} has that of {layout}; use "
            f"--guidance {layout}"
        )
    layers = [preset(guidance)]
    if quality != "standard":
        layers.append(preset(f"{guidance}-{quality}"))
    asked: dict[str, Any] = {key: dict(value) for key, value in (options or {}).items()}
    asked.setdefault("model", {})["name"] = named or guidance
    if resolution is not None:
        stages = load_config([*layers, *files]).run.scaled_to(resolution)
        asked.setdefault("run", {})["resolution"] = list(stages)
    return load_config([*layers, *files], options=asked, overrides=overrides), note


def _choose(device: str) -> tuple[GuidanceName, str]:
    """What `auto` means here, and why."""
    if device == "cpu" or resolve_device("auto").type == "cpu":
        return (
            "mini",
            "guidance: the bundled mini, as there is no CUDA device in use (--guidance sdxl to insist)",
        )
    if local_model("sdxl") is None:
        return (
            "mini",
            "guidance: the bundled mini, as no SDXL weights are on this disk (--guidance sdxl gets them)",
        )
    return "sdxl", "guidance: sdxl, as there are a CUDA device and its weights"


def _layout(model: str) -> Layout | None:
    """The layout of a model; None where it has no alias and is not on this disk."""
    if model in ALIASES:
        return "sdxl" if model.startswith("sdxl") else "sd"
    folder = local_model(model)
    return folder.layout if folder else None


def _named_model(files: Sequence[Path]) -> str | None:
    """The model that the files ask for; the last one wins."""
    models = [read_yaml(path).get("model") for path in files]
    names = [model.get("name") for model in models if isinstance(model, dict)]
    return next((str(name) for name in reversed(names) if name is not None), None)
