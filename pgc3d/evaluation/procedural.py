"""Objects with known shapes and colours, for tests and for a benchmark without any data set."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.evaluation.alignment import normalize_mesh
from pgc3d.evaluation.items import Item, write_items
from pgc3d.evaluation.protocol import Protocol
from pgc3d.evaluation.render import render_views
from pgc3d.export.asset import TexturedMesh
from pgc3d.export.atomic import write_files
from pgc3d.export.bake import fill
from pgc3d.export.gltf import encode_png
from pgc3d.export.mesh_file import read_mesh, write_mesh
from pgc3d.export.turntable import to_bytes
from pgc3d.geometry.normals import face_normals, vertex_normals
from pgc3d.geometry.uv import triangle_atlas
from pgc3d.interfaces import Rasterizer
from pgc3d.types import Cameras

ELEVATION_DEGREES = 20.0
TEXTURE_SIZE = 512
INPUT_RESOLUTION = 512

# Boxes (low, high) of a chair with one arm rest: no turn and no reflection maps it onto itself.
CHAIR = (
    ((-0.5, 0.0, -0.5), (0.5, 0.12, 0.5)),
    ((-0.5, 0.12, -0.5), (0.5, 1.1, -0.38)),
    ((0.38, 0.12, -0.38), (0.5, 0.5, 0.4)),
    *(((x, -0.8, z), (x + 0.12, 0.0, z + 0.12)) for x in (-0.5, 0.38) for z in (-0.5, 0.38)),
)

Look = Callable[[Int[Tensor, " P"], Float[Tensor, "P 3"]], Float[Tensor, "P 3"]]


def shapes() -> dict[str, tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"], bool]]:
    """Vertices, faces and whether the surface is smooth, by name."""
    import trimesh

    chair = trimesh.util.concatenate([trimesh.creation.box(bounds=np.array(bounds)) for bounds in CHAIR])
    made = {
        "sphere": (trimesh.creation.icosphere(subdivisions=4), True),
        "box": (trimesh.creation.box(extents=(1.0, 0.6, 1.4)), False),
        "torus": (trimesh.creation.torus(0.7, 0.25, major_sections=64, minor_sections=32), True),
        "one-armed-chair": (chair, False),
    }
    return {
        name: (torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces).long(), smooth)
        for name, (mesh, smooth) in made.items()
    }


def procedural_asset(name: str, *, rasterizer: Rasterizer) -> TexturedMesh:
    """One of `shapes` with smooth colours that differ everywhere.

    Raises:
        KeyError: there is no such shape.
    """
    vertices, faces, smooth = shapes()[name]
    normals = vertex_normals(vertices, faces)[faces] if smooth else face_normals(vertices, faces)[:, None]

    def look(face: Tensor, weights: Tensor) -> Tensor:
        points = (vertices[faces[face]] * weights[..., None]).sum(1)
        return 0.55 + 0.35 * torch.sin(3.0 * points + torch.tensor([0.0, 1.0, 2.0]))

    return paint(vertices, faces, normals.expand(-1, 3, -1), look, TEXTURE_SIZE, rasterizer=rasterizer)


def paint(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    normals: Float[Tensor, "F 3 3"],
    look: Look,
    texture_size: int,
    *,
    rasterizer: Rasterizer,
) -> TexturedMesh:
    """Give every face its own place in a texture and ask `look` for the colours there; on the CPU.

    Args:
        vertices: world positions.
        faces: their corners.
        normals: unit, one for each corner of each face.
        look: sRGB in [0, 1] of a face at barycentric weights.
        texture_size: side of the texture in texels.
        rasterizer: the CPU backend.
    """
    atlas = triangle_atlas(vertices, faces, texture_size=texture_size)
    rest = torch.tensor([[0.0, 1.0]]).expand(len(atlas.uv), 2)
    clip = torch.cat([2 * atlas.uv - 1, rest], dim=1)[None]
    fragments = rasterizer.rasterize(clip, atlas.uv_faces, (texture_size, texture_size))
    face = fragments.triangle[0]
    covered = face >= 0
    u, v = fragments.data[0, ..., 0][covered], fragments.data[0, ..., 1][covered]
    image = torch.zeros(texture_size, texture_size, 3)
    image[covered] = look(face[covered], torch.stack([u, v, 1 - u - v], dim=1))
    return TexturedMesh(
        vertices=vertices,
        faces=faces,
        normals=normals.reshape(-1, 3).contiguous(),
        uv=atlas.uv,
        uv_faces=atlas.uv_faces,
        base_color=to_bytes(fill(image, covered, padding=4)),
        normal_faces=atlas.uv_faces,
    )


def write_pair(folder: Path, truth: TexturedMesh, camera: Cameras, *, rasterizer: Rasterizer) -> None:
    """Write truth.glb, and input.png as `camera` sees that file: RGBA, colours not multiplied by alpha."""
    folder.mkdir(parents=True, exist_ok=True)
    (path,) = write_mesh(folder / "truth.glb", truth, "glb")
    rendering = render_views(read_mesh(path), camera, INPUT_RESOLUTION, rasterizer=rasterizer)
    alpha = rendering.alpha[0]
    color = torch.where(alpha > 0, 1 - (1 - rendering.color[0]) / alpha.clamp(min=1e-6), 1.0)
    write_files({folder / "input.png": encode_png(to_bytes(torch.cat([color, alpha], dim=-1)))})


def write_procedural_set(folder: Path, *, rasterizer: Rasterizer) -> Path:
    """Write inputs, truths and the list `items.jsonl`; returns the list."""
    camera = Protocol().input_camera(ELEVATION_DEGREES)
    items = []
    for name in shapes():
        asset = normalize_mesh(procedural_asset(name, rasterizer=rasterizer))
        write_pair(folder / name, asset, camera, rasterizer=rasterizer)
        items.append(
            Item(
                name=name,
                image=folder / name / "input.png",
                truth=folder / name / "truth.glb",
                caption=f"a {name.replace('-', ' ')}",
                elevation_degrees=ELEVATION_DEGREES,
            )
        )
    write_items(folder / "items.jsonl", items)
    return folder / "items.jsonl"
