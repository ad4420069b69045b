"""A given mesh prepared for texturing, and its file in the run directory."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from pgc3d.choices import UvChoice
from pgc3d.disk import write_files
from pgc3d.errors import InputError, RunDirectoryError
from pgc3d.geometry.cleanup import clean
from pgc3d.geometry.placement import place
from pgc3d.geometry.uv import PADDING, UvAtlas, unwrap
from pgc3d.inputs.alpha_mask import cut_holes
from pgc3d.inputs.surface_maps import maps_as_tensors, stored_maps, surface_maps
from pgc3d.inputs.texture_coordinates import Choice, choose_coordinates, materials_of, with_new
from pgc3d.inputs.texture_sets import Coordinates, scaled_sets
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.colors import weld
from pgc3d.mesh_io.normals import MAX_OPPOSED, complete_normals, is_inside_out
from pgc3d.mesh_io.reader import read_source
from pgc3d.mesh_io.source import SourceMesh
from pgc3d.types import Cutout, FaceLabels, Mesh, Placement, PreparedMesh, SurfaceMaps, TextureSet

NAMES = ("nodes", "parents", "materials")  # of the labels, as JSON in the file's metadata
CUTOUT = {"cut_whole": "whole", "cut_parent": "parent", "cut_corners": "corners"}
STORED = (
    "vertices",
    "faces",
    "normals",
    "normal_faces",
    "uv",
    "uv_faces",
    "face_set",
)  # under their names in the file


def prepare_mesh_file(  # noqa: PLR0913 - each of them is a choice of the user
    path: Path,
    *,
    up: str,
    front: str,
    crease_degrees: float,
    texture_size: int,
    rasterizer: Rasterizer,
    device: torch.device | str = "cpu",
    uv: UvChoice = "auto",
    whole: bool = False,
    notify: Callable[[str], None] = lambda _: None,
) -> PreparedMesh:
    """Read a mesh, place it in the world, and add the normals and texture coordinates that it lacks.

    Args:
        path: a mesh file.
        up: the file's axis that points up, such as "+y".
        front: the file's axis of the object's front, or "auto".
        crease_degrees: angle between faces above which an edge is sharp, for files without normals.
        texture_size: of new texture coordinates, in texels.
        rasterizer: on `device`, to find overlapping charts.
        device: of the rasteriser.
        uv: whether to use the file's texture coordinates.
        whole: whether the result has all contents of the file, not its surface alone.
        notify: receives a line for everything that was ignored, dropped or added.

    Raises:
        InputError: the file is not valid, or `uv` is "own" and it has no usable texture coordinates.
    """
    source = read_source(path)
    try:
        placement = place(source.vertices, source.faces, up=up, front=front)
    except ValueError as error:
        raise InputError(f"{error}: {path}") from error
    welded, welded_faces, _ = weld(source.vertices, source.faces)
    normals, normal_faces, opposed = complete_normals(
        source, welded, welded_faces, crease=math.radians(crease_degrees)
    )
    if source.lost and not whole:
        notify(f"not kept in the result: {', '.join(source.lost)}")
    _report(source, path, notify, opposed=opposed, inside_out=is_inside_out(welded, welded_faces))
    choice = choose_coordinates(source, path, choice=uv, rasterizer=rasterizer, device=device)
    world, method, coordinates = placement.to_world(welded), "", choice.kept
    if bool(choice.fresh.any()):
        coordinates, atlas = _unwrapped(source, choice, world, welded_faces, texture_size)
        method = atlas.method
    if choice.message:
        notify(choice.message.format(method=method))
    if method == "xatlas" and atlas.padding < PADDING:
        notify(
            f"the {texture_size} pixels of the texture are few for so many charts: {atlas.padding} texels of "
            f"padding around each in place of {PADDING}; --texture-size {2 * texture_size} holds more"
        )
    return PreparedMesh(
        vertices=source.vertices,
        faces=source.faces,
        normals=normals,
        normal_faces=normal_faces,
        uv=coordinates.uv,
        uv_faces=coordinates.uv_faces,
        welded_faces=_representatives(source.faces, welded_faces),
        placement=placement,
        face_set=coordinates.face_set,
        sets=scaled_sets(coordinates, world, welded_faces),
        labels=source.labels,
        maps=_maps(source, path, notify),
        first_corners=source.first_corners,
        cutout=cut_holes(source, placement.to_world(source.vertices), notify),
    )


def _maps(source: SourceMesh, path: Path, notify: Callable[[str], None]) -> SurfaceMaps | None:
    """The maps of the file's materials; none, with a note, where an image cannot be opened."""
    try:
        return surface_maps(source)
    except InputError as error:
        notify(f"the maps of {path.name} are not rendered: {error}")
        return None


def _unwrapped(
    source: SourceMesh, choice: Choice, vertices: Tensor, faces: Tensor, texture_size: int
) -> tuple[Coordinates, UvAtlas]:
    """All coordinates, new ones the same for all instances of a part, and the atlas of these."""
    first = source.first_corners
    if first is None:
        atlas = unwrap(vertices, faces[choice.fresh], texture_size=texture_size)
        uv_faces = atlas.uv_faces
    else:
        first = first[choice.fresh]
        once, place = torch.unique(first // 3, return_inverse=True)
        atlas = unwrap(vertices, faces[once], texture_size=texture_size)
        uv_faces = atlas.uv_faces[place, first % 3]
    new = TextureSet("new", atlas.method, materials=materials_of(source, choice.fresh))
    return with_new(choice, atlas.uv, uv_faces, new), atlas


def prepare_surface(surface: Mesh, *, faces: int | None, texture_size: int) -> PreparedMesh:
    """The surface of an earlier stage, prepared for texturing: cleaned, decimated, with an atlas of its own.

    Args:
        surface: in the world, and so is the result.
        faces: upper bound on the faces; None keeps all.
        texture_size: of the texture, in texels.

    Raises:
        DivergedError: no face remains.
    """
    mesh = clean(surface.vertices, surface.faces, target_faces=faces)
    atlas = unwrap(mesh.vertices, mesh.faces, texture_size=texture_size)
    return PreparedMesh(
        vertices=mesh.vertices,
        faces=mesh.faces,
        normals=mesh.normals,
        normal_faces=mesh.faces,
        uv=atlas.uv,
        uv_faces=atlas.uv_faces,
        welded_faces=mesh.faces,
        placement=Placement.identity(),
        face_set=torch.zeros_like(mesh.faces[:, 0]),
        sets=(TextureSet(method=atlas.method),),
    )


def _report(
    source: SourceMesh, path: Path, notify: Callable[[str], None], *, opposed: float, inside_out: bool
) -> None:
    for note in source.notes:
        notify(f"{path.name}: {note}")
    if opposed > MAX_OPPOSED:
        notify(
            f"{path.name}: {opposed:.0%} of the normals point to the other side than their faces; "
            "normals were made from the faces"
        )
    if inside_out:
        notify(
            f"{path.name}: the surface is closed and inside out; it is textured and written as it is, "
            "flip its faces for programs that cull back faces"
        )


def _representatives(faces: Tensor, welded_faces: Tensor) -> Tensor:
    """The welded faces with the file's vertex indices: each group has the index of its last vertex."""
    chosen = torch.zeros(int(welded_faces.max()) + 1, dtype=torch.int64)
    chosen[welded_faces.reshape(-1)] = faces.reshape(-1)
    return chosen[welded_faces]


def save_prepared(path: Path, prepared: PreparedMesh) -> None:
    """Write a prepared mesh as a safetensors file.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    from safetensors.torch import save

    tensors, labels = {name: getattr(prepared, name) for name in STORED}, prepared.labels
    tensors |= {
        "joined": prepared.welded_faces,
        "rotation": prepared.placement.rotation,
        "centre": prepared.placement.centre,
        "scale": torch.tensor(prepared.placement.scale, dtype=torch.float64),
    }
    if prepared.first_corners is not None:
        tensors |= {"first_corners": prepared.first_corners}
    if prepared.cutout is not None:
        tensors |= {name: getattr(prepared.cutout, key) for name, key in CUTOUT.items()}
    tensors |= maps_as_tensors(prepared.maps)
    if prepared.kept is not None:
        tensors |= {"kept": prepared.kept}
    names = {}
    if labels is not None:
        tensors |= {"node": labels.node, "material": labels.material}
        names = {name: json.dumps(getattr(labels, name)) for name in NAMES}
    content = save(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
        metadata={"sets": json.dumps([asdict(part) for part in prepared.sets]), **names},
    )
    write_files({path: content})


def load_prepared(path: Path) -> PreparedMesh:
    """The prepared mesh of a file of `save_prepared`.

    Raises:
        RunDirectoryError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            facts = stream.metadata() or {}
        _require_prepared(tensors)
        stored = {name: tensors[name] for name in STORED[:-1]}
        placement = Placement(tensors["rotation"], tensors["centre"], float(tensors["scale"]))
        return PreparedMesh(
            **stored,
            welded_faces=tensors["joined"],
            placement=placement,
            face_set=tensors["face_set"],
            sets=_stored_sets(tensors, facts),
            labels=_stored_labels(tensors, facts),
            first_corners=tensors.get("first_corners"),
            maps=stored_maps(tensors, len(tensors["faces"])),
            cutout=_stored_cutout(tensors),
            kept=_stored_kept(tensors),
        )
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        raise RunDirectoryError(
            f"{path} must be the run's prepared mesh, but is missing or damaged ({error}); start a new run"
        ) from error


def _stored_sets(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> tuple[TextureSet, ...]:
    """The texture sets in an untrusted file.

    Raises:
        ValueError: they do not fit the faces.
        KeyError: they are missing.
        TypeError: an entry is unknown.
    """
    sets = []
    for entry in json.loads(facts["sets"]):
        part = TextureSet(**{**entry, "materials": tuple(entry["materials"])})
        typed = isinstance(part.name, str) and isinstance(part.method, str)
        typed &= isinstance(part.shared, bool) and isinstance(part.wraps, bool)
        if not typed or not all(type(index) is int for index in part.materials):
            raise ValueError("sets must have names, methods, flags and numbers of materials")
        if not isinstance(part.scale, float) or not 0.0 < part.scale <= 1.0:
            raise ValueError("the scale of sets must lie in (0, 1]")
        sets.append(part)
    index = tensors["face_set"]
    if index.shape != tensors["faces"].shape[:1] or index.dtype != torch.int64:
        raise ValueError("face_set must be a whole number for each face")
    if not 0 <= int(index.min()) <= int(index.max()) < len(sets):
        raise ValueError("face_set must be the index of a set")
    return tuple(sets)


def _stored_kept(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The mask of kept faces in an untrusted file, None where it has none.

    Raises:
        ValueError: it does not fit the faces.
    """
    kept = tensors.get("kept")
    if kept is not None and (kept.shape != tensors["faces"].shape[:1] or kept.dtype != torch.bool):
        raise ValueError("kept must be a truth value for each face")
    return kept


def _stored_labels(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> FaceLabels | None:
    """The labels in an untrusted file, None where it has none.

    Raises:
        ValueError: they do not fit the faces.
        KeyError: one is missing.
    """
    if "node" not in tensors:
        return None
    names = {name: tuple(json.loads(facts[name])) for name in NAMES}
    for name, known in (("node", names["nodes"]), ("material", names["materials"])):
        index = tensors[name]
        if index.shape != tensors["faces"].shape[:1] or index.dtype != torch.int64:
            raise ValueError(f"{name} must be a whole number for each face")
        if not -1 <= int(index.min()) <= int(index.max()) < len(known):
            raise ValueError(f"{name} must be -1 or the index of a name")
        if not all(isinstance(item, str) for item in known):
            raise ValueError(f"the names of {name} must be text")
    parents = names["parents"]
    if len(parents) != len(names["nodes"]) or not all(type(item) is int for item in parents):
        raise ValueError("parents must be one whole number for each node")
    return FaceLabels(tensors["node"], tensors["material"], **names)


def _stored_cutout(tensors: Mapping[str, Tensor]) -> Cutout | None:
    """The cutout in an untrusted file, None where it has none.

    Raises:
        ValueError: it does not fit the faces.
        KeyError: a part is missing.
    """
    if "cut_whole" not in tensors:
        return None
    cutout = Cutout(*(tensors[name] for name in CUTOUT))
    parent, corners, count = cutout.parent, cutout.corners, len(tensors["faces"])
    if cutout.whole.shape != (count,) or cutout.whole.dtype != torch.bool:
        raise ValueError("cut_whole must be true or false for each face")
    if parent.dtype != torch.int64 or parent.ndim != 1 or corners.shape != (len(parent), 3, 3):
        raise ValueError("cut_parent and cut_corners must be a face and 3 x 3 numbers for each triangle")
    outside = bool(((parent < 0) | (parent >= count)).any())
    if outside or not corners.is_floating_point() or not bool(corners.isfinite().all()):
        raise ValueError("cut_parent must be faces, and cut_corners finite")
    return cutout


def _require_prepared(tensors: Mapping[str, Tensor]) -> None:
    """Check that the tensors of an untrusted file make up a prepared mesh.

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
            raise ValueError(f"{name} must be indices of finite {target}")
    first = tensors.get("first_corners", torch.zeros(count, 3, dtype=torch.int64))
    if first.shape != (count, 3) or first.dtype != torch.int64:
        raise ValueError("first_corners must be rows of 3 whole numbers, as many as there are faces")
    if not 0 <= int(first.min()) <= int(first.max()) < 3 * count:
        raise ValueError("first_corners must be corners of the faces")
