"""Make a given mesh ready for painting, and keep it in a file of the run."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from pgc3d.errors import InputError, RunDirectoryError
from pgc3d.export.atomic import write_files
from pgc3d.export.given_mesh import read_given
from pgc3d.export.mesh_file import weld
from pgc3d.geometry.normals import crease_normals
from pgc3d.geometry.own_uv import unit_square, uv_fault
from pgc3d.geometry.placement import place
from pgc3d.geometry.uv import unwrap
from pgc3d.interfaces import Rasterizer
from pgc3d.types import Canvas, GivenMesh, Placement, UvMesh


def prepare_canvas(
    path: Path,
    *,
    up: str,
    front: str,
    crease_degrees: float,
    texture_size: int,
    rasterizer: Rasterizer,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> Canvas:
    """Read a mesh, place it in the world, and give it the normals and texture coordinates that it lacks.

    Its own texture coordinates stay where `uv_fault` finds nothing; `say` is told in one line otherwise.

    Raises:
        InputError: the file cannot be used.
    """
    given = read_given(path)
    try:
        placement = place(given.vertices, given.faces, up=up, front=front)
    except ValueError as error:
        raise InputError(f"{error}: {path}") from error
    welded, joined, _ = weld(given.vertices, given.faces)
    normals, normal_faces = given.normals, given.normal_faces
    if normals is None or normal_faces is None or not _unit(normals):
        normals, normal_faces = crease_normals(welded, joined, crease=math.radians(crease_degrees))
    uv, uv_faces, method = None if given.uv is None else unit_square(given.uv), given.uv_faces, "own"
    fault = _fault(given, uv, rasterizer, device)
    if uv is None or uv_faces is None or fault is not None:
        atlas = unwrap(placement.to_world(welded), joined, texture_size=texture_size)
        uv, uv_faces, method = atlas.uv, atlas.uv_faces, atlas.method
        say(f"the texture coordinates of {path.name} {fault}; new ones were made ({method})")
    return Canvas(
        mesh=UvMesh(given.vertices, given.faces, normals, normal_faces, uv, uv_faces),
        placement=placement,
        joined=_representatives(given.faces, joined),
        uv_method=method,
    )


def _fault(
    given: GivenMesh, uv: Tensor | None, rasterizer: Rasterizer, device: torch.device | str
) -> str | None:
    if uv is None or given.uv_faces is None:
        return "are missing"
    return uv_fault(uv, given.uv_faces, given.vertices, given.faces, rasterizer=rasterizer, device=device)


def _unit(normals: Tensor) -> bool:
    return bool(((normals.norm(dim=1) - 1).abs() < 1e-3).all())


def _representatives(faces: Tensor, joined: Tensor) -> Tensor:
    """`joined` with the file's own vertex numbers: the last one of each group stands for all of it."""
    chosen = torch.zeros(int(joined.max()) + 1, dtype=torch.int64)
    chosen[joined.reshape(-1)] = faces.reshape(-1)
    return chosen[joined]


def save_canvas(path: Path, canvas: Canvas) -> None:
    """Write a canvas as safetensors.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    from safetensors.torch import save

    tensors = {item.name: getattr(canvas.mesh, item.name) for item in fields(UvMesh)}
    tensors |= {
        "joined": canvas.joined,
        "rotation": canvas.placement.rotation,
        "centre": canvas.placement.centre,
        "scale": torch.tensor(canvas.placement.scale, dtype=torch.float64),
    }
    content = save(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
        metadata={"uv_method": canvas.uv_method},
    )
    write_files({path: content})


def load_canvas(path: Path) -> Canvas:
    """Read what `save_canvas` wrote.

    Raises:
        RunDirectoryError: it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            method = (stream.metadata() or {})["uv_method"]
        _require_canvas(tensors)
        mesh = UvMesh(**{item.name: tensors[item.name] for item in fields(UvMesh)})
        placement = Placement(tensors["rotation"], tensors["centre"], float(tensors["scale"]))
        return Canvas(mesh, placement, tensors["joined"], method)
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        raise RunDirectoryError(
            f"{path} must be the mesh that the run paints, but is missing or damaged "
            f"({error}); start a new run"
        ) from error


def _require_canvas(tensors: Mapping[str, Tensor]) -> None:
    """See that the tensors of a file, which may be anyone's, make up a mesh.

    Raises:
        ValueError: they do not.
        KeyError: one is missing.
    """
    for name, rows in {"rotation": (3, 3), "centre": (3,), "scale": ()}.items():
        if tensors[name].shape != rows or not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{name} must be finite, of shape {list(rows)}")
    if not float(tensors["scale"]) > 0:
        raise ValueError("scale must be positive")
    indexed = {"faces": ("vertices", 3), "normal_faces": ("normals", 3), "uv_faces": ("uv", 2)}
    count = len(tensors["faces"]) if tensors["faces"].ndim == 2 else -1
    for name, (target, width) in {**indexed, "joined": ("vertices", 3)}.items():
        points, faces = tensors[target], tensors[name]
        if points.ndim != 2 or points.shape[1] != width or not points.is_floating_point():
            raise ValueError(f"{target} must be rows of {width} numbers")
        if faces.shape != (count, 3) or faces.dtype != torch.int64 or count < 1:
            raise ValueError(f"{name} must be rows of 3 whole numbers, as many as there are faces")
        if int(faces.min()) < 0 or int(faces.max()) >= len(points) or not bool(points.isfinite().all()):
            raise ValueError(f"{name} must name finite {target} that are there")
