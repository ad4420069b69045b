"""Segmentation of the object of an image: by matting, by a plain background, and by connected components."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pgc3d.errors import InputError, WeightsNotFoundError
from pgc3d.inputs.formats import Notify

Box = tuple[int, int, int, int]  # left, upper, right and lower edge
SMALLEST_OBJECT = 32  # pixels, its longer side
BACKGROUND_TOLERANCE = 12  # of 255, what JPEG does to a plain colour
MATTING_MODEL = "isnet-general-use"

SPECK_AREA = 0.01  # of the largest piece: a piece with less is a speck
SPECK_SIDE = 0.2  # of the largest piece's longer side: a speck is no longer than that
SPECK_DISTANCE = 0.05  # of the largest piece's longer side: a speck that is nearer belongs to it
LARGE_AREA = 0.05  # of the largest piece: a second piece with that much is reported
FRINGE = 2  # pixels of half transparent edge around a speck that go with it
CONTACT = 3  # pixels of the object on a border of the image: by less it is touched, not cut
MAX_CUTS = 8  # times that an object in front of a plain background may cross the image's border
EDGE_WIDTH = 4  # pixels within which an object's colour takes the place of the background's


@dataclass(frozen=True)
class _Pieces:
    """The connected components of an object, their holes filled; number 0 is the largest one."""

    labels: Int32[np.ndarray, "H W"]  # number + 1, and 0 for no piece
    area: Int32[np.ndarray, "N"]  # pixels of the object, without the holes
    boxes: Int32[np.ndarray, "N 4"]

    @property
    def longer_sides(self) -> Int32[np.ndarray, "N"]:
        sides: NDArray[np.int32] = np.maximum(
            self.boxes[:, 2] - self.boxes[:, 0], self.boxes[:, 3] - self.boxes[:, 1]
        )
        return sides


def matte(image: Image.Image) -> Image.Image:
    """An RGB image with the alpha of rembg's network.

    Raises:
        InputError: rembg is not installed.
        WeightsNotFoundError: its model is neither on the disk nor can it be downloaded.
    """
    if any(importlib.util.find_spec(name) is None for name in ("rembg", "onnxruntime")):
        raise InputError(
            "an image must have alpha, got none and no rembg to remove its background; pip install "
            "'pgc3d[matting]', or give one with a plain background and --no-matting, or one with alpha"
        )
    from rembg import new_session, remove

    try:
        session = new_session(MATTING_MODEL)
    except Exception as error:  # its download raises whatever its HTTP library and its checks raise
        raise WeightsNotFoundError(
            f"rembg's model {MATTING_MODEL} must be on this disk or fetched at first use, but that failed "
            f"({type(error).__name__}); go online once, put {MATTING_MODEL}.onnx from rembg's releases where "
            "rembg reads it, or use a plain background and --no-matting"
        ) from error
    mask: Any = remove(image, session=session, only_mask=True)
    matted = image.copy()
    matted.putalpha(mask.convert("L"))
    return matted


def cut_plain_background(image: Image.Image, path: Path) -> Image.Image:
    """An RGB image whose alpha is 0 where it has the border's colour and is connected to the border.

    The same colour inside the object stays. The object is eroded by one pixel, whose colours are mixed with
    the background. The object may cross the image's border a few times.

    Raises:
        InputError: the border is not of one colour.
    """
    from pgc3d.kernels.regions_numba import connected_to_border

    pixels = np.asarray(image).astype(np.int16)
    ring = _ring(pixels)
    color = np.median(ring, axis=0)
    if not _is_plain(np.abs(ring - color).max(axis=-1)):
        fraction = (np.abs(ring - color) > BACKGROUND_TOLERANCE).any(axis=-1).mean()
        raise InputError(
            f"--no-matting must go with a background of one plain colour, got another in {fraction:.0%} of "
            f"the border of {path}; omit --no-matting, or give an image with alpha"
        )
    plain = (np.abs(pixels - color) <= BACKGROUND_TOLERANCE).all(axis=-1)
    alpha = Image.fromarray(np.where(connected_to_border(plain), 0, 255).astype(np.uint8))
    cut = image.copy()
    cut.putalpha(alpha.filter(ImageFilter.MinFilter(3)))
    return cut


def _ring(pixels: np.ndarray) -> np.ndarray:
    """The border's pixels in their order around the image, [N, C]."""
    sides = (pixels[0, :-1], pixels[:-1, -1], pixels[-1, :0:-1], pixels[:0:-1, 0])
    return np.concatenate(sides)


def _is_plain(differences: np.ndarray) -> bool:
    """Whether a border is of one colour, apart from noise and a few crossings of the object.

    At a crossing the colour changes abruptly; a gradient or a vignette deviates slowly from the median.

    Args:
        differences: from the median colour around the image, of 255, [N].
    """
    other = differences > BACKGROUND_TOLERANCE
    if other.mean() <= 0.02:
        return True
    if other.mean() > 0.5:
        return False
    start = int(np.flatnonzero(~other)[0])
    edges = np.flatnonzero(np.diff(np.roll(other, -start).astype(np.int8), prepend=0, append=0))
    rolled = np.roll(differences, -start)
    runs = [(first, last) for first, last in edges.reshape(-1, 2) if last - first >= CONTACT]
    inside = [
        min(rolled[min(first + EDGE_WIDTH, middle)], rolled[max(last - 1 - EDGE_WIDTH, middle)])
        for first, last in runs
        for middle in ((first + last) // 2,)
    ]
    return len(runs) <= MAX_CUTS and all(value > 2 * BACKGROUND_TOLERANCE for value in inside)


def find_object(image: Image.Image, path: Path, notify: Notify) -> tuple[Image.Image, Box]:
    """The object of an RGBA image, without distant specks, and its box.

    The object is where alpha is above one half. Specks, several large components, and borders of the image
    that cut the object are reported.

    Raises:
        InputError: there is no object, or no background.
    """
    mask = np.asarray(image.getchannel("A")) > 127
    if mask.mean() > 0.99:
        raise InputError(
            f"an object must be in front of a background, but it fills all of {path}; cut it out with some "
            "a margin around it"
        )
    if mask.any():
        pieces = _find_pieces(mask)
        specks = _find_specks(pieces)
        image, mask = _drop(image, mask, pieces, specks, path, notify)
        _report_several(pieces, ~specks, path, notify)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = (int(axis[-1] - axis[0] + 1) if len(axis) else 0 for axis in (rows, columns))
    if max(height, width) < SMALLEST_OBJECT:
        raise InputError(
            f"the object must be at least {SMALLEST_OBJECT} pixels large, got {width} x {height} in "
            f"{path}; give an image whose alpha or background separates the object"
        )
    _report_cut(mask, path, notify)
    return image, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _find_pieces(mask: Bool[np.ndarray, "H W"]) -> _Pieces:
    """The components of a mask that is not empty, in order of decreasing area.

    What lies in a hole of a component belongs to it: the eyes of a face in a line drawing are no specks.
    """
    from pgc3d.kernels.regions_numba import connected_to_border, label_regions

    labels, count = label_regions(~connected_to_border(~mask), diagonal=True)
    area = np.bincount(labels[mask], minlength=count + 1)[1:]
    order = np.argsort(-area, kind="stable")
    number = np.zeros(count + 1, np.int32)
    number[order + 1] = np.arange(1, count + 1, dtype=np.int32)
    labels = number[labels]
    boxes = np.zeros((count, 4), np.int32)
    rows, columns = np.nonzero(labels)
    piece = labels[rows, columns] - 1
    boxes[:, :2] = np.iinfo(np.int32).max
    for axis, indices in ((0, columns), (1, rows)):
        np.minimum.at(boxes[:, axis], piece, indices)
        np.maximum.at(boxes[:, axis + 2], piece, indices + 1)
    return _Pieces(labels, area[order].astype(np.int32), boxes)


def _find_specks(pieces: _Pieces) -> Bool[np.ndarray, "N"]:
    """Whether each component is far smaller than the largest one and far from all that are not."""
    from pgc3d.kernels.regions_numba import distance

    sides = pieces.longer_sides
    small: NDArray[np.bool_] = (pieces.area < SPECK_AREA * pieces.area[0]) & (sides <= SPECK_SIDE * sides[0])
    if not small.any():
        return small
    steps = distance(np.concatenate([[False], ~small])[pieces.labels])
    nearest = np.full(len(small) + 1, np.iinfo(np.int32).max, np.int32)
    np.minimum.at(nearest, pieces.labels.reshape(-1), steps.reshape(-1))
    away: NDArray[np.bool_] = nearest[1:] > max(SPECK_DISTANCE * sides[0], 2 * FRINGE)
    return np.logical_and(small, away)


def _drop(
    image: Image.Image,
    mask: Bool[np.ndarray, "H W"],
    pieces: _Pieces,
    specks: Bool[np.ndarray, "N"],
    path: Path,
    notify: Notify,
) -> tuple[Image.Image, Bool[np.ndarray, "H W"]]:
    """The image and its mask without specks and their fringe."""
    if not specks.any():
        return image, mask
    dropped = np.concatenate([[False], specks])[pieces.labels]
    wide = Image.fromarray(dropped.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * FRINGE + 1))
    gone = (np.asarray(wide) > 0) & ~(mask & ~dropped)
    alpha: UInt8[np.ndarray, "H W"] = np.where(gone, 0, np.asarray(image.getchannel("A")))
    cleaned = image.copy()
    cleaned.putalpha(Image.fromarray(alpha))
    fraction = pieces.area[specks].sum() / pieces.area.sum()
    count = int(specks.sum())
    notify(
        f"left out {count} {'speck' if count == 1 else 'specks'} apart from the object of {path} "
        f"({fraction:.2g} of its pixels)"
    )
    return cleaned, mask & ~dropped


def _report_several(
    pieces: _Pieces, object_pieces: Bool[np.ndarray, "N"], path: Path, notify: Notify
) -> None:
    large = pieces.area[object_pieces & (pieces.area >= LARGE_AREA * pieces.area[0])]
    if len(large) > 1:
        notify(
            f"{path} shows {len(large)} separate pieces, which are taken as one object (the second has "
            f"{large[1] / large[0]:.0%} of the first one's pixels); if that is wrong, give an image of one"
        )


def _report_cut(mask: Bool[np.ndarray, "H W"], path: Path, notify: Notify) -> None:
    """Report the borders of the image that the object touches.

    The object of a cropped image touches all four without being cut, unless it covers half of one.
    """
    sides = {"left": mask[:, 0], "right": mask[:, -1], "top": mask[0], "bottom": mask[-1]}
    touched = {name: side for name, side in sides.items() if side.sum() >= CONTACT}
    if all(side.any() for side in sides.values()):
        touched = {name: side for name, side in sides.items() if side.mean() >= 0.5}
    if touched:
        names = " and ".join(
            [", ".join(list(touched)[:-1]), list(touched)[-1]] if len(touched) > 1 else touched
        )
        border = "border" if len(touched) == 1 else "borders"
        notify(
            f"the object of {path} reaches the {names} {border} of the image; if it is cut there, so is its "
            "asset, give an image with a margin around it"
        )
