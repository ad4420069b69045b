"""A Wavefront OBJ with new images on some of its faces; its other lines stay as they are."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from pgc3d.mesh_io.colors import transformed
from pgc3d.mesh_io.limits import read_limited
from pgc3d.mesh_io.lines import Lines, decoded
from pgc3d.mesh_io.mtl import library_names
from pgc3d.mesh_io.mtl_repaint import NewMaterial, repaint_libraries
from pgc3d.mesh_io.names import plain_stem
from pgc3d.mesh_io.obj import read_obj, read_polygons
from pgc3d.mesh_io.repaint import Repainting, shift_between
from pgc3d.mesh_io.source import SourceMesh

PLAIN = "surface"  # the material of faces that have none in the file
WORDS = (b"mtllib", b"usemtl", b"l")  # of lines that are left out, that name a material, with corners
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Polygons:
    """The polygons of an OBJ, with the new texture coordinates of their triangles."""

    of_row: Int[np.ndarray, " L"]  # polygon in each line, -1 where it has none
    starts: Int[np.ndarray, " P"]  # of its corners
    first: Int[np.ndarray, " P"]  # of its triangles, which follow each other
    stop: Int[np.ndarray, " P"]
    image: Int[np.ndarray, " P"]  # -1 for polygons that stay as they are
    corner_uv: Int[np.ndarray, " C"]  # new texture coordinate of each corner
    whole: Bool[np.ndarray, " P"]  # whether each corner has one of them
    cut: Int[np.ndarray, "F 3"]  # corners of each triangle
    uv: Int[np.ndarray, "F 3"]  # new texture coordinates of its corners


def repaint_obj(
    source: Path, path: Path, repainting: Repainting, metadata: Mapping[str, str | int | float] | None = None
) -> dict[Path, bytes]:
    """The contents of an OBJ whose faces have new images, its material library and images, by their paths.

    Vertices, normals, groups, objects, names and the order of all lines stay. New texture coordinates stand
    before those of the file. A polygon becomes triangles only where these have different ones at a corner.

    Args:
        source: the OBJ.
        path: the file to write.
        repainting: for the faces of `read_obj`.
        metadata: for example prompt and seed.

    Raises:
        InputError: the OBJ or a library is damaged.
    """
    data = read_limited(source)
    mesh, lines = read_obj(data, source), Lines(data, source)
    states = _states(mesh, repainting)
    new = None in states.values()
    materials = _new_materials(mesh, repainting, states, new=new)
    stem = plain_stem(path)
    head = [f"# {json.dumps(dict(metadata))}"] if metadata else []
    head.append(f"mtllib {stem}.mtl")
    if new:
        head += [f"vt {u:.9g} {v:.9g}" for u, v in repainting.uv.tolist()]
    writer = _Writer(lines, _polygons(lines, repainting), materials, len(repainting.uv) if new else 0)
    ending = b"\r\n" if b"\r\n" in data else b"\n"
    text = ending.join([*(line.encode() for line in head), *writer.lines()]) + ending
    contents = repaint_libraries(
        source,
        path,
        materials,
        repainting.images,
        stem=stem,
        libraries=library_names(lines),
        keeps_maps=not new,
    )
    return contents | {path: text}


def _states(mesh: SourceMesh, repainting: Repainting) -> dict[int, bool | None]:
    """For each material with new images, -1 for none, whether its texture coordinates are transformed ones.

    None where they are not those of the new images.
    """
    owner = np.full(len(mesh.faces), -1) if mesh.face_material is None else mesh.face_material.numpy()
    painted = repainting.face_images.numpy() >= 0
    states: dict[int, bool | None] = {}
    for number in np.unique(owner[painted]).tolist():
        rows = painted & (owner == number)
        states[number] = None
        if mesh.uv is None or mesh.uv_faces is None or bool((mesh.uv_faces[rows] < 0).any()):
            continue
        wanted = repainting.uv[repainting.uv_faces[rows]].double().numpy()
        moved = transformed(mesh.uv, mesh.materials[number]) if number >= 0 else mesh.uv
        for state, uv in ((True, moved), (False, mesh.uv)):
            if shift_between(uv[mesh.uv_faces[rows]].double().numpy(), wanted) is not None:
                states[number] = state and moved is not mesh.uv
    return states


def _new_materials(
    mesh: SourceMesh, repainting: Repainting, states: Mapping[int, bool | None], *, new: bool
) -> dict[tuple[str, int], NewMaterial]:
    """Materials with new images, by the name of the old one and the index of the images.

    They have the old name where all its faces get the same images.
    """
    owner = np.full(len(mesh.faces), -1) if mesh.face_material is None else mesh.face_material.numpy()
    images = repainting.face_images.numpy()
    taken = {material.name for material in mesh.materials}
    found: dict[tuple[str, int], NewMaterial] = {}
    for number, state in states.items():
        old = mesh.materials[number].name if number >= 0 else ""
        used = np.unique(images[owner == number]).tolist()
        for place, image in enumerate(index for index in used if index >= 0):
            name = old if number >= 0 and len(used) == 1 else _free(f"{old or PLAIN}", taken, place)
            taken.add(name)
            found[old, image] = NewMaterial(old, name, image, transformed=bool(state) and not new)
    return found


def _free(name: str, taken: set[str], place: int) -> str:
    """A name that no material has."""
    candidate = name if name == PLAIN and name not in taken else f"{name}_textured"
    number = place + 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_textured_{number}"
    return candidate


def _polygons(lines: Lines, repainting: Repainting) -> _Polygons:
    faces, cut, polygon = read_polygons(lines)
    uv, images = repainting.uv_faces.numpy(), repainting.face_images.numpy()
    of_row = np.full(len(lines.ends), -1)
    of_row[faces.rows] = np.arange(len(faces.rows))
    order = np.argsort(polygon, kind="stable")
    first = np.searchsorted(polygon[order], np.arange(len(faces.rows)))
    stop = np.searchsorted(polygon[order], np.arange(len(faces.rows)), side="right")
    cut, uv, owner = cut[order], uv[order], polygon[order]
    corner_uv = np.full(int(faces.counts.sum()), -1)
    corner_uv[cut.reshape(-1)] = uv.reshape(-1)
    whole = np.ones(len(faces.rows), dtype=bool)
    whole[owner[(corner_uv[cut] != uv).any(axis=1)]] = False
    whole[np.repeat(np.arange(len(faces.rows)), faces.counts)[corner_uv < 0]] = False
    image = np.full(len(faces.rows), -1)
    image[owner] = images[order]
    starts = np.cumsum(faces.counts) - faces.counts
    return _Polygons(of_row, starts, first, stop, image, corner_uv, whole, cut, uv)


@dataclass
class _Writer:
    """The lines of the file, changed where it is necessary."""

    source: Lines
    polygons: _Polygons
    materials: Mapping[tuple[str, int], NewMaterial]
    added: int  # new texture coordinates before those of the file, 0 where these are used
    current: str = ""  # the material in the file
    written: str = ""  # and in what was written

    def lines(self) -> Iterator[bytes]:
        """All lines but those that name libraries."""
        skipped, named, others = (set(self.source.starting_with(word).tolist()) for word in WORDS)
        starts = np.concatenate([[0], self.source.ends[:-1] + 1]).tolist()
        last = len(starts) - 1  # an empty line behind the text
        for row, (start, end) in enumerate(zip(starts[:last], self.source.ends[:last].tolist(), strict=True)):
            text = self.source.data[start:end]
            if row in skipped:
                continue
            if row in named:
                name = b"".join(self.source.text(row).split(None, 1)[1:])
                self.current = self.written = decoded(name).strip()
            polygon = int(self.polygons.of_row[row])
            if polygon >= 0:
                yield from self._face(row, polygon, text)
            elif row in others and self.added:
                yield self._joined(row, self.source.words(row), None)
            else:
                yield text

    def _face(self, row: int, polygon: int, text: bytes) -> Iterator[bytes]:
        image = int(self.polygons.image[polygon])
        new = self.materials.get((self.current, image))
        wanted = self.current if new is None else new.name
        if wanted != self.written:
            self.written = wanted
            yield f"usemtl {wanted}".encode()
        if not self.added:
            yield text
            return
        words, start = self.source.words(row), int(self.polygons.starts[polygon])
        if image < 0:
            yield self._joined(row, words, None)
        elif self.polygons.whole[polygon]:
            yield self._joined(row, words, self.polygons.corner_uv[start : start + len(words)])
        else:
            for triangle in range(int(self.polygons.first[polygon]), int(self.polygons.stop[polygon])):
                corners = [words[place - start] for place in self.polygons.cut[triangle].tolist()]
                yield self._joined(row, corners, self.polygons.uv[triangle])

    def _joined(self, row: int, words: list[bytes], uv: Ints | None) -> bytes:
        """A line of corners with new texture coordinates, or its own ones counted behind the new ones."""
        corners = []
        for place, word in enumerate(words):
            parts = word.split(b"/")
            if uv is not None:
                parts = [parts[0], b"%d" % (uv[place] + 1), *parts[2:]]
            elif len(parts) > 1 and parts[1] and int(parts[1]) > 0:
                parts[1] = b"%d" % (int(parts[1]) + self.added)
            corners.append(b"/".join(parts))
        return b" ".join([self.source.text(row).split(None, 1)[0], *corners])


def moved_obj(data: bytes, matrix: Float[Tensor, "4 4"], rotation: Float[Tensor, "3 3"]) -> bytes:
    """The lines of an OBJ with its vertices moved and its normals turned; all others stay.

    Args:
        data: of the file.
        matrix: for columns of homogeneous coordinates.
        rotation: of the same similarity.
    """
    lines = data.split(b"\n")
    for index, line in enumerate(lines):
        words = line.split()
        if len(words) < 4 or words[0] not in {b"v", b"vn"}:
            continue
        point = torch.tensor([float(word) for word in words[1:4]], dtype=torch.float64)
        moved = matrix[:3, :3] @ point + matrix[:3, 3] if words[0] == b"v" else rotation @ point
        numbers = [f"{value:.9g}".encode() for value in moved.tolist()]
        lines[index] = b" ".join([words[0], *numbers, *words[4:]])
    return b"\n".join(lines)
