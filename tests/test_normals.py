import torch

from pgc3d.geometry.marching_tetrahedra import grid_points, march
from pgc3d.geometry.normals import face_normals, vertex_normals


def ball(resolution: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    return march(grid_points(resolution).norm(dim=-1) - 0.61)


def test_normals_of_a_sphere_point_outwards() -> None:
    vertices, faces = ball()
    normals = vertex_normals(vertices, faces)
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(len(vertices)))
    assert (normals * torch.nn.functional.normalize(vertices, dim=-1)).sum(-1).min() > 0.95


def test_normals_turn_with_the_mesh() -> None:
    vertices, faces = ball(12)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    rotation = rotation * torch.det(rotation)
    torch.testing.assert_close(
        vertex_normals(vertices @ rotation.T, faces),
        vertex_normals(vertices, faces) @ rotation.T,
        atol=1e-4,
        rtol=1e-4,
    )


def test_faces_without_area_stay_finite() -> None:
    vertices = torch.zeros(3, 3, requires_grad=True)
    faces = torch.tensor([[0, 1, 2]])
    total = vertex_normals(vertices, faces).sum() + face_normals(vertices, faces).sum()
    torch.autograd.backward(total)
    assert vertices.grad is not None
    assert vertices.grad.isfinite().all()


def test_gradient_matches_finite_differences() -> None:
    vertices = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    faces = torch.tensor([[0, 1, 2], [2, 1, 3], [3, 4, 0], [0, 2, 3]])
    assert torch.autograd.gradcheck(lambda v: vertex_normals(v, faces), [vertices])
    assert torch.autograd.gradcheck(lambda v: face_normals(v, faces), [vertices])
