import math

import torch

from pgc3d.geometry.marching_tetrahedra import grid_points, march
from pgc3d.geometry.regularizers import (
    adjacent_faces,
    area,
    eikonal,
    laplacian,
    normal_consistency,
    sign_changes,
)


def ball(resolution: int = 16, radius: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    return march(grid_points(resolution).norm(dim=-1) - radius)


def test_closed_mesh_has_three_pairs_for_two_faces() -> None:
    _, faces = ball()
    pairs = adjacent_faces(faces)
    assert len(pairs) * 2 == len(faces) * 3
    assert (pairs[:, 0] != pairs[:, 1]).all()
    torch.testing.assert_close(pairs, adjacent_faces(faces, closed=True))


def test_normal_consistency_of_a_fold_is_one_minus_cos() -> None:
    angle = 0.3
    vertices = torch.tensor(
        [[0.0, 0, 0], [0, 0, 1], [1, 0, 0.5], [-math.cos(angle), math.sin(angle), 0.5]], dtype=torch.float64
    )
    faces = torch.tensor([[0, 1, 2], [1, 0, 3]])
    expected = torch.tensor(1 - math.cos(angle), dtype=torch.float64)
    torch.testing.assert_close(normal_consistency(vertices, faces), expected)


def test_noise_raises_consistency_and_laplacian() -> None:
    vertices, faces = ball()
    noisy = vertices + 0.01 * torch.randn(vertices.shape, generator=torch.Generator().manual_seed(0))
    assert normal_consistency(noisy, faces) > 2 * normal_consistency(vertices, faces)
    assert laplacian(noisy, faces) > laplacian(vertices, faces)


def test_regularizers_ignore_translation() -> None:
    vertices, faces = ball()
    for function in (normal_consistency, laplacian, area):
        torch.testing.assert_close(
            function(vertices + 0.25, faces), function(vertices, faces), rtol=1e-3, atol=1e-6
        )


def test_laplacian_of_a_tetrahedron() -> None:
    vertices = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    faces = torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
    torch.testing.assert_close(laplacian(vertices, faces), torch.tensor(3.0 * 16 / 9))


def test_area_of_a_sphere() -> None:
    torch.testing.assert_close(area(*ball(48)).item(), 4 * math.pi * 0.36, rtol=0.01, atol=0.0)


def test_eikonal_is_zero_on_a_plane_and_grows_with_scale() -> None:
    axis = torch.linspace(-1, 1, 9)
    plane = axis[:, None, None].expand(9, 9, 9)
    torch.testing.assert_close(eikonal(plane, 0.25), torch.tensor(0.0), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(eikonal(3 * plane, 0.25), torch.tensor(4.0))


def test_sign_changes_pull_both_ends_to_zero() -> None:
    first = torch.tensor([-0.5], requires_grad=True)
    second = torch.tensor([0.5], requires_grad=True)
    torch.autograd.backward(sign_changes(first, second))
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.item() < 0 < second.grad.item()


def test_gradients_match_finite_differences() -> None:
    vertices, faces = ball(4)
    vertices = vertices.double().requires_grad_()
    for function in (normal_consistency, laplacian, area):
        assert torch.autograd.gradcheck(lambda v, f=function: f(v, faces), [vertices])


def test_empty_mesh_costs_nothing() -> None:
    vertices = torch.zeros(0, 3, requires_grad=True)
    faces = torch.zeros(0, 3, dtype=torch.long)
    for function in (normal_consistency, laplacian, area):
        assert function(vertices, faces).item() == 0.0
