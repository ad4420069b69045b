"""PLY files of any order, type and property."""

import numpy as np
import pytest
import torch
from mesh_files import CUBE, QUADS, binary_ply, ply
from mesh_reading import read
from PIL import Image

from pgc3d.errors import InputError
from pgc3d.mesh_io.ply import read_ply
from pgc3d.mesh_io.polygons import triangulate

# ---- PLY


def ply_with(order, vertex, face, rows, faces):
    """A PLY whose properties are given as (type, name) or (count type, type, name)."""
    kinds = {"uchar": "u1", "char": "i1", "ushort": "u2", "short": "i2", "int": "i4", "uint": "u4",
             "float": "f4", "double": "f8"}  # fmt: skip
    lines = ["ply", f"format {order} 1.0", f"element vertex {len(rows)}"]
    lines += [f"property {kind} {name}" for kind, name in vertex] + [f"element face {len(faces)}"]
    lines += [f"property {'list ' if len(item) == 3 else ''}{' '.join(item)}" for item in face]
    data = "\n".join([*lines, "element edge 1", "property int a", "end_header", ""]).encode()
    sign = ">" if "big" in order else "<"

    def put(kind, values):
        if order == "ascii":
            return (" ".join(f"{value:g}" for value in values) + " ").encode()
        return np.array(values, dtype=sign + kinds[kind]).tobytes()

    for row in rows:
        data += b"".join(put(kind, [value]) for (kind, _), value in zip(vertex, row, strict=True))
    for row in faces:
        for item, value in zip(face, row, strict=True):
            data += (
                put(item[0], [len(value)]) + put(item[1], value) if len(item) == 3 else put(item[0], [value])
            )
    return data + put("int", [7])


ORDERS = ("ascii", "binary_little_endian", "binary_big_endian")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("polygons", [QUADS, [(0, 1, 3), *QUADS[1:], (0, 3, 2)], [(0, 1, 3)]])
def test_ply_of_any_order_types_and_properties(tmp_path, order, polygons):
    vertex = [("uchar", "red"), ("double", "z"), ("float", "y"), ("ushort", "green"), ("float", "blue"),
              ("short", "x"), ("uchar", "alpha"), ("float", "confidence")]  # fmt: skip
    rows = [(255, z, y, 13107, 0.5, x, 51, 0.1) for x, y, z in CUBE]
    face = [("uchar", "flags"), ("ushort", "float", "texcoord"), ("int", "texnumber"),
            ("char", "ushort", "vertex_indices"), ("double", "area")]  # fmt: skip
    faces = [(k, [0.25 * value for value in (*polygon, *polygon)], k % 2, polygon, 0.5)
             for k, polygon in enumerate(polygons)]  # fmt: skip
    data = ply_with(order, vertex, face, rows, faces)
    data = data.replace(
        b"element vertex", b"comment TextureFile a b.png\ncomment TextureFile c.png\nelement vertex", 1
    )
    mesh = read_ply(data, tmp_path / "a.ply")
    assert mesh.vertices.tolist() == [list(point) for point in CUBE]
    torch.testing.assert_close(mesh.vertex_color, torch.tensor([[1, 0.2, 0.5, 0.2]]).expand(8, 4))
    expected, number = triangulate(
        np.array(CUBE, dtype=float),
        np.array([k for polygon in polygons for k in polygon]),
        np.array([len(polygon) for polygon in polygons]),
    )
    flat = np.array([k for polygon in polygons for k in polygon])
    assert mesh.faces.tolist() == flat[expected].tolist()
    pairs = np.concatenate([np.array([*polygon, *polygon]).reshape(-1, 2) for polygon in polygons]) * 0.25
    np.testing.assert_allclose(mesh.uv[mesh.uv_faces].numpy(), pairs[expected])
    assert mesh.face_material.tolist() == (number % 2).tolist()
    assert [material.name for material in mesh.materials] == ["a b.png", "c.png"]
    assert mesh.lost == (
        "vertex colours", "2 materials", "vertex property confidence", "face properties flags, area",
        "element edge",
    )  # fmt: skip


def test_wedges_of_another_length_have_no_texture_coordinates(tmp_path):
    face = [("uchar", "int", "vertex_indices"), ("uchar", "float", "texcoord")]
    vertex = [("float", axis) for axis in "xyz"]
    faces = [((0, 1, 3), [0, 0, 1, 0, 1, 1]), ((0, 3, 2), []), ((4, 6, 7), [1, 2])]
    mesh = read_ply(ply_with("binary_little_endian", vertex, face, CUBE, faces), tmp_path / "a.ply")
    assert mesh.uv[mesh.uv_faces[0]].tolist() == [[0, 0], [1, 0], [1, 1]]
    assert mesh.uv_faces[1:].tolist() == [[-1] * 3] * 2
    assert mesh.notes == ("1 face with texture coordinates of another number of corners",)


def test_ply_image_is_opened_when_it_is_wanted_only(tmp_path):
    points = [(*point, 0.5, 0.5) for point in CUBE]
    path = tmp_path / "a.ply"
    path.write_bytes(ply(points, QUADS, more="st", comment="TextureFile my wood.png").content)
    (material,) = read(path).materials
    with pytest.raises(InputError, match=r"names 'my wood\.png'"):
        material.load_image()
    Image.new("L", (3, 2), 7).save(tmp_path / "my wood.png")
    assert material.load_image().size == (3, 2)
    assert read(path).face_material.tolist() == [0] * 12


@pytest.mark.parametrize("first", [10, 13, 32])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_ply_header_may_have_any_line_ends(tmp_path, end, first):
    """Also where the first value is a byte that looks like a line end."""
    header, _, values = binary_ply(CUBE, QUADS).content.partition(b"end_header\n")
    header = header.replace(b"property float x", b"property uchar q\nproperty float x")
    rows = [bytes([first]) + values[12 * k : 12 * k + 12] for k in range(8)]
    data = (header + b"end_header\n").replace(b"\n", end) + b"".join(rows) + values[96:]
    assert len(read_ply(data, tmp_path / "a.ply").faces) == 12
