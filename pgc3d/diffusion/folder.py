"""Inspection of a checkpoint folder in diffusers' layout: its kind and its completeness."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from pgc3d.diffusion.files import (
    WEIGHTS,
    ModelFolder,
    Pose,
    first_line,
    read_json,
    tensor_names,
    weight_files,
)
from pgc3d.diffusion.kinds import check_sizes, layout_of, parts_of
from pgc3d.diffusion.latent import Layout
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.image_config import InputImageConfig
from pgc3d.view_config import ViewConfig
from pgc3d.view_prompts import ViewPromptConfig


def open_folder(
    name: str,
    path: Path,
    *,
    commit: str | None = None,
    vae: Path | None = None,
    pose: Pose | None = None,
    weights: bool = True,
) -> ModelFolder:
    """The description of a checkpoint folder, which is checked for completeness.

    Args:
        name: as the user gave it.
        path: the folder.
        commit: of the hub.
        vae: the folder of a VAE that the checkpoint shares with another one.
        pose: of a Zero123 checkpoint, where its `zero123.json` does not give it.
        weights: whether weights must be present; False checks the small files only.

    Raises:
        WeightsNotFoundError: a file is missing or damaged; the message names it.
        ConfigError: it is not a checkpoint in SD, SDXL or Zero123 layout, or its parts do not match.
    """
    if not path.is_dir():
        raise WeightsNotFoundError(
            f"--model must be a folder in diffusers' layout or a hub id, got {path}, which does not exist"
        )
    if not (path / "model_index.json").is_file():
        raise WeightsNotFoundError(
            f"a checkpoint in diffusers' layout must hold model_index.json, got none in {path}; "
            "give the folder that holds unet/ and vae/"
        )
    layout = layout_of(path)
    folders = [vae or path / "vae", *(path / part for part in parts_of(path, layout) if part != "vae")]
    for folder in folders:
        read_json(folder / "config.json")
    check_sizes(path, layout, vae)
    for folder in folders if weights else ():
        for file in weight_files(folder, WEIGHTS[folder.name.removesuffix("_2")], prefer_half=False):
            tensor_names(file)
    for part in _files_beside(layout):
        if not (path / part).exists():
            raise WeightsNotFoundError(f"the checkpoint must hold {part}, got none in {path}")
    return ModelFolder(
        name=name,
        path=path,
        layout=layout,
        commit=commit,
        vae=vae,
        view_prompts=_view_prompts(path / "view_prompts.json"),
        vocabulary=_vocabulary(path / "vocabulary.json"),
        pose=_pose(path / "zero123.json") or pose,
        cameras=_cameras(path / "zero123.json"),
    )


def _files_beside(layout: Layout) -> list[str]:
    """Names of required files and folders other than the parts with weights."""
    if layout == "zero123":
        return ["scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json"]
    tokenizers = ["tokenizer", *(["tokenizer_2"] if layout == "sdxl" else [])]
    return ["scheduler/scheduler_config.json", *tokenizers]


def _view_prompts(path: Path) -> ViewPromptConfig | None:
    if not path.is_file():
        return None
    content = read_json(path)
    known = {field.name for field in fields(ViewPromptConfig)}
    if not set(content) <= known:
        raise ConfigError(f"{path} must hold only {sorted(known)}, got {sorted(set(content) - known)}")
    try:
        return ViewPromptConfig(**{key: _frozen(value) for key, value in content.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error


def _vocabulary(path: Path) -> tuple[str, ...]:
    return tuple(map(str, read_json(path).get("words", ()))) if path.is_file() else ()


def _pose(path: Path) -> Pose | None:
    """The pose convention in `zero123.json` of a checkpoint, None where there is no entry."""
    if not path.is_file():
        return None
    pose = read_json(path).get("pose")
    if pose not in get_args(Pose):
        raise ConfigError(f"{path}: pose must be one of {', '.join(get_args(Pose))}, got {pose!r}")
    return pose


def _cameras(path: Path) -> dict[str, float]:
    """The training cameras in `zero123.json`; other entries are ignored."""
    content = read_json(path) if path.is_file() else {}
    view = {key: _frozen(content[key]) for key in ("fovy_degrees", "fill") if key in content}
    image = {key: _frozen(content[key]) for key in ("border",) if key in content}
    try:
        ViewConfig(**view)
        InputImageConfig(**image)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error
    return view | image


def _frozen(value: Any) -> Any:
    if isinstance(value, int):
        return float(value)  # JSON writes 15 for 15.0, and every number in these fields is a float
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value
