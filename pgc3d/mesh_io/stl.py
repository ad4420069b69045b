"""Read an STL: text in any case and with any line ends, or binary; three vertices for each triangle."""

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgc3d.errors import InputError
from pgc3d.mesh_io.limits import require_counts
from pgc3d.mesh_io.lines import Lines, counted, plain_text
from pgc3d.mesh_io.source import SourceMesh
from pgc3d.mesh_io.surface import in_single

Floats = NDArray[np.float64]

HEADER, TRIANGLE = 84, 50  # bytes
ROW = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
KEYWORDS = re.compile(rb"[ \t](?=(?:facet|outer|vertex|endloop|endfacet|endsolid)\s)")
REACH = 4.0  # sizes of the counted triangles in which uncounted ones must lie


def read_stl(data: bytes, path: Path) -> SourceMesh:
    """The triangles of an STL, without welding; its normals are ignored.

    Raises:
        InputError: the file is damaged, empty, or of another format.
    """
    if not data.strip(b"\0 \t\r\n"):
        raise InputError(f"the mesh must have faces, got none in {path}, which is empty; export it again")
    if not _is_binary(data):
        return _read_text(data, path)
    return _read_binary(data, path)


def _is_binary(data: bytes) -> bool:
    """Whether the file is binary, by the length that its count gives; many headers begin with "solid"."""
    if len(data) >= HEADER and len(data) == HEADER + TRIANGLE * _count(data):
        return True
    head = plain_text(data[:4096])
    return b"\0" in head or (b"facet" not in data.lower() and not head.lstrip().lower().startswith(b"solid"))


def _count(data: bytes) -> int:
    return int(struct.unpack_from("<I", data, 80)[0])


def _read_binary(data: bytes, path: Path) -> SourceMesh:
    if len(data) < HEADER:
        raise InputError(
            f"a binary STL must have at least {HEADER} bytes, got {len(data)} in {path}; export it again"
        )
    stated, there = _count(data), (len(data) - HEADER) // TRIANGLE
    whole = len(data) == HEADER + TRIANGLE * there
    if stated > there and not whole:
        raise InputError(
            f"a binary STL must be whole, but {path}: it states {counted(stated, 'triangle')} and ends after "
            f"{there}; export it again"
        )
    rows = np.frombuffer(data, ROW, there, HEADER)
    count = there if whole and _belong(rows, stated) else min(stated, there)
    if not count:
        raise InputError(
            f"the mesh must have faces, got none in {path}, whose header states "
            f"{counted(stated, 'triangle')}; export it again"
        )
    require_counts(path, faces=count)
    notes = []
    if count != stated:
        notes.append(f"the header states {counted(stated, 'triangle')}, but the file holds {count}")
    rows = rows[:count]
    # attributes hold colours (15 bits and a flag), which no program writes where it has none
    lost = ("colours of triangles",) if rows["attribute"].any() or b"COLOR=" in data[:80] else ()
    return _mesh(rows["corners"].reshape(-1, 3).astype(np.float64), path, notes, lost)


def _belong(rows: NDArray[Any], stated: int) -> bool:
    """Whether the rows behind the first `stated` ones are triangles of the same surface, nothing appended."""
    own, more = rows["corners"][:stated], rows["corners"][stated:]
    if not len(more):
        return True
    with np.errstate(invalid="ignore", over="ignore"):
        if not np.isfinite(more).all() or (more == more[:, :1]).all(axis=(1, 2)).any():
            return False
        if not len(own):
            return True
        low, high = own.min(axis=(0, 1)).astype(np.float64), own.max(axis=(0, 1)).astype(np.float64)
        away = np.maximum(low - more, more - high).max()
        return bool(away <= REACH * (high - low).max())


def _read_text(data: bytes, path: Path) -> SourceMesh:
    lines = Lines(data.lower(), path)
    rows, facets = lines.starting_with(b"vertex"), lines.starting_with(b"facet")
    if not len(rows) == 3 * len(facets) == 3 * len(lines.starting_with(b"endloop")) > 0:
        lines = Lines(lines.original, path, KEYWORDS)  # several of them may stand in one line
        rows, facets = lines.starting_with(b"vertex"), lines.starting_with(b"facet")
    if not len(facets) and not len(rows):
        raise InputError(
            f"the mesh must have faces, got none in {path}, which is text without a facet; export it again"
        )
    require_counts(path, faces=max(len(facets), len(rows) // 3))
    _check_facets(lines, facets, rows)
    _, values, counts = lines.numbers(b"vertex", least=3)
    starts = np.cumsum(counts) - counts
    solids, notes = lines.starting_with(b"solid"), []
    if not len(lines.starting_with(b"endsolid")) and not len(lines.starting_with(b"end")):
        notes.append("the last solid has no end, so that the file may have been cut off")
    lost = (f"names of {len(solids)} solids",) if len(solids) > 1 else ()
    return _mesh(values[starts[:, None] + np.arange(3)], path, notes, lost)


def _check_facets(lines: Lines, facets: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
    """Refuse facets that have not three vertices, and what ends within one."""
    owner = np.searchsorted(facets, rows) - 1
    count = np.bincount(owner.clip(0), minlength=max(len(facets), 1))
    wrong = np.flatnonzero(count != 3)
    if len(owner) and owner[0] < 0:
        lines.fault(int(rows[0]), "must be a facet before the first vertex", b"vertex")
    if len(wrong):
        rule = "that begins a facet must be followed by three vertices"
        lines.fault(int(facets[wrong[0]]), rule, int(count[wrong[0]]))


def _mesh(corners: Floats, path: Path, notes: list[str], lost: tuple[str, ...]) -> SourceMesh:
    faces = np.arange(len(corners)).reshape(-1, 3)
    vertices, more = in_single(corners, faces, path)
    return SourceMesh(vertices, torch.from_numpy(faces), notes=(*notes, *more), lost=lost)
