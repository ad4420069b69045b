"""The surface of a DMTet in one step, its regularisers, and the asynchronous read-back of its size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.geometry import regularizers
from pgc3d.geometry.edges import EdgeTopology, closed_edges
from pgc3d.geometry.marching_tetrahedra import Capacity, CutEdges, cut_points
from pgc3d.geometry.normals import face_vectors, vertex_normals
from pgc3d.types import Mesh

LOSSES = ("normal_consistency", "laplacian", "sign_changes", "eikonal", "area")
_MARGIN = 1.25  # capacity over size, for growth between two read-backs
_TIGHT, _LOOSE = 1.1, 2.0  # capacity over size outside of which the capacity is changed


@dataclass(frozen=True)
class Surface:
    """A mesh with the inputs of its regularisers; `size` is `surface_size` on the device if it is padded."""

    mesh: Mesh
    first_sdf: Float[Tensor, " V"]  # at both ends of the edges that the vertices lie on
    second_sdf: Float[Tensor, " V"]
    vectors: Float[Tensor, "F 3"]  # face normals times twice the area
    size: Int[Tensor, "4"] | None = None

    @cached_property
    def _edges(self) -> tuple[EdgeTopology, Int[Tensor, "E 2"]]:
        return closed_edges(self.mesh.faces, len(self.mesh.vertices))

    @property
    def topology(self) -> EdgeTopology | None:
        """The edges for antialiasing, from one sort that the regularisers share; None if not padded."""
        return None if self.size is None else self._edges[0]

    @property
    def adjacent_faces(self) -> Int[Tensor, "E 2"]:
        """Indices of the two faces at every edge."""
        if self.size is None:
            return regularizers.adjacent_faces(self.mesh.faces, closed=True)
        return self._edges[1]


def build_surface(
    cut_edges: CutEdges,
    sdf: tuple[Float[Tensor, " V"], Float[Tensor, " V"]],
    offsets: tuple[Float[Tensor, "V 3"], Float[Tensor, "V 3"]],
    *,
    padded: bool,
) -> Surface:
    """The surface at the zeros of the cut edges; `sdf` and `offsets` are those at both ends of them."""
    vertices = cut_points(cut_edges, *sdf, offsets)
    if padded:  # no guidance must receive non-finite values; such a step is skipped
        vertices = torch.where(cut_edges.size[0] > 0, vertices, 0.0)
    vectors = face_vectors(vertices, cut_edges.faces)
    normals = vertex_normals(vertices, cut_edges.faces, vectors)
    mesh = Mesh(vertices=vertices, faces=cut_edges.faces, normals=normals)
    return Surface(mesh, *sdf, vectors, size=cut_edges.size if padded else None)


def surface_losses(
    surface: Surface, weights: Mapping[str, float], sdf: Callable[[], Float[Tensor, "X Y Z"]], cell: float
) -> dict[str, Float[Tensor, ""]]:
    """The weighted regularisers by their names in `LOSSES`; `cell` is a grid cell's side in world units."""
    mesh, size = surface.mesh, surface.size
    losses = {}
    for name, weight in weights.items():
        if name == "normal_consistency":
            normals = normalize(surface.vectors, dim=-1, eps=1e-20)
            value = regularizers.normal_consistency(
                mesh.vertices,
                mesh.faces,
                surface.adjacent_faces,
                normals=normals,
                count=None if size is None else size[3] * 3 // 2,
            )
        elif name == "laplacian":
            count = None if size is None else size[2]
            value = regularizers.laplacian(mesh.vertices / cell, mesh.faces, count=count)
        elif name == "sign_changes":
            count = None if size is None else size[2]
            value = regularizers.sign_changes(surface.first_sdf, surface.second_sdf, count=count)
        elif name == "eikonal":
            value = regularizers.eikonal(sdf(), cell)
        else:
            value = regularizers.area(mesh.vertices, mesh.faces)
        losses[name] = weight * value
    return losses


def find_error(size: Sequence[int], max_faces: int) -> str | None:
    """The reason why a surface of that size (see `surface_size`) is invalid, None where it is valid."""
    finite, _, _, faces = size
    if not finite:
        return "the signed distance field or the deformation is not finite"
    if faces == 0:
        return "the surface is empty"
    return f"the surface has {faces} faces, more than {max_faces}" if faces > max_faces else None


def is_valid(size: Int[Tensor, "4"], max_faces: int) -> Bool[Tensor, ""]:
    """Whether `find_error` is None, as a tensor on the device."""
    return (size[0] > 0) & (size[3] > 0) & (size[3] <= max_faces)


class SizeReadback:
    """Asynchronous read-back of the surface's size to the host, and the capacity for the next extractions.

    The size is read one step late: by then the device has made it, so that waiting for it leaves the device
    with the work of a whole step. Never on timing: processes that share a run's views must decide alike.
    """

    def __init__(self) -> None:
        self.capacity: Capacity | None = (
            None  # None: unknown, the next extraction synchronises with the device
        )
        self._pending: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def send(self, size: Int[Tensor, "4"]) -> None:
        """Start a copy to the host, unless one was not received yet."""
        if self._pending is not None:
            return
        if size.is_cuda:
            self._pending = torch.empty(4, dtype=size.dtype, pin_memory=True)
            self._pending.copy_(size, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        else:
            self._pending = size.clone()

    def receive(self) -> list[int] | None:
        """The size that was sent, None where none was."""
        if self._pending is None:
            return None
        if self._arrived is not None:
            self._arrived.synchronize()
        size: list[int] = self._pending.tolist()
        self._pending = self._arrived = None
        return size

    def fit(self, size: Sequence[int]) -> None:
        """Change the capacity where it is missing, too small or much too large for a surface of this size."""
        numbers = size[1:]
        if self.capacity is not None:
            ratios = [
                available / max(count, 1)
                for available, count in zip(_numbers(self.capacity), numbers, strict=True)
            ]
            if min(ratios) >= _TIGHT and max(ratios) <= _LOOSE:
                return
        cubes, vertices, faces = (int(_MARGIN * count) + 64 for count in numbers)
        self.capacity = Capacity(cubes=cubes, vertices=vertices, faces=faces + faces % 2)

    def reset(self) -> None:
        """Discard the capacity and a copy in progress, since the surface was replaced."""
        self.capacity = self._pending = self._arrived = None


def _numbers(capacity: Capacity) -> tuple[int, int, int]:
    return capacity.cubes, capacity.vertices, capacity.faces
