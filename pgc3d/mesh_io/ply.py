"""Read a PLY: text or binary, polygons of any corner count or triangle strips."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.mesh_io.limits import require_counts
from pgc3d.mesh_io.lines import counted, quoted
from pgc3d.mesh_io.ply_header import Element, Header, read_header
from pgc3d.mesh_io.ply_table import Column, read_tables
from pgc3d.mesh_io.side_images import image_loader
from pgc3d.mesh_io.source import SourceMaterial, SourceMesh
from pgc3d.mesh_io.surface import cut_polygons, in_single, own_normals, own_uv

Array = NDArray[Any]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Columns = Mapping[str, Column]

FACES, STRIPS = ("face",), ("tristrips", "tristrip")
INDICES = ("vertex_indices", "vertex_index")
NORMALS = ("nx", "ny", "nz")
UV = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"))
COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
ALPHA = ("alpha", "a", "diffuse_alpha")
LARGEST = {"u1": 255.0, "u2": 65535.0, "f4": 1.0, "f8": 1.0}  # value of full colour


@dataclass(frozen=True)
class _Surface:
    """Triangles [F, 3] and, for faces, the indices of their corners and rows in the file."""

    triangles: Ints
    corners: Ints | None = None  # [F, 3], places in the list of all corners
    rows: Ints | None = None  # [F]
    short: int = 0  # faces with fewer than three corners, which are left out


def read_ply(data: bytes, path: Path) -> SourceMesh:
    """The surface of a PLY, its colours and the image that a comment names, which is not opened.

    Raises:
        InputError: the file is damaged, holds less than its header states, or has no faces.
    """
    header = read_header(data, path)
    vertex, listed = header.element("vertex"), _listed(header)
    counts = {item.name: item.count for item in (vertex, header.element(*FACES)) if item}
    require_counts(path, vertices=counts.get("vertex", 0), faces=max(counts.get("face", 0), 1))
    if vertex is None or not vertex.has("x", "y", "z"):
        raise InputError(f"a PLY must have vertices with x, y and z, got none in {path}; export it as a mesh")
    if listed is None or not vertex.count:
        _refuse_points(path, header)
    is_strips = listed.name in STRIPS
    tables = read_tables(data, header, path, listed.name)
    if vertex.name not in tables:  # listed behind the faces
        tables = read_tables(data, header, path, vertex.name)
    positions, own = _stack(tables[vertex.name], ("x", "y", "z")), tables[listed.name]
    surface = _strips(own, positions, path) if is_strips else _faces(own, positions, path)
    vertices, notes = in_single(positions, surface.triangles, path)
    if surface.short:
        notes.append(f"{counted(surface.short, 'face')} of fewer than three corners passed over")
    uv = own_uv(*_uv(tables[vertex.name], own, surface, notes))
    normals = own_normals(*_normals(tables[vertex.name], surface))
    materials = tuple(
        SourceMaterial(name, load_image=image_loader(name, path), image_key=name)
        for name in (header.images if uv else ())
    )
    return SourceMesh(
        vertices=vertices,
        faces=torch.from_numpy(surface.triangles),
        normals=None if normals is None else normals.values,
        normal_faces=None if normals is None else normals.faces,
        uv=None if uv is None else uv.values,
        uv_faces=None if uv is None else uv.faces,
        vertex_color=_colors(vertex, tables[vertex.name]),
        face_material=_face_material(own, surface, len(materials)),
        materials=materials,
        notes=(*header.notes, *notes),
        lost=_lost(header, vertex, listed, len(header.images)),
    )


def _listed(header: Header) -> Element | None:
    """The element that lists the surface."""
    elements = (header.element(*names) for names in (FACES, STRIPS))
    return next((item for item in elements if item and item.count and _indices_name(item)), None)


def _indices_name(element: Element) -> str | None:
    lists = [item.name for item in element.properties if item.count_kind]
    return next((name for name in INDICES if name in lists), None)


def _refuse_points(path: Path, header: Header) -> NoReturn:
    held = ", ".join(
        f"{item.count} {'vertices' if item.name == 'vertex' else quoted(item.name)}"
        for item in header.elements[:6]
        if item.count
    )
    if any(item.has("f_dc_0") for item in header.elements):
        held = f"{held} of a cloud of Gaussians"
    face = header.element(*FACES)
    if face is not None and face.count and _indices_name(face) is None:
        raise InputError(
            f"the faces of a PLY must have a list vertex_indices, got none in {path}; export it as a mesh"
        )
    raise InputError(
        f"the mesh must have faces, got none in {path}, which holds {held or 'nothing'}; points and lines "
        "cannot be textured: make a surface of them first"
    )


def _stack(columns: Columns, names: tuple[str, ...]) -> Floats:
    return np.stack([columns[name].values.astype(np.float64) for name in names], axis=1)


def _indices(columns: Columns, path: Path, vertices: int, *, restarts: bool) -> tuple[Ints, Ints]:
    """The corners of all rows, and the number of each row."""
    column = next(columns[name] for name in INDICES if name in columns and columns[name].is_list)
    values = column.values
    whole = values.astype(np.int64) if values.dtype.kind != "f" else _whole(values)
    wrong = np.flatnonzero((whole < (-1 if restarts else 0)) | (whole >= vertices) | (whole != values))
    if len(wrong):
        row = int(np.searchsorted(np.cumsum(column.counts), wrong[0], side="right"))
        raise InputError(
            f"faces must use vertices that exist, got vertex {values[wrong[0]]:g} of {vertices}, counted "
            f"from 0, in face {row} of {path}; export it again"
        )
    return whole, column.counts


def _whole(values: Array) -> Ints:
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(values, nan=-2, posinf=-2, neginf=-2).clip(-(2**53), 2**53).astype(np.int64)


def _faces(columns: Columns, positions: Floats, path: Path) -> _Surface:
    corners, counts = _indices(columns, path, len(positions), restarts=False)
    cut, rows = cut_polygons(positions, corners, counts, path)
    if not len(cut):
        raise InputError(
            f"the mesh must have faces, got none of three corners or more in {path}; points and lines cannot "
            "be textured"
        )
    return _Surface(corners[cut], cut, rows, int((counts < 3).sum()))


def _strips(columns: Columns, positions: Floats, path: Path) -> _Surface:
    """Strips end at -1 and with their row; every second triangle is turned over."""
    corners, counts = _indices(columns, path, len(positions), restarts=True)
    row = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(corners))
    fresh = np.ones(len(corners), dtype=bool)  # first corner of a strip
    fresh[1:] = (row[1:] != row[:-1]) | (corners[:-1] < 0)
    start = np.maximum.accumulate(np.where(fresh, place, 0))
    last = place[2:]
    whole = (corners[:-2] >= 0) & (corners[1:-1] >= 0) & (corners[2:] >= 0) & (last - start[2:] >= 2)
    last = last[whole]
    odd = (last - start[last]) % 2 == 1
    triangles = np.stack([corners[last - 2], corners[last - 1], corners[last]], axis=1)
    triangles[odd] = triangles[odd][:, [1, 0, 2]]
    a, b, c = triangles.T
    triangles = triangles[(a != b) & (b != c) & (c != a)]  # the others only lead to the next part
    require_counts(path, faces=len(triangles))
    return _Surface(triangles)


def _normals(vertex: Columns, surface: _Surface) -> tuple[Floats, Ints]:
    if not all(name in vertex for name in NORMALS):
        return np.zeros((0, 3)), surface.triangles
    return _stack(vertex, NORMALS), surface.triangles


def _uv(vertex: Columns, listed: Columns, surface: _Surface, notes: list[str]) -> tuple[Floats, Ints]:
    """Texture coordinates of the corners (as MeshLab writes them) or of the vertices."""
    corner = listed.get("texcoord")
    if corner is not None and corner.is_list and surface.corners is not None and surface.rows is not None:
        counts = next(listed[name].counts for name in INDICES if name in listed)
        return _corner_uv(corner, counts, surface.corners, surface.rows, notes)
    names = next((pair for pair in UV if all(name in vertex for name in pair)), None)
    if names is None:
        return np.zeros((0, 2)), np.full(surface.triangles.shape, -1)
    return _stack(vertex, names), surface.triangles


def _corner_uv(
    column: Column, counts: Ints, corners: Ints, rows: Ints, notes: list[str]
) -> tuple[Floats, Ints]:
    """Of a list of u and v for each corner of a face; a face with another number of them has none."""
    fits = column.counts == 2 * counts
    odd = int((~fits & (column.counts > 0)).sum())
    if odd:
        notes.append(f"{counted(odd, 'face')} with texture coordinates of another number of corners")
    first_corner, first_value = np.cumsum(counts) - counts, np.cumsum(column.counts) - column.counts
    place = first_value[rows][:, None] + 2 * (corners - first_corner[rows][:, None])
    used, faces = np.unique(np.where(fits[rows][:, None], place, -1), return_inverse=True)
    faces = faces.reshape(place.shape)
    if used[0] < 0:
        used, faces = used[1:], faces - 1
    values = column.values.astype(np.float64)
    return np.stack([values[used], values[used + 1]], axis=1), faces


def _face_material(listed: Columns, surface: _Surface, count: int) -> Tensor | None:
    if not count:
        return None
    number = listed.get("texnumber")
    if number is None or number.is_list or surface.rows is None:
        return torch.zeros(len(surface.triangles), dtype=torch.int64)
    index = number.values[surface.rows].astype(np.int64)
    return torch.from_numpy(np.where((index >= 0) & (index < count), index, -1))


def _colors(element: Element, vertex: Columns) -> Tensor | None:
    """Colours of the vertices [V, 4]; the header's type gives the number of full colour."""
    three = next((names for names in COLORS if element.has(*names)), None)
    if three is None:
        return None
    names = three + tuple(name for name in ALPHA if element.has(name))[:1]
    kinds = {item.name: item.kind for item in element.properties}
    channels = _stack(vertex, names) / [LARGEST.get(kinds[name], 255.0) for name in names]
    channels = np.nan_to_num(channels, nan=1.0)
    if kinds[names[0]][0] == "f" and len(channels) and channels.max() > 1:  # some programs write 0 to 255
        channels /= 255
    if len(names) == 3:
        channels = np.concatenate([channels, np.ones((len(channels), 1))], axis=1)
    return torch.from_numpy(channels.clip(0, 1)).float()


def _lost(header: Header, vertex: Element, listed: Element, images: int) -> tuple[str, ...]:
    lost = []
    if any(vertex.has(*names) for names in COLORS):
        lost.append("vertex colours")
    if any(listed.has(*names) for names in COLORS):
        lost.append("face colours")
    if images:
        lost.append(counted(images, "material"))
    colors = {name for names in COLORS for name in names} | set(ALPHA)
    known = (
        colors
        | {"x", "y", "z", *NORMALS, *INDICES, "texcoord", "texnumber"}
        | {n for pair in UV for n in pair}
    )
    for element in (vertex, listed):
        unused = [item.name for item in element.properties if item.name not in known]
        if unused:
            noun = f"{element.name} {'property' if len(unused) == 1 else 'properties'}"
            lost.append(f"{noun} {_names(unused)}")
    extra = [item.name for item in header.elements if item not in (vertex, listed) and item.count]
    if extra:
        lost.append(f"{'element' if len(extra) == 1 else 'elements'} {_names(extra)}")
    return tuple(lost)


def _names(names: list[str]) -> str:
    return ", ".join(quoted(name)[1:-1] for name in names[:4]) + (", ..." if len(names) > 4 else "")
