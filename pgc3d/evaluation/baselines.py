"""Baselines without a learnt prior: the silhouette of an input image, extruded along the viewing rays."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgc3d.choices import Baseline
from pgc3d.errors import InputError
from pgc3d.geometry.normals import vertex_normals
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.rendering.shading import irradiance, key_direction, linear_to_srgb, srgb_to_linear
from pgc3d.types import Cameras

CELLS = 128  # of the silhouette's grid along a side
BILLBOARD_DEPTH = 0.04  # radii


def read_rgba(path: Path) -> Float[Tensor, "H W 4"]:
    """A square RGBA image in [0, 1]; its alpha is the object's silhouette.

    Raises:
        InputError: it cannot be read, is not square, has no alpha, or shows nothing.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            if file.mode != "RGBA" or file.width != file.height:
                raise InputError(
                    f"{path} must be a square RGBA image, got {file.mode}, {file.width} x {file.height}"
                )
            image = torch.from_numpy(np.array(file)).float() / 255
    except (OSError, ValueError) as error:
        raise InputError(f"{path} must be a readable image, got: {error}") from error
    if not bool((image[..., 3] > 0.5).any()):
        raise InputError(f"{path} must show an object, but it is transparent everywhere")
    return image


def extrude(image: Float[Tensor, "H W 4"], camera: Cameras, baseline: Baseline) -> MeshAsset:
    """A closed textured mesh whose view from the image's camera is the image.

    The silhouette's cone is cut off in front of and behind the plane through the origin. `billboard` is a
    thin sheet; `hull` is as deep as the silhouette's shorter side and lies within the smallest ball around
    the origin that holds the silhouette: the visual hull of one view, bounded by that ball. The shading of a
    surface that faces the camera is divided out of the colours, since renders of the mesh are shaded again.

    Args:
        image: RGBA in [0, 1], straight alpha.
        camera: of the image, one view.
        baseline: "billboard" or "hull".
    """
    inside = _silhouette(image[..., 3])
    scale = float(camera.distance / camera.clip_from_camera[0, 1, 1])  # half the image's side at the origin
    spans = [part.nonzero() for part in (inside.any(0), inside.any(1))]
    sides = [float(span[-1] - span[0] + 1) / CELLS * 2 * scale for span in spans]
    deepest = BILLBOARD_DEPTH if baseline == "billboard" else min(sides)
    grid, faces = _prism(inside)
    column, row = 2 * grid[:, 0] / CELLS - 1, 1 - 2 * grid[:, 1] / CELLS
    distance = camera.distance
    slope = scale * (column**2 + row**2).sqrt() / distance  # of the line of sight, against the axis
    middle = slope**2 * distance / (1 + slope**2)  # of its chord in the ball, along the axis
    ball = (slope * distance / (1 + slope**2).sqrt()).max()  # its radius
    chord = (ball**2 - slope**2 * (distance**2 - ball**2)).clamp(min=0).sqrt() / (1 + slope**2)  # half of it
    along = torch.where(grid[:, 2] > 0, -deepest / 2, deepest / 2)  # towards the camera
    along = along.clamp(middle - chord, middle + chord)
    spread = scale * (1 - along / distance)
    x, y = column * spread, row * spread
    rotation = camera.camera_from_world[0, :3, :3]
    vertices = torch.stack([x, y, along], dim=1) @ rotation  # the viewing axis passes through the origin
    return MeshAsset(
        vertices=vertices,
        faces=faces,
        normals=vertex_normals(vertices, faces),
        uv=torch.stack([grid[:, 0] / CELLS, 1 - grid[:, 1] / CELLS], dim=1),
        uv_faces=faces,
        base_color=_unlit(image, camera),
    )


def _silhouette(alpha: Float[Tensor, "H W"]) -> Bool[Tensor, "N N"]:
    size = (CELLS, CELLS)
    small = torch.nn.functional.interpolate(alpha[None, None], size=size, mode="area")[0, 0]
    inside = small > 0.5
    return inside if bool(inside.any()) else small >= small.max()  # something thinner than a cell


def _prism(inside: Bool[Tensor, "N N"]) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """Closed surface over grid cells: vertices are (column, row, 0 in front or 1 behind)."""
    row, column = inside.nonzero().unbind(1)
    front = _quads(row, column, [(0, 0), (1, 0), (1, 1), (0, 1)], depth=(0, 0, 0, 0))
    back = _quads(row, column, [(0, 0), (0, 1), (1, 1), (1, 0)], depth=(1, 1, 1, 1))
    padded = torch.nn.functional.pad(inside, (1, 1, 1, 1))
    walls = []
    # the two corners (row, column) of a cell's side, so that its wall faces outwards
    for step, ends in (
        ((-1, 0), [(0, 1), (0, 0)]), ((1, 0), [(1, 0), (1, 1)]),
        ((0, -1), [(0, 0), (1, 0)]), ((0, 1), [(1, 1), (0, 1)]),
    ):  # fmt: skip
        open_side = ~padded[row + 1 + step[0], column + 1 + step[1]]
        corners = [ends[0], ends[0], ends[1], ends[1]]
        walls.append(_quads(row[open_side], column[open_side], corners, depth=(0, 1, 1, 0)))
    quads = torch.cat([front, back, *walls])  # [Q, 4, 3]
    faces = torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).reshape(-1, 3)
    vertices, index = torch.unique(faces, dim=0, return_inverse=True)
    return vertices.float(), index.reshape(-1, 3)


def _quads(
    row: Tensor, column: Tensor, corners: list[tuple[int, int]], *, depth: tuple[int, ...]
) -> Int[Tensor, "Q 4 3"]:
    points = [
        torch.stack([column + dc, row + dr, torch.full_like(row, d)], dim=1)
        for (dr, dc), d in zip(corners, depth, strict=True)
    ]
    return torch.stack(points, dim=1)


def _unlit(image: Tensor, camera: Cameras) -> Tensor:
    """Base colour of the image without shading; outside the silhouette the mean colour, for filtering."""
    alpha = image[..., 3:]
    mean = (image[..., :3] * alpha).sum((0, 1)) / alpha.sum()
    color = torch.where(alpha > 0.5, image[..., :3], mean)
    light = irradiance(camera.camera_from_world[:, 2, :3], key_direction(camera))
    base = linear_to_srgb((srgb_to_linear(color) / light).clamp(0, 1))
    return (base * 255).round().to(torch.uint8)
