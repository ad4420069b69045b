"""The result of a reader: the surface of a mesh file, its colours, and contents that a copy lacks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from pgc3d.types import FaceLabels


@dataclass(frozen=True)
class SourceMaterial:
    """Base colour of a group of faces: sRGB `color`, times, in linear light, the image where there is one.

    `load_image` opens the image only when it is called, so that a reader of surfaces opens none; it raises
    InputError where the image is missing, damaged or outside the mesh file's folder.
    """

    name: str = ""
    color: Float[Tensor, " 4"] = torch.ones(4)  # noqa: RUF009 - sRGB and alpha in [0, 1]
    load_image: Callable[[], Image.Image] | None = None
    wrap: tuple[str, str] = ("repeat", "repeat")  # of u and v: repeat, clamp or mirror
    uv_transform: Float[Tensor, "2 3"] | None = None  # of texture coordinates before the look-up
    load_surface: Callable[[], Image.Image] | None = None  # roughness in G, metallic in B, as in glTF
    load_normal: Callable[[], Image.Image] | None = None  # tangent-space normals, +y along +v
    image_key: str = ""  # the same for materials of a file with the same image; empty where there is none


@dataclass(frozen=True)
class SourceMesh:
    """A mesh as stored in its file: vertices are not welded, dropped or moved, images not opened.

    `colored` makes a `MeshAsset` of it and `prepare_mesh_file` a `PreparedMesh`, in which nothing is missing.
    Positions, normals and texture coordinates are indexed independently of each other. (0, 0) of the texture
    coordinates is the lower left of the image. They may repeat or leave the unit square.
    """

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    normals: Float[Tensor, "N 3"] | None = None  # unit, outward; 0 where the file has none that can be used
    normal_faces: Int[Tensor, "F 3"] | None = None  # -1 where a corner has no normal
    uv: Float[Tensor, "U 2"] | None = None
    uv_faces: Int[Tensor, "F 3"] | None = None  # -1 where a corner has no texture coordinates
    vertex_color: Float[Tensor, "V 4"] | None = None  # sRGB and alpha in [0, 1]
    face_material: Int[Tensor, " F"] | None = None  # index into `materials`, -1 where a face names none
    materials: tuple[SourceMaterial, ...] = ()
    notes: tuple[str, ...] = ()  # lines about skipped contents of the file, shown before a run
    lost: tuple[str, ...] = ()  # noun phrases of contents that a textured copy lacks, as "2 animations"
    face_part: Int[Tensor, " F"] | None = None  # the part of the file that a face belongs to, from 0 on
    linear_colors: bool = False  # vertex colours are mixed in linear light between vertices, as in glTF
    labels: FaceLabels | None = None  # None where the format has neither nodes nor materials
    # For each corner, as 3 * face + corner, that of the first instance of the same part of the file, with the
    # same texture coordinates; None where nothing is instanced.
    first_corners: Int[Tensor, "F 3"] | None = None
