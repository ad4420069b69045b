"""Conversion of a source mesh to a mesh asset with its base colours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.geometry.normals import vertex_normals_or_z
from pgc3d.images import to_bytes
from pgc3d.mesh_io.asset import AssetMaterial, MeshAsset
from pgc3d.mesh_io.source import SourceMaterial, SourceMesh
from pgc3d.rendering.shading import linear_to_srgb, srgb_to_linear

WHITE = 0.999  # of colours that change nothing


def colored(source: SourceMesh, metadata: Mapping[str, str | int | float] | None = None) -> MeshAsset:
    """The asset of a source mesh with welded vertices; its images are opened here.

    Raises:
        InputError: an image is missing, damaged or outside the folder.
    """
    vertices, faces, first = weld(source.vertices, source.faces)
    normals, normal_faces = _normals(source, vertices, faces)
    bare = MeshAsset(
        vertices=vertices,
        faces=faces,
        normals=normals,
        normal_faces=normal_faces,
        metadata=dict(metadata or {}),
    )
    tinted = _tinted(bare, source, first)
    if source.face_material is None or not bool((source.face_material >= 0).any()):
        return tinted
    looks = _Looks(source)
    used = looks.used
    image = looks.image(used[0].load_image) if len(used) == 1 else None
    plain = tinted.vertex_color is None
    if len(used) == 1 and image is not None and plain and looks.complete:
        return _with_image(tinted, source, used[0], image, looks)
    if len({tuple(look.color.tolist()) for look in used}) == 1 and not any(look.load_image for look in used):
        color = used[0].color[:3]
        if bool((color > WHITE).all()) and not plain:
            return tinted
        if plain:
            return replace(tinted, vertex_color=_to_bytes(color).expand(len(vertices), 3).clone())
    return _with_materials(tinted, source, looks)


def weld(
    vertices: Float[Tensor, "N 3"], faces: Int[Tensor, "F 3"]
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"], Int[Tensor, " V"]]:
    """Welded vertices, the faces that index them, and the first old vertex of each new one."""
    _, first, index = np.unique(vertices.numpy(), axis=0, return_index=True, return_inverse=True)
    order = torch.from_numpy(first)
    return vertices[order], torch.from_numpy(index.reshape(-1))[faces], order


def _normals(source: SourceMesh, vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor | None]:
    """The file's normals, or smooth ones where they are not usable."""
    smooth = vertex_normals_or_z(vertices.double(), faces).float()
    if source.normals is None or source.normal_faces is None:
        return smooth, None
    usable = (source.normals.norm(dim=1) > 0.5)[source.normal_faces.clamp_min(0)]
    known = (source.normal_faces >= 0) & usable
    if bool(known.all()):
        return source.normals, source.normal_faces
    both = torch.cat([source.normals, smooth])
    return both, torch.where(known, source.normal_faces, faces + len(source.normals))


def _tinted(bare: MeshAsset, source: SourceMesh, first: Tensor) -> MeshAsset:
    """The asset with vertex colours, unless there are materials and all vertex colours are white."""
    if source.vertex_color is None:
        return bare
    colors = source.vertex_color[:, :3]
    if source.materials and bool((colors > WHITE).all()):
        return bare
    stored = _to_bytes(colors)
    welded_faces, linear = stored[first], source.linear_colors
    if torch.equal(welded_faces[bare.faces], stored[source.faces]):
        return replace(bare, vertex_color=welded_faces, linear_colors=linear)
    return replace(bare, vertex_color=stored, color_faces=source.faces, linear_colors=linear)


@dataclass(frozen=True)
class _Looks:
    """The materials that the faces of a mesh use, and their images, each opened once."""

    source: SourceMesh
    opened: dict[int, tuple[Image.Image, UInt8[Tensor, "H W 3"]]] = field(default_factory=dict)

    @property
    def used(self) -> list[SourceMaterial]:
        """The materials in the order of their indices; faces without a material are white."""
        if self.source.face_material is None:
            return []
        numbers = torch.unique(self.source.face_material).tolist()
        return [SourceMaterial() if number < 0 else self.source.materials[number] for number in numbers]

    @property
    def complete(self) -> bool:
        """Whether all corners have texture coordinates."""
        return self.source.uv_faces is not None and bool((self.source.uv_faces >= 0).all())

    def image(self, load: Callable[[], Image.Image] | None) -> UInt8[Tensor, "H W 3"] | None:
        """The pixels of an image; several materials may share one."""
        if load is None:
            return None
        image = load()
        if id(image) not in self.opened:
            self.opened[id(image)] = (image, _pixels(image))
        return self.opened[id(image)][1]


def _pixels(image: Image.Image) -> UInt8[Tensor, "H W 3"]:
    if image.mode.startswith("I;16"):
        high: NDArray[np.uint8] = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return torch.from_numpy(np.repeat(high[..., None], 3, axis=2))
    pixels: NDArray[np.uint8] = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels)


def _with_image(
    bare: MeshAsset, source: SourceMesh, look: SourceMaterial, image: Tensor, looks: _Looks
) -> MeshAsset:
    """One material with an image for all faces."""
    if source.uv is None or source.uv_faces is None:
        raise ValueError("a material with an image must have texture coordinates, got none")
    if bool((look.color[:3] < WHITE).any()):
        light = srgb_to_linear(image.float() / 255) * srgb_to_linear(look.color[:3])
        image = to_bytes(linear_to_srgb(light))
    return replace(
        bare,
        uv=transformed(source.uv, look),
        uv_faces=source.uv_faces,
        base_color=image,
        metallic_roughness=looks.image(look.load_surface),
        normal_map=looks.image(look.load_normal),
        wrap=_wrap(transformed(source.uv, look)[source.uv_faces], look),
    )


def _with_materials(tinted: MeshAsset, source: SourceMesh, looks: _Looks) -> MeshAsset:
    """Several materials; a face without texture coordinates has its material's colour without the image."""
    if source.face_material is None:
        raise ValueError("the mesh must have materials, got none")
    numbers = torch.unique(source.face_material).tolist()
    materials: list[AssetMaterial] = []
    face_material = torch.full_like(source.face_material, -1)
    uv_faces = torch.zeros_like(source.faces)
    uv: list[Tensor] = []
    start = 0
    for number, look in zip(numbers, looks.used, strict=True):
        rows = (source.face_material == number).nonzero()[:, 0]
        image = looks.image(look.load_image)
        plain = rows
        if image is not None and source.uv is not None and source.uv_faces is not None:
            known = (source.uv_faces[rows] >= 0).all(dim=1)
            face_material[rows[known]] = len(materials)
            uv_faces[rows[known]] = source.uv_faces[rows[known]] + start
            uv.append(transformed(source.uv, look))
            start += len(source.uv)
            wrap = _wrap(uv[-1][source.uv_faces[rows[known]]], look)
            surface, normals = looks.image(look.load_surface), looks.image(look.load_normal)
            materials.append(AssetMaterial(look.color[:3], image, wrap, look.name, surface, normals))
            plain = rows[~known]
        if len(plain):
            face_material[plain] = len(materials)
            materials.append(AssetMaterial(look.color[:3], name=look.name))
    if not uv:
        return replace(tinted, materials=tuple(materials), face_material=face_material)
    return replace(
        tinted,
        uv=torch.cat(uv),
        uv_faces=uv_faces,
        materials=tuple(materials),
        face_material=face_material,
    )


def alpha_channel(material: SourceMaterial) -> Image.Image | None:
    """The alpha channel of a material's image; None where it is not used, opaque, or cannot be read."""
    load = material.load_alpha or material.load_image
    if material.alpha == "OPAQUE" or load is None:
        return None
    try:
        image = load()
    except InputError:
        return None
    if load is material.load_alpha and image.mode in ("L", "RGB"):
        return image.convert("L")
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return None
    channel = image.convert("RGBA").getchannel("A")
    return None if channel.getextrema() == (255, 255) else channel


def transformed(uv: Float[Tensor, "U 2"], look: SourceMaterial) -> Float[Tensor, "U 2"]:
    """Texture coordinates as a material's image is looked up with."""
    if look.uv_transform is None:
        return uv
    return (uv.double() @ look.uv_transform[:, :2].double().T + look.uv_transform[:, 2].double()).to(uv.dtype)


def transformed_by_material(
    uv: Float[Tensor, "U 2"],
    uv_faces: Int[Tensor, "F 3"],
    face_material: Int[Tensor, " F"],
    materials: Sequence[SourceMaterial],
) -> tuple[Float[Tensor, "N 2"], Int[Tensor, "F 3"]]:
    """Texture coordinates as the images of the faces' materials are looked up with, and their faces.

    Faces without a material, -1, keep theirs.
    """
    keys = torch.stack([uv_faces, face_material[:, None].expand(-1, 3)], dim=-1).reshape(-1, 2)
    unique, index = torch.unique(keys, dim=0, return_inverse=True)
    moved = uv[unique[:, 0]]
    for number, material in enumerate(materials):
        if material.uv_transform is not None:
            rows = unique[:, 1] == number
            moved[rows] = transformed(moved[rows], material)
    return moved, index.reshape(-1, 3)


def _wrap(uv: Float[Tensor, "F 3 2"], look: SourceMaterial) -> tuple[str, str]:
    """The wrap mode of an image; "clamp" where no face leaves it, so that opposite sides do not blend."""
    inside = bool(((uv >= 0) & (uv <= 1)).all())
    return ("clamp", "clamp") if inside else look.wrap


def _to_bytes(colors: Float[Tensor, "*N 3"]) -> UInt8[Tensor, "*N 3"]:
    return (255 * colors).round().clamp(0, 255).to(torch.uint8)
