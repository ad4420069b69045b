import pytest
import torch
import trimesh
from torch import Tensor

from pgc3d.errors import DivergedError
from pgc3d.geometry.cleanup import clean


def sphere(subdivisions: int = 2, *, radius: float = 1.0, x: float = 0.0) -> tuple[Tensor, Tensor]:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32)
    vertices[:, 0] += x
    return vertices, torch.tensor(mesh.faces, dtype=torch.int64)


def join(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    vertices, faces, count = [], [], 0
    for points, triangles in parts:
        vertices.append(points)
        faces.append(triangles + count)
        count += len(points)
    return torch.cat(vertices), torch.cat(faces)


def test_clean_mesh_stays_as_it_is():
    vertices, faces = sphere()
    mesh = clean(vertices, faces)
    torch.testing.assert_close(mesh.vertices, vertices)
    torch.testing.assert_close(mesh.faces, faces)
    torch.testing.assert_close(mesh.normals, vertices, atol=0.03, rtol=0)


def test_small_pieces_go_and_large_ones_stay():
    vertices, faces = join(sphere(), sphere(radius=0.05, x=2.0), sphere(radius=0.5, x=-2.0))
    mesh = clean(vertices, faces)
    assert len(mesh.faces) == 2 * len(faces) // 3
    assert mesh.vertices[:, 0].max() < 1.5
    assert len(clean(vertices, faces, keep_fraction=0.0).faces) == len(faces)
    assert len(clean(vertices, faces, keep_fraction=1.0).faces) == len(faces) // 3


def test_broken_faces_and_unused_vertices_go():
    vertices, faces = sphere()
    bad_vertices = torch.tensor([[float("nan"), 0.0, 0.0], [5.0, 5.0, 5.0]])
    count = len(vertices)
    bad_faces = torch.tensor([[0, 0, 1], [0, 1, count], [0, 1, 10**6], [-1, 0, 1]])
    rolled = faces[:3].roll(1, dims=1)
    mesh = clean(torch.cat([vertices, bad_vertices]), torch.cat([faces, bad_faces, rolled]))
    torch.testing.assert_close(mesh.vertices, vertices)
    torch.testing.assert_close(mesh.faces, faces)


def test_decimation_keeps_to_the_target_and_the_shading():
    vertices, faces = sphere(4)
    mesh = clean(vertices, faces, target_faces=500)
    assert 400 <= len(mesh.faces) <= 500
    torch.testing.assert_close(mesh.vertices.norm(dim=1), torch.ones(len(mesh.vertices)), atol=0.03, rtol=0)
    outward = (torch.nn.functional.normalize(mesh.vertices, dim=1) * mesh.normals).sum(dim=1)
    assert outward.min() > 0.99
    torch.testing.assert_close(mesh.normals.norm(dim=1), torch.ones(len(mesh.normals)))


def test_scale_does_not_matter():
    vertices, faces = sphere()
    assert len(clean(1e-4 * vertices, faces).faces) == len(clean(1e4 * vertices, faces).faces) == len(faces)


def test_nothing_left_is_one_line():
    with pytest.raises(DivergedError, match="must have faces"):
        clean(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(DivergedError, match="got none of 0"):
        clean(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))


def test_bad_arguments_are_refused():
    vertices, faces = sphere()
    with pytest.raises(ValueError, match="target_faces must be at least 4"):
        clean(vertices, faces, target_faces=2)
    with pytest.raises(ValueError, match="keep_fraction"):
        clean(vertices, faces, keep_fraction=1.5)
