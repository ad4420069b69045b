"""Faces by the names of nodes and materials, through the readers, the prepared mesh and its file."""

import pytest
import torch
from gltf_builder import Gltf, box

from pgc3d.errors import InputError
from pgc3d.geometry.selection import select_faces
from pgc3d.inputs.mesh import load_prepared, prepare_mesh_file, save_prepared
from pgc3d.mesh_io.reader import read_source
from pgc3d.rendering.cpu import CpuRasterizer

GROUPED = """v 0 0 0
v 1 0 0
v 0 1 0
v 0 0 1
f 1 2 3
o chair
g seat
usemtl wood
f 1 2 4
g legs left
usemtl steel
f 1 3 4
o table
g legs left
f 2 3 4
usemtl wood
f 2 4 3
"""


def furniture():
    """Two boxes of a mesh with two materials below a parent without a mesh, and a box of its own."""
    gltf = Gltf()
    wood = gltf.material(name="wood")
    plain = gltf.material()
    gltf.mesh(box(gltf) | {"material": wood}, box(gltf) | {"material": plain})
    gltf.mesh(box(gltf))
    gltf.nodes(
        {"name": "chair", "children": [1, 2]},
        {"name": "seat", "mesh": 0},
        {"mesh": 0, "translation": [3, 0, 0]},
        {"name": "table [old]", "mesh": 1, "translation": [6, 0, 0]},
    )
    return gltf


def labels_of(path):
    return read_source(path).labels


def test_faces_of_a_gltf_know_their_node_and_material(tmp_path):
    labels = labels_of(furniture().write(tmp_path / "a.glb"))
    assert labels.nodes == ("chair", "seat", "node 2", "table [old]")
    assert (labels.parents, labels.materials) == ((-1, 0, 0, -1), ("wood", "material 1"))
    assert labels.node.tolist() == [1] * 24 + [2] * 24 + [3] * 12
    assert labels.material.tolist() == ([0] * 12 + [1] * 12) * 2 + [-1] * 12


def test_faces_of_an_obj_know_their_object_group_and_material(tmp_path):
    path = tmp_path / "a.obj"
    path.write_text(GROUPED)
    labels = labels_of(path)
    assert labels.nodes == ("chair", "seat", "legs left", "table", "legs left")
    assert labels.parents == (-1, 0, 0, -1, 3)
    assert (labels.node.tolist(), labels.material.tolist()) == ([-1, 1, 2, 4, 4], [-1, 0, 1, 1, 0])
    assert labels.materials == ("wood", "steel")


@pytest.mark.parametrize(
    ("options", "boxes"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"only": ["chair"]}, [0, 1, 2, 3]),
        ({"only": ["seat"], "keep": ["wood"]}, [1]),
        ({"only": ["table [[]*"]}, [4]),
        ({"only": ["table [old]"]}, [4]),  # a name in full is no pattern
        ({"only": ["wood", "tab*"]}, [0, 2, 4]),
        ({"keep": ["chair"]}, [4]),
        ({"keep": ["material ?", "node 2"]}, [0, 4]),
    ],
)
def test_parts_are_selected_by_name(tmp_path, options, boxes):
    chosen = select_faces(labels_of(furniture().write(tmp_path / "a.glb")), **options)
    assert chosen.tolist() == [index // 12 in boxes for index in range(60)]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"only": ["Wod"]},
            "--only must name a node or a material with faces, got 'Wod'; did you mean 'wood'?",
        ),
        ({"keep": ["qqq*"]}, "got 'qqq*'; there are 'chair', 'seat', 'node 2', 'table [old]', 'wood', "),
        ({"only": ["seat"], "keep": ["chair"]}, "must leave faces to be textured, got none"),
    ],
)
def test_unknown_names_list_the_nearest(tmp_path, options, line):
    with pytest.raises(InputError) as raised:
        select_faces(labels_of(furniture().write(tmp_path / "a.glb")), **options)
    assert line in str(raised.value)


def test_a_format_without_parts_has_no_labels(tmp_path):
    (tmp_path / "a.stl").write_text(
        "solid\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
        "endsolid\n"
    )
    with pytest.raises(InputError, match="this file format has neither"):
        select_faces(labels_of(tmp_path / "a.stl"), only=["x"])


def test_labels_are_in_the_prepared_mesh_and_its_file(tmp_path):
    prepared = prepare_mesh_file(
        furniture().write(tmp_path / "a.glb"),
        up="+y", front="auto", crease_degrees=40.0, texture_size=64, rasterizer=CpuRasterizer(),
    )  # fmt: skip
    save_prepared(tmp_path / "mesh.safetensors", prepared)
    read = load_prepared(tmp_path / "mesh.safetensors").to("cpu").labels
    assert torch.equal(read.node, prepared.labels.node)
    assert torch.equal(read.material, prepared.labels.material)
    names = ("nodes", "parents", "materials")
    assert all(getattr(read, name) == getattr(prepared.labels, name) for name in names)
