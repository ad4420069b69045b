"""Damaged and hostile glTF files: one line, or no harm."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path

import mesh_cases as cases
import numpy as np
import pytest
import torch
from gltf_builder import one_box, red_and_blue
from gltf_cases import assert_line

from pgc3d.errors import InputError
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.mesh_io.reader import read_source, source_files

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
    gltf, count = cases.row_of_points(4, np.eye(3)), 100_000
    places = np.zeros((count, 3))
    places[:, 0] = np.arange(count) / 1000
    extension = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": gltf.accessor(places)}}}
    gltf.document["nodes"][0]["extensions"] = extension
    path = gltf.write(tmp_path / "a.glb")
    start = time.perf_counter()
    mesh = read_source(path)
    assert time.perf_counter() - start < 20
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
