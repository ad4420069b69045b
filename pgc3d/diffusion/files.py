"""A checkpoint folder in diffusers' layout: what lies in it, and whether it is whole. Safetensors only."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from pgc3d.cameras import ViewConfig
from pgc3d.diffusion.latent import Layout
from pgc3d.errors import ConfigError, Pgc3dError, WeightsNotFoundError
from pgc3d.inputs.image import PhotoConfig
from pgc3d.prompts import ViewPromptConfig

logger = logging.getLogger(__name__)

WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "image_encoder": "model",
    "clip_camera_projection": "diffusion_pytorch_model",
    "cc_projection": "diffusion_pytorch_model",
}
PROJECTIONS = ("clip_camera_projection", "cc_projection")  # the same thing from two converters of Zero123

# The fourth number of a Zero123 pose: the difference of the cameras' distances from the object (Zero123,
# Zero123-XL), or the polar angle of the condition's camera (Stable Zero123).
Pose = Literal["radius", "polar"]


@dataclass(frozen=True)
class ModelFolder:
    """A checkpoint that was found and whose files are whole."""

    name: str  # what the user asked for
    path: Path
    layout: Layout
    commit: str | None = None  # of the hub, None for a local folder
    vae: Path | None = None  # the folder of a VAE that it shares with another checkpoint, None for its own
    view_prompts: ViewPromptConfig | None = None  # how this model was taught to read the camera
    vocabulary: tuple[str, ...] = ()  # the words that a small model knows; empty where it knows most
    pose: Pose | None = None  # of a Zero123 checkpoint, None where nothing says it
    # of what it was trained with: fovy_degrees and fill as in `ViewConfig`, border as in `PhotoConfig`
    cameras: Mapping[str, float] = field(default_factory=dict)


def open_folder(
    name: str, path: Path, *, commit: str | None = None, vae: Path | None = None, pose: Pose | None = None
) -> ModelFolder:
    """Check a checkpoint folder and describe it.

    Args:
        name: what the user asked for.
        path: the folder.
        commit: of the hub.
        vae: the folder of a VAE that the checkpoint shares with another one.
        pose: of a Zero123 checkpoint, where its `zero123.json` does not say it.

    Raises:
        WeightsNotFoundError: a file is missing or damaged; the message names it.
        ConfigError: it is not a checkpoint in SD, SDXL or Zero123 layout.
    """
    if not path.is_dir():
        raise WeightsNotFoundError(
            f"--model must be a folder in diffusers' layout or a hub id, no folder {path}"
        )
    if not (path / "model_index.json").is_file():
        raise WeightsNotFoundError(
            f"a checkpoint in diffusers' layout must hold model_index.json, not found in {path}; "
            "give the folder that holds unet/ and vae/"
        )
    layout = _layout(path)
    modules, others = _contents(path, layout)
    for folder in (vae or path / "vae", *(path / module for module in modules)):
        read_json(folder / "config.json")
        for file in weight_files(folder, WEIGHTS[folder.name.removesuffix("_2")], prefer_half=False):
            tensor_names(file)
    for part in others:
        if not (path / part).exists():
            raise WeightsNotFoundError(f"the checkpoint must hold {part}, not found in {path}")
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


def projection_folder(path: Path) -> Path:
    """Where a Zero123 checkpoint holds what joins the picture's embedding with the pose.

    Raises:
        WeightsNotFoundError: nowhere.
    """
    for name in PROJECTIONS:
        if (path / name).is_dir():
            return path / name
    raise WeightsNotFoundError(f"the checkpoint must hold {' or '.join(PROJECTIONS)}, not found in {path}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsNotFoundError(
            f"the checkpoint must hold {path.parent.name}/{path.name}, not found in {path.parent.parent}"
        ) from error
    except (OSError, ValueError) as error:
        raise WeightsNotFoundError(f"{path} must be readable JSON, got: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise WeightsNotFoundError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def weight_files(folder: Path, stem: str, *, prefer_half: bool) -> list[Path]:
    """The safetensors files of one part, one or several shards; the fp16 variant first where asked for.

    Raises:
        WeightsNotFoundError: none is there, or a shard is missing.
    """
    for variant in (".fp16", "") if prefer_half else ("", ".fp16"):
        whole = folder / f"{stem}{variant}.safetensors"
        if whole.is_file():
            return [whole]
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            shards = sorted({folder / name for name in read_json(index).get("weight_map", {}).values()})
            absent = [shard.name for shard in shards if not shard.is_file()]
            if absent or not shards:
                raise WeightsNotFoundError(
                    f"{index} must name shards that exist, missing: {absent[:1] or 'all'}"
                )
            return shards
    others = sorted(file.name for suffix in ("*.bin", "*.ckpt", "*.pt") for file in folder.glob(suffix))
    hint = f"; {others[0]} is a pickle, which is never loaded, convert it to safetensors" if others else ""
    raise WeightsNotFoundError(
        f"the checkpoint must hold {folder.name}/{stem}.safetensors, not found in {folder.parent}{hint}"
    )


def tensor_names(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file; reads only the header.

    Raises:
        WeightsNotFoundError: the file is truncated or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as handle:
            return list(handle.keys())
    except (SafetensorError, OSError) as error:
        raise WeightsNotFoundError(
            f"{file} must be a whole safetensors file, got: {_first_line(error)}; fetch the checkpoint again"
        ) from error


@contextmanager
def loading(what: Path) -> Iterator[None]:
    """Turn whatever a library raises over a broken checkpoint into one line that names the folder."""
    from safetensors import SafetensorError

    try:
        yield
    except (Pgc3dError, MemoryError):
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if "out of memory" in str(error).lower():
            raise
        raise WeightsNotFoundError(
            f"{what} must be a whole checkpoint part, got: {_first_line(error)}"
        ) from error


def _layout(path: Path) -> Layout:
    added = read_json(path / "unet" / "config.json").get("addition_embed_type")
    index = read_json(path / "model_index.json")
    if added == "text_time" and index.get("text_encoder", [None])[0] is not None:
        return "sdxl"
    if added is None and "text_encoder" in index and index.get("image_encoder", [None])[0] is None:
        return "sd"
    if added is None and "image_encoder" in index and any(name in index for name in PROJECTIONS):
        return "zero123"
    raise ConfigError(
        f"the model must be a checkpoint in SD, SDXL or Zero123 layout, {path} is {index.get('_class_name')}"
    )


def _contents(path: Path, layout: Layout) -> tuple[list[str], list[str]]:
    """The parts with weights beside the VAE, and what else a checkpoint must hold."""
    if layout == "zero123":
        modules = ["unet", "image_encoder", projection_folder(path).name]
        return modules, ["scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json"]
    suffixes = ("", "_2") if layout == "sdxl" else ("",)
    modules = ["unet", *(f"text_encoder{suffix}" for suffix in suffixes)]
    return modules, ["scheduler/scheduler_config.json", *(f"tokenizer{suffix}" for suffix in suffixes)]


def _view_prompts(path: Path) -> ViewPromptConfig | None:
    if not path.is_file():
        return None
    content = read_json(path)
    known = {field.name for field in fields(ViewPromptConfig)}
    if not set(content) <= known:
        raise ConfigError(f"{path} may hold {sorted(known)}, got {sorted(set(content) - known)}")
    try:
        return ViewPromptConfig(**{key: _frozen(value) for key, value in content.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error


def _vocabulary(path: Path) -> tuple[str, ...]:
    return tuple(map(str, read_json(path).get("words", ()))) if path.is_file() else ()


def _pose(path: Path) -> Pose | None:
    """The pose that `zero123.json` beside a checkpoint names."""
    if not path.is_file():
        return None
    pose = read_json(path).get("pose")
    if pose not in get_args(Pose):
        raise ConfigError(f"{path}: pose must be one of {', '.join(get_args(Pose))}, got {pose!r}")
    return pose


def _cameras(path: Path) -> dict[str, float]:
    """What `zero123.json` says of the training cameras; its other entries are notes."""
    content = read_json(path) if path.is_file() else {}
    view = {key: _frozen(content[key]) for key in ("fovy_degrees", "fill") if key in content}
    photo = {key: _frozen(content[key]) for key in ("border",) if key in content}
    try:
        ViewConfig(**view)
        PhotoConfig(**photo)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error
    return view | photo


def _frozen(value: Any) -> Any:
    if isinstance(value, int):
        return float(value)  # JSON writes 15 for 15.0, and every number in these fields is a float
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
