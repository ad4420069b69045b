"""An OBJ that was textured has its own lines again, and a library and images of its own."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_documents import GREEN, corners, prepared
from test_selection import GROUPED

from pgc3d.mesh_io.bundle import opened_document, pack_document
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.mesh_io.obj_repaint import repaint_obj
from pgc3d.mesh_io.reader import read_source
from pgc3d.mesh_io.repaint import MaterialImages, Repainting

LIBRARY = """# made by hand
newmtl wood
Kd 0.5 0.2 0.1
map_Kd -s 2 2 1 parts/old wood.png
map_Bump -bm 0.5 parts/bump.png
Ns 10
newmtl steel
Kd 0.8 0.8 0.8
map_Kd parts/steel.png
illum 2
"""
QUADS = """# two quads\r
mtllib scene.mtl\r
v 0 0 0\r
v 1 0 0\r
v 1 1 0\r
v 0 1 0\r
v 2 0 0\r
v 2 1 0\r
vt 0.1 0.1\r
vt 0.4 0.1\r
vt 0.4 0.4\r
vt 0.1 0.4\r
vt 0.9 0.1\r
vt 0.9 0.4\r
vn 0 0 1\r
o left\r
usemtl wood\r
s 1\r
f 1/1/1 2/2/1 3/3/1 4/4/1  # a comment\r
g right\r
usemtl steel\r
f -5/-5/1 -2/-2/1 -1/-1/1 -4/-4/1\r
l 1/1 2/2\r
"""


def scene(tmp_path, text=QUADS):
    folder = tmp_path / "in"
    (folder / "parts").mkdir(parents=True)
    (folder / "scene.obj").write_bytes(text.encode())
    (folder / "scene.mtl").write_text(LIBRARY)
    for name in ("old wood", "bump", "steel"):
        Image.new("RGB", (4, 4), (200, 10, 10)).save(folder / "parts" / f"{name}.png")
    return folder / "scene.obj"


def repainted(path, out, painted=None, **options):
    mesh = prepared(path, **options)
    images = torch.zeros(len(mesh.faces), dtype=torch.int64) if painted is None else painted(mesh.labels)
    wanted = Repainting((MaterialImages(GREEN),), images, mesh.uv, mesh.uv_faces)
    out.parent.mkdir(exist_ok=True)
    for file, content in repaint_obj(path, out, wanted, {"prompt": "grün"}).items():
        file.write_bytes(content)
    return out


def lines_of(path, *words):
    texts = path.read_bytes().decode().splitlines()
    return [" ".join(text.split("#")[0].split()) for text in texts if text.split(" ")[0] in words]


def test_own_coordinates_leave_every_line_but_that_of_the_library(tmp_path):
    path = scene(tmp_path, QUADS.replace("map_Kd -s 2 2 1", "map_Kd"))
    (path.parent / "scene.mtl").write_text(LIBRARY.replace("-s 2 2 1 ", ""))
    out = repainted(path, tmp_path / "out" / "asset.obj")
    given, made = path.read_bytes().split(b"\r\n"), out.read_bytes().split(b"\r\n")
    assert made == [b'# {"prompt": "gr\\u00fcn"}', b"mtllib asset.mtl", given[0], *given[2:]]
    library = (tmp_path / "out" / "asset.mtl").read_text()
    assert "map_Bump -bm 0.5 asset_bump.png" in library
    assert library.count("map_Kd asset_base_color.png") == 2
    assert "# made by hand" in library
    assert "illum 2" in library
    assert torch.equal(corners(path), corners(out))
    assert all(bool((item.image == GREEN[0, 0]).all()) for item in read_mesh(out).materials)


def test_new_coordinates_leave_vertices_normals_names_and_order(tmp_path):
    path = scene(tmp_path)
    out = repainted(path, tmp_path / "out" / "asset.obj", uv="new")
    for words in (("v", "vn", "o", "g", "s", "usemtl"), ("f",)):
        given, made = lines_of(path, *words), lines_of(out, *words)
        strip = [["/".join(part.split("/")[::2]) for part in line.split()] for line in given]
        assert [["/".join(part.split("/")[::2]) for part in line.split()] for line in made] == strip
    assert len(lines_of(out, "vt")) > len(lines_of(path, "vt"))
    assert lines_of(out, "vt")[-6:] == lines_of(path, "vt")
    library = (tmp_path / "out" / "asset.mtl").read_text()
    assert "# on the texture coordinates of the original: map_Bump -bm 0.5 parts/bump.png" in library
    found = read_mesh(out)
    assert all(bool((item.image == GREEN[0, 0]).all()) for item in found.materials)
    assert torch.equal(corners(path), corners(out))


@pytest.mark.parametrize("uv", ["own", "new"])
def test_a_material_of_kept_faces_stays_with_its_image(tmp_path, uv):
    path = scene(tmp_path)
    out = repainted(path, tmp_path / "out" / "asset.obj", lambda labels: labels.material - 1, uv=uv)
    given, made = read_source(path), read_source(out)
    kept = made.labels.material == 0
    assert made.labels.materials == given.labels.materials
    assert torch.equal(made.uv[made.uv_faces[kept]], given.uv[given.uv_faces[given.labels.material == 0]])
    assert "map_Kd -s 2 2 1 asset_old_wood.png" in (tmp_path / "out" / "asset.mtl").read_text()
    assert (tmp_path / "out" / "asset_old_wood.png").read_bytes() == (
        path.parent / "parts/old wood.png"
    ).read_bytes()


def test_a_material_of_both_gets_a_second_one_and_faces_of_none_one(tmp_path):
    path, out = tmp_path / "in.obj", tmp_path / "out" / "asset.obj"
    path.write_text(GROUPED)
    repainted(path, out, lambda labels: torch.where(labels.node == 4, -1, 0))
    labels = read_source(out).labels
    assert [labels.materials[index] for index in labels.material.tolist()] == [
        "surface", "wood_textured", "steel_textured", "steel", "wood",
    ]  # fmt: skip
    assert lines_of(out, "o", "g") == lines_of(path, "o", "g")


def test_a_polygon_whose_triangles_differ_becomes_triangles(tmp_path):
    path, out = scene(tmp_path), tmp_path / "out" / "asset.obj"
    out.parent.mkdir()
    generator = np.random.default_rng(0)
    uv = torch.from_numpy(generator.random((12, 2))).float()
    wanted = Repainting((MaterialImages(GREEN),), torch.zeros(4).long(), uv, torch.arange(12).reshape(4, 3))
    for file, content in repaint_obj(path, out, wanted).items():
        file.write_bytes(content)
    made = read_source(out)
    assert len(lines_of(out, "f")) == 4
    assert torch.equal(corners(path), corners(out))
    torch.testing.assert_close(made.uv[made.uv_faces], uv[wanted.uv_faces])


def test_an_archive_holds_the_library_and_all_its_images(tmp_path):
    path = scene(tmp_path)
    (tmp_path / "document.zip").write_bytes(pack_document(path))
    with opened_document(tmp_path / "document.zip") as opened:
        found = sorted(file.relative_to(opened.parent).as_posix() for file in opened.parent.rglob("*.*"))
    assert found == ["parts/bump.png", "parts/old wood.png", "parts/steel.png", "scene.mtl", "scene.obj"]
