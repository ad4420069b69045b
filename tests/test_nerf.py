"""NeRF: rays, conventions of its renders, its occupancy grid, recovery, and the surface that is found."""

from dataclasses import replace

import pytest
import torch

from pgc3d.cameras import turntable
from pgc3d.context import RepresentationContext
from pgc3d.errors import DivergedError
from pgc3d.geometry.marching_tetrahedra import march as marching
from pgc3d.geometry.normals import vertex_normals
from pgc3d.geometry.sdf import ellipsoid_sdf
from pgc3d.interfaces import Meshable
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.rendering.mesh_renderer import render_mesh
from pgc3d.rendering.rays import camera_rays, march
from pgc3d.representation.fields import ColorFieldConfig
from pgc3d.representation.nerf_config import NerfConfig
from pgc3d.representation.nerf_surface import extract_surface
from pgc3d.types import Mesh, Step, Views

CPU = torch.device("cpu")
RASTERIZER = CpuRasterizer()
STEP = Step(index=0, total=10)
# a hard ball of radius 0.5
BALL = NerfConfig(blob_strength=1e4, stations=64, levels_used=(1.0,))
REGULARIZED = dict.fromkeys(("orientation", "sparsity", "opaque", "entropy", "depth_variance"), 0.1)


def make(config=None, seed=0, start=None):
    generator = torch.Generator().manual_seed(seed)
    context = RepresentationContext(
        rasterizer=RASTERIZER, device=CPU, generator=generator, mesh=dict, start=start
    )
    return (config or NerfConfig()).build(context)


def views(count=3):
    return Views(turntable(count), torch.tensor([[0.2, 0.4, 0.6]]).expand(count, 3))


def ball_mesh():
    vertices, faces = marching(ellipsoid_sdf((0.5, 0.5, 0.5), 64))
    return Mesh(vertices, faces, vertex_normals(vertices, faces))


def test_it_is_meshable():
    assert isinstance(make(), Meshable)


def test_rays_lead_to_the_pixels_that_points_are_projected_to():
    cameras, side = turntable(3), 16
    rays = camera_rays(cameras, side)
    points = (rays.origin + 0.9 * rays.direction).reshape(3, -1, 3)
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    clip = homogeneous @ cameras.clip_from_world.transpose(1, 2)
    place = clip[..., :2] / clip[..., 3:]
    column = ((place[..., 0] + 1) / 2 * side - 0.5).reshape(3, side, side)
    row = ((1 - place[..., 1]) / 2 * side - 0.5).reshape(3, side, side)
    numbers = torch.arange(side).float()
    torch.testing.assert_close(column, numbers.expand(3, side, side), atol=1e-3, rtol=0)
    torch.testing.assert_close(row, numbers[:, None].expand(3, side, side), atol=1e-3, rtol=0)
    torch.testing.assert_close(rays.cosine.reshape(3, -1) * 0.9, clip[..., 3], atol=1e-5, rtol=0)


def test_a_hard_ball_looks_as_its_mesh_does():
    found = make(BALL).render(views(), 64, None)
    gray = make(BALL).material
    expected = render_mesh(
        ball_mesh(), views().cameras, 64, views().background, rasterizer=RASTERIZER, material=gray
    )
    assert (found.alpha - expected.alpha).abs().mean() < 0.01
    inside = (expected.alpha[..., 0] > 0.999) & (found.alpha[..., 0] > 0.999)
    assert inside.float().mean() > 0.1
    assert (found.color - expected.color)[inside].abs().mean() < 0.02
    assert (found.depth - expected.depth)[inside].abs().mean() < 0.02
    assert (found.normal - expected.normal)[inside].abs().mean() < 0.03
    outside = expected.alpha[..., 0] == 0
    torch.testing.assert_close(
        found.color[outside], views().background[:, None, None].expand_as(found.color)[outside]
    )
    assert (found.depth[outside] == 0).all()


def test_more_stations_show_the_same():
    fine, coarse = (
        make(replace(NerfConfig(), stations=count)).render(views(), 24, None) for count in (192, 64)
    )
    assert (fine.alpha - coarse.alpha).abs().max() < 0.05


def test_empty_cells_change_nothing():
    nerf = make(BALL)
    before = nerf.render(views(), 32, None)
    nerf.begin_step(STEP)
    assert 0.05 < nerf.occupancy.occupied().float().mean() < 0.5
    torch.testing.assert_close(nerf.render(views(), 32, None).color, before.color, atol=1e-4, rtol=0)


def test_samples_that_do_not_fit_are_counted_and_whole_ones_are_the_same():
    rays = camera_rays(turntable(1), 16)
    options = {"stations": 32, "offset": torch.full((256,), 0.5)}
    full = march(rays, torch.ones(8, 8, 8, dtype=torch.bool), **options)
    roomy = march(rays, torch.ones(8, 8, 8, dtype=torch.bool), capacity=len(full.points) + 100, **options)
    tight = march(rays, torch.ones(8, 8, 8, dtype=torch.bool), capacity=len(full.points) // 2, **options)
    count = len(full.points)
    assert torch.equal(roomy.points[:count], full.points)
    assert torch.equal(roomy.spans.ray[:count], full.spans.ray)
    assert (roomy.spans.ray[count:] == len(rays)).all()
    assert roomy.total == tight.total == count
    assert torch.equal(tight.points, full.points[: count // 2])
    assert int(tight.spans.count.sum()) == count // 2


def test_a_step_is_repeatable_and_changes_nothing():
    nerf = make(replace(NerfConfig(), **REGULARIZED))
    nerf.begin_step(STEP)
    state = {name: value.clone() for name, value in nerf.state_dict().items()}
    first, second = (nerf.render(views(), 24, STEP) for _ in range(2))
    losses = nerf.regularizers(STEP)
    assert torch.equal(first.color, second.color)
    assert losses.keys() == REGULARIZED.keys()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(torch.equal(value, state[name]) for name, value in nerf.state_dict().items())
    other = nerf.render(views(), 24, replace(STEP, index=1))
    assert not torch.equal(first.color, other.color)


def test_gradients_match_finite_differences():
    nerf = make(replace(NerfConfig(), stations=24, **REGULARIZED)).double()
    step = replace(STEP, index=3)
    nerf.begin_step(step)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in nerf.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    cameras = turntable(1)
    seen = Views(
        replace(cameras, **{name: value.double() for name, value in vars(cameras).items()}),
        torch.ones(1, 3).double(),
    )

    def loss():
        rendering = nerf.render(seen, 16, step)
        buffers = (rendering.color, rendering.normal, rendering.alpha)
        weights = torch.Generator().manual_seed(7)
        total = sum((buffer * torch.randn(buffer.shape, generator=weights)).sum() for buffer in buffers)
        return total + 100 * sum(value for name, value in nerf.regularizers(step).items() if name in SMOOTH)

    SMOOTH = ("sparsity", "opaque", "depth_variance")
    tensors = [
        nerf.density.mlp.layers[-1].bias,
        nerf.color.mlp.layers[-1].bias,
        nerf.density.mlp.layers[0].weight,
    ]
    gradients = torch.autograd.grad(loss(), tensors)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                tensor.add_(sign * 1e-6 * direction)
                ends.append(loss())
                tensor.sub_(sign * 1e-6 * direction)
        slope = (ends[0] - ends[1]) / 2e-6
        assert (gradient * direction).sum() == pytest.approx(slope.item(), rel=1e-3, abs=1e-6)


def test_a_scene_that_is_emptied_comes_back_and_ends_at_last():
    nerf = make(replace(NerfConfig(), max_recoveries=1, occupancy_every=1))

    def work(index):
        step = Step(index=index, total=100)
        nerf.begin_step(step)
        return nerf.render(views(1), 16, step).alpha.max()

    def empty():
        with torch.no_grad():
            nerf.density.mlp.layers[-1].bias.fill_(-100.0)

    assert work(0) > 0.5
    empty()
    assert work(1) == 0
    assert work(2) > 0.5
    empty()
    work(3)
    with pytest.raises(DivergedError, match="must not be empty"):
        work(4)


def test_the_surface_of_a_ball_is_found_in_a_grid():
    nerf = make(BALL)
    nerf.begin_step(STEP)
    found = extract_surface(nerf, 48, RASTERIZER)
    radius = found.mesh.vertices.norm(dim=1)
    assert (radius - 0.5).abs().max() < 2 / 48
    assert found.agreement > 0.97
    points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.7, 0.0], [0.45, 0.0, 0.0]])
    assert (found.sdf(points).sign() == torch.tensor([-1.0, 1.0, -1.0])).all()
    assert found.sdf(points[2:]).item() == pytest.approx(-0.05, abs=0.03)
    assert len(found.notes) == 1


class Density:
    """A volume of a given density, seen as a NeRF's is."""

    device = torch.device("cpu")

    def __init__(self, function):
        self.function = function

    def density_at(self, points):
        return self.function(points)

    def render(self, views, resolution, step):
        color = ColorFieldConfig(levels=1, hidden=4)  # of no interest here
        nerf = make(replace(NerfConfig(), stations=64, color_field=color))
        nerf.density.forward = lambda points, levels=None: self.function(points)
        nerf.begin_step(STEP)
        return nerf.render(views, resolution, step)


def test_islands_and_hollows_are_gone():
    def function(points):
        ball, island = points.norm(dim=1), (points - torch.tensor([0.8, 0.0, 0.0])).norm(dim=1)
        return 100.0 * ((ball < 0.5) & (ball > 0.3) | (island < 0.06)).float()

    radius = extract_surface(Density(function), 48, RASTERIZER).mesh.vertices.norm(dim=1)
    assert radius.min() > 0.45
    assert radius.max() < 0.55


def test_thin_parts_that_are_lost_are_said():
    def function(points):
        wire = (points[:, 1:].norm(dim=1) < 0.03) & (points[:, 0].abs() < 0.9)
        return 100.0 * ((points.norm(dim=1) < 0.3) | wire).float()

    notes = extract_surface(Density(function), 16, RASTERIZER).notes
    assert len(notes) == 2
    assert "thinner than the grid" in notes[1]


def test_a_scene_ends_with_its_rays():
    """Noise beyond the unit ball, which no ray meets, is no part of the surface, and the cut is smooth."""
    generator = torch.Generator().manual_seed(0)

    def function(points):
        noise = 200.0 * torch.rand(len(points), generator=generator)
        return torch.where(points.norm(dim=1) < 1, 100.0, noise)

    radius = extract_surface(Density(function), 48, RASTERIZER).mesh.vertices.norm(dim=1)
    assert radius.min() > 0.98
    assert radius.max() < 1.01


def test_an_empty_volume_has_no_surface():
    with pytest.raises(DivergedError, match="must have a surface"):
        extract_surface(Density(lambda points: torch.zeros(len(points))), 16, RASTERIZER)


def test_colours_and_shape_are_handed_over():
    nerf = make(BALL)
    nerf.begin_step(STEP)
    with torch.no_grad():
        nerf.color.mlp.layers[-1].bias.copy_(torch.tensor([2.0, -1.0, 0.0]))
    left = nerf.handover()
    points = torch.rand(50, 3) - 0.5
    again = make(NerfConfig(), seed=3, start=left)
    torch.testing.assert_close(again.material(points).base_color, nerf.material(points).base_color)
    assert left.notes[0].startswith("surface at density")


def test_a_checkpoint_continues_it():
    nerf = make(replace(NerfConfig(), levels_used=(0.0, 0.5, 1.0, 1.0)))
    step = Step(index=16, total=100)
    nerf.begin_step(step)
    again = make(replace(NerfConfig(), levels_used=(0.0, 0.5, 1.0, 1.0)), seed=1)
    again.load_state_dict(nerf.state_dict())
    assert torch.equal(again.render(views(), 24, None).color, nerf.render(views(), 24, None).color)
