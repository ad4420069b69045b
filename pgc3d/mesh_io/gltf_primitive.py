"""Triangles and attributes of a glTF primitive, in the coordinates of its mesh."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from pgc3d.errors import InputError
from pgc3d.mesh_io.gltf_accessor import count, read_floats, read_indices, read_joints
from pgc3d.mesh_io.gltf_document import Document, Entry, compressed

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

TRIANGLES, STRIP, FAN = 4, 5, 6
DRACO = "KHR_draco_mesh_compression"


@dataclass(frozen=True)
class Block:
    """Vertices that one or more primitives share."""

    positions: Float[np.ndarray, "V 3"]
    normals: Float[np.ndarray, "V 3"] | None  # of any length
    colors: Float[np.ndarray, "V 4"] | None  # linear
    joints: Int[np.ndarray, "V K"] | None
    weights: Float[np.ndarray, "V K"] | None


@dataclass(frozen=True)
class Primitive:
    """Faces with one material."""

    block: int  # of the mesh
    faces: Int[np.ndarray, "F 3"]
    uv: Float[np.ndarray, "V 2"] | None  # v downwards
    material: int | None
    number: int = 0  # in the mesh's list


@dataclass(frozen=True)
class Part:
    """Successive faces of a scene: those of one primitive at one node, in one instance of it."""

    node: int  # -1 in a file without nodes
    mesh: int
    primitive: int  # in the mesh's list
    faces: Int[np.ndarray, "F 3"]  # vertices of the primitive, in the order of the scene's corners


def first_corners(parts: Sequence[Part]) -> Int[np.ndarray, "F 3"]:
    """For each corner of a scene's faces, the same corner of the first part with that primitive.

    Corners are counted as 3 * face + corner; those of a first part are their own.
    """
    firsts: dict[tuple[int, int], tuple[int, Indices]] = {}
    found, start = [np.zeros((0, 3), dtype=np.int64)], 0
    for part in parts:
        begin, faces = firsts.setdefault((part.mesh, part.primitive), (start, part.faces))
        # a mirrored instance has its corners in the reverse order
        turned = (part.faces != faces).any(axis=1, keepdims=True)
        found.append(3 * (begin + np.arange(len(faces)))[:, None] + np.where(turned, [2, 1, 0], [0, 1, 2]))
        start += len(part.faces)
    return np.concatenate(found)


def repeated(primitive: Primitive, copies: int, vertices: int) -> Primitive:
    """The faces of all copies of a primitive whose block has so many vertices."""
    if copies == 1:
        return primitive
    starts = vertices * np.arange(copies)[:, None, None]
    uv = None if primitive.uv is None else np.tile(primitive.uv, (copies, 1))
    return replace(primitive, faces=(primitive.faces[None] + starts).reshape(-1, 3), uv=uv)


def is_surface(primitive: Entry) -> bool:
    """Whether it has triangles, not points or lines."""
    mode = primitive.integer("mode", TRIANGLES)
    if mode > FAN:
        raise primitive.error("mode", "at most 6")
    return mode >= TRIANGLES


def require_plain(document: Document, primitive: Entry) -> None:
    """Check that a surface is not compressed, or has an uncompressed copy.

    Raises:
        InputError: it is compressed.
    """
    if primitive.extension(DRACO) is None:
        return
    needed = [*primitive.entry("attributes").value.values()]
    needed += [primitive.value["indices"]] if "indices" in primitive else []
    places = [value for value in needed if isinstance(value, int) and 0 <= value < len(document.accessors)]
    plain = all("bufferView" in document.accessors[place] for place in places)
    if DRACO in document.root.texts("extensionsRequired") or not plain:
        raise compressed(document.path, "Draco", DRACO)


def sizes(document: Document, primitive: Entry) -> tuple[int, int]:
    """Numbers of vertices and faces by a primitive's own counts; nothing is read.

    Raises:
        InputError: it has no positions, or something has a wrong type.
    """
    vertices, corners = _counts(document, primitive)
    if primitive.integer("mode", TRIANGLES) == TRIANGLES:
        return vertices, corners // 3
    return vertices, max(corners - 2, 0)


def is_cut(document: Document, primitive: Entry) -> bool:
    """Whether the corners of a list of triangles are no multiple of three."""
    return primitive.integer("mode", TRIANGLES) == TRIANGLES and _counts(document, primitive)[1] % 3 != 0


def _counts(document: Document, primitive: Entry) -> tuple[int, int]:
    """Vertices and corners."""
    position = attribute(document, primitive, "POSITION")
    if position is None:
        raise primitive.entry("attributes").error("POSITION", "an index")
    vertices = count(document, position)
    indices = primitive.index("indices", len(document.accessors))
    return vertices, vertices if indices is None else count(document, indices)


def attribute(document: Document, primitive: Entry, name: str) -> int | None:
    """The accessor of an attribute."""
    return primitive.entry("attributes").index(name, len(document.accessors))


def read_faces(document: Document, primitive: Entry) -> Int[np.ndarray, "F 3"]:
    """Triangles of a list, strip or fan, all wound alike.

    Degenerate triangles of a strip, which only connect its parts, are removed.

    Raises:
        InputError: an index is out of range.
    """
    vertices, number = sizes(document, primitive)
    mode = primitive.integer("mode", TRIANGLES)
    corners = 3 * number if mode == TRIANGLES else (number + 2 if number else 0)
    index = primitive.index("indices", len(document.accessors))
    if index is None:
        order = np.arange(corners, dtype=np.int64)
    else:
        order = read_indices(document, index, rows=corners)
    if len(order) and order.max() >= vertices:
        raise InputError(
            f"faces must use vertices that exist, got index {order.max()} of {vertices} vertices in "
            f"{primitive.place} of {document.path.name}; export it again"
        )
    if mode == TRIANGLES:
        return order.reshape(-1, 3)
    if mode == FAN:
        first = np.broadcast_to(order[:1], number)
        return np.stack([order[1:-1], order[2:], first], axis=1)
    faces = np.stack([order[:-2], order[1:-1], order[2:]], axis=1)
    faces[1::2] = faces[1::2][:, [0, 2, 1]]
    a, b, c = faces.T
    with_area: Indices = faces[(a != b) & (b != c) & (c != a)]
    return with_area


def read_block(
    document: Document, primitive: Entry, targets: list[Entry], weights: tuple[float, ...]
) -> Block:
    """The vertices of a primitive, its morph targets added with their weights.

    Raises:
        InputError: an attribute is damaged or has fewer elements than there are positions.
    """
    vertices, _ = sizes(document, primitive)

    def floats(entry: Entry, name: str, *kinds: str) -> Floats | None:
        index = entry.index(name, len(document.accessors))
        return None if index is None else read_floats(document, index, kinds, rows=vertices)

    attributes = primitive.entry("attributes")
    positions, normals = floats(attributes, "POSITION", "VEC3"), floats(attributes, "NORMAL", "VEC3")
    colors = floats(attributes, "COLOR_0", "VEC3", "VEC4")
    if positions is None:
        raise attributes.error("POSITION", "an index")
    for target, weight in zip(targets, weights, strict=False):
        if weight:
            moved, turned = floats(target, "POSITION", "VEC3"), floats(target, "NORMAL", "VEC3")
            positions = positions if moved is None else positions + weight * moved
            normals = normals if turned is None or normals is None else normals + weight * turned
    joints, shares = _influences(document, attributes, vertices)
    return Block(positions, normals, None if colors is None else _rgba(colors), joints, shares)


def _rgba(colors: Floats) -> Floats:
    full = np.ones((len(colors), 4))
    full[:, : colors.shape[1]] = colors.clip(0.0, 1.0)
    return full


def _influences(document: Document, attributes: Entry, vertices: int) -> tuple[Indices | None, Floats | None]:
    """Joints and weights of all sets side by side."""
    joints, weights, number = [], [], 0
    while f"JOINTS_{number}" in attributes and f"WEIGHTS_{number}" in attributes:
        first = attributes.index(f"JOINTS_{number}", len(document.accessors)) or 0
        second = attributes.index(f"WEIGHTS_{number}", len(document.accessors)) or 0
        joints.append(read_joints(document, first, rows=vertices))
        weights.append(read_floats(document, second, ("VEC4",), rows=vertices))
        number += 1
    if not joints:
        return None, None
    return np.concatenate(joints, axis=1), np.concatenate(weights, axis=1)


def read_uv(document: Document, primitive: Entry, number: int) -> Float[np.ndarray, "V 2"] | None:
    """A set of texture coordinates as the file has them, v downwards, None where it lacks the set."""
    index = attribute(document, primitive, f"TEXCOORD_{number}")
    if index is None:
        return None
    vertices, _ = sizes(document, primitive)
    return read_floats(document, index, ("VEC2",), rows=vertices)


def block_key(primitive: Entry) -> str:
    """Equal for primitives whose vertices are the same."""
    attributes: Mapping[str, object] = primitive.entry("attributes").value
    names = ("POSITION", "NORMAL", "COLOR_0", "JOINTS_", "WEIGHTS_")
    used = {name: value for name, value in attributes.items() if name.startswith(names)}
    return repr((sorted(used.items(), key=lambda item: item[0]), primitive.value.get("targets")))
