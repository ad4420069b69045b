"""Wholeness: known topologies, whatever the seams, scale and place, and silhouettes of known shapes."""

import pytest
import torch

from pgc3d.cameras import turntable
from pgc3d.evaluation.wholeness import (
    image_silhouettes,
    mesh_silhouettes,
    silhouette_iou,
    wholeness,
)
from pgc3d.geometry.marching_tetrahedra import grid_points, march
from pgc3d.rendering.cpu import CpuRasterizer

RASTERIZER = CpuRasterizer()


def surface(function, resolution=32):
    size = resolution + 1
    return march(function(grid_points(resolution, torch.device("cpu"))).reshape(size, size, size))


def ball(points, centre=(0.0, 0.0, 0.0), radius=0.4):
    return (points - torch.tensor(centre)).norm(dim=1) - radius


def torus(points, radius=0.55, tube=0.2):
    ring = points[:, [0, 2]].norm(dim=1) - radius
    return torch.stack([ring, points[:, 1]], dim=1).norm(dim=1) - tube


def figure_eight(points):
    halves = [torus((points - torch.tensor([x, 0.0, 0.0])) * 1.4) for x in (-0.35, 0.35)]
    return torch.minimum(*halves)


def shell(points):
    return torch.maximum(ball(points, radius=0.7), -ball(points, radius=0.3))


def two(points):
    return torch.minimum(ball(points, (-0.5, 0.0, 0.0), 0.3), ball(points, (0.5, 0.0, 0.0), 0.3))


SHAPES = {"ball": (ball, 1, 0, 0), "torus": (torus, 1, 1, 0), "eight": (figure_eight, 1, 2, 0),
          "shell": (shell, 1, 0, 1), "two balls": (two, 2, 0, 0)}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_topology_is_that_of_the_shape(name):
    function, parts, handles, voids = SHAPES[name]
    found = wholeness(*surface(function))
    assert (found.components, found.handles, found.voids, found.boundaries) == (parts, handles, voids, 0)
    assert found.largest == pytest.approx(1 / (parts + voids), abs=0.4)


def test_seams_order_and_place_do_not_matter():
    vertices, faces = surface(torus)
    expected = wholeness(vertices, faces)
    corners = faces[torch.randperm(len(faces), generator=torch.Generator().manual_seed(0))].reshape(-1)
    apart = vertices[corners] * 3.0 + 5.0  # every face has vertices of its own
    found = wholeness(apart, torch.arange(len(corners)).reshape(-1, 3))
    assert (found.components, found.handles, found.voids) == (1, 1, 0)
    assert found.largest == pytest.approx(expected.largest)


def test_small_components_do_not_count():
    def dust(points):
        return torch.minimum(ball(points), ball(points, (0.8, 0.0, 0.0), 0.08))

    assert wholeness(*surface(dust), least_area=0.0).components == 2
    assert wholeness(*surface(dust), least_area=0.1).components == 1


def test_a_hole_in_a_surface_is_a_boundary_and_no_handle():
    vertices, faces = surface(ball)
    opened = faces[vertices[faces].mean(1)[:, 1] < 0.3]
    both = opened[vertices[opened].mean(1)[:, 1] > -0.3]
    for part, loops in ((faces, 0), (opened, 1), (both, 2)):
        found = wholeness(vertices, part)
        assert (found.components, found.handles, found.voids, found.boundaries) == (1, 0, 0, loops)


@pytest.mark.parametrize("least_area", [-0.1, 1.1])
def test_an_impossible_threshold_is_refused(least_area):
    with pytest.raises(ValueError, match="least_area must lie"):
        wholeness(*surface(ball), least_area=least_area)


def test_a_mesh_without_faces_is_refused():
    with pytest.raises(ValueError, match="must have faces"):
        wholeness(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.long))


def test_silhouettes_of_images_are_those_of_the_mesh():
    cameras = turntable(3)
    seen = mesh_silhouettes(*surface(torus), cameras, 64, rasterizer=RASTERIZER)
    noise = 0.02 * torch.randn(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    images = (
        torch.where(seen[..., None], torch.tensor([0.8, 0.2, 0.2]), torch.tensor([0.1, 0.2, 0.9])) + noise
    )
    assert torch.equal(image_silhouettes(images), seen)


def test_what_is_missing_and_what_is_too_much():
    cameras = turntable(2)
    whole = mesh_silhouettes(*surface(ball), cameras, 64, rasterizer=RASTERIZER)
    half = whole.clone()
    half[:, 32:] = False
    others = whole[None].expand(3, -1, -1, -1)
    same, less, more = (silhouette_iou(own, rest) for own, rest in
                        ((whole, others), (half, others), (whole, half[None])))  # fmt: skip
    assert same == {"silhouette_iou": 1.0, "silhouette_missing": 0.0, "silhouette_extra": 0.0,
                    "silhouette_level": 1.0}  # fmt: skip
    assert less["silhouette_iou"] == pytest.approx(0.5, abs=0.02)
    assert less["silhouette_missing"] == pytest.approx(0.5, abs=0.02)
    assert more["silhouette_extra"] == pytest.approx(0.5, abs=0.02)
    assert "silhouette_level" not in more
