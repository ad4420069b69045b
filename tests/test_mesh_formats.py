import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_cases_formats import FORMAT_CASES
from mesh_reading import READERS, read
from meshes import lumpy

from pgc3d.errors import InputError


def written(tmp_path, name):
    case, path = FORMAT_CASES[name], tmp_path / name
    path.write_bytes(case.content)
    for side, content in case.beside.items():
        (tmp_path / side).write_bytes(content)
    return case, path


def area_vectors(mesh):
    corners = mesh.vertices[mesh.faces].double()
    return torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2


@pytest.mark.parametrize("name", [name for name, case in FORMAT_CASES.items() if case.error is None])
def test_usable_file_gives_its_surface(tmp_path, capsys, name):
    case, path = written(tmp_path, name)
    mesh = read(path)
    assert (len(mesh.vertices), len(mesh.faces)) == (case.vertices, case.faces)
    assert float(area_vectors(mesh).norm(dim=1).sum()) == pytest.approx(case.area, rel=1e-5)
    used = mesh.vertices[mesh.faces].reshape(-1, 3)
    np.testing.assert_allclose(used.amin(dim=0), case.low, atol=1e-6)
    np.testing.assert_allclose(used.amax(dim=0), case.high, atol=1e-6)
    assert torch.isfinite(mesh.vertices).all()
    if case.volume is not None:
        corners = mesh.vertices[mesh.faces].double()
        assert float(torch.linalg.det(corners).sum()) / 6 == pytest.approx(case.volume, rel=1e-5)
    assert (mesh.uv is not None) == case.has_uv
    without = 0 if mesh.uv_faces is None else int((mesh.uv_faces < 0).any(dim=1).sum())
    assert without == case.without_uv
    assert len(mesh.notes) == bool(case.note)
    assert case.note in "".join(mesh.notes)
    assert mesh.lost == case.lost
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", [name for name, case in FORMAT_CASES.items() if case.error is not None])
def test_unusable_file_is_one_true_line(tmp_path, name):
    case, path = written(tmp_path, name)
    with pytest.raises(InputError, match=case.error) as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    assert len(message) < 250 + len(str(path))


@pytest.mark.parametrize("name", ["concave_plain.obj", "concave_quad.ply", "slab.obj"])
def test_triangles_of_a_notched_polygon_face_as_it_does(tmp_path, name):
    mesh = read(written(tmp_path, name)[1])
    vectors = area_vectors(mesh)[: 2 if name.endswith("ply") else 3]
    assert (torch.nn.functional.cosine_similarity(vectors, vectors.sum(dim=0)[None]) > 0.999).all()


@pytest.mark.parametrize("name", [name for name in FORMAT_CASES if name.startswith("strips_")])
def test_strips_face_one_side(tmp_path, name):
    normals = area_vectors(read(written(tmp_path, name)[1]))
    assert torch.equal(normals, torch.tensor([[-0.5, 0, 0]], dtype=torch.float64).expand(len(normals), 3))


# ---- what other programs write


@pytest.mark.parametrize("kind", ["obj", "ply", "ply_ascii", "stl", "stl_ascii"])
def test_files_of_trimesh_keep_coordinates_and_order(tmp_path, kind):
    mesh, path = lumpy(), tmp_path / f"mesh.{kind[:3]}"
    name, _, _ = kind.partition("_")
    data = mesh.export(file_type="stl_ascii" if kind == "stl_ascii" else name,
                       **({"encoding": "ascii"} if kind == "ply_ascii" else {}))  # fmt: skip
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    found = read(path)
    corners = torch.from_numpy(mesh.vertices[mesh.faces]).float()
    torch.testing.assert_close(found.vertices[found.faces], corners, rtol=1e-6, atol=1e-5)
    if name == "stl":
        assert found.faces.tolist() == np.arange(3 * len(corners)).reshape(-1, 3).tolist()
    else:
        assert torch.equal(found.faces, torch.from_numpy(mesh.faces).long())
    assert (found.notes, found.lost) == ((), ())


# ---- damaged files


@given(st.sampled_from(sorted(FORMAT_CASES)), st.data())
@settings(deadline=None, max_examples=300)
def test_damaged_bytes_are_read_or_refused_in_one_line(tmp_path_factory, name, data):
    content = bytearray(FORMAT_CASES[name].content[:4000])
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    path = tmp_path_factory.getbasetemp() / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            mesh = READERS[path.suffix](bytes(content), path)
        except InputError as error:
            assert str(error).isprintable()  # noqa: PT017 - a refusal is as good as a mesh
            return
    assert len(mesh.faces)
    assert 0 <= int(mesh.faces.min()) <= int(mesh.faces.max()) < len(mesh.vertices)
    for index, values in ((mesh.uv_faces, mesh.uv), (mesh.normal_faces, mesh.normals)):
        assert (index is None) == (values is None)
        assert index is None or -1 <= int(index.min()) <= int(index.max()) < len(values)
