"""Export into the document that the mesh came from: the same file, with new images of its materials."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from pgc3d.disk import write_files
from pgc3d.exporting.bake import fill
from pgc3d.exporting.placing import Placing
from pgc3d.geometry.own_uv import draw_atlas
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.bundle import document_format, opened_document
from pgc3d.mesh_io.colors import alpha_channel, transformed
from pgc3d.mesh_io.gltf_repaint import repaint_gltf
from pgc3d.mesh_io.obj_repaint import moved_obj, repaint_obj
from pgc3d.mesh_io.reader import read_source
from pgc3d.mesh_io.repaint import MaterialImages, Repainting
from pgc3d.mesh_io.source import SourceMesh
from pgc3d.rendering.mesh_renderer import sample_texture
from pgc3d.types import PreparedMesh


def write_document(
    archive: Path,
    path: Path,
    prepared: PreparedMesh,
    images: Sequence[MaterialImages],
    *,
    rasterizer: Rasterizer,
    metadata: Mapping[str, str | int | float] | None = None,
    placing: Placing | None = None,
) -> list[Path]:
    """Write a document with new images on all its faces; the written files, the mesh first.

    Args:
        archive: of `pack_document`.
        path: the file to write, of the document's format.
        prepared: the mesh that was made from the document.
        images: of its texture sets.
        rasterizer: on the CPU or the device of its tensors, for the alpha channel.
        metadata: for example prompt and seed.
        placing: of the whole document, which stays where it is when None.

    Raises:
        RunDirectoryError: the archive is missing or damaged.
        InputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    with opened_document(archive) as source:
        mesh = read_source(source)
        shown = tuple(
            _with_alpha(image, mesh, prepared, index, rasterizer) for index, image in enumerate(images)
        )
        repainting = Repainting(shown, _painted(prepared), prepared.uv.cpu(), prepared.uv_faces.cpu())
        if document_format(source) == "glb":
            matrix = None if placing is None else placing.matrix
            contents = {path: repaint_gltf(source, repainting, metadata, matrix)}
        else:
            contents = repaint_obj(source, path, repainting, metadata)
            if placing is not None:
                contents[path] = moved_obj(contents[path], placing.matrix, placing.rotation)
    write_files(contents)
    return [path, *(file for file in contents if file != path)]


def _painted(prepared: PreparedMesh) -> Int[Tensor, " F"]:
    """The texture set of each face, -1 where it keeps its own look."""
    if prepared.kept is None:
        return prepared.face_set.cpu()
    return torch.where(prepared.kept, -1, prepared.face_set).cpu()


def _with_alpha(
    images: MaterialImages, source: SourceMesh, prepared: PreparedMesh, index: int, rasterizer: Rasterizer
) -> MaterialImages:
    """The images with the alpha channel of the file's own ones in the base colour, where it is used."""
    size = len(images.base_color)
    alpha = baked_alpha(source, prepared, index, size, rasterizer)
    if alpha is None:
        return images
    channel = (255 * alpha.clamp(0, 1)).round().to(torch.uint8)[..., None].cpu()
    return replace(images, base_color=torch.cat([images.base_color, channel], dim=2))


def baked_alpha(
    source: SourceMesh, prepared: PreparedMesh, index: int, size: int, rasterizer: Rasterizer
) -> Float[Tensor, "S S"] | None:
    """The alpha channel of a document's base colours in the image of a texture set; None without one."""
    if source.uv is None or source.uv_faces is None or source.face_material is None:
        return None
    faces, device = prepared.faces_of(index), prepared.uv.device
    own = source.face_material[faces.cpu()]
    channels = _alpha_channels(source, own)
    if not channels:
        return None
    drawn = draw_atlas(prepared.uv, prepared.uv_faces[faces], size, rasterizer)
    triangle = drawn.triangle[0].flatten()
    covered = triangle >= 0
    owner, alpha = (
        own.to(device)[triangle[covered]],
        torch.ones(size * size, 1, device=device),
    )
    texel, uv_faces = covered.nonzero()[:, 0], source.uv_faces.to(device)[faces].clamp_min(0)
    for number, channel in channels.items():
        rows, material = texel[owner == number], source.materials[number]
        uv = rasterizer.interpolate(transformed(source.uv, material).to(device)[None], drawn, uv_faces)
        small = channel.reduce(max(1, min(channel.size) // size))
        levels = torch.from_numpy(np.array(small, dtype=np.float32))[..., None].to(device) / 255
        alpha[rows] = sample_texture(levels, uv[0].flatten(0, 1)[rows], material.wrap)
    return fill(alpha.view(size, size, 1), covered.view(size, size))[..., 0]


def _alpha_channels(source: SourceMesh, of_face: Int[Tensor, " R"]) -> dict[int, Image.Image]:
    """The alpha channels of materials that some faces use, by their index, where they are not opaque."""
    used = torch.unique(of_face).tolist()
    found = {index: alpha_channel(source.materials[index]) for index in used if index >= 0}
    return {index: channel for index, channel in found.items() if channel is not None}
