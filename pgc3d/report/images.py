"""The images of a run, as small JPEG files for a page."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pgc3d.plain_files import read_file, require_folder, require_inside
from pgc3d.run_files import PREVIEWS
from pgc3d.task import PREPARED_NAMES

PREVIEW = re.compile(r"step-(\d{1,12})\.png")
SIDE = 1024  # of an image in pixels, at most
PREVIEWS_OF_STAGE = 6
INPUTS = {name: file for name, file in PREPARED_NAMES.items() if file.endswith(".png")}


@dataclass(frozen=True)
class RunImage:
    """An image of a run."""

    group: str  # "inputs", "views", or the name of a stage
    label: str
    jpeg: bytes


def run_images(folder: Path, stages: Sequence[str]) -> tuple[tuple[RunImage, ...], tuple[str, ...]]:
    """The input images of a run, previews of its stages evenly spread over the steps, and its newest sheet.

    Args:
        folder: of the run.
        stages: their names, in their order.

    Returns:
        The images, and a line for each that cannot be read.

    Raises:
        RunDirectoryError: an image is a link, or a folder is.
    """
    images, notes = [], []
    for group, label, path in _paths(folder, stages):
        try:
            images.append(RunImage(group, label, as_jpeg(read_file(path))))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            notes.append(f"{path.relative_to(folder)} cannot be read: {error}")
    return tuple(images), tuple(notes)


def as_jpeg(content: bytes) -> bytes:
    """An image file as a JPEG on white, of at most `SIDE` pixels.

    Raises:
        OSError: it is no image, or damaged.
    """
    with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
        opened.thumbnail((SIDE, SIDE))
        deep = opened.mode.startswith("I")  # 16 bits, as of depth maps
        layer = (opened.point(lambda value: value / 257).convert("L") if deep else opened).convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return encode_jpeg(Image.alpha_composite(white, layer).convert("RGB"))


def encode_jpeg(image: Image.Image) -> bytes:
    """The content of a JPEG file of an RGB image."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=85, optimize=True)
    return stream.getvalue()


def is_inside(name: str) -> bool:
    """Whether a name from a record is that of a file inside the folder."""
    try:
        require_inside(name)
    except ValueError:
        return False
    return True


def newest(folder: Path, stem: str, suffix: str) -> Path | None:
    """The file that a command wrote last into a folder under a name of `disk.free_name`."""
    pattern = re.compile(rf"{re.escape(stem)}(?:-(\d{{1,9}}))?{re.escape(suffix)}")
    found = {int(match[1] or 1): path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}
    return found[max(found)] if found else None


def _paths(folder: Path, stages: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    """Group, label and path of the images that are there."""
    for name, file in INPUTS.items():
        if (folder / file).exists():
            yield "inputs", name, folder / file
    for stage in stages:
        for step, path in _spread(stage_previews(folder, stage)):
            yield stage, f"step {step}", path
    sheet = newest(folder, "views", ".png")
    if sheet is not None:
        yield "views", sheet.name, sheet


def stage_previews(folder: Path, stage: str) -> list[tuple[int, Path]]:
    """The previews of a stage, by their steps; none where its name is not that of a folder.

    Args:
        folder: of the run.
        stage: its name.

    Raises:
        RunDirectoryError: the folder of the previews is a link.
    """
    folder = folder / PREVIEWS / stage
    if "/" in stage or not is_inside(stage) or not folder.exists():
        return []
    require_folder(folder)
    return sorted(
        (int(match[1]), path) for path in folder.iterdir() if (match := PREVIEW.fullmatch(path.name))
    )


def _spread(previews: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Some of them, with the first and the last."""
    last, count = len(previews) - 1, min(len(previews), PREVIEWS_OF_STAGE)
    return [previews[round(last * index / max(count - 1, 1))] for index in range(count)]
