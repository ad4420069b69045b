import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgc3d.geometry.marching_tetrahedra import grid_points, march
from pgc3d.geometry.sdf import ellipsoid_sdf, mesh_sdf, redistance, sample_grid, winding_number

CELL = 2.0 / 32


def sphere(resolution: int = 32, radius: float = 0.6) -> torch.Tensor:
    size = resolution + 1
    return (grid_points(resolution).norm(dim=-1) - radius).reshape(size, size, size)


def test_ellipsoid_with_equal_radii_is_a_sphere() -> None:
    found, exact = ellipsoid_sdf((0.6, 0.6, 0.6), 16), sphere(16)
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=0)


def test_ellipsoid_surface_has_the_radii() -> None:
    vertices, _ = march(ellipsoid_sdf((0.3, 0.8, 0.5), 48))
    torch.testing.assert_close(vertices.amax(0), torch.tensor([0.3, 0.8, 0.5]), atol=0.01, rtol=0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_redistance_restores_a_distance_and_keeps_the_surface(scale: float) -> None:
    exact = sphere()
    bent = exact * scale * (1.0 + 0.5 * torch.sin(4 * grid_points(32)[:, 0]).reshape(exact.shape))
    found = redistance(bent)
    band = exact.abs() < 6 * CELL
    assert (found - exact)[band].abs().max() < 0.8 * CELL
    torch.testing.assert_close(found < 0, bent < 0)
    vertices, _ = march(found)
    assert (vertices.norm(dim=-1) - 0.6).abs().max() < 0.1 * CELL


def test_redistance_twice_hardly_moves() -> None:
    once = redistance(sphere())
    vertices, faces = march(once)
    again, same = march(redistance(once))
    torch.testing.assert_close(faces, same)
    assert (vertices - again).norm(dim=-1).max() < 0.05 * CELL


def test_redistance_of_an_empty_field_is_far_everywhere() -> None:
    assert (redistance(torch.full((9, 9, 9), 0.01)) > 0).all()


def test_winding_number_is_one_inside_and_zero_outside() -> None:
    vertices, faces = march(sphere(12))
    points = torch.tensor([[0.0, 0, 0], [0.3, 0.2, 0.1], [0.9, 0, 0]])
    torch.testing.assert_close(
        winding_number(points, vertices, faces), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4, rtol=0
    )


def test_mesh_round_trip() -> None:
    vertices, faces = march(sphere(20))
    found = mesh_sdf(vertices, faces, 32)
    assert (found - sphere())[sphere().abs() < 6 * CELL].abs().max() < 0.5 * CELL  # a first-order scheme
    again, _ = march(found)
    assert (again.norm(dim=-1) - 0.6).abs().max() < 0.15 * CELL


def test_mesh_with_a_hole_is_closed() -> None:
    vertices, faces = march(sphere(16))
    top = vertices[faces].mean(1)[:, 1] > 0.58
    assert top.any()
    closed, triangles = march(mesh_sdf(vertices, faces[~top], 32))
    a, b, c = closed[triangles].unbind(1)
    volume = (torch.linalg.cross(a, b) * c).sum() / 6
    torch.testing.assert_close(volume.item(), 4 / 3 * math.pi * 0.6**3, rtol=0.08, atol=0.0)


def test_box_with_large_triangles_has_its_volume() -> None:
    corners = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.4, 0.4) for z in (-0.3, 0.3)])
    faces = torch.tensor(
        [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
         [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
    )  # fmt: skip
    vertices, triangles = march(mesh_sdf(corners, faces, 32))
    a, b, c = vertices[triangles].unbind(1)
    torch.testing.assert_close(((torch.linalg.cross(a, b) * c).sum() / 6).item(), 0.48, rtol=0.05, atol=0.0)


@given(st.integers(1, 9), st.integers(0, 99))
def test_sampling_a_linear_function_gives_it_exactly(resolution: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    slope, offset = torch.randn((3, 2), generator=generator, dtype=torch.float64), 0.3
    points = 2 * torch.rand((50, 3), generator=generator, dtype=torch.float64) - 1
    size = resolution + 1
    axis = torch.linspace(-1.0, 1.0, size, dtype=torch.float64)
    corners = torch.cartesian_prod(axis, axis, axis)
    values = (corners @ slope + offset).reshape(size, size, size, 2)
    torch.testing.assert_close(sample_grid(values, points), points @ slope + offset)
    torch.testing.assert_close(sample_grid(values, corners), values.reshape(-1, 2))
    outside = 3 * points
    torch.testing.assert_close(sample_grid(values, outside), outside.clamp(-1, 1) @ slope + offset)


def test_sampled_field_is_zero_on_the_marched_surface_only() -> None:
    field = torch.randn(9, 9, 9, generator=torch.Generator().manual_seed(0))
    vertices, faces = march(field)
    inner = vertices.abs().amax(1) < 0.74  # the border counts as outside
    weight = torch.rand((len(faces), 3), generator=torch.Generator().manual_seed(1))
    weight = weight / weight.sum(dim=1, keepdim=True)
    kept = inner[faces].all(dim=1)
    assert kept.sum() > 1000
    points = (weight[..., None] * vertices[faces]).sum(1)[kept]  # inside the triangles
    assert sample_grid(field[..., None], points).abs().max() < 1e-4
    assert sample_grid(field[..., None], points + 0.1).abs().mean() > 0.1
