"""What other programs write as glTF, read for painting and for its colours; laws in a table."""

import mesh_cases as cases
import pytest
import torch
from gltf_builder import one_box
from gltf_cases import GLTF_CASES, assert_line

from pgc3d.geometry.normals import face_vectors
from pgc3d.mesh_io.reader import read_source


def volume(mesh) -> float:
    corners = mesh.vertices[mesh.faces].double()
    return float((corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum() / 6)


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
