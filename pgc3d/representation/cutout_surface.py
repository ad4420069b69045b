"""The surface that renders show of a mesh whose materials cut holes."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.geometry.edges import EdgeTopology
from pgc3d.geometry.normals import face_normals
from pgc3d.rendering.antialias import edge_topology
from pgc3d.types import PreparedMesh


@dataclass(frozen=True)
class ShownSurface:
    """Whole faces, and the visible parts of others as faces of their own."""

    mesh: PreparedMesh
    parents: Int[Tensor, " G"]  # the face of the given mesh that each face is, or is a part of
    topology: EdgeTopology
    face_normals: Float[Tensor, "G 3"]
    canonical: Float[Tensor, "V 3"]  # see `PreparedMesh.canonical`
    tangents: Float[Tensor, "U 4"] | None
    others: tuple[Float[Tensor, "A C"], Int[Tensor, "G 3"]] | None  # see `render_corners`


def cut_surface(
    mesh: PreparedMesh,
    canonical: Float[Tensor, "V 3"],
    tangents: Float[Tensor, "U 4"] | None,
    others: tuple[Float[Tensor, "A C"], Int[Tensor, "F 3"]] | None = None,
) -> ShownSurface:
    """The shown surface of a mesh with a cutout.

    Args:
        mesh: in the world.
        canonical: its canonical vertices.
        tangents: of its texture coordinates.
        others: further attributes and the faces' corners in them.
    """
    cutout = mesh.cutout
    if cutout is None:
        raise ValueError("the mesh must have a cutout, got none")
    faces = cutout.faces(mesh.faces, len(mesh.vertices))
    vertices = cutout.values(mesh.vertices, mesh.faces)
    _, place = torch.unique(vertices, dim=0, return_inverse=True)
    first = torch.full_like(place, len(vertices)).scatter_reduce(
        0, place, torch.arange(len(vertices), device=place.device), "amin"
    )
    shown = replace(
        mesh,
        vertices=vertices,
        faces=faces,
        normals=cutout.values(mesh.normals, mesh.normal_faces),
        normal_faces=cutout.faces(mesh.normal_faces, len(mesh.normals)),
        uv=cutout.values(mesh.uv, mesh.uv_faces),
        uv_faces=cutout.faces(mesh.uv_faces, len(mesh.uv)),
        welded_faces=first[place][faces],
        labels=None,
        face_set=mesh.face_set[cutout.parents],
        maps=None,
        first_corners=None,
        cutout=None,
    )
    if others is not None:
        values, corners = others
        others = cutout.values(values, corners), cutout.faces(corners, len(values))
    return ShownSurface(
        mesh=shown,
        parents=cutout.parents,
        topology=edge_topology(shown.welded_faces, len(vertices)),
        face_normals=face_normals(vertices, faces),
        canonical=cutout.values(canonical, mesh.faces),
        tangents=None if tangents is None else cutout.values(tangents, mesh.uv_faces),
        others=others,
    )
