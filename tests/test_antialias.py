import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgc3d.cameras import orbit
from pgc3d.geometry.edges import EdgeTopology, sorted_topology
from pgc3d.rendering.antialias import antialias, clamp_overshoot, edge_topology
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.rendering.mesh_renderer import project

TRIANGLE = torch.tensor([[0, 1, 2]])


def camera(views=1):
    return orbit(
        torch.linspace(0.3, 2.0, views),
        torch.full((views,), 0.2),
        torch.full((views,), 3.0),
        torch.full((views,), math.radians(40)),
    )


def icosphere(levels):
    """Unit sphere of 20 * 4^levels triangles."""
    golden = (1 + 5**0.5) / 2
    corners = []
    for i in (-1.0, 1.0):
        for j in (-golden, golden):
            corners += [[0, i, j], [i, j, 0], [j, 0, i]]
    points = torch.nn.functional.normalize(torch.tensor(corners, dtype=torch.float64), dim=1)
    near = torch.cdist(points, points)
    near = (near > 0.1) & (near < 1.1)
    faces = torch.tensor(
        [
            [i, j, k]
            for i in range(12)
            for j in range(i + 1, 12)
            for k in range(j + 1, 12)
            if near[i, j] and near[j, k] and near[i, k]
        ]
    )
    for _ in range(levels):
        points, faces = subdivide(points, faces)
    return points, faces


def subdivide(points, faces):
    pairs = torch.stack([faces, faces.roll(-1, dims=1)], dim=-1).sort(dim=-1).values  # [F, 3, 2]
    edges, inverse = pairs.reshape(-1, 2).unique(dim=0, return_inverse=True)
    middle = torch.nn.functional.normalize(points[edges].mean(1), dim=1)
    ab, bc, ca = (inverse.reshape(-1, 3) + len(points)).T
    a, b, c = faces.T
    parts = [[a, ab, ca], [ab, b, bc], [ca, bc, c], [ab, bc, ca]]
    return torch.cat([points, middle]), torch.cat([torch.stack(part, dim=1) for part in parts])


def hull_area(points):
    """Area of the convex hull of points [N, 2], by Andrew's monotone chain."""

    def half(points):
        chain = []
        for x, y in points:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        return chain[:-1]

    ordered = sorted(map(tuple, points.tolist()))
    hull = torch.tensor(half(ordered) + half(ordered[::-1]), dtype=torch.float64)
    x, y = hull.T
    return 0.5 * (x * y.roll(-1) - y * x.roll(-1)).sum().abs().item()


def sphere_law(rasterizer, levels, resolution, device="cpu", implementation="auto"):
    """Autograd of the covered area by the radius over its true derivative, and the area's relative error."""
    points, faces = icosphere(levels)
    view = camera()
    matrix = view.clip_from_world[0].double()

    def true_area(radius):
        clip = torch.nn.functional.pad(points * radius, (0, 1), value=1.0) @ matrix.T
        return hull_area(clip[:, :2] / clip[:, 3:] * resolution / 2)

    true = (true_area(0.9 + 1e-4) - true_area(0.9 - 1e-4)) / 2e-4
    radius = torch.tensor(0.9, requires_grad=True, device=device)
    faces = faces.to(device)
    clip = project(points.float().to(device) * radius, view.to(device))
    fragments = rasterizer.rasterize(clip, faces, (resolution, resolution))
    area = antialias(fragments.mask, fragments, clip, faces, implementation=implementation).sum()
    area.backward()
    return radius.grad.item() / true, area.item() / true_area(0.9) - 1


@pytest.mark.parametrize("implementation", ["numba", "torch"])
@pytest.mark.parametrize(("levels", "resolution"), [(0, 64), (0, 256), (2, 64), (4, 64), (4, 256)])
def test_outline_gradient_of_a_sphere_is_right(levels, resolution, implementation):
    ratio, error = sphere_law(CpuRasterizer(), levels, resolution, implementation=implementation)
    assert 0.95 < ratio < 1.05
    assert abs(error) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [64, 256, 512, 1024])
@pytest.mark.parametrize("levels", [0, 1, 2, 3, 4, 5, 6, 7])
def test_outline_gradient_holds_from_20_to_330k_triangles(levels, resolution):
    ratio, error = sphere_law(CpuRasterizer(), levels, resolution)
    assert 0.95 < ratio < 1.05
    assert abs(error) < 1e-3


def two_spheres(dtype=torch.float32):
    """A squashed sphere with holes behind a small one, two views."""
    points, faces = icosphere(2)
    faces = faces[5:]
    points = torch.cat([points * torch.tensor([1, 0.6, 0.8]), 0.4 * points + torch.tensor([0.3, 0.2, 0.9])])
    return project(points.to(dtype), camera(2)), torch.cat([faces, faces + len(points) // 2])


def test_numba_and_torch_agree():
    clip, faces = two_spheres()
    fragments = CpuRasterizer().rasterize(clip, faces, (40, 40))
    generator = torch.Generator().manual_seed(0)
    color = torch.rand(2, 40, 40, 3, generator=generator) * fragments.mask
    weight = torch.rand(2, 40, 40, 3, generator=generator)
    sorted_edges = sorted_topology(faces, clip.shape[1])
    results = []
    for implementation, topology in (("numba", None), ("torch", sorted_edges)):
        image, position = color.clone().requires_grad_(), clip.clone().requires_grad_()
        mixed = antialias(image, fragments, position, faces, topology, implementation=implementation)
        (mixed * weight).sum().backward()
        results.append((mixed.detach(), image.grad, position.grad))
    assert (results[0][0] - color).abs().max() > 0.1
    torch.testing.assert_close(results[0], results[1])


def test_gradients_match_finite_differences():
    points, faces = icosphere(1)
    clip = project(points, to_double(camera()))
    fragments = CpuRasterizer().rasterize(clip, faces, (24, 24))
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 24, 24, 2, generator=generator, dtype=torch.float64) * fragments.mask

    def mix(image, clip):
        return antialias(image, fragments, clip, faces)

    position = clip.clone().requires_grad_()
    picture = image.clone().requires_grad_()
    weight = torch.rand(image.shape, generator=generator, dtype=torch.float64)
    (mix(picture, position) * weight).sum().backward()
    direction = torch.randn(clip.shape, generator=generator, dtype=torch.float64)
    tangent = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    step = 1e-6
    for derivative, forward, backward in (
        (
            (position.grad * direction).sum(),
            (image, clip + step * direction),
            (image, clip - step * direction),
        ),
        ((picture.grad * tangent).sum(), (image + step * tangent, clip), (image - step * tangent, clip)),
    ):
        difference = ((mix(*forward) - mix(*backward)) * weight).sum() / (2 * step)
        torch.testing.assert_close(derivative, difference, rtol=1e-4, atol=1e-4)


def to_double(cameras):
    return type(cameras)(**{name: value.double() for name, value in vars(cameras).items()})


def half_plane(edge, horizontal):
    """A rectangle [-0.7, edge] x [-0.8, 0.8] in normalised device coordinates, two triangles."""
    corners = torch.tensor([[-0.7, -0.8], [edge, -0.8], [edge, 0.8], [-0.7, 0.8]], dtype=torch.float64)
    corners = corners if horizontal else corners.flip(1)
    clip = torch.nn.functional.pad(corners, (0, 2))
    clip[:, 3] = 1
    return clip[None], torch.tensor([[0, 1, 2], [0, 2, 3]])


@pytest.mark.parametrize("horizontal", [True, False], ids=["vertical edge", "horizontal edge"])
@pytest.mark.parametrize("position", [4.1, 4.49, 4.5, 4.51, 4.75, 5.02, 5.4])
def test_edge_pixel_gets_its_coverage(position, horizontal):
    # position in pixels: pixel n covers [n, n + 1)
    clip, faces = half_plane(position / 8 * 2 - 1, horizontal)
    fragments = CpuRasterizer().rasterize(clip, faces, (8, 8))
    alpha = antialias(fragments.mask, fragments, clip, faces)[0, ..., 0]
    line = alpha[4] if horizontal else alpha.flip(0)[:, 4]
    coverage = (position - torch.arange(8)).clamp(0, 1)
    torch.testing.assert_close(line[2:], coverage[2:].to(line.dtype), atol=1e-6, rtol=0)


def test_nothing_changes_inside_a_closed_surface():
    points, faces = icosphere(2)
    clip = project(points.float(), camera())
    fragments = CpuRasterizer().rasterize(clip, faces, (32, 32))
    image = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    changed = (antialias(image, fragments, clip, faces) != image).any(-1)[0]
    inside = torch.nn.functional.avg_pool2d(fragments.mask[..., 0], 3, 1, 1)[0]
    assert changed.any()
    assert not changed[(inside == 0) | (inside > 0.999)].any()


def test_silhouette_before_another_surface_is_smoothed_and_the_hidden_one_is_not():
    near, faces = half_plane(0.03, horizontal=True)
    far, _ = half_plane(-0.3, horizontal=True)
    near[..., 2], far[..., 2] = -0.5, 0.5
    wide = torch.tensor([[[-3.0, -1, 0.8, 1], [3, -1, 0.8, 1], [0, 6, 0.8, 1]]], dtype=torch.float64)
    clip = torch.cat([near, far, wide], dim=1)
    faces = torch.cat([faces, faces + 4, TRIANGLE + 8])
    fragments = CpuRasterizer().rasterize(clip, faces, (8, 8))
    image = (fragments.triangle[..., None] < 2).double()
    line = antialias(image, fragments, clip, faces)[0, 4, :, 0]
    expected = (torch.tensor(0.03 + 1).double() * 4 - torch.arange(8)).clamp(0, 1)
    torch.testing.assert_close(line[2:], expected[2:], atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_constant_pictures_stay_constant_and_random_soups_do_not_crash(seed):
    generator = torch.Generator().manual_seed(seed)
    clip = torch.randn(2, 12, 4, generator=generator)
    clip[0, 3] = math.nan
    clip[1, 4] = clip[1, 5]
    faces = torch.randint(0, 12, (20, 3), generator=generator)
    clip.requires_grad_()
    fragments = CpuRasterizer().rasterize(clip, faces, (16, 16))
    mixed = antialias(torch.full((2, 16, 16, 1), 0.25), fragments, clip, faces)
    torch.testing.assert_close(mixed, torch.full_like(mixed, 0.25))
    antialias(fragments.mask, fragments, clip, faces).sum().backward()
    assert clip.grad.isfinite().all()


def test_empty_mesh_leaves_the_picture_alone():
    clip, faces = torch.zeros(1, 0, 4), torch.zeros(0, 3, dtype=torch.int64)
    fragments = CpuRasterizer().rasterize(clip, faces, (4, 4))
    image = torch.rand(1, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(antialias(image, fragments, clip, faces), image)


def rows(topology: EdgeTopology):
    return {
        (*edge, *sorted(wings))
        for edge, wings in zip(topology.edges.tolist(), topology.opposite.tolist(), strict=True)
        if edge[0] >= 0
    }


def test_topology_of_a_square_has_one_inner_edge_and_four_borders():
    topology = edge_topology(torch.tensor([[0, 1, 2], [0, 2, 3]]))
    assert rows(topology) == {(0, 1, -1, 2), (1, 2, -1, 0), (0, 2, 1, 3), (2, 3, -1, 0), (0, 3, -1, 2)}


@pytest.mark.parametrize("vertex_count", [162, 1 << 22], ids=["packed", "many vertices"])
def test_sorted_topology_agrees_and_a_closed_mesh_has_no_border(vertex_count):
    _, faces = icosphere(2)
    topology = edge_topology(faces)
    assert len(topology.edges) == len(faces) * 3 // 2
    assert (topology.opposite >= 0).all()
    assert rows(sorted_topology(faces, vertex_count)) == rows(topology)


def test_overshoot_is_clamped_and_its_gradient_passes():
    image = torch.tensor([-0.3, -1e-9, 0.0, 0.2, 1.0, 1.1, math.nan], requires_grad=True)
    clamped = clamp_overshoot(image)
    torch.testing.assert_close(
        clamped, torch.tensor([0.0, 0.0, 0.0, 0.2, 1.0, 1.0, math.nan]), equal_nan=True, atol=0, rtol=0
    )
    (clamped * torch.arange(7.0)).sum().backward()
    assert torch.equal(image.grad, torch.arange(7.0))
