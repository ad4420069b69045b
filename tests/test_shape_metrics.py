"""Shapes with known answers: spheres, boxes, planes."""

import math

import numpy as np
import pytest
import torch
import trimesh

from pgc3d.evaluation.shape_metrics import (
    chamfer_distance,
    f_score,
    nearest_distances,
    surface_cameras,
    visible_points,
    volume_iou,
)
from pgc3d.geometry.sampling import sample_surface
from pgc3d.geometry.sdf import winding_number
from pgc3d.kernels.voxels_numba import solid_voxels
from pgc3d.rendering.cpu import CpuRasterizer


def tensors(mesh):
    return torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces).long()


def box(low, high):
    return tensors(trimesh.creation.box(bounds=[low, high]))


def sphere(radius=1.0, subdivisions=4):
    return tensors(trimesh.creation.icosphere(subdivisions, radius))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_samples_spread_by_area():
    """Sides of a box get points by their area; within 5 deviations of the binomial."""
    size, count = (1.0, 2.0, 3.0), 20_000
    points = sample_surface(*box((0, 0, 0), size), count, generator())[0]
    for axis in range(3):
        share = (size[(axis + 1) % 3] * size[(axis + 2) % 3]) / (1 * 2 + 2 * 3 + 3 * 1) / 2
        for side in (0.0, size[axis]):
            found = (points[:, axis] - side).abs().lt(1e-5).double().mean().item()
            assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / count)


def test_samples_do_not_prefer_a_tessellation():
    """A face cut into many small ones gets as many points as whole."""
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    center = torch.tensor([[0.9, 0.5, 0.0]])
    faces = torch.tensor([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])
    points = sample_surface(torch.cat([corners, center]), faces, 20_000, generator())[0]
    torch.testing.assert_close(points.mean(0), torch.tensor([0.5, 0.5, 0.0]), atol=0.012, rtol=0)


def test_samples_are_on_the_surface_and_repeat():
    vertices, faces = sphere(subdivisions=5)
    points = sample_surface(vertices, faces, 1000, generator(3))[0]
    torch.testing.assert_close(points.norm(dim=1), torch.ones(1000), atol=2e-3, rtol=0)
    assert torch.equal(points, sample_surface(vertices, faces, 1000, generator(3))[0])


def test_nothing_to_sample_is_refused():
    with pytest.raises(ValueError, match="area"):
        sample_surface(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), 10, generator())


def test_nearest_distances_agree_with_all_pairs():
    first, second = torch.rand(1500, 3, generator=generator(1)), torch.rand(700, 3, generator=generator(2))
    every = (first.double()[:, None] - second.double()).norm(dim=-1)
    forward, backward = nearest_distances(first, second)
    torch.testing.assert_close(forward.double(), every.amin(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(backward.double(), every.amin(0), atol=1e-6, rtol=0)


def test_chamfer_of_two_planes_is_their_distance():
    flat = torch.rand(20_000, 3, generator=generator(1)) * torch.tensor([1.0, 1.0, 0.0])
    other = torch.rand(20_000, 3, generator=generator(2)) * torch.tensor([1.0, 1.0, 0.0])
    gap = 0.2
    found = chamfer_distance(*nearest_distances(flat, other + torch.tensor([0.0, 0.0, gap])))
    assert gap <= found < gap + 2e-4  # sqrt(gap^2 + r^2) with r about 1 / (2 sqrt(20 000))


def test_chamfer_of_spheres_is_the_difference_of_radii_both_ways():
    clouds = [
        sample_surface(*sphere(radius), 16_384, generator(seed))[0] for seed, radius in ((0, 1.0), (1, 0.8))
    ]
    forward, backward = nearest_distances(*clouds)
    found = chamfer_distance(forward, backward)
    assert found == pytest.approx(0.2, abs=2e-3)
    assert found == chamfer_distance(backward, forward)
    assert f_score(forward, backward, 0.19) < 0.02
    assert f_score(forward, backward, 0.22) > 0.98


def test_f_score_is_the_harmonic_mean():
    forward, backward = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    assert f_score(forward, backward, 0.5) == pytest.approx(2 * 0.5 * 0.2 / 0.7)
    assert f_score(forward + 1, backward + 1, 0.5) == 0
    assert f_score(forward, backward, 1.0) == 1


@pytest.mark.parametrize("resolution", [32, 64])
def test_volume_iou_of_overlapping_boxes(resolution):
    """Unit boxes shifted by 0.3: 0.7 / 1.3; a voxel thicker on each side changes that a little."""
    first, second = box((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5)), box((-0.2, -0.5, -0.5), (0.8, 0.5, 0.5))
    found = volume_iou(first, second, resolution=resolution)
    cell = 2 * 1.02 * 0.8 / resolution
    assert abs(found - 0.7 / 1.3) < 2 * cell / 1.3
    assert found == volume_iou(second, first, resolution=resolution)
    assert volume_iou(first, first, resolution=resolution) == 1


def test_volume_of_a_sphere():
    vertices, faces = sphere(0.8)
    solid = solid_voxels(vertices.numpy(), faces.numpy(), resolution=64, extent=1.0)
    cell = 2 / 64
    low, high = (4 / 3 * math.pi * radius**3 for radius in (0.8, 0.8 + cell))
    assert low < solid.sum() * cell**3 < high


def test_voxels_agree_with_the_winding_number():
    """Away from the surface the flood knows the same inside as the solid angle of a closed mesh."""
    mesh = trimesh.creation.torus(0.6, 0.25, major_sections=24, minor_sections=12)
    mesh.apply_transform(trimesh.transformations.euler_matrix(0.3, 0.5, 0.7))
    vertices, faces = tensors(mesh)
    size, cell = 24, 2 / 24
    solid = torch.from_numpy(solid_voxels(vertices.numpy(), faces.numpy(), resolution=size, extent=1.0))
    axis = (torch.arange(size) + 0.5) * cell - 1
    centers = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    inside = winding_number(centers, vertices, faces) > 0.5
    assert bool((solid.reshape(-1) | ~inside).all())  # what is inside is never missed
    extra = centers[solid.reshape(-1) & ~inside]
    distance, _ = nearest_distances(extra, sample_surface(vertices, faces, 20_000, generator())[0])
    assert len(extra) > 0
    assert distance.max() < cell / 2 + 0.02  # only the half voxel around the surface


def test_voxels_need_neither_orientation_nor_single_walls():
    vertices, faces = sphere(0.8, subdivisions=3)
    inner, _ = sphere(0.4, subdivisions=3)
    turned = faces.clone()
    turned[::3] = turned[::3].flip(1)
    expected = solid_voxels(vertices.numpy(), faces.numpy(), resolution=32, extent=1.0)
    doubled = torch.cat([vertices, inner]).numpy(), torch.cat([turned, faces + len(vertices)]).numpy()
    np.testing.assert_array_equal(solid_voxels(*doubled, resolution=32, extent=1.0), expected)


def test_an_open_box_is_as_thick_as_its_walls():
    vertices, faces = box((-0.7, -0.7, -0.7), (0.7, 0.7, 0.7))
    lid = (vertices[faces][..., 1] > 0.6).all(1)
    closed, opened = (
        solid_voxels(vertices.numpy(), part.numpy(), resolution=32, extent=1.0)
        for part in (faces, faces[~lid])
    )
    assert closed[16, 16, 16]
    assert not opened[16, 16, 16]
    assert opened[16, 4:6, 16].any()  # the floor


def test_cameras_of_the_visible_surface_look_from_all_sides():
    cameras = surface_cameras(32)
    direction = cameras.position / cameras.distance[:, None]
    assert direction.mean(0).norm() < 0.03
    torch.testing.assert_close(direction.T @ direction / 32, torch.eye(3) / 3, atol=0.03, rtol=0)


def test_only_the_outer_surface_is_visible():
    outer, faces = sphere(0.9, subdivisions=3)
    inner, _ = sphere(0.5, subdivisions=3)
    points = visible_points(
        torch.cat([outer, inner]), torch.cat([faces, faces + len(outer)]), views=8, count=2000,
        generator=generator(), rasterizer=CpuRasterizer(),
    )  # fmt: skip
    assert len(points) == 2000
    assert points.norm(dim=1).min() > 0.85
    assert points.mean(0).norm() < 0.05  # no side is preferred


def test_a_surface_too_small_to_be_seen_has_no_visible_points():
    points = visible_points(
        1e-6 * torch.eye(3), torch.tensor([[0, 1, 2]]), views=4, count=10, generator=generator(),
        rasterizer=CpuRasterizer(),
    )  # fmt: skip
    assert points.shape == (0, 3)
