"""New images for the faces of a mesh file that otherwise comes back as it is."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

TOLERANCE = 1e-5  # of texture coordinates, a twelfth of a texel of 8192


@dataclass(frozen=True)
class MaterialImages:
    """The images of a textured material; those that are None stay as the file has them."""

    base_color: UInt8[Tensor, "H W C"]  # sRGB, with alpha where C is 4
    metallic_roughness: UInt8[Tensor, "R S 3"] | None = None  # linear: 255, roughness, metallic, as in glTF
    normal_map: UInt8[Tensor, "J K 3"] | None = None  # linear: tangent-space normals (n + 1) / 2, +y along +v
    wrap: tuple[str, str] = ("clamp", "clamp")  # of u and v: repeat, clamp or mirror


@dataclass(frozen=True)
class Repainting:
    """Images and texture coordinates for faces in the order of the file's `SourceMesh`."""

    images: tuple[MaterialImages, ...]
    face_images: Int[Tensor, " F"]  # index in `images`, -1 for a face that stays as it is
    uv: Float[Tensor, "U 2"]  # (0, 0) is the lower left of the image
    uv_faces: Int[Tensor, "F 3"]

    @classmethod
    def of_all(
        cls, images: MaterialImages, uv: Float[Tensor, "U 2"], uv_faces: Int[Tensor, "F 3"]
    ) -> "Repainting":
        """The same images for all faces."""
        return cls((images,), torch.zeros_like(uv_faces[:, 0]), uv, uv_faces)


@dataclass(frozen=True)
class Split:
    """Vertices with one texture coordinate each: the old ones in their order, then copies of some of them."""

    source: Int[np.ndarray, " N"]  # the old vertex of each new one
    uv: Float[np.ndarray, "N 2"]  # 0 for vertices of no face
    faces: Int[np.ndarray, "F 3"]
    copies: int


def split_vertices(faces: Int[np.ndarray, "F 3"], uv: Float[np.ndarray, "F 3 2"], vertices: int) -> Split:
    """Vertices copied where the corners of faces at them have different texture coordinates.

    Args:
        faces: of vertices.
        uv: of their corners.
        vertices: their number.
    """
    corner, single = faces.reshape(-1), np.ascontiguousarray(uv.reshape(-1, 2), dtype=np.float32) + 0.0
    keys = np.stack([corner, *single.view(np.int32).T.astype(np.int64)], axis=1)
    unique, index = np.unique(keys, axis=0, return_inverse=True)
    again = np.r_[False, unique[1:, 0] == unique[:-1, 0]]
    place = np.where(again, vertices + np.cumsum(again) - 1, unique[:, 0])
    source = np.concatenate([np.arange(vertices), unique[again, 0]])
    values = np.zeros((len(source), 2), dtype=np.float32)
    values[place] = np.ascontiguousarray(unique[:, 1:].astype(np.int32)).view(np.float32)
    return Split(source, values, place[index.reshape(-1)].reshape(-1, 3), int(again.sum()))


def shift_between(known: Float[np.ndarray, "*N 2"], wanted: Float[np.ndarray, "*N 2"]) -> bool | None:
    """Whether texture coordinates differ by whole repeats of the image; None where they differ by more."""
    difference = wanted - known
    repeats = np.round(difference)
    same = bool(np.abs(difference - repeats).max(initial=0.0) < TOLERANCE)  # False for NaN
    return bool(repeats.any()) if same else None
