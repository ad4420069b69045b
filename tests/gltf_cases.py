"""The cases of glTF files with what a reader must find in each."""

from collections.abc import Callable
from dataclasses import dataclass

import mesh_cases as cases
import numpy as np
import pytest
from gltf_builder import Gltf, box, box_arrays, one_box

from pgc3d.errors import InputError
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
    positions, _, _, faces = box_arrays()
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


def assert_line(call, match: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert match in str(caught.value)
    assert "\n" not in str(caught.value)
