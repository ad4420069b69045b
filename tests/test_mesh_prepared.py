"""A mesh prepared for texturing: its texture coordinates, its normals, and the lines before a run."""

from pathlib import Path

import mesh_cases as cases
import numpy as np
import pytest
import torch
from gltf_builder import box_arrays, one_box, two_boxes
from gltf_cases import CPU, GLTF_CASES, TWO_NODES, assert_line

from pgc3d.geometry.normals import face_vectors
from pgc3d.inputs.mesh import prepare_mesh_file

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
    expected = torch.from_numpy(box_arrays()[2][box_arrays()[3]]).float() * torch.tensor([1.0, -1])
    found = prepared.uv[prepared.uv_faces]
    torch.testing.assert_close(found, expected + torch.tensor([0.0, 1]), atol=0.006, rtol=0)


WORDS = {
    "one part": (cases.one_part_without, "one of 2 parts of a.glb has no texture coordinates", False),
    "mirrored": (cases.mirrored_halves, "overlap on 50% of their area", True),
    "crossing": (lambda: two_boxes(shift=(0.3, 0)), "leave the unit square", True),
    "none": (lambda: two_boxes(second_uv=False), "the texture coordinates of a.glb are missing", False),
}


@pytest.mark.parametrize(("make", "words", "usable"), WORDS.values(), ids=WORDS)
def test_why_new_coordinates_are_made_is_said_with_the_way_out(tmp_path, make, words, usable):
    path = make().write(tmp_path / "a.glb")
    prepared, said = canvas_of(path)
    assert prepared.uv_method == ("own and xatlas" if "one of 2 parts" in words else "xatlas")
    line = said[-1]
    assert words in line
    assert ("--uv own" in line) == usable
    if usable:
        kept, _ = canvas_of(path, uv="own")
        assert kept.uv_method == "own"
        assert [part.shared for part in kept.sets] == [True]
        assert [part.wraps for part in kept.sets] == ["leave" in words]
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
    primitive["indices"] = gltf.accessor(box_arrays()[3][:, ::-1].reshape(-1), "u2")
    del primitive["attributes"]["NORMAL"]
    _, said = canvas_of(gltf.write(tmp_path / "a.glb"))
    assert "a.glb: the surface is closed and inside out" in said[0]
