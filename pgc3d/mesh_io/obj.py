"""Read a Wavefront OBJ with its own vertices, faces and order of both."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.mesh_io.limits import require_counts
from pgc3d.mesh_io.lines import Lines, counted, decoded, quoted
from pgc3d.mesh_io.mtl import read_libraries
from pgc3d.mesh_io.obj_faces import Faces, read_faces
from pgc3d.mesh_io.source import SourceMaterial, SourceMesh
from pgc3d.mesh_io.surface import cut_polygons, in_single, own_normals, own_uv
from pgc3d.types import FaceLabels

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FREE_FORM = frozenset(
    [
        "vp",
        "cstype",
        "deg",
        "bmat",
        "step",
        "curv",
        "curv2",
        "surf",
        "parm",
        "trim",
        "hole",
        "scrv",
        "sp",
        "end",
        "con",
        "ctech",
        "stech",
        "bzp",
        "bsp",
        "cdc",
        "cdp",
        "res",
    ]
)
SILENT = frozenset(
    [
        "bevel",
        "c_interp",
        "d_interp",
        "lod",
        "maplib",
        "usemap",
        "shadow_obj",
        "trace_obj",
        "call",
        "csh",
        "mg",
    ]
)


@dataclass
class _Directives:
    """The content of all lines other than vertices and faces."""

    libraries: list[str] = field(default_factory=list)
    materials: dict[str, int] = field(default_factory=dict)
    material_rows: list[int] = field(default_factory=list)
    material_index: list[int] = field(default_factory=list)
    part_rows: list[int] = field(default_factory=list)
    part_node: list[int] = field(default_factory=list)
    nodes: dict[tuple[str, int], int] = field(default_factory=dict)  # by name and parent, -1 for roots
    owner: int = -1  # the node of the object that the following groups belong to
    groups: set[str] = field(default_factory=set)
    objects: set[str] = field(default_factory=set)
    smooth: bool = False
    counts: dict[str, int] = field(default_factory=dict)  # of lines by what they are
    unknown: list[str] = field(default_factory=list)


def read_obj(data: bytes, path: Path, *, colors: bool = True) -> SourceMesh:
    """The surface of an OBJ; with `colors` also its material libraries, as far as they lie in its folder.

    Images are opened by `SourceMaterial.load_image` only. Lines, points and free-form curves are passed over.
    The parts are what begins with each line of an object's or a group's name.

    Raises:
        InputError: a line is not valid, an index is out of range, or there are no faces.
    """
    lines = Lines(data, path)
    rows = lines.starting_with(b"f")
    directives = _read_directives(lines, rows)
    require_counts(path, vertices=len(lines.starting_with(b"v")), faces=len(rows) or -1)
    listed, positions, extra = _vertices(lines)
    faces = read_faces(lines, rows)
    if not len(faces.counts):
        raise InputError(_no_faces(path, len(listed), directives, faces))
    places = faces.places(0, lines, listed)
    cut, polygon = cut_polygons(positions, places, faces.counts, path)
    triangles = places[cut]
    vertices, notes = in_single(positions, triangles, path)
    notes += _notes(directives, faces)
    uv = own_uv(*_slot(lines, faces, 1, cut))
    normals = own_normals(*_slot(lines, faces, 2, cut))
    rows = faces.rows[polygon]
    material = _preceding(rows, directives.material_rows, directives.material_index)
    libraries = read_libraries(directives.libraries, path) if colors else None
    if libraries is not None:
        notes += libraries.notes(directives.materials)
    return SourceMesh(
        vertices=vertices,
        faces=torch.from_numpy(triangles),
        normals=None if normals is None else normals.values,
        normal_faces=None if normals is None else normals.faces,
        uv=None if uv is None else uv.values,
        uv_faces=None if uv is None else uv.faces,
        vertex_color=_colors(extra),
        face_material=material if directives.materials else None,
        materials=libraries.sources(directives.materials) if libraries else _bare(directives.materials),
        notes=tuple(notes),
        lost=_lost(directives, extra),
        face_part=_face_part(directives, rows),
        labels=FaceLabels(
            node=_preceding(rows, directives.part_rows, directives.part_node),
            material=material,
            nodes=tuple(name or f"node {index}" for (name, _), index in directives.nodes.items()),
            parents=tuple(parent for _, parent in directives.nodes),
            materials=tuple(name or f"material {index}" for name, index in directives.materials.items()),
        ),
    )


def _vertices(lines: Lines) -> tuple[Ints, Floats, Floats | None]:
    """The lines that list vertices, their positions [V, 3] and, where some have them, colours [V, 3]."""
    rows, values, counts = lines.numbers(b"v", least=3)
    starts = np.cumsum(counts) - counts
    positions = values[starts[:, None] + np.arange(3)]
    colored = counts >= 6  # a fourth number alone is a weight, which means nothing to faces
    if not colored.any():
        return rows, positions, None
    colors = np.ones((len(rows), 3))
    colors[colored] = values[starts[colored][:, None] + np.arange(3, 6)]
    return rows, positions, colors


def _slot(lines: Lines, faces: Faces, slot: int, cut: Ints) -> tuple[Floats, Ints]:
    """Texture coordinates or normals and the triangles' indices; None where there are none."""
    word, width = ((b"vt", 2), (b"vn", 3))[slot - 1]
    rows, values, counts = lines.numbers(word, least=1 if slot == 1 else 3)
    if not len(rows):
        return np.zeros((0, width)), np.full(cut.shape, -1)
    starts = np.cumsum(counts) - counts
    place = starts[:, None] + np.arange(width)
    table = np.where(np.arange(width) < counts[:, None], values[place.clip(0, len(values) - 1)], 0.0)
    return table, faces.places(slot, lines, rows)[cut]


def _read_directives(lines: Lines, faces: Ints) -> _Directives:
    letter = lines.bytes[lines.first]
    left = (lines.first < lines.ends) & (letter != ord("#"))
    left[faces] = False
    for word in (b"v", b"vt", b"vn"):
        left[lines.starting_with(word)] = False
    directives = _Directives()
    for row in np.flatnonzero(left).tolist():
        key, _, arguments = lines.text(row).replace(b"\t", b" ").partition(b" ")
        _add_line(directives, row, decoded(key), arguments)
    return directives


def _add_line(directives: _Directives, row: int, key: str, arguments: bytes) -> None:
    if key == "usemtl":
        name = decoded(arguments).strip()
        directives.material_rows.append(row)
        directives.material_index.append(directives.materials.setdefault(name, len(directives.materials)))
    elif key == "mtllib":
        directives.libraries.append(decoded(arguments).strip())
    elif key in ("g", "o"):
        name = decoded(arguments).strip()
        directives.part_rows.append(row)
        (directives.groups if key == "g" else directives.objects).add(name)
        place = (name, directives.owner if key == "g" else -1)
        directives.part_node.append(directives.nodes.setdefault(place, len(directives.nodes)))
        directives.owner = directives.owner if key == "g" else directives.part_node[-1]
    elif key == "s":
        directives.smooth |= arguments.strip() not in (b"", b"off", b"0")
    elif key in ("l", "p") or key in FREE_FORM:
        kind = {"l": "line", "p": "point"}.get(key, "free-form")
        directives.counts[kind] = directives.counts.get(kind, 0) + 1
    elif key not in SILENT and key not in directives.unknown and len(directives.unknown) < 100:
        directives.unknown.append(key)


def _no_faces(path: Path, vertices: int, directives: _Directives, faces: Faces) -> str:
    held = [counted(vertices, "vertex", "vertices")] if vertices else []
    if "free-form" in directives.counts:
        held.append("free-form curves or surfaces")
    held += [
        counted(directives.counts[kind], kind) for kind in ("line", "point") if kind in directives.counts
    ]
    if faces.short:
        held.append(f"{counted(faces.short, 'face')} of fewer than three corners")
    if directives.unknown and not held:
        held.append(f"lines that begin with {quoted(directives.unknown[0])}")
    contents = ", ".join(held) or "nothing"
    return f"the mesh must have faces, got none in {path}, which holds {contents}; export it as polygons"


def _notes(directives: _Directives, faces: Faces) -> list[str]:
    notes = []
    if faces.short:
        notes.append(f"{counted(faces.short, 'face')} of fewer than three corners passed over")
    passed = {"line": "lines", "point": "points", "free-form": "free-form curves or surfaces"}
    kinds = [name for kind, name in passed.items() if kind in directives.counts]
    if kinds:
        notes.append(f"{' and '.join(kinds)} passed over")
    if directives.unknown:
        shown = ", ".join(
            [*map(quoted, directives.unknown[:3]), *(["..."] if len(directives.unknown) > 3 else [])]
        )
        notes.append(f"lines of an unknown kind passed over: {shown}")
    return notes


def _preceding(rows: Ints, lines: list[int], index: list[int]) -> Tensor:
    """The index of the last of `lines` before each row, -1 where there is none."""
    last = np.searchsorted(np.array(lines, dtype=np.int64), rows)
    return torch.from_numpy(np.array([-1, *index], dtype=np.int64)[last])


def _bare(names: Iterable[str]) -> tuple[SourceMaterial, ...]:
    return tuple(SourceMaterial(name) for name in names)


def _face_part(directives: _Directives, rows: Ints) -> Tensor | None:
    """The parts that have faces, counted from 0; None where there is one only."""
    parts, index = np.unique(np.searchsorted(np.array(directives.part_rows), rows), return_inverse=True)
    return torch.from_numpy(index.reshape(-1)) if len(parts) > 1 else None


def _colors(colors: Floats | None) -> Tensor | None:
    if colors is None:
        return None
    rgb = np.nan_to_num(colors, nan=1.0)
    rgb = (rgb / 255 if rgb.max() > 1 else rgb).clip(0, 1)  # some programs write 0 to 255
    return torch.from_numpy(np.concatenate([rgb, np.ones((len(rgb), 1))], axis=1)).float()


def _lost(directives: _Directives, colors: Floats | None) -> tuple[str, ...]:
    lost = []
    for names, noun in (
        (directives.objects, "object name"),
        (directives.groups, "group"),
        (directives.materials, "material"),
    ):
        if names:
            lost.append(counted(len(names), noun))
    if directives.smooth:
        lost.append("smoothing groups")
    if colors is not None:
        lost.append("vertex colours")
    for kind, noun in (("line", "line"), ("point", "point")):
        if kind in directives.counts:
            lost.append(counted(directives.counts[kind], noun))
    if "free-form" in directives.counts:
        lost.append("free-form curves and surfaces")
    return tuple(lost)
