import json
import math
import struct
import zipfile

import numpy as np
import pytest
import torch
import trimesh
from meshes import cube_arrays, lumpy, write, write_cube

from pgc3d.errors import InputError
from pgc3d.mesh_io import limits
from pgc3d.mesh_io.gltf_writer import pack_glb, unpack_glb
from pgc3d.mesh_io.limits import inside
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.mesh_io.reader import read_source


@pytest.mark.parametrize("kind", ["glb", "gltf", "ply", "stl", "obj"])
def test_vertices_and_faces_keep_coordinates_and_order(tmp_path, kind):
    mesh = lumpy()
    folder = tmp_path / kind
    folder.mkdir()
    given = read_source(write(mesh, folder / f"mesh.{kind}"))
    corners = torch.from_numpy(mesh.vertices[mesh.faces]).float()
    torch.testing.assert_close(given.vertices[given.faces], corners, rtol=1e-6, atol=1e-5)
    if kind != "stl":
        torch.testing.assert_close(
            given.vertices, torch.from_numpy(mesh.vertices).float(), rtol=1e-6, atol=1e-5
        )
        assert torch.equal(given.faces, torch.from_numpy(mesh.faces).long())


@pytest.mark.parametrize("kind", ["glb", "gltf", "obj"])
def test_texture_coordinates_come_with_the_corners(tmp_path, kind):
    _, faces, uv = cube_arrays()
    given = read_source(write_cube(tmp_path / f"cube.{kind}"))
    torch.testing.assert_close(
        given.uv[given.uv_faces], torch.from_numpy(uv[faces]).float(), atol=1e-6, rtol=0
    )


def test_texture_coordinates_need_no_material(tmp_path):
    document, binary = unpack_glb(write_cube(tmp_path / "cube.glb").read_bytes())
    for key in ("materials", "textures", "images"):
        document.pop(key, None)
    del document["meshes"][0]["primitives"][0]["material"]
    (tmp_path / "bare.glb").write_bytes(pack_glb(document, binary))
    assert torch.equal(read_source(tmp_path / "bare.glb").uv, read_source(tmp_path / "cube.glb").uv)


def test_scene_is_flattened_with_its_transforms(tmp_path):
    box = trimesh.creation.box()
    mirror = np.diag([-2.0, 1.0, 1.0, 1.0])
    mirror[:3, 3] = (5, 6, 7)
    scene = trimesh.Scene()
    scene.add_geometry(box, transform=mirror)
    scene.add_geometry(lumpy())
    scene.export(tmp_path / "scene.glb")
    given = read_source(tmp_path / "scene.glb")
    expected = trimesh.load_scene(tmp_path / "scene.glb").to_mesh()
    assert len(given.faces) == len(expected.faces)
    found = trimesh.Trimesh(given.vertices.numpy(), given.faces.numpy())
    np.testing.assert_allclose(found.bounds, expected.bounds, rtol=1e-6)
    np.testing.assert_allclose(found.volume, 2 + lumpy().volume, rtol=1e-5)  # the mirrored box faces outwards


def obj(tmp_path, text):
    (tmp_path / "a.obj").write_text(text)
    return read_source(tmp_path / "a.obj")


def test_obj_indices_count_from_both_ends_and_polygons_become_fans(tmp_path):
    given = obj(
        tmp_path,
        "v 0 0 0\nv 1 0 0 # corner\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 1\nvn 0 0 2\n"
        "f -4/1/1 2/1/-1 3/2/1 4/-1/1\n",
    )
    assert given.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert given.uv_faces.tolist() == [[0, 0, 1], [0, 1, 1]]
    assert given.normals.tolist() == [[0, 0, 1]]


def test_obj_keeps_vertices_that_no_face_uses(tmp_path):
    assert len(obj(tmp_path, "v 9 9 9\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 2 3 4").vertices) == 4


def test_obj_may_have_tabs_comments_and_textures_of_one_number(tmp_path):
    given = obj(tmp_path, "v\t0 0 0\nv 1\t0 0#\n\tv 0 1 0\nvt 0.5\nvt .25 1 0\nf\t1/1 2/2\t3/1 # last\n")
    assert given.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert given.uv.tolist() == [[0.5, 0], [0.25, 1]]
    assert given.uv_faces.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("kind", ["obj", "stl_ascii"])
@pytest.mark.parametrize(("far", "fits"), [(100.0, True), (5e6, False)])
def test_small_meshes_far_from_the_origin_are_refused_before_they_are_bent(tmp_path, kind, far, fits):
    mesh = trimesh.creation.icosphere(2)
    mesh.apply_translation([far, 0.0, far])
    path = tmp_path / f"far.{kind[:3]}"
    mesh.export(path, file_type=kind)
    if fits:
        np.testing.assert_allclose(read_source(path).vertices.mean(0)[0], far, rtol=1e-5)
    else:
        assert_line(path, "of its size; move it to the origin")


def test_stl_may_have_bytes_behind_it_but_not_be_cut_off(tmp_path):
    path, data = tmp_path / "box.stl", trimesh.creation.box().export(file_type="stl")
    path.write_bytes(data + b"\0\0")
    assert len(read_source(path).faces) == 12
    path.write_bytes(data[:300])
    assert_line(path, "it states 12 triangles and ends after 4")


def test_obj_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "marked.obj"
    path.write_bytes(b"\xef\xbb\xbfv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    assert len(read_source(path).vertices) == 3


def edit_gltf(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def gltf(tmp_path):
    folder = tmp_path / "gltf"
    folder.mkdir()
    return write_cube(folder / "cube.gltf")


@pytest.mark.parametrize(
    "uri", ["../cube.bin", "/etc/passwd", "http://example.org/x", "file:///x", "a/%2e%2e/../x"]
)
def test_a_buffer_outside_is_one_line_and_an_image_is_passed_over(tmp_path, uri):
    path = gltf(tmp_path)
    before = path.read_text()
    edit_gltf(path, lambda document: document["buffers"][0].update(uri=uri))
    assert_line(path, "must refer to files in its own folder only")
    path.write_text(before)
    edit_gltf(path, lambda document: document["images"][0].update(uri=uri))
    given = read_source(path)
    assert len(given.faces) == 12
    assert given.notes == (f"image {uri!r} lies outside the folder; it is not opened",)
    with pytest.raises(InputError, match="must refer to files in its own folder only"):
        read_mesh(path)


@pytest.mark.parametrize("name", ["../a.mtl", "/a.mtl", "https://a/b.mtl", "C:\\a.mtl"])
def test_obj_library_outside_is_not_needed_for_the_surface(tmp_path, name):
    assert len(obj(tmp_path, f"mtllib {name}\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n").faces) == 1


def test_image_of_a_library_outside_is_one_line_where_it_is_opened(tmp_path):
    (tmp_path / "a.mtl").write_text("newmtl a\nmap_Kd -s 1 1 1 ../secret.png\n")
    text = "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl a\nf 1/1 2/1 3/1\n"
    assert len(obj(tmp_path, text).faces) == 1
    with pytest.raises(InputError, match=r"own folder only, but a\.mtl names '\.\./secret\.png'"):
        read_mesh(tmp_path / "a.obj")


def test_ply_texture_outside_is_not_needed_for_the_surface(tmp_path):
    path = tmp_path / "a.ply"
    data = trimesh.creation.box().export(file_type="ply")
    path.write_bytes(data.replace(b"ply\n", b"ply\ncomment TextureFile ../a.png\n", 1))
    assert len(read_source(path).faces) == 12


def test_symbolic_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inner").write_text("x")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "in").symlink_to(folder / "inner")
    assert inside(folder, "in", folder / "a.obj") == folder / "in"
    with pytest.raises(InputError, match="own folder only"):
        inside(folder, "out", folder / "a.obj")


def assert_line(path, match):
    before = path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 20 else None
    with pytest.raises(InputError, match=match) as caught:
        read_source(path)
    assert "\n" not in str(caught.value)
    assert before is None or path.read_bytes() == before


BROKEN = {
    "empty.glb": b"",
    "text.glb": b"this is no mesh at all, only text",
    "cut.stl": b"\0" * 84 + b"\1",
    "bad.obj": b"v 0 0 zero\nf 1 1 1\n",
    "short.obj": b"v 0 0\nf 1 1 1\n",
    "index.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n",
    "word.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 x\n",
    "list.gltf": b"[1, 2]",
    "half.gltf": b'{"asset": ',
    "bad.ply": b"ply\nformat ascii 1.0\nelement vertex 3\nend_header\n0 0",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    assert_line(tmp_path / name, "must")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_vertices_that_are_not_finite_are_counted(tmp_path, value):
    path = tmp_path / "a.obj"
    path.write_text(f"v 0 0 0\nv 1 {value} 0\nv 0 1 0\nf 1 2 3\n")
    assert_line(path, "got 1 with NaN or infinity")


@pytest.mark.parametrize("kind", ["glb", "ply"])
def test_nan_in_a_binary_file_is_found(tmp_path, kind):
    mesh = lumpy()
    vertices = mesh.vertices.copy()
    vertices[5, 1] = np.nan
    trimesh.Trimesh(vertices, mesh.faces, process=False, validate=False).export(tmp_path / f"a.{kind}")
    assert_line(tmp_path / f"a.{kind}", "NaN or infinity")


@pytest.mark.parametrize("name", ["a.ply", "a.obj", "a.glb"])
def test_points_without_faces_are_refused(tmp_path, name):
    if name == "a.obj":
        (tmp_path / name).write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    else:
        trimesh.Scene(trimesh.PointCloud(np.eye(3))).export(tmp_path / name)
    assert_line(tmp_path / name, "must have faces, got none")


def test_five_million_faces_are_refused_before_they_are_read(tmp_path):
    count, size = 5_000_000, 84 + 50 * 5_000_000
    with (tmp_path / "a.stl").open("wb") as stream:
        stream.write(b"\0" * 80 + struct.pack("<I", count))
        stream.truncate(size)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex 9\nelement face {count}\nend_header\n"
    (tmp_path / "a.ply").write_text(header)
    (tmp_path / "a.obj").write_text("v 0 0 0\n" + "f 1 1 1\n" * count)
    document, binary = unpack_glb(write_cube(tmp_path / "cube.glb").read_bytes())
    document["accessors"][document["meshes"][0]["primitives"][0]["indices"]]["count"] = 3 * count
    (tmp_path / "a.glb").write_bytes(pack_glb(document, binary))
    for kind in ("stl", "ply", "obj", "glb"):
        assert_line(tmp_path / f"a.{kind}", "at most 2 M faces .* with 5000000 faces")


OFTEN = [(320, 6300), pytest.param(20, 101_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("faces", "count"), OFTEN)
def test_a_small_mesh_shown_often_counts_as_often(tmp_path, faces, count):
    ball = trimesh.creation.icosphere(subdivisions=round(math.log(faces / 20, 4)))
    path = write(ball, tmp_path / "ball.gltf")
    shown_often = {"nodes": [{"mesh": 0}] * count, "scenes": [{"nodes": list(range(count))}]}
    edit_gltf(path, lambda document: document.update(shown_often))
    assert_line(path, f"with {faces * count} faces")


def test_large_file_is_refused_unread(tmp_path):
    with (tmp_path / "a.stl").open("wb") as stream:
        stream.truncate(limits.MAX_BYTES + 1)
    assert_line(tmp_path / "a.stl", "at most 1074 MB")


def test_an_archive_is_named_with_the_mesh_at_its_end(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.glb", "w") as archive:
        archive.writestr("readme.txt", "text " * 10_000)
        archive.writestr("chair.obj", "v 0 0 0")
    assert_line(tmp_path / "a.glb", "a ZIP archive; unpack it and give 'chair.obj'")


def test_unknown_format_missing_file_and_compression_are_one_line(tmp_path):
    assert_line(tmp_path / "a.dae", r"must be one of glb, gltf, obj, ply, stl, .*, but .*a.dae is a COLLADA")
    assert_line(tmp_path / "a.unknown", "must exist")
    with pytest.raises(InputError, match=r"must be readable, got .*: File name too long"):
        read_source(tmp_path / f"{'long' * 100}.glb")
    (tmp_path / "a.unknown").write_bytes(b"x")
    assert_line(
        tmp_path / "a.unknown", "must be one of glb, gltf, obj, ply, stl, usdz, off, 3mf, fbx, got a.unknown"
    )
    assert_line(tmp_path / "a.glb", "must exist")
    required = {"extensionsRequired": ["KHR_draco_mesh_compression", "KHR_materials_unlit"]}
    path = edit_gltf(gltf(tmp_path), lambda document: document.update(required))
    assert_line(path, r"compresses it with Draco \(KHR_draco_mesh_compression\); export it without")
