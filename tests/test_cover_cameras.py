"""What cameras see of a surface, close-ups of what an orbit leaves, and the texels that none can see."""

from functools import partial

import pytest
import torch
import trimesh
from meshes import write
from test_textured_mesh import canvas_of, textured

from pgc3d.cameras import CameraContext, CloseUpConfig, OrbitConfig, turntable
from pgc3d.cover_cameras import CoverConfig, chosen_views
from pgc3d.exporting.coverage import probe_texels
from pgc3d.exporting.textured_mesh import bake_texture
from pgc3d.geometry.own_uv import chart_areas
from pgc3d.geometry.sampling import sample_surface
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.rendering.visibility import SurfaceVisibility, cameras_around
from pgc3d.types import Step

CPU = CpuRasterizer()
LOW = OrbitConfig(elevation_degrees=(20.0, 40.0))


def tensors(mesh: trimesh.Trimesh) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces, dtype=torch.int64)


def visibility_of(mesh: trimesh.Trimesh) -> SurfaceVisibility:
    return SurfaceVisibility(*tensors(mesh), CPU)


def nested() -> trimesh.Trimesh:
    """A ball within a ball: the inner one cannot be seen."""
    return trimesh.util.concatenate([trimesh.creation.icosphere(3, radius) for radius in (0.95, 0.4)])


def table() -> trimesh.Trimesh:
    """A plate over the ground: an orbit above it does not see its lower side."""
    return trimesh.creation.box((1.4, 0.1, 1.4))


def context(mesh: trimesh.Trimesh) -> CameraContext:
    vertices, faces = tensors(mesh)
    surface = partial(sample_surface, vertices, faces)
    return CameraContext(
        batch=4, device=torch.device("cpu"), surface=surface, texels=surface, visibility=visibility_of(mesh)
    )


def test_the_half_of_a_ball_that_faces_a_camera_is_seen():
    ball = trimesh.creation.icosphere(4, 0.9)
    points, _ = trimesh.sample.sample_surface(ball, 2000, seed=0)
    points = torch.tensor(points, dtype=torch.float32)
    normals = torch.nn.functional.normalize(points, dim=1)
    cameras = turntable(3)
    seen = visibility_of(ball)(points, normals, cameras)
    towards = cameras.position[:, None] - points
    cosine = (normals * towards).sum(-1) / towards.norm(dim=-1)
    assert not seen[cosine < 0].any()
    assert seen[cosine > 0.3].all()


def test_what_lies_inside_cannot_be_reached_and_what_lies_outside_can():
    vertices, faces = tensors(nested())
    points, normals = sample_surface(vertices, faces, 500, torch.Generator().manual_seed(0))
    reached = visibility_of(nested()).reachable(points, normals)
    outer = points.norm(dim=1) > 0.6
    assert reached[outer].all()
    assert not reached[~outer].any()
    assert cameras_around(64).position.mean(dim=0).norm() < 0.2


def test_chosen_views_see_what_the_orbit_does_not():
    given = context(table())
    config = CoverConfig(close_up=CloseUpConfig(orbit=LOW), views=6, points=128)
    points, normals = given.texels(300, torch.Generator().manual_seed(1))
    below = normals[:, 1] < -0.5
    orbit = config.close_up.orbit.build(given)
    steps = [Step(index, 10) for index in range(10)]
    by_orbit = torch.cat([given.visibility(points, normals, orbit(step)) for step in steps]).any(0)
    assert not by_orbit[below].any()
    chosen = given.visibility(points, normals, chosen_views(config, given)).any(0)
    assert chosen[below].float().mean() > 0.9
    assert torch.equal(chosen_views(config, given).position, chosen_views(config, given).position)


def test_a_run_with_cover_cameras_sees_every_texel_that_can_be_seen(tmp_path):
    model = textured(canvas_of(write(table(), tmp_path / "table.ply")))
    mesh = model.mesh
    given = context(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False))
    probed = probe_texels(model, given.visibility, texture_size=64)
    found = {}
    close = CloseUpConfig(orbit=LOW, share=(1.0,))
    for name, cameras in (("orbit", LOW), ("cover", CoverConfig(close_up=close, hidden=0.7, points=128))):
        sample = cameras.build(given)
        found[name] = probed.coverage([sample(Step(index, 16)) for index in range(16)], given.visibility)
    assert found["orbit"].unseen > 0.3
    assert found["cover"].unseen < 0.01
    assert "could be seen and were not" in found["orbit"].remark


def test_close_ups_are_drawn_by_texels(tmp_path):
    vertices, faces = tensors(table())
    weight = torch.zeros(len(faces))
    weight[3] = 1.0
    points, _ = sample_surface(vertices, faces, 50, torch.Generator().manual_seed(0), weight=weight)
    corners = vertices[faces[3]]
    distance = (points[:, None] - corners).norm(dim=-1).amax()
    assert distance <= (corners[:, None] - corners).norm(dim=-1).max() + 1e-5


def test_texels_inside_have_the_colours_of_their_neighbours_and_are_said(tmp_path):
    model = textured(canvas_of(write(nested(), tmp_path / "nested.ply")), texture="image", image_size=128)
    mesh, part = model.mesh, model.prepared.sets[0]
    inner = mesh.vertices[mesh.faces].mean(1).norm(dim=1) < 0.6
    visibility = SurfaceVisibility(mesh.vertices, mesh.faces, CPU)
    probed = probe_texels(model, visibility, texture_size=128)
    coverage = probed.coverage([cameras_around()], visibility)
    area = chart_areas(mesh.uv, mesh.uv_faces)
    assert coverage.hidden == pytest.approx(float(area[inner].sum() / area.sum()), abs=0.05)
    assert coverage.unseen < 0.01
    assert "lie inside" in coverage.remark
    with torch.no_grad():  # red outside, blue inside
        model.texture[0].image.zero_()
        model.texture[0].image[..., 2] = 1.0
        outside = bake_texture(model, 0, texture_size=128, rasterizer=CPU)
        row, column = _texels(mesh, ~inner, 128)
        model.texture[0].image[row, column] = torch.tensor([1.0, 0.0, 0.0])
    image = bake_texture(model, 0, texture_size=128, rasterizer=CPU, probed=probed)
    plain = bake_texture(model, 0, texture_size=128, rasterizer=CPU)
    row, column = _texels(mesh, inner, 128)
    assert (outside[row, column, 2] == 255).all()
    assert (plain[row, column, 2] == 255).float().mean() > 0.95
    assert (image[row, column, 0] > 200).float().mean() > 0.95
    row, column = _texels(mesh, ~inner, 128)
    assert torch.equal(image[row, column], plain[row, column])
    assert part.side(128) == 128


def _texels(mesh, chosen, size):
    """Rows and columns of the texels of some faces."""
    from pgc3d.geometry.own_uv import draw_atlas

    triangle = draw_atlas(mesh.uv, mesh.uv_faces, size, CPU).triangle[0]
    return ((triangle >= 0) & chosen[triangle.clamp(min=0)]).nonzero().unbind(1)
