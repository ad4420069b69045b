"""What a mesh file holds, and what texturing keeps of it, as text and as JSON."""

import json

import mesh_cases as cases
import pytest
from gltf_builder import two_boxes
from test_documents import rich
from test_obj_documents import scene
from test_selection import furniture

from pgc3d.cli.app import main
from pgc3d.inputs.inspection import inspect_mesh
from pgc3d.rendering.cpu import CpuRasterizer


def inspected(path):
    return inspect_mesh(path, rasterizer=CpuRasterizer())


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *map(str, arguments)])
    found = capsys.readouterr()
    assert ended.value.code == 0, found.err
    return found.out


def test_the_tree_has_nodes_triangles_and_materials(tmp_path, capsys):
    text = printed(capsys, furniture().write(tmp_path / "a.glb"))
    assert text.splitlines()[:7] == [
        "a.glb: 60 triangles, 120 vertices, size 7 x 1 x 1", "", "nodes",
        "  chair",
        "    seat: 24 triangles; wood, material 1; mesh 0",
        "    node 2: 24 triangles; wood, material 1; mesh 0",
        "  table [old]: 12 triangles; mesh 1",
    ]  # fmt: skip
    assert "  wood: 24 triangles; coordinates usable" in text
    assert "  (none): 12 triangles; coordinates usable" in text
    assert "for the textures of all faces: usable" in text  # an image for each material


def test_the_same_is_in_json(tmp_path, capsys):
    path = rich().write(tmp_path / "a.glb")
    found = json.loads(printed(capsys, path, "--json"))
    assert found["triangles"] == 12
    assert found["nodes"][0]["details"] == "mesh 0, skin of 2 joints"
    assert found["materials"][0]["coordinates"] == "usable"
    assert found["materials"][0]["details"] == "normal image 0 4 x 4, base colour image 1 64 x 64"
    assert "TEXCOORD_1 of 1 of 1 primitive" in found["sets"]
    assert "idle: animation of 1 channel, 0.00 s" in found["others"]
    assert "extensions: XX_unknown" in found["others"]
    assert {"1 skeleton", "1 animation", "1 camera", "1 normal map"} <= set(found["kept"])
    assert found["lost"] == []


def test_coordinates_are_judged_for_each_material_and_for_all(tmp_path):
    report = inspected(two_boxes(shift=(0.5, 0)).write(tmp_path / "a.glb"))
    assert report.coordinates == "leave the unit square"
    assert any(
        "a new set is added, as those of the file leave the unit square" in line for line in report.changed
    )
    assert inspected(cases.turned_instances().write(tmp_path / "b.glb")).coordinates == "usable"
    assert inspected(cases.one_part_without().write(tmp_path / "c.glb")).coordinates.startswith(
        "are incomplete"
    )


def test_tints_of_vertices_are_said(tmp_path):
    report = inspected(cases.leaf().write(tmp_path / "a.glb"))
    assert (
        "vertex colours: stay as the attribute _COLOR_0, and do not tint the new base colour"
        in report.changed
    )
    assert report.materials[0].details == "alpha MASK"


def test_an_obj_has_its_groups_and_images(tmp_path, capsys):
    text = printed(capsys, scene(tmp_path))
    assert "  left: 2 triangles; wood\n    right: 2 triangles; steel" in text
    assert "parts/old wood.png 4 x 4" in text
    assert "wood: 2 triangles; coordinates usable; base colour parts/old wood.png" in text


def test_other_formats_lose_nothing_but_what_they_have(tmp_path):
    path = tmp_path / "a.stl"
    corners = "".join(f"vertex {corner}\n" for corner in ("0 0 0", "1 0 0", "0 1 0"))
    facet = f"facet normal 0 0 1\nouter loop\n{corners}endloop\nendfacet\n"
    path.write_text(f"solid\n{facet}endsolid\n")
    report = inspected(path)
    assert (report.nodes, report.materials, report.coordinates) == ((), (), "are missing")
