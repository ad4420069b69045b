import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgc3d.geometry.marching_tetrahedra import find_cut_edges, grid_points, march


def sphere(resolution: int, radius: float = 0.6) -> torch.Tensor:
    return grid_points(resolution).norm(dim=-1) - radius


def torus(resolution: int) -> torch.Tensor:
    x, y, z = grid_points(resolution).unbind(-1)
    return ((x.square() + z.square()).sqrt() - 0.55).square().add(y.square()).sqrt() - 0.25


def volume(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    a, b, c = vertices[faces].unbind(1)
    return (torch.linalg.cross(a, b) * c).sum() / 6


def assert_closed(vertices: torch.Tensor, faces: torch.Tensor) -> None:
    halves = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forward = halves[:, 0] * len(vertices) + halves[:, 1]
    backward = halves[:, 1] * len(vertices) + halves[:, 0]
    assert len(forward.unique()) == len(forward), "an edge is used twice in the same direction"
    torch.testing.assert_close(forward.sort().values, backward.sort().values)
    assert len(faces.unique()) == len(vertices), "a vertex without a face"


def euler(vertices: torch.Tensor, faces: torch.Tensor) -> int:
    return len(vertices) - len(faces) * 3 // 2 + len(faces)


@pytest.mark.parametrize("resolution", [8, 32])
def test_sphere_is_closed_outward_and_a_sphere(resolution: int) -> None:
    vertices, faces = march(sphere(resolution))
    assert_closed(vertices, faces)
    assert euler(vertices, faces) == 2
    a, b, c = vertices[faces].unbind(1)
    assert ((torch.linalg.cross(b - a, c - a) * (a + b + c)).sum(-1) >= -1e-12).all()


def test_torus_has_one_hole() -> None:
    vertices, faces = march(torus(32))
    assert_closed(vertices, faces)
    assert euler(vertices, faces) == 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), resolution=st.integers(2, 6))
def test_noise_is_closed_inside_the_cube(seed: int, resolution: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sdf = torch.randn((resolution + 1) ** 3, generator=generator)
    vertices, faces = march(sdf)
    if len(faces):
        assert_closed(vertices, faces)
        assert vertices.abs().max() <= 1.0


def test_all_inside_closes_at_the_border() -> None:
    vertices, faces = march(torch.full((9, 9, 9), -1.0))
    assert_closed(vertices, faces)
    assert 1.5**3 < volume(vertices, faces) < 8.0


def test_empty_field_gives_no_faces() -> None:
    sdf = torch.ones(9, 9, 9, requires_grad=True)
    vertices, faces = march(sdf)
    assert vertices.shape == (0, 3)
    assert faces.shape == (0, 3)


def test_not_finite_is_reported() -> None:
    sdf = sphere(8)
    assert find_cut_edges(sdf).size[0] == 1
    sdf[5] = math.nan
    assert find_cut_edges(sdf).size[0] == 0


def test_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(R \+ 1\)\^3"):
        march(torch.ones(10))


def test_volume_converges_with_second_order() -> None:
    analytic = 4 / 3 * math.pi * 0.6**3
    errors = [abs(volume(*march(sphere(r))).item() - analytic) for r in (16, 32, 64)]
    assert errors[2] < 0.002 * analytic
    assert errors[0] / errors[1] > 3.0
    assert errors[1] / errors[2] > 3.0


def test_gradient_of_volume_matches_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    sdf = sphere(10).double() + 0.003
    sdf.requires_grad_()
    deformation = 0.02 * torch.randn(len(sdf), 3, generator=generator).double()
    deformation.requires_grad_()
    vertices, faces = march(sdf, deformation)
    grads = torch.autograd.grad(volume(vertices, faces), [sdf, deformation])
    for tensor, grad in zip([sdf, deformation], grads, strict=True):
        direction = torch.randn(tensor.shape, generator=generator).double()
        moved = []
        for step in (1e-4, -1e-4):
            shifted = [
                t.detach() + step * direction if t is tensor else t.detach() for t in (sdf, deformation)
            ]
            moved.append(volume(*march(*shifted)))
        expected = (moved[0] - moved[1]) / 2e-4
        torch.testing.assert_close((grad * direction).sum(), expected, rtol=1e-3, atol=1e-6)


def test_growing_the_field_uniformly_adds_the_area() -> None:
    sdf = sphere(32).requires_grad_()
    (grad,) = torch.autograd.grad(volume(*march(sdf)), sdf)
    torch.testing.assert_close(-grad.sum().item(), 4 * math.pi * 0.6**2, rtol=0.01, atol=0.0)


def test_bound_limits_the_deformation() -> None:
    sdf = sphere(16)
    still, faces = march(sdf)
    moved, same = march(sdf, torch.full((len(sdf), 3), 100.0), bound=0.01)
    torch.testing.assert_close(faces, same)
    torch.testing.assert_close(moved, still + 0.01)
