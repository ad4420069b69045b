"""Depth and normals that belong to an input picture: read with distrust and framed exactly as it is.

A run keeps them as pictures of the prepared one's size, which say nothing outside the object.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8, UInt16
from PIL import Image, ImageOps
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.photo import FramedPhoto, decoding, encode_png, open_picture, require_small_file

MapName = Literal["depth", "normal"]
CHANNELS: dict[MapName, int] = {"depth": 1, "normal": 3}
AWAY = 0.5  # share of the object whose normals may look away from the viewer


def prepare_map(name: MapName, path: Path, framed: FramedPhoto) -> bytes:
    """Make the map that a run works with, a PNG file with 16 bit grey levels for depth, RGB for normals.

    Args:
        name: `depth`: relative inverse depth in one channel, near is bright, scale and shift are free.
            `normal`: (n + 1) / 2 in RGB, in camera space with x right, y up, z to the viewer (OpenGL).
        path: a picture or a .npy file, of the size of the picture's file.
        framed: the picture.

    Raises:
        InputError: the file cannot be read, has another size, or says nothing of the kind about the object.
    """
    values = _read(name, path)
    height, width, _ = values.shape
    if (width, height) != framed.original:
        wide, high = framed.original
        raise InputError(
            f"a {name} map must have the size of the picture, {wide} x {high}, but {path} has "
            f"{width} x {height}"
        )
    placed, covered = _place(values, framed, path)
    if name == "depth":
        return encode_png(Image.fromarray(_depth_levels(placed[..., 0], covered > 0.5, path)))
    return encode_png(Image.fromarray(_normal_levels(placed, covered > 0.5, path)))


def load_map(name: MapName, path: Path, size: int) -> Float[Tensor, "S S C"]:
    """A prepared map: depth in [0, 1], or normals of about unit length in camera space.

    Raises:
        InputError: the file is missing, or not what `prepare_map` makes for a square of this size.
    """
    values = _read(name, path)
    if values.shape[:2] != (size, size):
        height, width, _ = values.shape
        raise InputError(
            f"{path} must be a prepared {name} map of {size} x {size} pixels, got {width} x {height}"
        )
    return torch.from_numpy(values / np.float32(65535.0) if name == "depth" else 2.0 * values - 1.0)


def _read(name: MapName, path: Path) -> Float[np.ndarray, "H W C"]:
    values = _read_array(path) if path.suffix.lower() == ".npy" else _read_levels(name, path)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] != CHANNELS[name]:
        raise InputError(
            f"a {name} map must hold {CHANNELS[name]} number(s) a pixel, {path} is of shape "
            f"{' x '.join(map(str, values.shape))}"
        )
    return values


def _read_array(path: Path) -> Float[np.ndarray, "..."]:
    require_small_file(path)
    with decoding(path):
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        raise InputError(f"{path} must hold one array of numbers, got {getattr(found, 'dtype', 'several')}")
    with np.errstate(over="ignore"):  # what is not finite is refused, where it matters
        return np.array(found, np.float32)


def _read_levels(name: MapName, path: Path) -> Float[np.ndarray, "..."]:
    with open_picture(path) as image:
        grey = image.mode in {"L", "I", "F"} or image.mode.startswith("I;16")
        if not (grey if name == "depth" else image.mode in {"RGB", "RGBA"}):
            kind = "grey levels, not colours" if name == "depth" else "the colours of (n + 1) / 2"
            raise InputError(f"a {name} map must hold {kind}, {path} is in mode {image.mode}")
        levels = np.asarray(ImageOps.exif_transpose(image), np.float32)
        return levels[..., :3] / np.float32(255.0) if name == "normal" else levels


def _place(
    values: Float[np.ndarray, "H W C"], framed: FramedPhoto, path: Path
) -> tuple[Float[np.ndarray, "S S C"], Float[np.ndarray, "S S"]]:
    """The map in the prepared square, in which the background leaves no trace, and the object's coverage."""
    finite = np.isfinite(values).all(axis=-1)
    layers = [*np.moveaxis(np.where(finite[..., None], values, 0.0), -1, 0), finite, np.ones_like(finite)]
    alpha = np.asarray(framed.picture.getchannel("A"), np.float32) / np.float32(255.0)

    def place(layer: np.ndarray) -> Float[np.ndarray, "S S"]:
        image = Image.fromarray(layer.astype(np.float32))
        shrunk = np.asarray(image.resize(framed.picture.size, Image.Resampling.BILINEAR))
        # BILINEAR has no negative weights: the quotients below stay between the values
        return np.asarray(framed.place(Image.fromarray(shrunk * alpha), Image.Resampling.BILINEAR))

    *placed, known, covered = map(place, layers)
    if (known < 0.999 * covered)[covered > 0.5].any():
        raise InputError(f"a map must be finite all over the object, {path} is not")
    return np.stack(placed, axis=-1) / np.maximum(covered, 1e-6)[..., None], covered


def _depth_levels(
    depth: Float[np.ndarray, "S S"], inside: Bool[np.ndarray, "S S"], path: Path
) -> UInt16[np.ndarray, "S S"]:
    low, high = depth[inside].min(), depth[inside].max()
    if not high - low > 1e-5 * max(abs(low), abs(high)):  # less is rounding
        raise InputError(f"a depth map must vary over the object, {path} is {low:g} all over it")
    levels: UInt16[np.ndarray, "S S"]
    levels = np.rint(np.clip((depth - low) / (high - low), 0.0, 1.0) * 65535.0).astype(np.uint16)
    return levels


def _normal_levels(
    levels: Float[np.ndarray, "S S 3"], inside: Bool[np.ndarray, "S S"], path: Path
) -> UInt8[np.ndarray, "S S 3"]:
    low, high = levels[inside].min(), levels[inside].max()
    if low < -1e-3 or high > 1.001:
        raise InputError(
            f"a normal map must hold (n + 1) / 2, numbers in [0, 1], {path} has {low:.3g} to {high:.3g}"
        )
    normal = 2.0 * levels - 1.0
    away = (normal[inside][:, 2] < 0).mean()
    if away > AWAY:
        raise InputError(
            "a normal map must be in camera space with x right, y up, z to the viewer, but in "
            f"{path} {away:.0%} of the object look away"
        )
    unit = normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    encoded: UInt8[np.ndarray, "S S 3"] = np.rint((0.5 * unit + 0.5) * 255.0).astype(np.uint8)
    return encoded
