"""Comparison of two Wavefront OBJ files, apart from texture coordinates and the names of images."""

from collections.abc import Iterator
from pathlib import Path

from pgc3d.evaluation.documents import Difference
from pgc3d.mesh_io.limits import read_limited
from pgc3d.mesh_io.lines import Lines, decoded
from pgc3d.mesh_io.mtl import library_names, library_paths, map_name
from pgc3d.mesh_io.obj import read_obj

KEPT = ("v", "vn", "o", "g", "s", "usemtl", "l", "p")  # kinds of lines in their order


def compare_objs(first: Path, second: Path) -> list[Difference]:
    """The differences between two OBJ files and their material libraries.

    Raises:
        InputError: a file is damaged.
    """
    return [*_lines(first, second), *_faces(first, second), *_libraries(first, second)]


def _lines(first: Path, second: Path) -> Iterator[Difference]:
    old, new = (Lines(read_limited(path), path) for path in (first, second))
    for word in KEPT:
        known, found = (
            [lines.words(row) for row in lines.starting_with(word.encode())] for lines in (old, new)
        )
        if known != found:
            yield Difference(f"lines {word}", "extended" if found[: len(known)] == known else "changed")
    known, found = ([lines.words(row) for row in lines.starting_with(b"vt")] for lines in (old, new))
    if known != found:
        yield Difference("lines vt", "extended" if found[len(found) - len(known) :] == known else "changed")


def _faces(first: Path, second: Path) -> Iterator[Difference]:
    """Differences of the triangles' corners, their groups and materials."""
    old, new = (read_obj(read_limited(path), path) for path in (first, second))
    corners = [mesh.vertices[mesh.faces] for mesh in (old, new)]
    if corners[0].shape != corners[1].shape or not bool((corners[0] == corners[1]).all()):
        yield Difference("faces", "changed")
        return
    for name in ("node", "material"):
        known, found = (getattr(mesh.labels, name).tolist() for mesh in (old, new))
        names = [getattr(mesh.labels, f"{name}s") for mesh in (old, new)]
        texts = [
            [some[index] if index >= 0 else "" for index in indices]
            for some, indices in zip(names, (known, found), strict=True)
        ]
        if texts[0] != texts[1]:
            yield Difference(f"{name}s of faces", "changed")


def _libraries(first: Path, second: Path) -> Iterator[Difference]:
    old, new = _materials(first), _materials(second)
    for name in dict.fromkeys([*old, *new]):
        if name not in new or name not in old:
            yield Difference(f"material {name}", "added" if name in new else "removed")
        elif old[name] != new[name]:
            yield Difference(f"material {name}", "changed")


def _materials(path: Path) -> dict[str, list[str]]:
    """The lines of each material; those of images without the image's name."""
    lines, found, name = Lines(read_limited(path), path), dict[str, list[str]](), ""
    texts = library_names(lines)
    for library in dict.fromkeys(file for text in texts for file in library_paths(text, path)):
        for line in decoded(read_limited(library)).splitlines():
            key, _, rest = line.strip().partition(" ")
            if key.lower() == "newmtl":
                name = rest.strip()
                found.setdefault(name, [])
            elif name and line.strip():
                image = map_name(line)
                found[name].append(line.strip().removesuffix(image) if image else line.strip())
    return found
