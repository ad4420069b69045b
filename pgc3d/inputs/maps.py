"""Depth and normal maps of an input image: validated, and framed exactly like the image.

The prepared maps have the size of the prepared image and are 0 outside the object.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8, UInt16
from PIL import Image
from torch import Tensor

from pgc3d.choices import MapName
from pgc3d.errors import InputError
from pgc3d.images import encode_png
from pgc3d.inputs.decode import Levels, Size, decode_levels
from pgc3d.inputs.formats import decoding, require_small_file
from pgc3d.inputs.image import FramedImage

CHANNELS: dict[MapName, int] = {"depth": 1, "normal": 3}
GREY_TOLERANCE = 2 / 255  # between the channels of grey levels that are stored as RGB
_STRIP = 256  # rows, about
AWAY = 0.5  # fraction of the object whose normals may point away from the viewer


def prepare_map(name: MapName, path: Path, framed: FramedImage) -> bytes:
    """The prepared map as a PNG file, with 16 bit grey levels for depth, 8 bit RGB for normals.

    All bits of the file are used; 8 bits resolve normals to a quarter of a degree.

    Args:
        name: `depth`: relative inverse depth in one channel, near is bright, scale and shift are free.
            `normal`: (n + 1) / 2 in RGB, in camera space with x right, y up, z to the viewer (OpenGL).
        path: an image or a .npy file, of the size of the image's file. Its numbers are data: a colour
            profile does not change them, grey levels may be stored as RGB, and alpha is ignored.
        framed: the image.

    Raises:
        InputError: the file cannot be read, has another size, or has no usable value on the object.
    """
    levels = _read(name, path)
    height, width = levels.values.shape[:2]
    if (width, height) != framed.original:
        wide, high = framed.original
        raise InputError(
            f"a {name} map must have the size of the input image, {wide} x {high}, but {path} has "
            f"{width} x {height}"
        )
    placed, covered = _place(levels, framed, path)
    if name == "depth":
        return encode_png(Image.fromarray(_depth_levels(placed[..., 0], covered > 0.5, path)))
    return encode_png(Image.fromarray(_normal_levels(placed, covered > 0.5, path)))


def load_map(name: MapName, path: Path, size: int) -> Float[Tensor, "S S C"]:
    """A prepared map: depth in [0, 1], or normals of about unit length in camera space.

    Raises:
        InputError: the file is missing, or not what `prepare_map` makes for a square of this size.
    """
    levels = _read(name, path)
    if levels.values.shape[:2] != (size, size):
        height, width = levels.values.shape[:2]
        raise InputError(
            f"{path} must be a prepared {name} map of {size} x {size} pixels, got {width} x {height}"
        )
    values = levels.rows(slice(None))
    if name == "depth":
        return torch.from_numpy(values / np.float32(65535.0))
    return torch.from_numpy(2.0 * values - 1.0)


def _read(name: MapName, path: Path) -> Levels:
    """The numbers of a map, [H, W, C]; those of normals in [0, 1] once they are read as float32."""
    levels = Levels(_read_array(path), None) if path.suffix.lower() == ".npy" else decode_levels(path)
    values = levels.values
    if levels.top is not None and name == "depth" and values.ndim == 3:
        values = _grey_of(values, levels.top, path)
    elif path.suffix.lower() != ".npy" and name == "normal" and values.ndim == 2:
        raise InputError(f"a normal map must hold the colours of (n + 1) / 2, got grey levels in {path}")
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] != CHANNELS[name]:
        raise InputError(
            f"a {name} map must hold {CHANNELS[name]} number(s) a pixel, got the shape "
            f"{' x '.join(map(str, values.shape))} in {path}"
        )
    return Levels(values, levels.top if name == "normal" else None)


def _grey_of(values: Shaped[np.ndarray, "H W 3"], top: float, path: Path) -> Shaped[np.ndarray, "H W"]:
    """The grey levels of an RGB image without colours."""
    grey = values[..., 1]
    for channel in (0, 2):
        apart = np.maximum(values[..., channel], grey) - np.minimum(values[..., channel], grey)
        if apart.max() > GREY_TOLERANCE * top:
            raise InputError(
                f"a depth map must hold grey levels, not colours, got coloured pixels in {path}; give the "
                "depth itself, not an image of it in false colours"
            )
    return grey


def _read_array(path: Path) -> Shaped[np.ndarray, "..."]:
    require_small_file(path)
    with decoding(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise InputError(f"{path} must hold one array of numbers, got {getattr(array, 'dtype', 'several')}")
    return array


def _place(
    levels: Levels, framed: FramedImage, path: Path
) -> tuple[Float[np.ndarray, "S S C"], Float[np.ndarray, "S S"]]:
    """The map in the prepared square, free of values of the background, and the object's coverage."""
    alpha = np.asarray(framed.cutout.getchannel("A"), np.float32) / np.float32(255.0)
    *planes, finite = _shrink(levels, framed.cutout.size)

    def place(plane: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "S S"]:
        # BILINEAR has no negative weights: the quotients below stay between the values
        return np.asarray(framed.place(Image.fromarray(plane * alpha), Image.Resampling.BILINEAR))

    *placed, known, covered = map(place, [*planes, finite, np.ones_like(alpha)])
    if (known < 0.999 * covered)[covered > 0.5].any():
        raise InputError(f"a map must be finite all over the object, got NaN or infinity in {path}")
    return np.stack(placed, axis=-1) / np.maximum(covered, 1e-6)[..., None], covered


def _shrink(levels: Levels, size: Size) -> list[Float[np.ndarray, "h w"]]:
    """The channels at another size, with 0 where they are not finite, and the fraction that is.

    Means of blocks first, a strip of rows at a time, so that a large map is never held as float32; then a
    bilinear filter, as for the image.
    """
    height, width = levels.values.shape[:2]
    factor = max(1, min(width // size[0], height // size[1]))
    rows = max(1, _STRIP // factor) * factor
    strips = [_block_means(levels.rows(slice(top, top + rows)), factor) for top in range(0, height, rows)]
    box = (0.0, 0.0, width / factor, height / factor)
    return [
        np.asarray(Image.fromarray(np.concatenate(planes)).resize(size, Image.Resampling.BILINEAR, box=box))
        for planes in zip(*strips, strict=True)
    ]


def _block_means(values: Float[np.ndarray, "h W C"], factor: int) -> list[Float[np.ndarray, "k K"]]:
    """Block means (smaller blocks at the lower and right edge) of each channel and of the finite mask."""
    finite = np.isfinite(values).all(axis=-1)
    planes = [*np.moveaxis(np.where(finite[..., None], values, np.float32(0.0)), -1, 0), finite]
    images = (Image.fromarray(np.ascontiguousarray(plane, np.float32)) for plane in planes)
    return [np.asarray(image.reduce(factor) if factor > 1 else image) for image in images]


def _depth_levels(
    depth: Float[np.ndarray, "S S"], inside: Bool[np.ndarray, "S S"], path: Path
) -> UInt16[np.ndarray, "S S"]:
    low, high = depth[inside].min(), depth[inside].max()
    if not high - low > 1e-5 * max(abs(low), abs(high)):  # less is rounding
        raise InputError(f"a depth map must vary over the object, got {low:g} all over it in {path}")
    levels: UInt16[np.ndarray, "S S"]
    levels = np.rint(np.clip((depth - low) / (high - low), 0.0, 1.0) * 65535.0).astype(np.uint16)
    return levels


def _normal_levels(
    levels: Float[np.ndarray, "S S 3"], inside: Bool[np.ndarray, "S S"], path: Path
) -> UInt8[np.ndarray, "S S 3"]:
    low, high = levels[inside].min(), levels[inside].max()
    if low < -1e-3 or high > 1.001:
        raise InputError(
            f"a normal map must hold (n + 1) / 2, numbers in [0, 1], got {low:.3g} to {high:.3g} in {path}"
        )
    normal = 2.0 * levels - 1.0
    away = (normal[inside][:, 2] < 0).mean()
    if away > AWAY:
        raise InputError(
            "a normal map must be in camera space with x right, y up, z to the viewer, but in "
            f"{path} {away:.0%} of the object have normals with negative z"
        )
    unit = normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    encoded: UInt8[np.ndarray, "S S 3"] = np.rint((0.5 * unit + 0.5) * 255.0).astype(np.uint8)
    return encoded
