"""Procedural objects with analytic shapes and colours, for tests and for a benchmark without a data set."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.cameras import frame_points, reference_view
from pgc3d.disk import write_files
from pgc3d.evaluation.alignment import normalize_mesh
from pgc3d.evaluation.items import Item, write_items
from pgc3d.evaluation.render import render_views
from pgc3d.exporting.bake import fill
from pgc3d.geometry.normals import face_normals, vertex_normals
from pgc3d.geometry.uv import triangle_atlas
from pgc3d.image_config import InputImageConfig
from pgc3d.images import encode_png, to_bytes
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.mesh_file import read_mesh, write_mesh
from pgc3d.rendering.mesh_renderer import project
from pgc3d.view_config import ViewConfig

ELEVATION_DEGREES = 20.0
TEXTURE_SIZE = 512
INPUT_RESOLUTION = 512
NEAREST = 1.05  # camera distance from the centre of an object in the unit ball
FRAMING_ERROR = 1 / INPUT_RESOLUTION  # half a pixel, in units of half the image's side

# Boxes (low, high) of a chair with one arm rest: no rotation and no reflection maps it onto itself.
CHAIR = (
    ((-0.5, 0.0, -0.5), (0.5, 0.12, 0.5)),
    ((-0.5, 0.12, -0.5), (0.5, 1.1, -0.38)),
    ((0.38, 0.12, -0.38), (0.5, 0.5, 0.4)),
    *(((x, -0.8, z), (x + 0.12, 0.0, z + 0.12)) for x in (-0.5, 0.38) for z in (-0.5, 0.38)),
)

FaceColor = Callable[[Int[Tensor, " P"], Float[Tensor, "P 3"]], Float[Tensor, "P 3"]]


def shapes() -> dict[str, tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"], bool]]:
    """Vertices, faces and whether the surface has smooth normals, by name; in the unit ball."""
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


def procedural_asset(name: str, *, rasterizer: Rasterizer) -> MeshAsset:
    """One of `shapes` with a texture of smooth colours that vary over the whole surface.

    Raises:
        KeyError: there is no such shape.
    """
    vertices, faces, smooth = shapes()[name]
    normals = vertex_normals(vertices, faces)[faces] if smooth else face_normals(vertices, faces)[:, None]

    def color(face: Tensor, weights: Tensor) -> Tensor:
        points = (vertices[faces[face]] * weights[..., None]).sum(1)
        return 0.55 + 0.35 * torch.sin(3.0 * points + torch.tensor([0.0, 1.0, 2.0]))

    return texture_per_face(
        vertices, faces, normals.expand(-1, 3, -1), color, TEXTURE_SIZE, rasterizer=rasterizer
    )


def texture_per_face(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    normals: Float[Tensor, "F 3 3"],
    color: FaceColor,
    texture_size: int,
    *,
    rasterizer: Rasterizer,
) -> MeshAsset:
    """A mesh in which every face has a chart of its own, with a texture that is a function of the face.

    Args:
        vertices: world positions.
        faces: their corners.
        normals: unit, one for each corner of each face.
        color: sRGB in [0, 1] of faces [P] at barycentric weights [P, 3].
        texture_size: side of the texture in texels.
        rasterizer: the CPU backend.
    """
    atlas = triangle_atlas(vertices, faces, texture_size=texture_size)
    depth_and_w = torch.tensor([[0.0, 1.0]]).expand(len(atlas.uv), 2)
    clip = torch.cat([2 * atlas.uv - 1, depth_and_w], dim=1)[None]
    fragments = rasterizer.rasterize(clip, atlas.uv_faces, (texture_size, texture_size))
    face = fragments.triangle[0]
    covered = face >= 0
    u, v = fragments.data[0, ..., 0][covered], fragments.data[0, ..., 1][covered]
    image = torch.zeros(texture_size, texture_size, 3)
    image[covered] = color(face[covered], torch.stack([u, v, 1 - u - v], dim=1))
    return MeshAsset(
        vertices=vertices,
        faces=faces,
        normals=normals.reshape(-1, 3).contiguous(),
        uv=atlas.uv,
        uv_faces=atlas.uv_faces,
        base_color=to_bytes(fill(image, covered)),
        normal_faces=atlas.uv_faces,
    )


def write_item(
    folder: Path, caption: str, truth: MeshAsset, *, rasterizer: Rasterizer, elevation_degrees: float
) -> Item:
    """Write input.png and truth.glb of an image item, framed as a prepared input image of a run.

    The input is RGBA with straight alpha. An object whose framed image would need a camera inside the object
    has a wider border, and its item has the frame "own".

    Args:
        folder: named like the item.
        caption: a description of the truth.
        truth: oriented so that the input's camera is at azimuth 0.
        rasterizer: the CPU backend.
        elevation_degrees: of the input's camera.
    """
    folder.mkdir(parents=True, exist_ok=True)
    view = ViewConfig(elevation_degrees=elevation_degrees)
    placed, framed = place_in_view(normalize_mesh(truth), view, border=InputImageConfig().border)
    image, mesh = folder / "input.png", folder / "truth.glb"
    write_mesh(mesh, placed, "glb")
    rendering = render_views(read_mesh(mesh), reference_view(view), INPUT_RESOLUTION, rasterizer=rasterizer)
    alpha = rendering.alpha[0]
    color = torch.where(alpha > 0, 1 - (1 - rendering.color[0]) / alpha.clamp(min=1e-6), 1.0)
    write_files({image: encode_png(to_bytes(torch.cat([color, alpha], dim=-1)))})
    return Item(
        name=folder.name,
        image=image,
        truth=mesh,
        caption=caption,
        elevation_degrees=elevation_degrees,
        frame="input" if framed else "own",
    )


def place_in_view(asset: MeshAsset, view: ViewConfig, *, border: float) -> tuple[MeshAsset, bool]:
    """A normalised mesh, moved and scaled so that `view` frames it, and whether it is framed exactly.

    The bounding square of its image is centred, its side is 1 - `border` of the image's.
    """
    camera = reference_view(view)
    fovy = torch.tensor([view.fovy_degrees]).deg2rad()
    nearest = torch.full_like(fovy, NEAREST)
    used = asset.vertices[torch.unique(asset.faces)]
    target, distance = frame_points(
        used, camera.azimuth, camera.elevation, fovy, border=border, nearest=nearest
    )
    scale = camera.distance / distance
    clip = project((used - target) * scale, camera)[0]
    screen = clip[:, :2] / clip[:, 3:]
    low, high = screen.amin(0), screen.amax(0)
    error = torch.cat([low + high, (high - low).amax()[None] - 2 * (1 - border)]).abs().amax() / 2
    return replace(asset, vertices=(asset.vertices - target) * scale), bool(error < FRAMING_ERROR)


def write_procedural_set(folder: Path, *, rasterizer: Rasterizer) -> Path:
    """Write inputs, truths and the list `items.jsonl`; returns the list."""
    items = [
        write_item(
            folder / name,
            f"a {name.replace('-', ' ')}",
            procedural_asset(name, rasterizer=rasterizer),
            rasterizer=rasterizer,
            elevation_degrees=ELEVATION_DEGREES,
        )
        for name in shapes()
    ]
    write_items(folder / "items.jsonl", items)
    return folder / "items.jsonl"
