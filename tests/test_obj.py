"""OBJ files: indices, materials of the library, images, groups, colours."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_files import CUBE, QUADS, f, v
from mesh_reading import read
from PIL import Image

from pgc3d.errors import InputError
from pgc3d.mesh_io import lines as lines_module
from pgc3d.mesh_io.mtl import parse_mtl, source_files
from pgc3d.mesh_io.obj import read_obj

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
