"""The files of a checkpoint in diffusers' layout, and checks of their completeness. Safetensors only."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pgc3d.diffusion.latent import Layout
from pgc3d.errors import Pgc3dError, WeightsNotFoundError
from pgc3d.view_prompts import ViewPromptConfig

logger = logging.getLogger(__name__)

WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "image_encoder": "model",
    "clip_camera_projection": "diffusion_pytorch_model",
    "cc_projection": "diffusion_pytorch_model",
}
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PROJECTIONS = (
    "clip_camera_projection",
    "cc_projection",
)  # names of the same layer by two converters of Zero123

# The fourth number of a Zero123 pose: the difference of the cameras' distances from the object (Zero123,
# Zero123-XL), or the polar angle of the condition's camera (Stable Zero123).
Pose = Literal["radius", "polar"]


@dataclass(frozen=True)
class ModelFolder:
    """A complete checkpoint on the disk."""

    name: str  # as the user gave it
    path: Path
    layout: Layout
    commit: str | None = None  # of the hub, None for a local folder
    vae: Path | None = None  # the folder of a VAE that it shares with another checkpoint, None for its own
    view_prompts: ViewPromptConfig | None = None  # how this model was taught to read the camera
    vocabulary: tuple[str, ...] = ()  # the words of a small model's training set; empty if unlisted
    pose: Pose | None = None  # of a Zero123 checkpoint, None where it is unknown
    # of what it was trained with: fovy_degrees and fill as in `ViewConfig`, border as in `InputImageConfig`
    cameras: Mapping[str, float] = field(default_factory=dict)
    # One file with all weights, in the names of the original implementation; `path` is then the folder of
    # another checkpoint, whose configurations and tokenizers are used.
    file: Path | None = None
    scheduler: Mapping[str, Any] = field(default_factory=dict)  # overrides scheduler_config.json


def projection_folder(path: Path) -> Path:
    """Folder of the layer of a Zero123 checkpoint that maps the image embedding and the pose to a token.

    Raises:
        WeightsNotFoundError: there is none.
    """
    for name in PROJECTIONS:
        if (path / name).is_dir():
            return path / name
    raise WeightsNotFoundError(f"the checkpoint must hold {' or '.join(PROJECTIONS)}, got none in {path}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsNotFoundError(
            f"the checkpoint must hold {path.parent.name}/{path.name}, got none in {path.parent.parent}"
        ) from error
    except (OSError, ValueError) as error:
        raise WeightsNotFoundError(f"{path} must be readable JSON, got: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise WeightsNotFoundError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def weight_files(folder: Path, stem: str, *, prefer_half: bool) -> list[Path]:
    """The safetensors files of one part, one or several shards; the fp16 variant first with `prefer_half`.

    Raises:
        WeightsNotFoundError: there is none, or a shard is missing.
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
                    f"{index} must name shards that exist, got none of {absent[:1] or 'them'}"
                )
            return shards
    pickles = sorted(file.name for suffix in PICKLES for file in folder.glob(f"*{suffix}"))
    hint = f"; {pickles[0]} is a pickle, which is never loaded, convert it to safetensors" if pickles else ""
    raise WeightsNotFoundError(
        f"the checkpoint must hold {folder.name}/{stem}.safetensors, got none in {folder.parent}{hint}"
    )


def tensor_names(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file; reads only the header.

    Raises:
        WeightsNotFoundError: the file is truncated or not in the safetensors format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as handle:
            return list(handle.keys())
    except (SafetensorError, OSError) as error:
        raise WeightsNotFoundError(
            f"{file} must be a whole safetensors file, got: {first_line(error)}; fetch the checkpoint again"
        ) from error


@contextmanager
def loading(what: Path) -> Iterator[None]:
    """Convert exceptions of libraries on a damaged checkpoint to a WeightsNotFoundError of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (Pgc3dError, MemoryError):
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if "out of memory" in str(error).lower():
            raise
        raise WeightsNotFoundError(
            f"{what} must be a whole checkpoint part, got: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its class name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
