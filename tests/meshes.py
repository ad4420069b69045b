"""Small meshes for tests: an asymmetric one, a cube with a letter on each side, and files of them."""

from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image

from pgc3d.types import Placement, PreparedMesh

# A letter F, upright: row 0 on top.
LETTER = torch.tensor(
    [[0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0],
     [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
).float()  # fmt: skip

# Corners of the cube's sides, counter-clockwise from the lower left as one looks at each side upright.
SIDES = {
    "front": [(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)],
    "right": [(1, -1, 1), (1, -1, -1), (1, 1, -1), (1, 1, 1)],
    "back": [(1, -1, -1), (-1, -1, -1), (-1, 1, -1), (1, 1, -1)],
    "left": [(-1, -1, -1), (-1, -1, 1), (-1, 1, 1), (-1, 1, -1)],
    "top": [(-1, 1, 1), (1, 1, 1), (1, 1, -1), (-1, 1, -1)],
    "bottom": [(-1, -1, -1), (1, -1, -1), (1, -1, 1), (-1, -1, 1)],
}


def cube_arrays(margin: float = 0.02) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [24, 3], faces and texture coordinates of a cube, a cell of a 3 x 2 atlas for each side."""
    vertices = np.array([corner for side in SIDES.values() for corner in side], dtype=np.float64)
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (1 - 2 * margin) + margin
    uv = [(square + np.array([index % 3, index // 3])) / np.array([3, 2]) for index in range(6)]
    faces = [[4 * side + corner for corner in face] for side in range(6) for face in ((0, 1, 2), (0, 2, 3))]
    return vertices, np.array(faces), np.concatenate(uv)


def write_cube(path: Path, *, matrix: np.ndarray | None = None) -> Path:
    """A cube with a sane atlas; `matrix` moves it as the file's maker would have done."""
    vertices, faces, uv = cube_arrays()
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, image=Image.new("RGB", (4, 4)))
    if matrix is not None:
        mesh.apply_transform(matrix)
    return write(mesh, path)


def write(mesh: trimesh.Trimesh, path: Path) -> Path:
    """Export; trimesh itself leaves the files of a glTF open."""
    if path.suffix != ".gltf":
        mesh.export(path)
        return path
    for name, content in trimesh.exchange.gltf.export_gltf(mesh.scene()).items():
        (path if name == "model.gltf" else path.with_name(name)).write_bytes(content)
    return path


def letter_texture(size: int = 256) -> torch.Tensor:
    """The letter in each of the six cells [size, size, 3]: white on grey."""
    image = torch.zeros(size, size, 3)
    for index in range(6):
        left, right = index % 3 * size // 3, (index % 3 + 1) * size // 3
        top, bottom = (1 - index // 3) * size // 2, (2 - index // 3) * size // 2
        cell = torch.nn.functional.interpolate(LETTER[None, None], size=(bottom - top, right - left))[0, 0]
        image[top:bottom, left:right] = 0.25 + 0.75 * cell[..., None]
    return image


def lumpy() -> trimesh.Trimesh:
    """A closed surface without any symmetry, 320 faces."""
    mesh = trimesh.creation.icosphere(subdivisions=2)
    x, y, z = mesh.vertices.T
    mesh.vertices = np.column_stack([x * 1.5 + 0.4 * z**2, y + 0.3 * x, z * (0.6 + 0.2 * y)]) * 7 + [
        3,
        -20,
        1,
    ]
    return mesh


def wavy_strip() -> PreparedMesh:
    """A wavy strip in the world with one texture coordinate for each vertex."""
    u = torch.linspace(0, 1, 9)
    grid = torch.cartesian_prod(u, u)
    vertices = torch.stack([grid[:, 0] - 0.5, grid[:, 1] - 0.5, 0.2 * torch.sin(4 * grid[:, 0])], dim=1)
    index = torch.arange(81).reshape(9, 9)
    corners = [index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]]
    quads = torch.stack(corners, dim=-1).reshape(-1, 4)
    faces = torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    normals = torch.tensor([[0.0, 0.0, 1.0]]).expand(81, 3).contiguous()
    return PreparedMesh(
        vertices,
        faces,
        normals,
        faces,
        grid,
        faces,
        welded_faces=faces,
        placement=Placement.identity(),
        face_set=torch.zeros_like(faces[:, 0]),
    )
