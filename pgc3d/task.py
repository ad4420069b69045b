"""What a user asks for, apart from the settings: a prompt, a picture and its maps, a mesh, a background."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgc3d.errors import RunDirectoryError
from pgc3d.plain_files import require_inside

FILES = ("image", "depth", "normal", "mesh", "background")
KEPT = {  # what is made of them, in the run's folder
    "image": "input.png",
    "depth": "depth.png",
    "normal": "normal.png",
    "background": "background.png",
    "mesh": "mesh.safetensors",
}


@dataclass(frozen=True)
class Task:
    """The inputs of a run; files that belong to a run lie in its folder."""

    prompt: str = ""
    image: Path | None = None
    mesh: Path | None = None
    background: Path | None = None  # a picture, where the settings name "image"
    depth: Path | None = None  # of the image, see `inputs.maps.prepare_map`
    normal: Path | None = None  # likewise

    @property
    def files(self) -> dict[str, Path]:
        """The files that there are, by their name here."""
        return {name: path for name in FILES if (path := getattr(self, name)) is not None}

    def record(self, folder: Path) -> dict[str, str]:
        """What a manifest keeps; the files must lie below `folder`."""
        files = {name: str(path.relative_to(folder)) for name, path in self.files.items()}
        return {"prompt": self.prompt} | files

    @classmethod
    def from_record(cls, record: Mapping[str, Any], folder: Path) -> "Task":
        """The task that `record` described.

        Raises:
            RunDirectoryError: a file is not named as one inside the folder.
        """
        files = {}
        for name in FILES:
            if name in record:
                try:
                    files[name] = folder / require_inside(record[name])
                except (TypeError, ValueError) as error:
                    raise RunDirectoryError(f"the record of {folder} is damaged: {name}: {error}") from error
        return cls(prompt=str(record.get("prompt", "")), **files)
