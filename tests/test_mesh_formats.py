import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_cases_formats import CUBE, FORMAT_CASES, QUADS, binary_ply, f, ply, v
from meshes import lumpy
from PIL import Image

from pgc3d.errors import InputError
from pgc3d.mesh_io import lines as lines_module
from pgc3d.mesh_io.foreign import explain_foreign
from pgc3d.mesh_io.mtl import parse_mtl, source_files
from pgc3d.mesh_io.obj import read_obj
from pgc3d.mesh_io.ply import read_ply
from pgc3d.mesh_io.polygons import triangulate
from pgc3d.mesh_io.stl import read_stl

READERS = {".obj": read_obj, ".ply": read_ply, ".stl": read_stl}


def read(path):
    return READERS[path.suffix](path.read_bytes(), path)


def written(tmp_path, name):
    case, path = FORMAT_CASES[name], tmp_path / name
    path.write_bytes(case.content)
    for side, content in case.beside.items():
        (tmp_path / side).write_bytes(content)
    return case, path


def area_vectors(mesh):
    corners = mesh.vertices[mesh.faces].double()
    return torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2


@pytest.mark.parametrize("name", [name for name, case in FORMAT_CASES.items() if case.error is None])
def test_usable_file_gives_its_surface(tmp_path, capsys, name):
    case, path = written(tmp_path, name)
    mesh = read(path)
    assert (len(mesh.vertices), len(mesh.faces)) == (case.vertices, case.faces)
    assert float(area_vectors(mesh).norm(dim=1).sum()) == pytest.approx(case.area, rel=1e-5)
    used = mesh.vertices[mesh.faces].reshape(-1, 3)
    np.testing.assert_allclose(used.amin(dim=0), case.low, atol=1e-6)
    np.testing.assert_allclose(used.amax(dim=0), case.high, atol=1e-6)
    assert torch.isfinite(mesh.vertices).all()
    if case.volume is not None:
        corners = mesh.vertices[mesh.faces].double()
        assert float(torch.linalg.det(corners).sum()) / 6 == pytest.approx(case.volume, rel=1e-5)
    assert (mesh.uv is not None) == case.has_uv
    without = 0 if mesh.uv_faces is None else int((mesh.uv_faces < 0).any(dim=1).sum())
    assert without == case.without_uv
    assert len(mesh.notes) == bool(case.note)
    assert case.note in "".join(mesh.notes)
    assert mesh.lost == case.lost
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", [name for name, case in FORMAT_CASES.items() if case.error is not None])
def test_unusable_file_is_one_true_line(tmp_path, name):
    case, path = written(tmp_path, name)
    with pytest.raises(InputError, match=case.error) as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    assert len(message) < 250 + len(str(path))


@pytest.mark.parametrize("name", ["concave_plain.obj", "concave_quad.ply", "slab.obj"])
def test_triangles_of_a_notched_polygon_face_as_it_does(tmp_path, name):
    mesh = read(written(tmp_path, name)[1])
    vectors = area_vectors(mesh)[: 2 if name.endswith("ply") else 3]
    assert (torch.nn.functional.cosine_similarity(vectors, vectors.sum(dim=0)[None]) > 0.999).all()


@pytest.mark.parametrize("name", [name for name in FORMAT_CASES if name.startswith("strips_")])
def test_strips_face_one_side(tmp_path, name):
    normals = area_vectors(read(written(tmp_path, name)[1]))
    assert torch.equal(normals, torch.tensor([[-0.5, 0, 0]], dtype=torch.float64).expand(len(normals), 3))


# ---- polygons


def plane(seed):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return rotation


@st.composite
def star_polygons(draw):
    """Simple polygons around the origin, most of them with notches, in any plane and at any place."""
    count = draw(st.integers(5, 40))
    radius = np.array(draw(st.lists(st.floats(0.1, 1.0), min_size=count, max_size=count)))
    shift = np.array(draw(st.lists(st.floats(0.1, 0.9), min_size=count, max_size=count)))
    angle = 2 * np.pi * (np.arange(count) + shift) / count
    flat = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(count)], axis=1)
    turn = draw(st.integers(0, count - 1))
    return np.roll(flat, turn, axis=0) @ plane(draw(st.integers(0, 99))).T * draw(st.floats(1e-3, 1e3))


def cut(points):
    count = len(points)
    triangles, polygon = triangulate(points, np.arange(count), np.array([count]))
    assert (polygon == 0).all()
    return triangles


def normals(points, triangles):
    a, b, c = points[triangles].transpose(1, 0, 2)
    return np.cross(b - a, c - a) / 2


def newell(points):
    return np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0) / 2


@given(star_polygons())
@settings(deadline=None, max_examples=100)
def test_simple_polygons_are_covered_exactly(points):
    triangles, whole = cut(points), newell(points)
    assert triangles.shape == (len(points) - 2, 3)
    assert set(triangles.reshape(-1).tolist()) == set(range(len(points)))
    vectors, area = normals(points, triangles), np.linalg.norm(whole)
    assert np.linalg.norm(vectors, axis=1).sum() == pytest.approx(area, rel=1e-9)
    assert (vectors @ whole > 0).all()


@given(star_polygons(), st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_corners_on_the_sides_change_nothing(points, more):
    steps = np.linspace(0, 1, more + 1)[:-1]
    along = points[:, None] + steps[:, None] * (np.roll(points, -1, axis=0) - points)[:, None]
    divided = along.reshape(-1, 3)
    triangles, whole = cut(divided), newell(points)
    assert len(triangles) == len(divided) - 2
    vectors = normals(divided, triangles)
    assert np.linalg.norm(vectors, axis=1).sum() == pytest.approx(np.linalg.norm(whole), rel=1e-6)
    assert (vectors @ whole > -1e-12 * (whole @ whole)).all()


@given(st.integers(4, 60), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_convex_polygons_stay_fans(count, seed):
    angle = 2 * np.pi * np.arange(count) / count
    points = np.stack([2 * np.cos(angle), np.sin(angle), 0 * angle], axis=1) @ plane(seed).T
    step = np.arange(1, count - 1)
    assert cut(points).tolist() == np.stack([0 * step, step, step + 1], axis=1).tolist()


@pytest.mark.parametrize("turn", range(10))
def test_a_hole_behind_a_bridge_stays_open(turn):
    ring = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]
    points = np.roll(np.array([(*point, 0.0) for point in ring]), turn, axis=0)
    vectors = normals(points, cut(points))
    assert vectors[:, 2].min() > -1e-12
    assert vectors[:, 2].sum() == pytest.approx(12)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize(
    "ring",
    [
        [(0, 0), (1, 1), (1, 0), (0, 1)],  # crosses itself
        [(0, 0), (1, 0), (2, 0), (3, 0), (1.5, 0)],  # no area
        [(0, 0)] * 6,
        [(0, 0), (1, 0), (1, 0), (1, 1), (0, 1), (0, 1)],
        [(0, 1), (0.6, -0.8), (-1, 0.3), (1, 0.3), (-0.6, -0.8)],  # a pentagram
        [(0, 0), (2, 0), (1, 0), (1, 1), (1, 0), (0, 2)],  # spikes
        [(0, 0), (1, float("nan")), (1, 1), (0, 1), (-1, 0)],
        [(0, 0), (1, float("inf")), (1, 1), (0, 1), (-1, 0)],
    ],
)
def test_degenerate_polygons_give_as_many_triangles(ring, scale):
    points = np.array([(*point, 0.0) for point in ring]) * scale
    triangles = cut(points)
    assert triangles.shape == (len(ring) - 2, 3)
    assert triangles.min() >= 0
    assert triangles.max() < len(ring)


@given(st.integers(4, 80), st.integers(0, 10_000), st.booleans())
@settings(deadline=None, max_examples=40)
def test_random_corners_give_as_many_triangles(count, seed, whole_numbers):
    points = np.random.default_rng(seed).normal(size=(count, 3)) * 3
    points = np.rint(points) if whole_numbers else points
    assert cut(points).shape == (count - 2, 3)


def test_a_long_comb_takes_no_time():
    x = np.linspace(0, 1, 1500)
    comb = np.stack([x, np.where(np.arange(1500) % 2, 1.0, 0.1), 0 * x], axis=1)
    points = np.concatenate([[[0, 0, 0], [1, 0, 0]], comb[::-1]])
    vectors = normals(points, cut(points))
    assert (vectors[:, 2] > 0).all()
    assert vectors[:, 2].sum() == pytest.approx(newell(points)[2])


def test_bent_quad_is_cut_where_it_does_not_fold():
    points = np.array([[0, 0, 0], [2, 0, 0.3], [0.4, 0.4, 0], [0, 2, 0.3]])
    for turn in range(4):
        turned = np.roll(points, turn, axis=0)
        assert (normals(turned, cut(turned)) @ newell(turned) > 0).all()


def test_polygons_of_many_sizes_keep_their_order():
    rings = [np.array([(*p, k) for p in ring]) for k, ring in enumerate(
        [[(0, 0), (1, 0), (0, 1)], [(0, 0)], [(0, 0), (2, 0), (0.4, 0.4), (0, 2)], [(0, 0), (1, 1)],
         [(0, 0), (1, 0), (1, 1), (0, 1)], [(0, 0), (1, 0), (0, 2)]]
    )]  # fmt: skip
    counts = np.array([len(ring) for ring in rings])
    points = np.concatenate(rings)
    triangles, polygon = triangulate(points, np.arange(len(points)), counts)
    assert polygon.tolist() == [0, 2, 2, 4, 4, 5]
    assert (points[triangles][..., 2] == polygon[:, None]).all()


# ---- OBJ


def test_obj_indices_of_all_kinds_are_kept():
    text = (
        "v 0 0 0\nv 1 0 0 # corner\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 1\nvn 0 0 2\n"
        "f -4/1/1 2/1/-1 3/2/1 4/-1/1\n"
    )
    mesh = read_obj(text.encode(), Path("a.obj"))
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.uv_faces.tolist() == [[0, 0, 1], [0, 1, 1]]
    assert mesh.normals.tolist() == [[0, 0, 1]]
    assert mesh.normal_faces.tolist() == [[0, 0, 0], [0, 0, 0]]


@given(st.integers(0, 2**32 - 1), st.integers(5, 60))
@settings(deadline=None, max_examples=60)
def test_small_blocks_read_the_same(tmp_path_factory, seed, size):
    """Lines that are looked at in several pieces, with corners of mixed kinds, give what one piece gives."""
    random = np.random.default_rng(seed)
    kinds = ["{0}", "{0}/{0}", "{0}//{0}", "{0}/{0}/{0}", "{0}/"]
    rows = [f"f {' '.join(random.choice(kinds, 3))}".format(1 + k % 8) for k in range(20)]
    text = (v(CUBE) + "vt 0 0\n" * 8 + "g a\n" + "vn 0 0 1\n" * 8 + "\n".join(rows) + "\n").encode()
    path = tmp_path_factory.getbasetemp() / "a.obj"
    whole = read_obj(text, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "CHUNK", size)
        pieces = read_obj(text, path)
    expected = [[k % 8] * 3 for k in range(20)]
    assert whole.faces.tolist() == pieces.faces.tolist() == expected
    lists = [[(corner.split("/") + [""] * 2)[1] != "" for corner in row.split()[1:]] for row in rows]
    if whole.uv_faces is not None:
        assert torch.equal(whole.uv_faces, pieces.uv_faces)
        assert ((whole.uv_faces >= 0) == torch.tensor(lists)).all()
    else:
        assert not any(map(any, lists))


def test_obj_materials_come_from_the_library(tmp_path):
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "my wood.png")
    (tmp_path / "my lib.mtl").write_text(
        "newmtl wood\nKd 0.5 0.5 0.5\nd 0.25\nmap_Kd -s 2 3 1 -o 0.5 -clamp on my wood.png\n"
        "newmtl plain\nKd 0.1 0.2 0.3\nTr 0.25\n"
    )
    path = tmp_path / "a.obj"
    path.write_text(
        "mtllib my lib.mtl\n"
        + v(CUBE)
        + "vt 0 0\nvt 1 0\nvt 1 1\nf 1/1 2/2 4/3\nusemtl wood\nf 1/1 4/3 3/2\n"
        "usemtl plain\nf 5/1 7/2 8/3\n"
    )
    mesh = read(path)
    assert mesh.face_material.tolist() == [-1, 0, 1]
    wood, plain = mesh.materials
    assert (wood.name, plain.name) == ("wood", "plain")
    torch.testing.assert_close(wood.color, torch.tensor([1, 1, 1, 0.25]))
    torch.testing.assert_close(plain.color, torch.tensor([0.1, 0.2, 0.3, 0.75]))
    assert wood.wrap == ("clamp", "clamp")
    assert plain.load_image is None
    assert wood.load_image().getpixel((0, 0)) == (255, 0, 0)
    assert mesh.uv[mesh.uv_faces].tolist()[1] == [[0, 0], [1, 1], [1, 0]]
    assert wood.uv_transform.tolist() == [[2, 0, 0.5], [0, 3, 0]]
    assert plain.uv_transform is None
    assert wood.load_image() is wood.load_image()
    bare = read_obj(path.read_bytes(), path, colors=False)
    assert torch.equal(bare.uv, mesh.uv)
    assert [material.load_image for material in bare.materials] == [None, None]
    assert list(source_files(path.read_bytes(), path)) == [tmp_path / "my lib.mtl", tmp_path / "my wood.png"]


@pytest.mark.parametrize("image", ["C:\\a\\wood.png", "../wood.png", "/wood.png", "http://a/wood.png"])
def test_image_outside_is_refused_when_it_is_opened(tmp_path, image):
    (tmp_path / "a.mtl").write_text(f"newmtl a\nmap_Kd {image}\n")
    path = tmp_path / "a.obj"
    path.write_text("mtllib a.mtl\nusemtl a\n" + v(CUBE) + f(QUADS))
    mesh = read(path)
    with pytest.raises(InputError, match=r"own folder only, but a\.mtl names"):
        mesh.materials[0].load_image()
    assert list(source_files(path.read_text(), path)) == [tmp_path / "a.mtl"]


@pytest.mark.parametrize(
    ("library", "match"), [("../a.mtl", "own folder only"), ("b.mtl", "the material library .* must exist")]
)
def test_colours_of_a_library_that_is_not_read_are_refused_when_they_are_wanted(tmp_path, library, match):
    path = tmp_path / "a.obj"
    path.write_text(f"mtllib {library}\nusemtl a\n" + v(CUBE) + f(QUADS))
    with pytest.raises(InputError, match=match):
        read(path).materials[0].load_image()
    assert not list(source_files(path.read_bytes(), path))


def test_image_that_is_missing_or_damaged_is_one_line(tmp_path):
    path = tmp_path / "a.obj"
    path.write_text("mtllib a.mtl\nusemtl a\n" + v(CUBE) + f(QUADS))
    (tmp_path / "a.mtl").write_text("newmtl a\nmap_Kd a.png\n")
    with pytest.raises(InputError, match=r"must exist, but a.mtl names 'a\.png'"):
        read(path).materials[0].load_image()
    (tmp_path / "a.mtl").write_text(f"newmtl a\nmap_Kd {'a' * 300}.png\n")
    assert list(source_files(path.read_bytes(), path)) == [tmp_path / "a.mtl"]
    with pytest.raises(InputError, match="must exist"):
        read(path).materials[0].load_image()
    (tmp_path / "a.mtl").write_text("newmtl a\nmap_Kd a.png\n")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="must be readable") as caught:
        read(path).materials[0].load_image()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("line", "image"),
    [
        ("map_Kd wood.png", "wood.png"),
        ("map_kd\twood grain.png ", "wood grain.png"),
        ('map_Kd "wood grain.png"', "wood grain.png"),
        ("map_Kd -blendu on -blendv off -cc on -mm 0 1 -texres 64 -t 1 1 1 -imfchan r 2.png", "2.png"),
        ("map_Kd -s 1 2", "2"),
        ("map_Kd  -bm 0.5  wood.png", "wood.png"),
    ],
)
def test_options_in_front_of_an_image_are_understood(tmp_path, line, image):
    assert parse_mtl(f"newmtl a\n{line}\n".encode(), tmp_path)["a"].image == image


def test_five_million_faces_are_refused_before_they_are_read(tmp_path):
    with pytest.raises(InputError, match=r"at most 2 M faces .* with 5000000 faces"):
        read_obj(b"v 0 0 0\n" + b"f 1 1 1\n" * 5_000_000, tmp_path / "a.obj")


@pytest.mark.parametrize(("far", "fits"), [(100.0, True), (5e6, False)])
def test_small_meshes_far_from_the_origin_are_refused_before_they_are_bent(tmp_path, far, fits):
    mesh = trimesh.creation.icosphere(2)
    mesh.apply_translation([far, 0.0, far])
    path = tmp_path / "far.obj"
    mesh.export(path)
    if fits:
        np.testing.assert_allclose(read(path).vertices.mean(0)[0], far, rtol=1e-5)
    else:
        with pytest.raises(InputError, match="of its size; move it to the origin"):
            read(path)


def test_normals_are_unit_or_said_to_be_missing():
    text = "vn 0 0 1e300\nvn 0 0 0\nvn nan 0 1\n" + v(CUBE) + "f 1//1 2//2 4//3\nf 5 7 8\n"
    mesh = read_obj(text.encode(), Path("a.obj"))
    assert mesh.normals.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert mesh.normal_faces.tolist() == [[0, 1, 2], [-1, -1, -1]]


def test_objects_and_groups_are_parts():
    text = v(CUBE) + "f 1 2 4\no a\no b\nf 5 7 8\ng c\nf 1 5 6\nf 1 5 6\n"
    assert read_obj(text.encode(), Path("a.obj")).face_part.tolist() == [0, 1, 2, 2]
    assert read_obj(("o a\n" + v(CUBE) + f(QUADS)).encode(), Path("a.obj")).face_part is None


def test_colours_of_vertices_are_read():
    path = Path("a.obj")
    text = "v 0 0 0 1 0 0.5\nv 1 0 0 0 1 0\nv 0 1 0\nf 1 2 3\n"
    expected = torch.tensor([[1, 0, 0.5, 1], [0, 1, 0, 1], [1, 1, 1, 1]])
    torch.testing.assert_close(read_obj(text.encode(), path).vertex_color, expected)
    bytes_ = "v 0 0 0 255 0 51\nv 1 0 0 0 255 0\nv 0 1 0 0 0 0\nf 1 2 3\n"
    torch.testing.assert_close(read_obj(bytes_.encode(), path).vertex_color[0], torch.tensor([1, 0, 0.2, 1]))


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


# ---- what other programs write


@pytest.mark.parametrize("kind", ["obj", "ply", "ply_ascii", "stl", "stl_ascii"])
def test_files_of_trimesh_keep_coordinates_and_order(tmp_path, kind):
    mesh, path = lumpy(), tmp_path / f"mesh.{kind[:3]}"
    name, _, _ = kind.partition("_")
    data = mesh.export(file_type="stl_ascii" if kind == "stl_ascii" else name,
                       **({"encoding": "ascii"} if kind == "ply_ascii" else {}))  # fmt: skip
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    found = read(path)
    corners = torch.from_numpy(mesh.vertices[mesh.faces]).float()
    torch.testing.assert_close(found.vertices[found.faces], corners, rtol=1e-6, atol=1e-5)
    if name == "stl":
        assert found.faces.tolist() == np.arange(3 * len(corners)).reshape(-1, 3).tolist()
    else:
        assert torch.equal(found.faces, torch.from_numpy(mesh.faces).long())
    assert (found.notes, found.lost) == ((), ())


# ---- damaged files


@given(st.sampled_from(sorted(FORMAT_CASES)), st.data())
@settings(deadline=None, max_examples=300)
def test_damaged_bytes_are_read_or_refused_in_one_line(tmp_path_factory, name, data):
    content = bytearray(FORMAT_CASES[name].content[:4000])
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    path = tmp_path_factory.getbasetemp() / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            mesh = READERS[path.suffix](bytes(content), path)
        except InputError as error:
            assert str(error).isprintable()  # noqa: PT017 - a refusal is as good as a mesh
            return
    assert len(mesh.faces)
    assert 0 <= int(mesh.faces.min()) <= int(mesh.faces.max()) < len(mesh.vertices)
    for index, values in ((mesh.uv_faces, mesh.uv), (mesh.normal_faces, mesh.normals)):
        assert (index is None) == (values is None)
        assert index is None or -1 <= int(index.min()) <= int(index.max()) < len(values)


# ---- other formats


def zipped(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return stream.getvalue()


FOREIGN = {
    "a.fbx": (
        b"Kaydara FBX Binary  \0\x1a\0",
        "an FBX file; import it into Blender and use File > Export > glTF",
    ),
    "ascii.fbx": (b"; FBX 7.3.0 project file\n", "an FBX file"),
    "fbx_named.glb": (b"Kaydara FBX Binary  \0", "an FBX file"),
    "a.dae": (b'<?xml version="1.0"?>\n<COLLADA xmlns="">', "a COLLADA file"),
    "dae_named.obj": (b"<COLLADA>", "a COLLADA file"),
    "a.3mf": (zipped("3D/3dmodel.model"), "a 3MF file"),
    "3mf.zip": (zipped("[Content_Types].xml", "3D/3dmodel.model"), "a 3MF file"),
    "a.usdz": (zipped("a.usdc"), "a USD file"),
    "a.usda": (b"#usda 1.0\n", "a USD file"),
    "a.usdc": (b"PXR-USDC\0", "a USD file"),
    "a.off": (b"OFF\n3 1 0\n", "an OFF file; open it in MeshLab"),
    "off_named.ply": (b"OFF\n3 1 0\n", "an OFF file"),
    "a.blend": (b"BLENDER-v300", "a Blender file; open it in Blender"),
    "packed.blend": (b"\x28\xb5\x2f\xfd\0\0", "Zstandard"),
    "a.zip": (zipped("readme.txt", "chair.obj"), "a ZIP archive; unpack it and give 'chair.obj'"),
    "zip_named.glb": (zipped("readme.txt"), "a ZIP archive; unpack it"),
    "a.rar": (b"Rar!\x1a\x07\0", "a RAR archive"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    "a.gz": (b"\x1f\x8b\x08\0", "compressed with gzip"),
    "page.glb": (b"\n<!DOCTYPE html><html>", "a web page"),
    "pointer.glb": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer.* git lfs pull"),
    "error.glb": (b'{"error": "login"}', "JSON text"),
    "text.obj": (b'{"asset": {"version": "2.0"}}', "a glTF of text; rename it to .gltf"),
    "error.gltf": (b'{"error": "login"}', "JSON text"),
    "image.obj": (b"\x89PNG\r\n\x1a\n", "an image"),
    "photo.glb": (b"\xff\xd8\xff\xe0", "an image"),
    "ply_named.obj": (b"ply\nformat ascii 1.0\n", "a PLY; rename it to .ply"),
    "glb_named.obj": (b"glTF\2\0\0\0", "a GLB; rename it to .glb"),
    "part.step": (b"ISO-10303-21;\n", "a CAD file"),
    "empty.glb": (b"", "empty"),
    "unknown.max": (b"\xd0\xcf\x11\xe0", "a 3ds Max file"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_file_is_named_with_a_way_to_convert_it(tmp_path, name):
    data, match = FOREIGN[name]
    (tmp_path / name).write_bytes(data)
    line = explain_foreign(tmp_path / name, data)
    assert line is not None
    assert line.isprintable()
    assert str(tmp_path / name) in line
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(line)


def test_folder_is_named(tmp_path):
    assert "a folder; give the mesh file inside" in explain_foreign(tmp_path, b"")
    assert "an FBX file" in explain_foreign(tmp_path / "missing.fbx", b"")
    assert explain_foreign(tmp_path / "missing.glb", b"") is None


@pytest.mark.parametrize("name", sorted(name for name, case in FORMAT_CASES.items() if case.error is None))
def test_own_formats_are_not_foreign(tmp_path, name):
    assert explain_foreign(tmp_path / name, FORMAT_CASES[name].content) is None


def test_own_glb_and_gltf_are_not_foreign(tmp_path):
    assert explain_foreign(tmp_path / "a.glb", b"glTF\2\0\0\0") is None
    assert explain_foreign(tmp_path / "a.gltf", b'{"asset": {}}') is None
    assert explain_foreign(tmp_path / "a.glb", b'{"asset": {}}') is None
    assert explain_foreign(tmp_path / "a.gltf", b"glTF\2\0\0\0") is None
