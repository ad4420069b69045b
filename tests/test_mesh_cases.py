"""What other programs write as glTF, read for painting and for its colours; laws in a table."""

import json
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mesh_cases as cases
import numpy as np
import pytest
import torch
from mesh_cases import Gltf, box, one_box, red_and_blue, square

from pgc3d.errors import InputError
from pgc3d.exporting.asset_colors import surface_colors
from pgc3d.geometry.normals import face_vectors
from pgc3d.inputs.mesh import prepare_mesh_file
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.mesh_io.reader import read_source, source_files
from pgc3d.rendering.cpu import CpuRasterizer

CPU = CpuRasterizer()
HALF = (0.5, 0.5, 0.5)
UNIT = ((-0.5, -0.5, -0.5), HALF)


@dataclass(frozen=True)
class Case:
    """A file and what its surface is; `line` is part of the one line that refuses it."""

    make: Callable[[], Gltf]
    faces: int = 12
    area: float = 6.0
    bounds: tuple[tuple[float, ...], tuple[float, ...]] = UNIT
    vertices: int = 24
    line: str | None = None
    note: str | None = None
    lost: tuple[str, ...] = ()
    name: str = "case.glb"
    uri: str | None = None  # of the buffer, in a file of the same name or of `buffer`
    buffer: str | None = None


PULLED = (0.5, -2.0, -2.0)


def area_with_a_corner_at(place: tuple[float, float, float]) -> float:
    positions, _, _, faces = cases.box_arrays()
    positions[0] = place
    a, b, c = positions[faces].transpose(1, 0, 2)
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum()) / 2


def visible(*, setting: bool) -> dict:
    return {"KHR_node_visibility": {"visible": setting}}


TWO_NODES = "2 nodes with their names and hierarchy"
MOVED = {"mesh": 0, "translation": [2, 0, 0]}
GLTF_CASES = {
    "plain": Case(one_box),
    "instancing_used": Case(
        cases.instancing, 36, 18, ((-0.5, -0.5, -0.5), (6.5, 0.5, 0.5)), 72, lost=("1 node of instances",)
    ),
    "instances_turned_and_mirrored": Case(
        # 2 x 1 x 1, for the node's own scale comes last, and 4 x 2 x 2
        cases.turned_instances, 24, 10.0 + 40.0, ((-1.0, -1.0, -1.0), (12.0, 1.0, 1.0)), 48,
        lost=("1 node of instances",),
    ),
    "skinned_node_scale": Case(
        lambda: cases.skinned({"mesh": 0, "skin": 0, "scale": [1, 1, 5]}, {}, joints=[1]),
        lost=("1 skeleton",),
    ),
    "skin_in_the_pose_of_its_joints": Case(
        cases.lifted, area=14.0, bounds=((-0.5, -0.5, -0.5), (0.5, 2.5, 0.5)), lost=("1 skeleton",)
    ),
    "skin_shared_by_two": Case(cases.two_skinned, 24, 12, vertices=48, lost=(TWO_NODES, "1 skeleton")),
    "skin_of_eight_influences": Case(
        cases.eight_influences, bounds=((0.3, -0.5, -0.5), (1.3, 0.5, 0.5)), lost=("1 skeleton",)
    ),
    "skin_whose_weights_sum_to_less": Case(
        lambda: cases.skinned({"mesh": 0, "skin": 0}, {}, joints=[1], weights=0.25), lost=("1 skeleton",)
    ),
    "morph_at_rest": Case(lambda: cases.morphed({"mesh": 0}), lost=("2 morph targets",)),
    "morph_weights_of_the_mesh": Case(
        lambda: cases.morphed({"mesh": 0}, weights=[2.0, 0.0]),
        bounds=((1.5, -0.5, -0.5), (2.5, 0.5, 0.5)), lost=("2 morph targets",),
    ),
    "morph_weights_of_the_node": Case(
        lambda: cases.morphed({"mesh": 0, "weights": [0.0, 1.0]}, weights=[2.0, 0.0]),
        area=10.0, bounds=((-0.5, -0.5, -0.5), (0.5, 1.5, 0.5)), lost=("2 morph targets",),
    ),
    "sparse": Case(
        lambda: cases.sparse_corner(one_box(), 0, PULLED), area=area_with_a_corner_at(PULLED),
        bounds=((-0.5, -2, -2), HALF),
    ),
    "strip": Case(cases.strip, 8, 4.0, ((0, 0, 0), (4, 1, 0)), 10),
    "strip_joined_by_flat_triangles": Case(cases.joined_strip, 4, 2.0, ((0, 0, 0), (3, 1, 0)), 10),
    "fan": Case(cases.fan, 3, 4.0, ((-1, -1, 0), (1, 1, 0)), 5),
    "quantised": Case(cases.quantised),
    "quantised_in_twelve_bytes": Case(lambda: cases.quantised(stride=12)),
    "byte_indices": Case(lambda: one_box_with("u1")),
    "long_indices": Case(lambda: one_box_with("u4")),
    "two_materials_two_nodes": Case(
        cases.two_materials, 24, 12, ((-0.5, -0.5, -0.5), (0.5, 2.5, 0.5)), 48,
        lost=(TWO_NODES, "2 materials", "1 transparent material (alphaMode BLEND)"),
    ),
    "one_part_without_uv": Case(
        cases.one_part_without, 24, 12, ((-0.5, -0.5, -0.5), (0.5, 2.5, 0.5)), 48, lost=(TWO_NODES,)
    ),
    "default_scene_second": Case(
        lambda: one_box(
            {"mesh": 0}, {"mesh": 0, "scale": [1, 3, 1]}, scene=1, scenes=[{"nodes": [0]}, {"nodes": [1]}]
        ),
        area=14, bounds=((-0.5, -1.5, -0.5), (0.5, 1.5, 0.5)),
    ),
    "first_scene_where_none_is_named": Case(
        lambda: without(one_box({"mesh": 0}, MOVED), "scene", first=True)
    ),
    "no_scene_shows_all_nodes": Case(
        lambda: without(one_box({"mesh": 0}, MOVED), "scene", "scenes"),
        24, 12, ((-0.5, -0.5, -0.5), (2.5, 0.5, 0.5)), 48, lost=(TWO_NODES,),
    ),
    "no_nodes_at_all": Case(lambda: without(one_box(), "scene", "scenes", "nodes")),
    "node_outside_scene": Case(
        lambda: one_box({"mesh": 0}, {"mesh": 0, "translation": [50, 0, 0]}, scenes=[{"nodes": [0]}])
    ),
    "node_cycle": Case(
        lambda: one_box({"mesh": 0, "children": [1]}, {"children": [0]}, scenes=[{"nodes": [0]}]),
        line="must be trees",
    ),
    "node_below_two": Case(
        lambda: one_box({"children": [2]}, {"children": [2]}, {"mesh": 0}), line="below two nodes"
    ),
    "node_below_itself": Case(
        lambda: one_box({"mesh": 0, "children": [0]}, scenes=[{"nodes": [0]}]), line="below itself"
    ),
    "same_names": Case(
        lambda: one_box(
            {"name": "box", "mesh": 0, "children": [1, 2]},
            {"name": "box"} | MOVED,
            {"name": "box", "mesh": 0, "translation": [4, 0, 0]},
        ),
        36, 18, ((-0.5, -0.5, -0.5), (4.5, 0.5, 0.5)), 72, lost=("3 nodes with their names and hierarchy",),
    ),
    "node_named_world": Case(
        lambda: one_box({"mesh": 0, "name": "world", "translation": [0, 5, 0]}),
        bounds=((-0.5, 4.5, -0.5), (0.5, 5.5, 0.5)),
    ),
    "mirrored_by_its_parent": Case(
        lambda: one_box({"children": [1], "scale": [-2, 1, 1]}, MOVED),
        area=10, bounds=((-5, -0.5, -0.5), (-3, 0.5, 0.5)),
    ),
    "matrix": Case(
        lambda: one_box({"mesh": 0, "matrix": [0, 2, 0, 0, -1, 0, 0, 0, 0, 0, 1, 0, 5, 6, 7, 1]}),
        area=10, bounds=((4.5, 5, 6.5), (5.5, 7, 7.5)),
    ),
    "flat_scale_zero": Case(
        lambda: one_box({"mesh": 0, "scale": [0, 1, 1]}), area=2, bounds=((0, -0.5, -0.5), (0, 0.5, 0.5))
    ),
    "hidden_node": Case(
        lambda: one_box({"mesh": 0, "extensions": visible(setting=False)}, MOVED),
        bounds=((1.5, -0.5, -0.5), (2.5, 0.5, 0.5)), note="1 hidden node left out", lost=(TWO_NODES,),
    ),
    "hidden_below_its_parent": Case(
        lambda: one_box({"children": [1], "extensions": visible(setting=False)}, MOVED, {"mesh": 0}),
        note="1 hidden node left out", lost=(TWO_NODES,),
    ),
    "triangles_and_points": Case(cases.points_too, note="1 part of points or lines passed over"),
    "image_parent_folder": Case(
        lambda: cases.with_image("../textures/wood.png"), note="'../textures/wood.png' lies outside"
    ),
    "image_http": Case(
        lambda: cases.with_image("https://example.org/wood.png"), note="lies outside the folder"
    ),
    "image_missing": Case(lambda: cases.with_image("wood.png")),
    "vertex_colours_mask": Case(
        cases.leaf,
        lost=("1 part with vertex colours", "1 cut-out material (alphaMode MASK)", "1 single-sided material"),
    ),
    "keeps_pbr_maps": Case(
        cases.with_maps,
        lost=("1 normal map", "1 occlusion map", "1 metallic-roughness map", "1 emission of a material"),
    ),
    "animated_lid": Case(
        cases.lid, 24, 12, ((-0.5, -0.5, -0.5), (0.5, 1.5, 0.5)), 48, lost=(TWO_NODES, "1 animation")
    ),
    "texture_transform": Case(cases.scaled_texture),
    "uv_normalised_u16": Case(cases.short_uv),
    "normals_inward": Case(cases.inward_normals),
    "umlauts": Case(one_box, name="boîte à outils 箱.glb"),
    "gltf_inside_itself": Case(one_box, name="case.gltf"),
    "buffer_space_raw": Case(one_box, name="case.gltf", uri="my box.bin", buffer="my box.bin"),
    "buffer_space_percent": Case(one_box, name="case.gltf", uri="my%20box.bin", buffer="my box.bin"),
    "buffer_with_a_per_cent_sign": Case(one_box, name="case.gltf", uri="50%25.bin", buffer="50%.bin"),
    "buffer_missing": Case(one_box, name="case.gltf", uri="missing.bin", line="missing.bin"),
    "draco_used_not_required": Case(cases.draco_used, line="with Draco (KHR_draco_mesh_compression)"),
    "draco_beside_a_plain_copy": Case(cases.draco_with_a_plain_copy),
    "meshopt": Case(lambda: cases.meshopt(plain=False), line="with meshopt (EXT_meshopt_compression)"),
    "meshopt_beside_a_plain_copy": Case(lambda: cases.meshopt(plain=True)),
    "unknown_extension": Case(
        lambda: one_box(extensionsRequired=["ACME_sphere"]), line="requires ACME_sphere; export it without"
    ),
    "shaders": Case(lambda: one_box(extensionsRequired=["KHR_techniques_webgl"])),
    "gltf1": Case(lambda: one_box(asset={"version": "1.0"}), line="of version '1.0'"),
    "gltf1_by_its_objects": Case(lambda: one_box(meshes={"m": {}}), line="of version '1.0'"),
    "gltf3": Case(lambda: one_box(asset={"version": "2.0", "minVersion": "3.0"}), line="of version '3.0'"),
    "null_for_nothing": Case(lambda: one_box({"mesh": 0, "name": None, "skin": None}, animations=None)),
}  # fmt: skip


def one_box_with(kind: str) -> Gltf:
    gltf = Gltf()
    gltf.mesh(box(gltf, kind=kind))
    return gltf.nodes({"mesh": 0})


def without(gltf: Gltf, *keys: str, first: bool = False) -> Gltf:
    for key in keys:
        del gltf.document[key]
    if first:
        gltf.document["scenes"] = [{"nodes": [0]}, {"nodes": [1]}]
    return gltf


def volume(mesh) -> float:
    corners = mesh.vertices[mesh.faces].double()
    return float((corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum() / 6)


def assert_line(call, match: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert match in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", GLTF_CASES.values(), ids=GLTF_CASES)
def test_surface(tmp_path, case):
    path = case.make().write(tmp_path / case.name, case.uri, case.buffer)
    if case.line is not None:
        assert_line(lambda: read_source(path), case.line)
        return
    mesh = read_source(path)
    assert (len(mesh.faces), len(mesh.vertices)) == (case.faces, case.vertices)
    used = mesh.vertices[torch.unique(mesh.faces)]
    torch.testing.assert_close(used.amin(0), torch.tensor(case.bounds[0]).float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(used.amax(0), torch.tensor(case.bounds[1]).float(), atol=1e-4, rtol=0)
    area = float(face_vectors(mesh.vertices.double(), mesh.faces).norm(dim=1).sum()) / 2
    assert area == pytest.approx(case.area, rel=1e-4)
    assert [case.note in note for note in mesh.notes] == [True] if case.note else mesh.notes == ()
    assert mesh.lost == case.lost
    if case.faces in (12, 24, 36):  # boxes look outwards, mirrored or not, and so do their normals
        assert volume(mesh) > 0 or case is GLTF_CASES["flat_scale_zero"]
    if mesh.normals is not None and case.make is not cases.inward_normals:
        vectors = face_vectors(mesh.vertices, mesh.faces)
        turned = (mesh.normals[mesh.normal_faces] * vectors[:, None]).sum(-1)
        assert bool((turned[vectors.norm(dim=1) > 1e-6] > 0).all())


@pytest.mark.parametrize("make", [cases.strip, cases.joined_strip, cases.fan])
def test_strips_and_fans_face_one_side(tmp_path, make):
    mesh = read_source(make().write(tmp_path / "a.glb"))
    vectors = face_vectors(mesh.vertices, mesh.faces)
    assert len(torch.unique(vectors[:, 2].sign())) == 1


def test_a_byte_order_mark_and_zeros_do_no_harm(tmp_path):
    path = one_box().write(tmp_path / "a.gltf")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\0\0")
    assert len(read_source(path).faces) == 12


def test_what_the_bytes_are_counts_not_the_name(tmp_path):
    binary, text = one_box().write(tmp_path / "a.glb"), one_box().write(tmp_path / "b.gltf")
    binary.rename(tmp_path / "c.gltf")
    text.rename(tmp_path / "d.glb")
    assert len(read_source(tmp_path / "c.gltf").faces) == len(read_source(tmp_path / "d.glb").faces) == 12


def test_primitives_of_the_same_vertices_share_them(tmp_path):
    gltf = one_box()
    first = gltf.document["meshes"][0]["primitives"][0]
    gltf.document["meshes"][0]["primitives"] = [first, dict(first)]
    mesh = read_source(gltf.write(tmp_path / "a.glb"))
    assert (len(mesh.vertices), len(mesh.faces)) == (24, 24)


# Texture coordinates


def canvas_of(path: Path, **options):
    said: list[str] = []
    prepared = prepare_mesh_file(
        path, up="+y", front="auto", crease_degrees=40.0, texture_size=64, rasterizer=CPU, notify=said.append,
        **options,
    )  # fmt: skip
    return prepared, said


@pytest.mark.parametrize(
    "name", ["plain", "texture_transform", "uv_normalised_u16", "quantised", "byte_indices"]
)
def test_sane_coordinates_are_kept(tmp_path, name):
    prepared, _ = canvas_of(GLTF_CASES[name].make().write(tmp_path / "a.glb"))
    assert prepared.uv_method == "own"
    expected = torch.from_numpy(cases.box_arrays()[2][cases.box_arrays()[3]]).float() * torch.tensor(
        [1.0, -1]
    )
    found = prepared.uv[prepared.uv_faces]
    torch.testing.assert_close(found, expected + torch.tensor([0.0, 1]), atol=0.006, rtol=0)


WORDS = {
    "one part": (cases.one_part_without, "one of 2 parts of a.glb has no texture coordinates", False),
    "tiles": (lambda: cases.two_boxes(shift=(1, 0)), "lie in 2 UDIM tiles 1001, 1002", True),
    "tiles above": (lambda: cases.two_boxes(shift=(2, -1)), "lie in 2 UDIM tiles 1001, 1013", True),
    "mirrored": (cases.mirrored_halves, "overlap on 50% of their area", True),
    "crossing": (lambda: cases.two_boxes(shift=(0.3, 0)), "leave the unit square", True),
    "none": (lambda: cases.two_boxes(second_uv=False), "the texture coordinates of a.glb are missing", False),
}


@pytest.mark.parametrize(("make", "words", "usable"), WORDS.values(), ids=WORDS)
def test_why_new_coordinates_are_made_is_said_with_the_way_out(tmp_path, make, words, usable):
    path = make().write(tmp_path / "a.glb")
    prepared, said = canvas_of(path)
    assert prepared.uv_method != "own"
    line = said[-1]
    assert words in line
    assert ("--uv own" in line) == usable
    if usable:
        kept, _ = canvas_of(path, uv="own")
        assert kept.uv_method == "own"
        assert kept.uv_shared
        assert kept.uv_wraps == ("leave" in words)
    else:
        assert_line(lambda: canvas_of(path, uv="own"), "--uv own must have texture coordinates")


def test_new_coordinates_are_made_on_demand(tmp_path):
    prepared, said = canvas_of(one_box().write(tmp_path / "a.glb"), uv="new")
    assert prepared.uv_method != "own"
    assert "--uv new" in said[-1]


def test_coordinates_without_area_or_number_cannot_be_kept(tmp_path):
    for value, words in ((0.5, "no area"), (float("nan"), "not finite")):
        gltf = one_box()
        number = gltf.accessor(np.full((24, 2), value))
        gltf.document["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"] = number
        path = gltf.write(tmp_path / "a.glb")
        assert_line(lambda: canvas_of(path, uv="own"), words)  # noqa: B023
        assert canvas_of(path)[0].uv_method != "own"


# What is said before a run


def test_what_is_lost_is_said_in_one_line(tmp_path):
    _, said = canvas_of(cases.lid().write(tmp_path / "a.glb"))
    assert said[0] == f"not kept in the result: {TWO_NODES}, 1 animation"
    _, said = canvas_of(one_box().write(tmp_path / "b.glb"))
    assert said == []


def test_normals_that_point_inwards_are_made_anew_and_said(tmp_path):
    prepared, said = canvas_of(cases.inward_normals().write(tmp_path / "a.glb"))
    assert "100% of the normals point to the other side" in said[0]
    mesh = prepared
    torch.testing.assert_close(
        mesh.normals[mesh.normal_faces].mean(1), face_vectors(mesh.vertices, mesh.faces)
    )


def test_a_closed_surface_that_is_inside_out_is_said(tmp_path):
    gltf = one_box()
    primitive = gltf.document["meshes"][0]["primitives"][0]
    primitive["indices"] = gltf.accessor(cases.box_arrays()[3][:, ::-1].reshape(-1), "u2")
    del primitive["attributes"]["NORMAL"]
    _, said = canvas_of(gltf.write(tmp_path / "a.glb"))
    assert "a.glb: the surface is closed and inside out" in said[0]


# Strangers

WRONG = (None, True, -1, 1.5, 10**30, "x", [], ["x"], {}, {"x": 1}, [[]], 1e999)
PLACES = (
    "accessors", "accessors.0", "accessors.0.count", "accessors.0.type", "accessors.0.componentType",
    "accessors.0.bufferView", "accessors.0.byteOffset", "accessors.0.normalized", "accessors.0.sparse",
    "bufferViews", "bufferViews.0", "bufferViews.0.buffer", "bufferViews.0.byteLength",
    "bufferViews.0.byteOffset", "bufferViews.0.byteStride", "buffers", "buffers.0", "buffers.0.uri", "meshes",
    "meshes.0", "meshes.0.primitives", "meshes.0.primitives.0", "meshes.0.primitives.0.attributes",
    "meshes.0.primitives.0.attributes.POSITION", "meshes.0.primitives.0.attributes.NORMAL",
    "meshes.0.primitives.0.attributes.TEXCOORD_0", "meshes.0.primitives.0.attributes.COLOR_0",
    "meshes.0.primitives.0.indices", "meshes.0.primitives.0.mode", "meshes.0.primitives.0.material",
    "meshes.0.primitives.0.targets", "meshes.0.weights", "nodes", "nodes.0", "nodes.0.mesh",
    "nodes.0.children",
    "nodes.0.matrix", "nodes.0.scale", "nodes.0.rotation", "nodes.0.skin", "nodes.0.weights",
    "nodes.0.extensions", "scenes", "scenes.0", "scenes.0.nodes", "scene", "asset", "asset.version", "skins",
    "skins.0", "skins.0.joints", "skins.0.inverseBindMatrices", "extensionsRequired", "extensionsUsed",
    "cameras", "animations", "materials", "materials.0", "materials.0.pbrMetallicRoughness", "textures",
    "textures.0", "textures.0.source", "textures.0.sampler", "images", "images.0", "images.0.uri",
    "images.0.bufferView", "samplers", "extensions",
)  # fmt: skip


def spoilt(place: str, value) -> bytes:
    """The GLB of a textured, skinned and morphed box in which one thing is of another type."""
    gltf = cases.morphed({"mesh": 0, "skin": 0}, weights=[1.0, 0.0])
    gltf.document["meshes"][0]["primitives"][0]["material"] = gltf.material(
        {"index": gltf.texture(red_and_blue(4))}
    )
    gltf.document["skins"] = [{"joints": [0]}]
    document = json.loads(json.dumps(gltf.finished()))
    *above, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    target = document
    for part in above:
        target = target[part]
    target[last] = value
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary = bytes(gltf.data)
    head = struct.pack("<4sIIII", b"glTF", 2, 28 + len(text) + len(binary), len(text), 0x4E4F534A)
    return head + text + struct.pack("<II", len(binary), 0x004E4942) + binary


def refusal(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("place", PLACES)
def test_a_wrong_type_is_one_line_of_our_own_or_does_no_harm(tmp_path, place):
    for value in WRONG:
        path = tmp_path / "a.glb"
        path.write_bytes(spoilt(place, value))
        for read in (read_source, read_mesh):
            message = refusal(read, path)
            assert "\n" not in message, (place, value)
            assert "not known" not in message, (place, value, message)
        source_files(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"count": 10**9}, "at most 2 M faces"),
        ({"count": 25}, "needs 300 bytes of a buffer view of 288"),
        ({"byteOffset": 4}, "needs 292 bytes of a buffer view of 288"),
        ({"type": "VEC2"}, "accessors[0].type of a glTF file must be VEC3, got 'VEC2'"),
        ({"componentType": 7}, "componentType of a glTF file must be one of 5120"),
    ],
)
def test_an_accessor_never_reads_beyond_its_view(tmp_path, change, match):
    gltf = one_box()
    gltf.document["accessors"][0] |= change
    assert_line(lambda: read_source(gltf.write(tmp_path / "a.glb")), match)


def test_indices_joints_and_sparse_places_must_exist(tmp_path):
    gltf = one_box()
    primitive = gltf.document["meshes"][0]["primitives"][0]
    primitive["indices"] = gltf.accessor([0, 1, 24], "u2")
    assert_line(lambda: read_source(gltf.write(tmp_path / "a.glb")), "got index 24 of 24 vertices")
    wrong = cases.skinned({"mesh": 0, "skin": 0}, {}, {}, joints=[1, 2])
    wrong.document["skins"][0]["joints"] = [1]
    assert_line(lambda: read_source(wrong.write(tmp_path / "a.glb")), "got number 1 of 1")
    moved = cases.sparse_corner(one_box(), 24, (0, 0, 0))
    assert_line(lambda: read_source(moved.write(tmp_path / "a.glb")), "indices below 24")


def test_instances_count_before_they_are_made(tmp_path):
    gltf = cases.instancing()
    place = gltf.document["nodes"][0]["extensions"]["EXT_mesh_gpu_instancing"]["attributes"]["TRANSLATION"]
    gltf.document["accessors"][place]["count"] = 10**8
    assert_line(lambda: read_source(gltf.write(tmp_path / "a.glb")), "with 1200000000 faces")


def test_many_instances_are_made_at_once(tmp_path):
    """One by one they would take minutes."""
    gltf, count = cases.row_of_points(4, np.eye(3)), 400_000
    places = np.zeros((count, 3))
    places[:, 0] = np.arange(count) / 1000
    extension = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": gltf.accessor(places)}}}
    gltf.document["nodes"][0]["extensions"] = extension
    path = gltf.write(tmp_path / "a.glb")
    start = time.perf_counter()
    mesh = read_source(path)
    assert time.perf_counter() - start < 15
    assert (len(mesh.faces), len(mesh.vertices)) == (count, 3 * count)
    torch.testing.assert_close(mesh.vertices.view(-1, 3, 3).mean(1), torch.from_numpy(places).float() + 1 / 3)


def test_an_incomplete_triangle_is_said(tmp_path):
    gltf = one_box()
    gltf.document["accessors"][3]["count"] = 35
    mesh = read_source(gltf.write(tmp_path / "a.glb"))
    assert len(mesh.faces) == 11
    assert mesh.notes == ("1 part with an incomplete last triangle, left out",)


def test_nan_is_counted(tmp_path):
    gltf = cases.sparse_corner(one_box(), 0, (float("nan"), 0, 0))
    assert_line(lambda: read_source(gltf.write(tmp_path / "a.glb")), "got 1 with NaN or infinity")


def test_damaged_containers_are_one_line(tmp_path):
    whole, path = one_box().glb(), tmp_path / "a.glb"
    deep = b'{"asset":' + b"[" * 100_000
    for content, words in {
        whole[:16]: "no GLB of version 2",
        whole[:200]: "JSON chunk is damaged",
        whole[:-8]: "binary chunk is cut off",
        b"glTF" + struct.pack("<II", 1, 20) + b"\0" * 20: "of version '1'",
        b"{": "damaged at line 1, column 2",
        b"[1]": "no GLB of version 2",
        deep: "nested too deeply",
        b'{"scene": ' + b"9" * 5000 + b"}": "thousands of digits",
        b'{"a": "\xff"}': "not UTF-8",
    }.items():
        path.write_bytes(content)
        assert_line(lambda: read_source(path), words)


def test_a_long_chain_of_nodes_is_read(tmp_path):
    nodes = [{"children": [index + 1], "translation": [0.001, 0, 0]} for index in range(5000)]
    mesh = read_source(one_box(*nodes, {"mesh": 0}).write(tmp_path / "a.glb"))
    assert float(mesh.vertices[:, 0].max()) == pytest.approx(5.5)


# Colours

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)
MIXED = (127.5, 0, 127.5)


def one_square(texture=None, sampler=None, factor=None, repeat=1.0, transform=None, **attributes) -> Gltf:
    """A square with the red and blue image, or without."""
    gltf = Gltf()
    info = None
    if texture is not None:
        info = {"index": gltf.texture(red_and_blue(), sampler)} | texture
        if transform is not None:
            info["extensions"] = {"KHR_texture_transform": transform}
    material = gltf.material(info, factor)
    made = {name: gltf.accessor(*values) for name, values in attributes.items()}
    gltf.mesh(square(gltf, repeat=repeat, **made) | {"material": material})
    return gltf.nodes({"mesh": 0})


def two_squares(*, first_texture: bool) -> Gltf:
    gltf = Gltf()
    if first_texture:
        left, right = (
            gltf.material({"index": gltf.texture(red_and_blue())}),
            gltf.material(factor=[0, 1, 0, 1]),
        )
    else:
        left, right = gltf.material(factor=[1, 0, 0, 1]), gltf.material(factor=[0, 0, 1, 1])
    second = square(gltf, shift=2.0) | {"material": right}
    if first_texture:
        del second["attributes"]["TEXCOORD_0"]
    gltf.mesh(square(gltf) | {"material": left}, second)
    return gltf.nodes({"mesh": 0})


def older_material() -> Gltf:
    gltf = one_square()
    values = {"KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [0, 0, 1, 1]}}
    gltf.document["materials"] = [{"extensions": values}]
    return gltf


NO_COLOR = [[0.0, 0, 0]] * 4
CLAMPED, MIRRORED = {"wrapS": 33071}, {"wrapS": 33648}
# of quarters of the picture from left to right
COLOR_CASES: dict[str, tuple[Callable[[], Gltf], tuple]] = {
    "plain": (lambda: one_square({}), (RED, RED, BLUE, BLUE)),
    "repeat4": (lambda: one_square({}, repeat=4.0), (MIXED,) * 4),
    "clamped": (lambda: one_square({}, CLAMPED, repeat=4.0), (MIXED, BLUE, BLUE, BLUE)),
    "mirrored": (lambda: one_square({}, MIRRORED, repeat=2.0), (RED, BLUE, BLUE, RED)),
    "another_tile": (
        lambda: one_square({}, TEXCOORD_0=([[3.0, 8], [4, 8], [4, 7], [3, 7]],)), (RED, RED, BLUE, BLUE)
    ),
    "texcoord1": (lambda: one_square({"texCoord": 1}, TEXCOORD_1=([[0.0, 0]] * 4,)), (RED,) * 4),
    "texcoord_of_the_transform": (
        lambda: one_square({}, transform={"texCoord": 1}, TEXCOORD_1=([[0.75, 0]] * 4,)), (BLUE,) * 4
    ),
    "offset": (lambda: one_square({}, transform={"offset": [0.5, 0]}), (BLUE, BLUE, RED, RED)),
    "scale": (lambda: one_square({}, transform={"scale": [2, 2]}), (RED, BLUE, RED, BLUE)),
    "turned_over": (
        lambda: one_square({}, transform={"rotation": np.pi, "offset": [1, 1]}), (BLUE, BLUE, RED, RED)
    ),
    "factor_times_vertex_colour": (
        lambda: one_square(factor=[0, 1, 0, 1], COLOR_0=([[1.0, 1, 0, 1]] * 4,)), (GREEN,) * 4
    ),
    "vertex_colour_times_texture": (
        lambda: one_square({}, COLOR_0=([[255, 255, 0, 255]] * 4, "u1"), ), (RED, RED, (0, 0, 0), (0, 0, 0))
    ),
    "two_factors": (lambda: two_squares(first_texture=False), (RED, RED, BLUE, BLUE)),
    "texture_and_factor": (lambda: two_squares(first_texture=True), (RED, BLUE, GREEN, GREEN)),
    "linear_factor": (lambda: one_square(factor=[0.2140411, 0, 0, 1]), ((127.5, 0, 0),) * 4),
    "linear_vertex_colour": (
        lambda: one_square(COLOR_0=([[0.2140411, 0, 0]] * 4,)), ((127.5, 0, 0),) * 4
    ),
    "specular_glossiness": (older_material, (BLUE,) * 4),
    "no_material": (one_box, ((127.5,) * 3,) * 4),
}  # fmt: skip


def quarters(path: Path) -> torch.Tensor:
    """Mean colours [4, 3] of a mesh seen from +z, in 4 strips from left to right."""
    asset = read_mesh(path)
    low, high = asset.vertices.amin(0), asset.vertices.amax(0)
    flat = 2 * (asset.vertices - low) / (high - low).clamp_min(1e-6) - 1
    clip = torch.stack([flat[:, 0], flat[:, 1], -0.5 * flat[:, 2], torch.ones(len(flat))], dim=1)
    fragments = CPU.rasterize(clip[None], asset.faces, (64, 64))
    assert bool((fragments.triangle >= 0).all())
    colors = surface_colors(asset, fragments, CPU).view(64, 4, 16, 3)
    return 255 * colors.mean(dim=(0, 2))


@pytest.mark.parametrize(("make", "expected"), COLOR_CASES.values(), ids=COLOR_CASES)
def test_colours(tmp_path, make, expected):
    found = quarters(make().write(tmp_path / "a.glb"))
    # a strip of 16 pixels blends with its neighbour over a texel of 1/64
    torch.testing.assert_close(found, torch.tensor(expected).float(), atol=9.0, rtol=0)


def test_vertex_colours_are_mixed_in_linear_light(tmp_path):
    gltf = one_square(COLOR_0=([[0.0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]],))
    found = quarters(gltf.write(tmp_path / "a.glb"))
    light = (torch.arange(64) + 0.5) / 64
    srgb = torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    torch.testing.assert_close(found[:, 0], 255 * srgb.view(4, 16).mean(1), atol=1.0, rtol=0)


def test_colours_of_vertices_at_one_place_do_not_run_into_each_other(tmp_path):
    gltf = Gltf()
    left = square(gltf, COLOR_0=gltf.accessor([[1.0, 0, 0]] * 4))
    right = square(gltf, shift=2.0, COLOR_0=gltf.accessor([[0.0, 0, 1]] * 4))
    gltf.mesh(left, right)
    found = quarters(gltf.nodes({"mesh": 0}).write(tmp_path / "a.glb"))
    torch.testing.assert_close(found, torch.tensor([RED, RED, BLUE, BLUE]).float(), atol=1.0, rtol=0)


def test_rotation_of_a_texture_is_counter_clockwise_in_the_image(tmp_path):
    """A quarter turn about the origin: what was looked up along u is looked up along -v."""
    gltf = one_square({}, transform={"rotation": np.pi / 2})
    image = gltf.document["images"][0]
    image["bufferView"] = gltf.view(b"")
    rows = red_and_blue().transpose(1, 0, 2)  # red above blue
    gltf.document["images"].append({"mimeType": "image/png"})
    gltf.document["textures"][0]["source"] = gltf.image(rows)
    found = quarters(gltf.write(tmp_path / "a.glb"))
    torch.testing.assert_close(found, torch.tensor([BLUE, BLUE, RED, RED]).float(), atol=9.0, rtol=0)


def test_images_are_opened_for_colours_only_and_named(tmp_path):
    for uri, words in {
        "wood.png": "wood.png; check the path",
        "../wood.png": "own folder only",
        "https://example.org/wood.png": "own folder only",
        "data:image/png;base64,AAAA": "images[0] of a.glb is damaged",
    }.items():
        path = cases.with_image(uri).write(tmp_path / "a.glb")
        assert len(read_source(path).faces) == 12
        assert_line(lambda: read_mesh(path), words)  # noqa: B023


def test_files_that_a_result_depends_on(tmp_path):
    gltf = cases.with_image("wood%20a.png")
    (tmp_path / "wood a.png").write_bytes(b"x")
    path = gltf.write(tmp_path / "a.gltf", "a.bin", "a.bin")
    assert source_files(path) == [path, tmp_path / "a.bin", tmp_path / "wood a.png"]
    (tmp_path / "b.glb").write_bytes(b"x")
    assert source_files(tmp_path / "b.glb") == [tmp_path / "b.glb"]
