"""The surface of a DMTet as one step sees it, and how its size is followed without waiting for the device."""

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
_MARGIN = 1.25  # room for growth between two looks at the size
_TIGHT, _LOOSE = 1.1, 2.0  # room over size at which a new room is made


@dataclass(frozen=True)
class Surface:
    """A mesh and what its regularisers need; `size` is `surface_size` on the device if it is padded."""

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
        """The edges for antialiasing where one sort serves it and the regularisers; slower on a CPU."""
        return None if self.size is None else self._edges[0]

    @property
    def adjacent_faces(self) -> Int[Tensor, "E 2"]:
        """The two faces at every edge."""
        if self.size is None:
            return regularizers.adjacent_faces(self.mesh.faces, closed=True)
        return self._edges[1]


def build_surface(
    found: CutEdges, sdf: tuple[Tensor, Tensor], offsets: tuple[Tensor, Tensor], *, padded: bool
) -> Surface:
    """Place the vertices; `sdf` and `offsets` are those at both ends of the cut edges."""
    vertices = cut_points(found, *sdf, offsets)
    if padded:  # what is not finite must not reach a guidance; the step is not taken
        vertices = torch.where(found.size[0] > 0, vertices, 0.0)
    vectors = face_vectors(vertices, found.faces)
    normals = vertex_normals(vertices, found.faces, vectors)
    mesh = Mesh(vertices=vertices, faces=found.faces, normals=normals)
    return Surface(mesh, *sdf, vectors, size=found.size if padded else None)


def surface_losses(
    surface: Surface, weights: Mapping[str, float], sdf: Callable[[], Float[Tensor, "X Y Z"]], cell: float
) -> dict[str, Float[Tensor, ""]]:
    """The weighted regularisers, by the names in `LOSSES`."""
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
    """What is wrong with a surface of that size (see `surface_size`), or None."""
    finite, _, _, faces = size
    if not finite:
        return "the signed distance field or the deformation is not finite"
    if faces == 0:
        return "the surface is empty"
    return f"the surface has {faces} faces, more than {max_faces}" if faces > max_faces else None


def is_valid(size: Int[Tensor, "4"], max_faces: int) -> Bool[Tensor, ""]:
    """Whether `find_error` would find nothing, as a tensor on the device."""
    return (size[0] > 0) & (size[3] > 0) & (size[3] <= max_faces)


class SizeReadback:
    """Brings the size of the surface to the host a step or two late, and chooses the room for the next ones.

    Without CUDA it is late by exactly one step.
    """

    def __init__(self) -> None:
        self.capacity: Capacity | None = (
            None  # None: not known, the next extraction has to wait for the device
        )
        self._pending: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def send(self, size: Int[Tensor, "4"]) -> None:
        """Start a copy to the host, unless one is under way."""
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
        """The size that was sent, if it has arrived."""
        if self._pending is None or (self._arrived is not None and not self._arrived.query()):  # type: ignore[no-untyped-call]
            return None
        size: list[int] = self._pending.tolist()
        self._pending = self._arrived = None
        return size

    def fit(self, size: Sequence[int]) -> None:
        """Make new room if that for a surface of this size is missing, tight or much too large."""
        numbers = size[1:]
        if self.capacity is not None:
            shares = [
                have / max(count, 1) for have, count in zip(_numbers(self.capacity), numbers, strict=True)
            ]
            if min(shares) >= _TIGHT and max(shares) <= _LOOSE:
                return
        cubes, vertices, faces = (int(_MARGIN * count) + 64 for count in numbers)
        self.capacity = Capacity(cubes=cubes, vertices=vertices, faces=faces + faces % 2)

    def reset(self) -> None:
        """Forget everything: the surface is another one now."""
        self.capacity = self._pending = self._arrived = None


def _numbers(capacity: Capacity) -> tuple[int, int, int]:
    return capacity.cubes, capacity.vertices, capacity.faces
