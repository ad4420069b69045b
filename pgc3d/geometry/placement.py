"""The transform of a given mesh into the world: y up, front +z, inside the unit sphere."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.choices import AXES
from pgc3d.geometry.normals import face_vectors
from pgc3d.types import Placement

MIN_AREA = 1e-4  # of all faces, where the mesh has radius 1: a wire of less than a thousandth of an image


def axis_vector(name: str) -> Float[Tensor, " 3"]:
    """Unit vector of an axis such as "+z" (or "z").

    Raises:
        ValueError: there is no such axis.
    """
    sign, letter = (name[0], name[1:]) if name[:1] in ("+", "-") else ("+", name)
    if letter not in ("x", "y", "z"):
        raise ValueError(f"an axis must be one of {', '.join(AXES)}, got {name!r}")
    vector = torch.zeros(3, dtype=torch.float64)
    vector["xyz".index(letter)] = -1.0 if sign == "-" else 1.0
    return vector


def orientation(up: str, front: str) -> Float[Tensor, "3 3"]:
    """The rotation that maps a file's axes `up` and `front` to the world's y and z.

    `front` "auto" is +z, or -y where the z axis is vertical (as in Blender and most CAD programs).

    Raises:
        ValueError: an axis is unknown, or both lie on one line.
    """
    if front == "auto":
        front = "-y" if up.lstrip("+-") == "z" else "+z"
    vertical, forward = axis_vector(up), axis_vector(front)
    if float(vertical @ forward) != 0.0:
        raise ValueError(f"up and front must be different axes, got up {up} and front {front}")
    return torch.stack([torch.linalg.cross(vertical, forward), vertical, forward])


def place(vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], *, up: str, front: str) -> Placement:
    """The transform that centres the bounding box of the faces' vertices and scales it into the unit sphere.

    Raises:
        ValueError: the axes are not valid, all points are equal, or the faces have almost no area.
    """
    used = vertices[torch.unique(faces)].double()
    centre = (used.amin(dim=0) + used.amax(dim=0)) / 2
    radius = float((used - centre).norm(dim=1).max())
    if not radius > 0:
        raise ValueError("the mesh must have an extent, but all its points are the same")
    area = float(face_vectors((vertices.double() - centre) / radius, faces).norm(dim=1).sum()) / 2
    if area < MIN_AREA:
        raise ValueError("the mesh must have a visible surface, but its faces have almost no area")
    return Placement(rotation=orientation(up, front), centre=centre, scale=1.0 / radius)
