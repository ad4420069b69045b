"""The mesh of a written or read file, with its colours."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class AssetMaterial:
    """The surface of some faces; its base colour is sRGB `color` times, in linear light, the image."""

    color: Float[Tensor, " 3"]  # in [0, 1]
    image: UInt8[Tensor, "H W 3"] | None = None  # sRGB
    wrap: tuple[str, str] = ("repeat", "repeat")  # of u and v: repeat, clamp or mirror
    name: str = ""
    metallic_roughness: UInt8[Tensor, "R S 3"] | None = None  # linear: 255, roughness, metallic, as in glTF
    normal_map: UInt8[Tensor, "J K 3"] | None = None  # linear: tangent-space normals (n + 1) / 2, +y along +v

    def to(self, device: torch.device | str) -> "AssetMaterial":
        """The same material on another device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


@dataclass(frozen=True)
class MeshAsset:
    """A mesh with its colours, to be written or to be compared, in the world's axes or a given mesh's.

    In contrast to a `SourceMesh`, its images are pixels and its indices are all valid.
    The normals belong to the vertices, or to the corners of the faces through `normal_faces`.
    `uv`, `uv_faces` and `base_color` are there together or not at all. (0, 0) is the lower left of the image,
    whose row 0 is on top. A PLY file carries `vertex_color` instead, an STL file neither. There may be
    several `materials` in place of `base_color`, indexed by `face_material` (-1 is white); in files of other
    programs they are multiplied with the vertex colours in linear light.
    """

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    normals: Float[Tensor, "N 3"]  # unit, outward
    uv: Float[Tensor, "U 2"] | None = None
    uv_faces: Int[Tensor, "F 3"] | None = None
    base_color: UInt8[Tensor, "H W 3"] | None = None  # sRGB
    metallic_roughness: UInt8[Tensor, "R S 3"] | None = None  # linear: 255, roughness, metallic, as in glTF
    normal_map: UInt8[Tensor, "J K 3"] | None = None  # linear: tangent-space normals (n + 1) / 2, +y along +v
    tangents: Float[Tensor, "U 4"] | None = None  # of the texture coordinates, see `corner_tangents`
    vertex_color: UInt8[Tensor, "C 3"] | None = None  # sRGB
    normal_faces: Int[Tensor, "F 3"] | None = None
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)
    wrap: tuple[str, str] = ("clamp", "clamp")  # of the image, in u and v: repeat, clamp or mirror
    color_faces: Int[Tensor, "F 3"] | None = None  # the faces' corners in `vertex_color`, `faces` when None
    linear_colors: bool = False  # vertex colours are interpolated in linear light
    materials: tuple[AssetMaterial, ...] = ()
    face_material: Int[Tensor, " F"] | None = None

    def to(self, device: torch.device | str) -> "MeshAsset":
        """The same surface on another device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        materials = tuple(material.to(device) for material in self.materials)
        return replace(self, materials=materials, **tensors)

    @property
    def bare(self) -> bool:
        """Whether there are no colours at all."""
        return self.base_color is None and self.vertex_color is None and not self.materials

    @property
    def surfaces(self) -> tuple[AssetMaterial, ...]:
        """The materials with images, or the one that `base_color` makes; `face_surface` indexes them."""
        if self.base_color is None:
            return self.materials
        whole = AssetMaterial(
            torch.ones(3), self.base_color, self.wrap, "surface", self.metallic_roughness, self.normal_map
        )
        return (whole,)

    @property
    def face_surface(self) -> Int[Tensor, " F"]:
        """The entry of `surfaces` of each face."""
        if self.base_color is None and self.face_material is not None:
            return self.face_material
        return torch.zeros_like(self.faces[:, 0])

    @property
    def normals_of_corners(self) -> Int[Tensor, "F 3"]:
        """The faces' corners in `normals`."""
        return self.faces if self.normal_faces is None else self.normal_faces

    def __post_init__(self) -> None:
        if self.normal_faces is None and len(self.normals) != len(self.vertices):
            raise ValueError(
                "normals must be one for each vertex, or come with normal_faces, got other numbers"
            )
        own = self.vertices if self.vertex_color is None else self.vertex_color
        if self.color_faces is None and len(own) != len(self.vertices):
            raise ValueError(
                "vertex colours must be one for each vertex, or come with color_faces, got other numbers"
            )
        present = [part is not None for part in (self.uv, self.uv_faces, self.base_color)]
        if any(present) and not all(present) and not self.materials:
            raise ValueError("uv, uv_faces and base_color must be given together, got some of them")
        for name in ("metallic_roughness", "normal_map"):
            if getattr(self, name) is not None and self.base_color is None:
                raise ValueError(f"an asset with {name} must have uv, uv_faces and base_color, got none")
        if self.tangents is not None and (self.uv is None or len(self.tangents) != len(self.uv)):
            raise ValueError("tangents must be one for each texture coordinate, got another number")
        if self.materials and self.face_material is None:
            raise ValueError("an asset with materials must have face_material, got none")
