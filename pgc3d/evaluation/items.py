"""The list of a benchmark: JSON lines, one item each, paths relative to the list.

    {"name": "chair", "image": "chair/input.png", "truth": "chair/truth.glb", "caption": "a yellow chair",
     "elevation_degrees": 20, "frame": "input"}
    {"name": "a-red-chair", "prompt": "a red chair"}

An image item's truth is oriented as in the input image: the input's camera is at azimuth 0, whatever side of
the object that is, and `elevation_degrees` above the horizon. With `"frame": "input"` it also has the
position and the scale at which the camera of an image run, `cameras.ViewConfig` with its defaults, renders it
like the input as `inputs.image.frame_image` places it: results need no alignment to be compared. A text item
may have a truth too.
"""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pgc3d.errors import InputError
from pgc3d.prompt_weights import plain_text


@dataclass(frozen=True)
class Item:
    """A text or an image to generate from, and the truth that the result is compared with."""

    name: str  # of its results; must not end in -NUMBER, which is a seed
    prompt: str | None = None
    image: Path | None = None
    truth: Path | None = None
    caption: str = ""  # text of the retrieval metric; the prompt when empty
    elevation_degrees: float = 0.0  # of the image's camera
    frame: Literal["own", "input"] = "own"  # of the truth; own: that of its file

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name) or re.fullmatch(r".*-\d+", self.name):
            raise ValueError(
                f"name must be of letters, digits, '.', '_' and '-' and not end in -NUMBER, got {self.name!r}"
            )
        if (self.prompt is None) == (self.image is None):
            raise ValueError(f"{self.name} must have either a prompt or an image, got both or none")
        if self.image is not None and self.truth is None:
            raise ValueError(f"{self.name} must have a truth beside its image, got none")
        if self.frame not in ("own", "input") or (self.frame == "input" and self.image is None):
            raise ValueError(f"frame must be own, or input where there is an image, got {self.frame!r}")
        if not -89.0 <= self.elevation_degrees <= 89.0:
            raise ValueError(f"elevation_degrees must lie in [-89, 89], got {self.elevation_degrees}")

    @property
    def description(self) -> str:
        """The caption or else the prompt as plain text; empty where there is neither."""
        return self.caption or plain_text(self.prompt or "")


def read_items(path: Path) -> list[Item]:
    """The items of a list; blank lines are skipped.

    Raises:
        InputError: the file cannot be read, or a line is wrong; the message names it.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"the list must be a text file, got {path}, a folder, a device or a pipe")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list must be a readable text file, got {path}: {error}") from error
    items = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                items.append(_item(json.loads(line), path.parent))
            except (ValueError, TypeError) as error:
                raise InputError(f"{path}, line {number}: {error}") from error
    names = [item.name for item in items]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not items or twice:
        what = f"{twice[0]} twice" if twice else "none"
        raise InputError(f"{path} must hold items with different names, got {what}")
    return items


def _item(record: Any, folder: Path) -> Item:
    known = {field.name: field.type for field in fields(Item)}
    if not isinstance(record, dict) or not record.keys() <= known.keys() or "name" not in record:
        raise ValueError(f"an item must be an object with a name and any of {', '.join(known)}, got another")
    values = dict(record)
    for key, value in record.items():
        if key == "elevation_degrees":
            values[key] = float(value)
        elif not isinstance(value, str):
            raise ValueError(f"{key} must be a string, got {value!r}")
        elif key in ("image", "truth"):
            values[key] = folder / value
            if not values[key].is_file():
                raise ValueError(f"{key} must be a file, got none at {values[key]}")
    return Item(**values)


def write_items(path: Path, items: list[Item]) -> None:
    """Write a list, the inverse of `read_items`; files must lie below the list's folder."""
    lines = []
    for item in items:
        record = {field.name: getattr(item, field.name) for field in fields(Item)}
        record = {
            key: value.relative_to(path.parent).as_posix() if isinstance(value, Path) else value
            for key, value in record.items()
            if value not in (None, "")
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
