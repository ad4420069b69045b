"""The inputs of a run, apart from its settings: a prompt, an image and its maps, a mesh, other images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgc3d.errors import RunDirectoryError
from pgc3d.plain_files import require_inside

FILES = ("image", "depth", "normal", "mesh", "document", "background", "style", "texture", "mask")
PREPARED_NAMES = {  # of the prepared files in the run's folder
    "image": "input.png",
    "depth": "depth.png",
    "normal": "normal.png",
    "background": "background.png",
    "style": "style.png",
    "mesh": "mesh.safetensors",
    "document": "document.zip",
    "texture": "texture.safetensors",
}


@dataclass(frozen=True)
class Task:
    """The inputs of a run; files that belong to a run lie in its folder."""

    prompt: str = ""
    image: Path | None = None
    mesh: Path | None = None
    document: Path | None = None  # the mesh's file with those it names, see `pack_document`; made by the run
    background: Path | None = None  # an image, for objectives with the background "image"
    texture: Path | None = None  # of the mesh, in place of those of its file; a run has those of all sets
    mask: Path | None = None  # of the mesh's texture: white where it may change; a run has it in `texture`
    only: tuple[str, ...] = ()  # nodes and materials of the mesh that are textured, all when empty
    keep: tuple[str, ...] = ()  # nodes and materials of the mesh that are not
    depth: Path | None = None  # depth map of the image, see `inputs.maps.prepare_map`
    normal: Path | None = None  # normal map of the image, likewise
    style: Path | None = None  # an image whose look the asset gets, for models with an IP-Adapter

    @property
    def files(self) -> dict[str, Path]:
        """The input files that were given, by the name of the attribute."""
        return {name: path for name in FILES if (path := getattr(self, name)) is not None}

    def record(self, folder: Path) -> dict[str, str]:
        """The entries of a manifest; the files, which must lie below `folder`, by their relative paths."""
        files = {name: str(path.relative_to(folder)) for name, path in self.files.items()}
        return {"prompt": self.prompt} | files

    @classmethod
    def from_record(cls, record: Mapping[str, Any], folder: Path) -> "Task":
        """The task that `record` described.

        Args:
            record: a manifest.
            folder: the run directory, which may have been moved.

        Raises:
            RunDirectoryError: the name of a file is not one inside the folder.
        """
        files: dict[str, Any] = {}
        for name in FILES:
            if name in record:
                try:
                    files[name] = folder / require_inside(record[name])
                except (TypeError, ValueError) as error:
                    raise RunDirectoryError(
                        f"the record of {folder} must be whole, but is damaged: {name}: {error}"
                    ) from error
        return cls(prompt=str(record.get("prompt", "")), **files)
