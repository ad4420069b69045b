"""The maps of a file's materials besides the base colour, prepared for the renders of a run."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pgc3d.mesh_io.colors import transformed_by_material
from pgc3d.mesh_io.source import SourceMaterial, SourceMesh, SourceSurface
from pgc3d.rendering.shading import linear_to_srgb, srgb_to_linear
from pgc3d.types import SurfaceMaps

LARGEST = 1024  # side of a map in texels
PLAIN = SourceSurface(metallic=0.0)  # of faces without a material
NAMES = ("texels", "sides", "repeats", "face_map", "uv", "uv_faces")  # in files, behind the prefix
PREFIX = "maps."


def surface_maps(source: SourceMesh) -> SurfaceMaps | None:
    """The maps of the materials that faces use; None where none has a map or an emission.

    Raises:
        InputError: an image is missing or damaged.
    """
    if source.face_material is None:
        return None
    numbers, face_map = torch.unique(source.face_material, return_inverse=True)
    used = [source.materials[number] if number >= 0 else SourceMaterial() for number in numbers.tolist()]
    if not any(material.surface is not None and material.surface.varies for material in used):
        return None
    images = [_image(material.surface or PLAIN) for material in used]
    uv, uv_faces = source.uv, source.uv_faces
    if uv is None or uv_faces is None or not len(uv):
        uv, uv_faces = torch.zeros(1, 2), torch.zeros_like(source.faces)
    uv, uv_faces = transformed_by_material(uv, uv_faces.clamp_min(0), face_map, used)
    return SurfaceMaps(
        torch.cat([image.flatten(0, 1) for image in images]),
        torch.tensor([len(image) for image in images]),
        torch.tensor([material.wrap != ("clamp", "clamp") for material in used]),
        face_map,
        uv.float().nan_to_num(),
        uv_faces,
    )


def _image(surface: SourceSurface) -> Tensor:
    """All maps of a material as one image [S, S, 8] of bytes."""
    loads = surface.load_surface, surface.load_occlusion, surface.load_emission, surface.load_normal
    opened = [None if load is None else load() for load in loads]
    largest = max([1, *(max(image.size) for image in opened if image is not None)])
    side = min(1 << (largest - 1).bit_length(), LARGEST)
    rough, occlusion, emission, normal = (_pixels(image, side) for image in opened)
    factors = torch.tensor([surface.roughness, surface.metallic])
    strength = surface.occlusion_strength
    light = srgb_to_linear(emission) * torch.tensor(surface.emission)
    parts = [
        rough[..., 1:] * factors,
        1.0 + strength * (occlusion[..., :1] - 1.0),
        linear_to_srgb(light.clamp(0.0, 1.0)),
        torch.full((side, side, 2), 0.5),
    ]
    if surface.load_normal is not None:
        parts[-1] = 0.5 + surface.normal_scale * (normal[..., :2] - 0.5)
    return (255 * torch.cat(parts, dim=-1)).round().clamp(0, 255).to(torch.uint8)


def _pixels(image: Image.Image | None, side: int) -> Tensor:
    """An image [S, S, 3] in [0, 1], white where there is none."""
    if image is None:
        return torch.ones(side, side, 3)
    resized = image.convert("RGB").resize((side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255)


def maps_as_tensors(maps: SurfaceMaps | None) -> dict[str, Tensor]:
    """The tensors of a file with the maps."""
    return {} if maps is None else {PREFIX + name: getattr(maps, name) for name in NAMES}


def stored_maps(tensors: Mapping[str, Tensor], faces: int) -> SurfaceMaps | None:
    """The maps in an untrusted file, None where it has none.

    Raises:
        ValueError: they do not fit the faces.
        KeyError: one is missing.
    """
    if PREFIX + "texels" not in tensors:
        return None
    maps = SurfaceMaps(*(tensors[PREFIX + name] for name in NAMES))
    sides = maps.sides
    checks: Mapping[str, Callable[[], bool]] = {
        "sides": lambda: (
            sides.dtype == torch.int64 and bool(((sides > 0) & (sides & (sides - 1) == 0)).all())
        ),
        "texels": lambda: (
            maps.texels.dtype == torch.uint8 and maps.texels.shape == (int((sides * sides).sum()), 8)
        ),
        "repeats": lambda: maps.repeats.dtype == torch.bool and maps.repeats.shape == sides.shape,
        "face_map": lambda: _indices(maps.face_map, (faces,), len(sides)),
        "uv_faces": lambda: _indices(maps.uv_faces, (faces, 3), len(maps.uv)),
        "uv": lambda: maps.uv.ndim == 2 and maps.uv.shape[1] == 2 and bool(maps.uv.isfinite().all()),
    }
    for name, check in checks.items():
        if not check():
            raise ValueError(f"{PREFIX}{name} must fit the faces and the other maps")
    return maps


def _indices(values: Tensor, shape: tuple[int, ...], count: int) -> bool:
    right = values.shape == shape and values.dtype == torch.int64
    return right and 0 <= int(values.min()) <= int(values.max()) < count
