"""Whether the mesh of an asset is sound: components, holes, edges, texture coordinates and texel density."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgc3d.evaluation.wholeness import boundary_loops, welded, wholeness
from pgc3d.geometry.components import components
from pgc3d.geometry.normals import face_vectors
from pgc3d.geometry.own_uv import chart_areas, uv_error, uv_overlap
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.asset import AssetMaterial, MeshAsset

PERCENTILES = (0.05, 0.5, 0.95)  # of the texel density, over the surface


@dataclass(frozen=True)
class SurfaceHealth:
    """The texture coordinates of the faces of one material; values are None where they cannot be measured."""

    name: str
    triangles: int
    image: tuple[int, int] | None  # width and height of the base colour in texels
    coordinates: str  # "usable", or the reason why a texture cannot have one texel for each point
    overlap: float | None  # fraction of the charts' area that lies below other charts
    used: float | None  # sum of the charts' areas as a fraction of the image
    density: tuple[float, ...] | None  # texels per unit of length, at `PERCENTILES` of the surface


@dataclass(frozen=True)
class MeshHealth:
    """A mesh whose vertices at one position are one vertex."""

    vertices: int
    triangles: int
    size: tuple[float, float, float]  # extent along x, y and z in the file's unit
    components: int  # with at least 1 % of the area
    fragments: int  # components with less
    handles: int
    voids: int
    holes: int  # loops of edges with one face
    open_edges: int  # with one face
    crowded_edges: int  # with three or more faces
    turned_edges: int  # with two faces of opposite winding
    degenerate: int  # faces with fewer than three different vertices
    largest: float  # fraction of the area that the largest component has
    surfaces: tuple[SurfaceHealth, ...]

    @property
    def manifold(self) -> bool:
        """Whether no edge has three or more faces and neighbours have the same winding."""
        return not self.crowded_edges and not self.turned_edges

    @property
    def closed(self) -> bool:
        """Whether every edge has two faces or more."""
        return not self.open_edges


def measure_mesh(asset: MeshAsset, *, rasterizer: Rasterizer) -> MeshHealth:
    """Measure a mesh.

    Args:
        asset: on the CPU.
        rasterizer: on the CPU, to find overlapping charts.

    Raises:
        ValueError: every face is degenerate.
    """
    points, corners = welded(asset.vertices, asset.faces)
    whole = wholeness(asset.vertices, asset.faces)
    single, crowded, turned = _edges(corners)
    parts = len(np.unique(components(corners, len(points))[corners[:, 0]]))
    used = points[np.unique(corners)]
    x, y, z = (float(side) for side in np.ptp(used, axis=0))
    return MeshHealth(
        vertices=len(used),
        triangles=len(asset.faces),
        size=(x, y, z),
        components=whole.components,
        fragments=parts - whole.components - whole.voids,
        handles=whole.handles,
        voids=whole.voids,
        holes=boundary_loops(single),
        open_edges=len(single),
        crowded_edges=crowded,
        turned_edges=turned,
        degenerate=len(asset.faces) - len(corners),
        largest=whole.largest,
        surfaces=_surfaces(asset, rasterizer),
    )


def _edges(
    corners: Int[np.ndarray, "F 3"],
) -> tuple[Int[np.ndarray, "E 2"], int, int]:
    """The edges with one face, and the numbers of those with more than two and of opposite winding."""
    directed = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    sides = np.sort(directed, axis=1)
    edges, owner, uses = np.unique(sides, axis=0, return_inverse=True, return_counts=True)
    upwards = np.bincount(owner.reshape(-1), directed[:, 0] < directed[:, 1], len(edges))
    return edges[uses == 1], int((uses > 2).sum()), int(((uses == 2) & (upwards != 1)).sum())


def _surfaces(asset: MeshAsset, rasterizer: Rasterizer) -> tuple[SurfaceHealth, ...]:
    if asset.uv is None or asset.uv_faces is None:
        return ()
    of_face, found = asset.face_surface, []
    for index, surface in enumerate(asset.surfaces):
        faces = of_face == index
        if bool(faces.any()):
            found.append(_surface(asset, surface, faces, rasterizer))
    return tuple(found)


def _surface(
    asset: MeshAsset, surface: AssetMaterial, chosen: Bool[Tensor, " F"], rasterizer: Rasterizer
) -> SurfaceHealth:
    assert asset.uv is not None
    assert asset.uv_faces is not None
    uv, uv_faces, faces = asset.uv, asset.uv_faces[chosen], asset.faces[chosen]
    error = uv_error(uv, uv_faces, asset.vertices, faces, rasterizer=rasterizer)
    size = None if surface.image is None else (surface.image.shape[1], surface.image.shape[0])
    area = _areas_in_image(uv, uv_faces)
    total = 0.0 if area is None else float(area.sum())
    inside = area is not None and bool(((uv[uv_faces] >= -1e-3) & (uv[uv_faces] <= 1 + 1e-3)).all())
    world = face_vectors(asset.vertices.double(), faces).norm(dim=1) / 2
    return SurfaceHealth(
        name=surface.name,
        triangles=len(faces),
        image=size,
        coordinates=error or "usable",
        overlap=uv_overlap(uv, uv_faces, rasterizer=rasterizer) if inside and total > 0 else None,
        used=total if inside else None,
        density=None if area is None or size is None else _density(area * size[0] * size[1], world),
    )


def _areas_in_image(uv: Float[Tensor, "U 2"], uv_faces: Int[Tensor, "F 3"]) -> Tensor | None:
    """The area of each face in the image, None where a face has no finite coordinates."""
    if not 0 <= int(uv_faces.min()) <= int(uv_faces.max()) < len(uv):
        return None
    return chart_areas(uv, uv_faces) if bool(torch.isfinite(uv[uv_faces]).all()) else None


def _density(texels: Float[Tensor, " F"], world: Float[Tensor, " F"]) -> tuple[float, ...] | None:
    """Percentiles of texels per unit of length; a face weighs as much as its area."""
    proper = world > 0
    if not bool(proper.any()):
        return None
    density, order = (texels[proper] / world[proper]).sqrt().sort()
    below = world[proper][order].cumsum(0)
    places = torch.searchsorted(below, torch.tensor(PERCENTILES, dtype=below.dtype) * below[-1])
    return tuple(density[places.clamp_max(len(density) - 1)].tolist())
