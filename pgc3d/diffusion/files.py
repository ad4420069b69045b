"""A checkpoint folder in diffusers' layout: what lies in it, and whether it is whole. Safetensors only."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pgc3d.diffusion.latent import Layout
from pgc3d.errors import ConfigError, Pgc3dError, WeightsNotFoundError
from pgc3d.prompts import ViewPromptConfig

logger = logging.getLogger(__name__)

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@dataclass(frozen=True)
class ModelFolder:
    """A checkpoint that was found and whose files are whole."""

    name: str  # what the user asked for
    path: Path
    layout: Layout
    commit: str | None = None  # of the hub, None for a local folder
    view_prompts: ViewPromptConfig | None = None  # how this model was taught to read the camera
    vocabulary: tuple[str, ...] = ()  # the words that a small model knows; empty where it knows most


def open_folder(name: str, path: Path, *, commit: str | None = None) -> ModelFolder:
    """Check a checkpoint folder and describe it.

    Raises:
        WeightsNotFoundError: a file is missing or damaged; the message names it.
        ConfigError: it is not a text-to-image checkpoint in SD or SDXL layout.
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
    parts = ["unet", "vae", "text_encoder"] + (["text_encoder_2"] if layout == "sdxl" else [])
    for part in parts:
        read_json(path / part / "config.json")
        for file in weight_files(path / part, WEIGHTS[part.removesuffix("_2")], prefer_half=False):
            tensor_names(file)
    for part in ("scheduler/scheduler_config.json", *(f"tokenizer{s}" for s in ("", "_2")[: len(parts) - 2])):
        if not (path / part).exists():
            raise WeightsNotFoundError(f"the checkpoint must hold {part}, not found in {path}")
    return ModelFolder(
        name=name,
        path=path,
        layout=layout,
        commit=commit,
        view_prompts=_view_prompts(path / "view_prompts.json"),
        vocabulary=_vocabulary(path / "vocabulary.json"),
    )


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
    try:
        yield
    except (Pgc3dError, MemoryError):
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
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
    raise ConfigError(
        f"the model must be a text-to-image checkpoint in SD or SDXL layout, "
        f"{path} is {index.get('_class_name')}"
    )


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


def _frozen(value: Any) -> Any:
    if isinstance(value, int):
        return float(value)  # JSON writes 15 for 15.0, and every number in these fields is a float
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
