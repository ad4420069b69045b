"""Structural comparison of two mesh files: which nodes, materials, animations and data of them differ."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from pgc3d.errors import InputError
from pgc3d.mesh_io.gltf_accessor import read_stored
from pgc3d.mesh_io.gltf_document import Document, parse_document
from pgc3d.mesh_io.gltf_edit import entries, raw_root, references
from pgc3d.mesh_io.gltf_primitive import read_faces
from pgc3d.mesh_io.limits import read_limited

DATA = (
    "accessors",
    "bufferViews",
    "buffers",
    "textures",
    "images",
    "samplers",
)  # compared where they are used
Kind = Literal["added", "removed", "changed", "extended", "split"]


@dataclass(frozen=True)
class Difference:
    """A difference of the second file to the first.

    "extended": the elements of the first file, followed by others. "split": indices of other vertices, whose
    attributes at every corner are those of the first file.
    """

    place: str  # as in "meshes[0].primitives[1].attributes.TEXCOORD_1"
    kind: Kind


@dataclass(frozen=True)
class _Array:
    """The content of an accessor with its properties."""

    values: Shaped[np.ndarray, "N C"]
    facts: tuple[tuple[str, str], ...]  # name, normalised, extras

    def same(self, other: "_Array") -> bool:
        return self.facts == other.facts and self.starts(other) and len(self.values) == len(other.values)

    def starts(self, other: "_Array") -> bool:
        """Whether the elements are the first ones of another array, byte for byte."""
        part = other.values[: len(self.values)]
        return self.values.dtype == other.values.dtype and self.values.tobytes() == part.tobytes()


def compare_documents(first: Path, second: Path) -> list[Difference]:
    """The differences between two glTF or GLB files, by their contents and not by indices of data.

    Raises:
        InputError: a file is damaged.
    """
    trees = [_resolved(path) for path in (first, second)]
    found = list(_compare(trees[0][1], trees[1][1], ""))
    return _with_splits(found, trees[0][0], trees[1][0])


def _resolved(path: Path) -> tuple[Document, dict[str, Any]]:
    """A document, and its JSON with contents in place of indices of data."""
    data = read_limited(path)
    document, root = parse_document(data, path), raw_root(data)
    images = [_image(document, item, place) for place, item in enumerate(entries(root, "images"))]
    samplers, textures = entries(root, "samplers"), entries(root, "textures")
    for holder, key in references(root, "images"):
        holder[key] = images[holder[key]]
    for texture in textures:
        if "sampler" in texture:
            texture["sampler"] = samplers[texture["sampler"]]
    for holder, key in references(root, "textures"):
        holder[key] = textures[holder[key]]
    accessors = entries(root, "accessors")
    for holder, key in references(root, "accessors"):
        holder[key] = _array(document, holder[key], accessors[holder[key]])
    return document, {key: value for key, value in root.items() if key not in DATA}


def _image(document: Document, image: dict[str, Any], place: int) -> dict[str, Any]:
    entry = document.root.entries("images")[place]
    try:
        named = "uri" in image
        content = (
            document.resource(entry, "image") if named else bytes(document.view(entry.integer("bufferView")))
        )
    except InputError:  # a file that is missing
        return image
    known = {
        key: value for key, value in image.items() if key not in ("uri", "bufferView", "mimeType", "name")
    }
    return known | {"sha256": hashlib.sha256(content).hexdigest()}


def _array(document: Document, index: int, entry: dict[str, Any]) -> _Array:
    facts = [(key, repr(entry.get(key))) for key in ("name", "normalized", "extras", "type")]
    return _Array(np.ascontiguousarray(read_stored(document, index)), tuple(facts))


def _compare(first: Any, second: Any, place: str) -> Iterator[Difference]:
    if isinstance(first, _Array) and isinstance(second, _Array):
        if not first.same(second):
            yield Difference(place, "extended" if first.starts(second) else "changed")
        return
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            name = f"{place}.{key}" if place else str(key)
            if key not in second or key not in first:
                yield Difference(name, "added" if key in second else "removed")
            else:
                yield from _compare(first[key], second[key], name)
        return
    if isinstance(first, list) and isinstance(second, list):
        for index in range(max(len(first), len(second))):
            name = f"{place}[{index}]"
            if index >= min(len(first), len(second)):
                yield Difference(name, "added" if index < len(second) else "removed")
            else:
                yield from _compare(first[index], second[index], name)
        return
    if type(first) is not type(second) or first != second:
        yield Difference(place, "changed")


def _with_splits(found: list[Difference], first: Document, second: Document) -> list[Difference]:
    """The differences, where indices that only follow split vertices are "split"."""
    return [
        Difference(item.place, "split")
        if item.place.endswith(".indices") and _same_corners(item.place, first, second)
        else item
        for item in found
    ]


def _same_corners(place: str, first: Document, second: Document) -> bool:
    """Whether all attributes and morph targets of a primitive are the same at its triangles' corners."""
    mesh, primitive = (int(part.split("]")[0]) for part in place.split("[")[1:3])
    known = [item.meshes[mesh].entries("primitives")[primitive] for item in (first, second)]
    faces = [read_faces(item, entry) for item, entry in zip((first, second), known, strict=True)]
    holders = zip(*([entry.entry("attributes"), *entry.entries("targets")] for entry in known), strict=True)
    for old, new in holders:
        for name, index in old.value.items():
            other = new.value.get(name, new.value.get(f"_{name}"))
            if other is None:
                return False
            values = read_stored(first, index)[faces[0]], read_stored(second, other)[faces[1]]
            if values[0].tobytes() != values[1].tobytes():
                return False
    return True
