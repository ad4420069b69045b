"""OBJ, PLY and STL files of simple shapes."""

import math
import struct
from dataclasses import dataclass, field

import numpy as np

CUBE = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]


# counted from 0, facing outwards
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
MIXED = [(0, 1, 3), (0, 3, 2), *QUADS[1:]]
TETRAHEDRON = [
    ((0, 0, 0), (1, 0, 0), (0, 1, 0)),
    ((0, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 0, 0), (0, 0, 1), (1, 0, 0)),
    ((1, 0, 0), (0, 0, 1), (0, 1, 0)),
]


SLANTED = 1.5 + math.sqrt(3) / 2
SLAB = [(0, 0), (2, 0), (2, -1), (1, -1), (1, -2), (0, -2)]  # an L: x and z
SLAB_SIDES = [(k, (k + 1) % 6, (k + 1) % 6 + 6, k + 6) for k in range(6)]
NOTCHED = [(0, 0, 0), (2, 0, 0), (2, 2, 0), (1, 0.2, 0), (0, 2, 0)]


@dataclass(frozen=True)
class Case:
    """A file, what lies beside it, and the surface in it or a part of the message that refuses it."""

    content: bytes
    vertices: int = 8
    faces: int = 12
    area: float = 6.0
    low: tuple[float, ...] = (0, 0, 0)
    high: tuple[float, ...] = (1, 1, 1)
    volume: float | None = None
    note: str = ""  # part of one; empty: there are none
    lost: tuple[str, ...] = ()
    has_uv: bool = False
    without_uv: int = 0  # faces
    beside: dict[str, bytes] = field(default_factory=dict)
    error: str | None = None


def v(points):
    return "".join(f"v {' '.join(f'{value:g}' for value in point)}\n" for point in points)


def f(polygons, corner="{0}"):
    return "".join(f"f {' '.join(corner.format(k + 1) for k in polygon)}\n" for polygon in polygons)


def obj(text, **expected):
    return Case(text if isinstance(text, bytes) else text.encode(), **expected)


def cube(before="", after="", **expected):
    return obj(before + v(CUBE) + f(QUADS) + after, volume=1.0, **expected)


def slab(turn):
    ring = SLAB[turn:] + SLAB[:turn]
    points = [(x, y, z) for y in (0, 0.3) for x, z in ring]
    return obj(
        v(points) + f([(5, 4, 3, 2, 1, 0), (6, 7, 8, 9, 10, 11), *SLAB_SIDES]),
        vertices=12, faces=20, area=8.4, low=(0, 0, -2), high=(2, 0.3, 0), volume=0.9,
    )  # fmt: skip


def circle(count):
    angle = 2 * np.pi * np.arange(count) / count
    points = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    area = count / 2 * math.sin(2 * math.pi / count)
    return obj(
        v(points) + f([range(count)]),
        vertices=count, faces=count - 2, area=area, low=(-1, -1, 0), high=(1, 1, 0),
    )  # fmt: skip


def ply_header(order, vertices, faces, *, comment="made here", name="vertex_indices", kind="int", more=()):
    lines = ["ply", f"format {order} 1.0", f"comment {comment}", f"element vertex {vertices}"]
    lines += [f"property float {axis}" for axis in "xyz"] + [f"property float {key}" for key in more]
    if faces is not None:
        lines += [f"element face {faces}", f"property list uchar {kind} {name}"]
    return "\n".join([*lines, "end_header", ""])


def ply(points, polygons, *, content=None, **header):
    """An ASCII PLY; `points` may have more values than three for properties named in `more`."""
    expected = {key: header.pop(key) for key in list(header) if key in Case.__dataclass_fields__}
    rows = [" ".join(f"{value:g}" for value in point) for point in points]
    rows += [" ".join(map(str, (len(polygon), *polygon))) for polygon in polygons or ()]
    text = ply_header("ascii", len(points), None if polygons is None else len(polygons), **header)
    return Case((text + "\n".join(rows) + "\n").encode(), **expected)


def binary_ply(points, polygons, order="<", **expected):
    name = "binary_little_endian" if order == "<" else "binary_big_endian"
    data = ply_header(name, len(points), len(polygons), kind="uint").encode()
    data += np.asarray(points, dtype=f"{order}f4").tobytes()
    for polygon in polygons:
        data += struct.pack(f"{order}B{len(polygon)}I", len(polygon), *polygon)
    return Case(data, **expected)


def strips(text, count=1):
    header = ply_header("ascii", 8, None).replace("end_header", f"element tristrips {count}\n") + (
        "property list int int vertex_indices\nend_header\n"
    )
    header = header.replace("\n\n", "\n")
    return (header + "".join(f"{x} {y} {z}\n" for x, y, z in CUBE) + text + "\n").encode()


def solid(triangles=TETRAHEDRON, name="a", scale=1):
    lines = [f"solid {name}"]
    for triangle in triangles:
        lines += ["  facet normal 0 0 0", "    outer loop"]
        lines += [f"      vertex {' '.join(f'{scale * value:g}' for value in corner)}" for corner in triangle]
        lines += ["    endloop", "  endfacet"]
    return "\n".join([*lines, f"endsolid {name}", ""])


def binary_stl(count, header=b"", triangles=TETRAHEDRON, attribute=0, after=b""):
    data = header.ljust(80) + struct.pack("<I", count)
    for triangle in triangles:
        data += struct.pack("<12fH", 0, 0, 0, *(value for corner in triangle for value in corner), attribute)
    return data + after


def stl(content, **expected):
    values = {"vertices": 12, "faces": 4, "area": SLANTED} | expected
    return Case(content if isinstance(content, bytes) else content.encode(), **values)


UPSIDE = [tuple(reversed(polygon)) for polygon in QUADS]
BACK = f"f {' '.join(str(k - 8) for k in QUADS[0])}\n"
MTL = b"newmtl a\nKd 1 1 1\n"
