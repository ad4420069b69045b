"""The models of an acceptance test: where they are, whether they are complete, and their hashes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from make_random_controlnet import write_random_controlnet
from make_random_sd import write_random_sd
from make_random_sdxl import write_random_sdxl
from make_random_zero123 import write_random_zero123

from pgc3d.diffusion.aliases import ALIASES, BUNDLED_CONTROL, CONTROL_ALIASES
from pgc3d.diffusion.files import WEIGHTS, weight_files
from pgc3d.diffusion.hub import POSES
from pgc3d.diffusion.models import find_part, resolve_model
from pgc3d.disk import sha256
from pgc3d.errors import Pgc3dError
from pgc3d.mini import image_model, text_model

Kind = Literal["folder", "hub", "mini", "tiny"]
USED = ("sdxl", "sd", "zero123", "stable-zero123", "sdxl-depth-small", "sd-depth")
NOVEL_VIEW = ("zero123", "stable-zero123")


@dataclass(frozen=True)
class Weights:
    """What `--models` names."""

    kind: Kind
    folder: Path = Path()  # with a folder for each alias, of `folder` and `tiny`
    random: bool = False  # whether the weights are random

    def name(self, alias: str) -> str:
        """The name that `--model` or a ControlNet's setting takes."""
        if self.kind == "mini":
            return BUNDLED_CONTROL if alias in CONTROL_ALIASES else "mini"
        return alias if self.kind == "hub" else str((self.folder / alias).absolute())

    def overrides(self, alias: str) -> list[str]:
        """Settings that a folder does not state of itself: the pose convention of a Zero123 checkpoint."""
        local = self.kind in {"folder", "tiny"} and alias in NOVEL_VIEW
        return [f"models.image.pose={POSES[ALIASES[alias]]}"] if local else []

    def find(self, alias: str, *, half: bool) -> Path:
        """The folder of a model, fetched from the hub where it is not on this disk.

        Args:
            alias: one of `USED`.
            half: prefer the fp16 files.

        Raises:
            Pgc3dError: it is missing, incomplete, or another kind of model.
        """
        name = self.name(alias)
        if alias in CONTROL_ALIASES:
            return find_part(name, "controlnet", half=half)
        if self.kind == "mini":
            return image_model()[0] if alias in NOVEL_VIEW else text_model()
        return resolve_model(name, half=half).path

    def problem(self, alias: str, *, half: bool) -> str:
        """Why a model cannot be used, in one line; "" where it can."""
        if self.kind == "folder" and not (self.folder / alias).is_dir():
            return f"{self.folder} has no folder {alias}"
        try:
            self.find(alias, half=half)
        except Pgc3dError as error:
            return str(error)
        return ""


def write_tiny(folder: Path) -> None:
    """Write random miniatures of all models, which take seconds."""
    writers = {"sdxl": write_random_sdxl, "sd": write_random_sd}
    writers |= dict.fromkeys(NOVEL_VIEW, write_random_zero123)
    for alias, write in writers.items():
        if not (folder / alias / "model_index.json").is_file():
            write(folder / alias, full_size=False)
    for alias, model in {"sdxl-depth-small": "sdxl", "sd-depth": "sd"}.items():
        if not (folder / alias / "config.json").is_file():
            write_random_controlnet(folder / alias, folder / model, full_size=False)


def describe(weights: Weights, aliases: Iterable[str], *, half: bool) -> dict[str, Any]:
    """Folder, repository and SHA-256 of the loaded weight files of each model that can be used, by alias."""
    found: dict[str, Any] = {}
    for alias in aliases:
        if weights.problem(alias, half=half):
            continue
        path = weights.find(alias, half=half)
        files = {
            file.relative_to(path).as_posix(): {"sha256": sha256(file), "bytes": file.stat().st_size}
            for file in loaded_files(path, half=half)
        }
        repository = ALIASES[alias] if weights.kind == "hub" else ""
        found[alias] = {"folder": str(path), "repository": repository, "files": files}
    return found


def loaded_files(path: Path, *, half: bool) -> list[Path]:
    """The weight files of a checkpoint that are loaded: of itself or of the parts below it."""
    files: list[Path] = []
    for part in [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]:
        stem = WEIGHTS.get("text_encoder" if part.name.startswith("text_encoder") else part.name)
        if part == path and (path / "config.json").is_file():
            stem = WEIGHTS["vae"]
        if stem is not None and (part / "config.json").is_file():
            files += weight_files(part, stem, prefer_half=half)
    return files


def is_half(device: torch.device) -> bool:
    """Whether models run in half precision on a device."""
    return device.type != "cpu"
