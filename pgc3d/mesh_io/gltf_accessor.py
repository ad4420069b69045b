"""Values of a glTF accessor as numpy arrays; reads are bounded by the buffer view."""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray

from pgc3d.errors import InputError
from pgc3d.mesh_io.gltf_document import Document, Entry, compressed
from pgc3d.mesh_io.limits import MAX_FACES, MAX_VERTICES

COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
UNSIGNED = (5121, 5123, 5125)
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
MAX_COUNT = max(3 * MAX_FACES + 2, MAX_VERTICES)

Numbers = NDArray[np.float64]


def read_floats(
    document: Document, index: int, kinds: Collection[str], *, rows: int
) -> Float[np.ndarray, "rows width"]:
    """The first `rows` elements as numbers; normalised integers lie in [0, 1] or [-1, 1].

    `kinds` are the types that fit, as VEC3.

    Raises:
        InputError: the accessor is of another type, has fewer elements, or leaves its buffer view.
    """
    entry = document.accessors[index]
    if entry.text("type") not in kinds:
        raise entry.error("type", " or ".join(kinds))
    count(document, index, least=rows)
    values = _read(document, entry, rows)
    if not entry.flag("normalized", default=False) or values.dtype.kind == "f":
        return values.astype(np.float64)
    signed = values.dtype.kind == "i"
    top = 2 ** (8 * values.dtype.itemsize - signed) - 1
    shares: Numbers = np.maximum(values.astype(np.float64) / top, -1.0)
    return shares


def read_indices(document: Document, index: int, *, rows: int) -> Int[np.ndarray, " rows"]:
    """The first `rows` whole numbers of an accessor.

    Raises:
        InputError: it holds no unsigned whole numbers, has fewer of them, or leaves its buffer view.
    """
    return _unsigned(document, index, "SCALAR", "5121, 5123 or 5125", rows)[:, 0]


def read_joints(document: Document, index: int, *, rows: int) -> Int[np.ndarray, "rows 4"]:
    """Indices of joints.

    Raises:
        InputError: they are no unsigned whole numbers, or leave the buffer view.
    """
    return _unsigned(document, index, "VEC4", "5121 or 5123", rows)


def _unsigned(document: Document, index: int, kind: str, allowed: str, rows: int) -> NDArray[np.int64]:
    """The first rows of an accessor of unsigned whole numbers; an error names `allowed`."""
    entry = document.accessors[index]
    if entry.text("type") != kind:
        raise entry.error("type", kind)
    if entry.integer("componentType") not in UNSIGNED:
        raise entry.error("componentType", allowed)
    count(document, index, least=rows)
    return _read(document, entry, rows).astype(np.int64)


def count(document: Document, index: int, *, least: int = 0) -> int:
    """Number of elements by an accessor's own count; nothing is read.

    Raises:
        InputError: they are fewer than `least`.
    """
    entry = document.accessors[index]
    count = entry.integer("count")
    if count < least:
        raise entry.error("count", f"at least {least}, since it belongs to as many")
    return count


def read_stored(document: Document, index: int) -> Shaped[np.ndarray, "N width"]:
    """All elements in the accessor's own component type.

    Raises:
        InputError: it leaves its buffer view, or has an unknown type.
    """
    entry = document.accessors[index]
    if entry.text("type") not in WIDTHS:
        raise entry.error("type", ", ".join(WIDTHS))
    return _read(document, entry, count(document, index))


def _read(document: Document, entry: Entry, rows: int) -> NDArray[np.generic]:
    if rows > MAX_COUNT:
        raise entry.error("count", f"at most {MAX_COUNT}")
    dtype, width = _component(entry), WIDTHS[entry.text("type")]
    view = entry.index("bufferView", len(document.views))
    if view is not None:
        values = _strided(document, view, entry, rows, dtype, width)
    elif "sparse" in entry:
        values = np.zeros((rows, width), dtype)
    else:
        if "KHR_draco_mesh_compression" in document.root.texts("extensionsUsed"):
            raise compressed(document.path, "Draco", "KHR_draco_mesh_compression")
        values = np.zeros((rows, width), dtype)  # as the specification has it
    if "sparse" in entry:
        values = values.copy()
        _replace(document, entry, values)
    return values


def _component(entry: Entry) -> np.dtype[np.generic]:
    kind = entry.integer("componentType")
    if kind not in COMPONENTS:
        raise entry.error("componentType", f"one of {', '.join(map(str, COMPONENTS))}")
    return np.dtype(COMPONENTS[kind])


def _strided(
    document: Document, view: int, entry: Entry, rows: int, dtype: np.dtype[np.generic], width: int
) -> NDArray[np.generic]:
    data, size = document.view(view), dtype.itemsize * width
    stride = document.views[view].integer("byteStride", size)
    start = entry.integer("byteOffset", 0)
    if stride < size:
        raise document.views[view].error("byteStride", f"at least {size}")
    if rows and start + stride * (rows - 1) + size > len(data):
        raise InputError(
            f"a glTF file must hold all of its data, but {entry.place} of {document.path.name} needs "
            f"{start + stride * (rows - 1) + size} bytes of a buffer view of {len(data)}; export it again"
        )
    if not rows:
        return np.zeros((0, width), dtype)
    return np.ndarray((rows, width), dtype, data, start, (stride, dtype.itemsize))


def _replace(document: Document, entry: Entry, values: NDArray[np.generic]) -> None:
    """Replace the elements that a sparse accessor lists."""
    sparse = entry.entry("sparse")
    number = sparse.integer("count")
    if number > entry.integer("count"):
        raise sparse.error("count", f"at most {entry.integer('count')}")
    parts = []
    for key, width in (("indices", 1), ("values", values.shape[1])):
        part = sparse.entry(key)
        view = part.index("bufferView", len(document.views))
        if view is None:
            raise part.error("bufferView", "an index")
        dtype = _component(part) if key == "indices" else values.dtype
        parts.append(_strided(document, view, part, number, dtype, width))
    place = parts[0][:, 0].astype(np.int64)
    if number and not 0 <= place.min() <= place.max() < entry.integer("count"):
        raise sparse.error("indices", f"indices below {entry.integer('count')}")
    within = place < len(values)
    values[place[within]] = parts[1][within]
