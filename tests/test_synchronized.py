import json
from dataclasses import replace

import pytest
import torch
from meshes import write_cube
from stage_runs import loaded_once  # noqa: F401 - a fixture
from steps import FIRST
from test_pipeline import noisy_export
from test_textured_mesh import CPU, canvas_of, textured
from tiny import tiny_score_distillation, write_tiny_controlnet, write_tiny_sdxl
from torch.testing import assert_close

from pgc3d import pipeline
from pgc3d.cameras import orbit, turntable
from pgc3d.config import load_config
from pgc3d.diffusion.controlnet import Control, load_control_network, resolve_control
from pgc3d.diffusion.models import resolve_model
from pgc3d.evaluation.image_metrics import speckle
from pgc3d.geometry.normals import vertex_normals
from pgc3d.guidance import synchronized
from pgc3d.guidance.synchronized import SyncConfig, SynchronizedViews, fit
from pgc3d.rendering.blend import correspond
from pgc3d.rendering.mesh_renderer import render_mesh
from pgc3d.types import Material, Mesh, Views

SIDE = 64


def boxes(*centres, half=0.3):
    """Boxes in the world, without shared vertices: faces are flat."""
    import trimesh

    parts = [trimesh.creation.box((2 * half,) * 3) for _ in centres]
    for part, centre in zip(parts, centres, strict=True):
        part.apply_translation(centre)
    whole = trimesh.util.concatenate(parts)
    vertices = torch.tensor(whole.triangles.reshape(-1, 3), dtype=torch.float32)
    faces = torch.arange(len(vertices)).reshape(-1, 3)
    return Mesh(vertices, faces, vertex_normals(vertices, faces))


def shown(mesh, cameras, color=lambda points: 0.5 + 0.4 * torch.sin(3 * points)):
    ones = torch.ones(len(cameras), 3)
    return render_mesh(
        mesh, cameras, SIDE, ones, rasterizer=CPU, shading=False,
        material=lambda points: Material(color(points), points[:, :1] * 0, points[:, :1] * 0),
    )  # fmt: skip


def camera(azimuth, elevation=0.0):
    return orbit(torch.tensor([azimuth]), torch.tensor([elevation]), torch.tensor([3.0]), torch.tensor([0.7]))


@pytest.fixture(scope="module")
def scene():
    cameras = turntable(6, elevation_degrees=20.0)
    rendering = shown(boxes((0.0, 0.0, 0.0), (0.5, 0.3, 0.4)), cameras)
    return rendering, cameras, correspond(rendering, cameras)


def test_each_view_sees_its_own_points_at_its_own_pixels(scene):
    _, _, surface = scene
    view = surface.pixel // SIDE**2
    rows = torch.arange(len(view))
    place = surface.place[view, rows]
    column, row = surface.pixel % SIDE, surface.pixel // SIDE % SIDE
    expected = torch.stack([column + 0.5, row + 0.5], dim=-1) / SIDE * 2 - 1
    assert_close(place, expected, atol=1e-4, rtol=0)
    own = surface.cosine[view, rows]
    assert (own > 0).float().mean() > 0.8  # the others are at edges of the depth
    assert float(surface.cosine.max()) <= 1 + 1e-5


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 6.0])
def test_views_that_agree_are_not_changed(scene, sharpness):
    rendering, _, surface = scene
    blended = surface.blend(rendering.color, sharpness)
    error = (blended - rendering.color).abs().amax(-1)
    assert error.mean() < 0.004
    outside = rendering.depth[..., 0] == 0
    assert torch.equal(blended[outside], rendering.color[outside])


@pytest.mark.parametrize("sharpness", [0.0, 6.0])
def test_colours_that_views_do_not_agree_on_lie_between_them(scene, sharpness):
    rendering, cameras, surface = scene
    values = torch.linspace(0.1, 0.9, len(cameras))
    images = values[:, None, None, None].expand_as(rendering.color)
    blended = surface.blend(images, sharpness).reshape(-1, 3)[surface.pixel]
    weights = torch.where(surface.cosine > 0, surface.cosine**sharpness, 0.0)
    seen = weights.sum(0) > 0
    mean = (weights * values[:, None]).sum(0)[seen] / weights.sum(0)[seen]
    assert_close(blended[seen, 0], mean, atol=1e-5, rtol=1e-5)


def test_all_views_show_one_colour_of_a_point_that_both_see():
    cameras = [camera(-0.3), camera(0.3)]
    both = replace(cameras[0], **{
        name: torch.cat([value, getattr(cameras[1], name)]) for name, value in vars(cameras[0]).items()
    })  # fmt: skip
    rendering = shown(boxes((0.0, 0.0, 0.0)), both)
    surface = correspond(rendering, both)
    images = torch.stack([torch.zeros(SIDE, SIDE, 3), torch.ones(SIDE, SIDE, 3)])
    blended = surface.blend(images, 0.0)
    middle = blended[:, SIDE // 2, SIDE // 2]  # of the front, which both see
    assert_close(middle, torch.full((2, 3), 0.5))


def test_what_is_hidden_is_not_seen():
    """A box stands before another one: its colour does not reach the one behind."""
    mesh = boxes((0.0, 0.0, 0.6), (0.0, 0.0, -0.6), half=0.25)
    front, above = camera(0.0), camera(0.0, 1.2)
    both = replace(front, **{
        name: torch.cat([value, getattr(above, name)]) for name, value in vars(front).items()
    })  # fmt: skip
    rendering = shown(mesh, both)
    surface = correspond(rendering, both)
    images = torch.stack([torch.zeros(SIDE, SIDE, 3), torch.ones(SIDE, SIDE, 3)])
    blended = surface.blend(images, 0.0)
    rear = (surface.pixel >= SIDE**2) & (surface.cosine[0] == 0)
    assert rear.sum() > 50
    assert_close(blended.reshape(-1, 3)[surface.pixel[rear]], torch.ones(int(rear.sum()), 3))


def test_a_fit_brings_renders_to_the_images(tmp_path):
    config = SyncConfig(fit_steps=60, views=4, more_elevation_degrees=())
    cube = canvas_of(write_cube(tmp_path / "cube.glb"))
    representation = textured(cube, texture="image", image_size=64, shading=False, lr_image=0.02)
    cameras = config.cameras()
    views = Views(cameras, torch.zeros(len(cameras), 3))
    before = representation.render(views, SIDE, None)
    target = torch.tensor([0.9, 0.2, 0.4]).expand(len(cameras), SIDE, SIDE, 3)
    fit(representation, target, before, views, config, FIRST)
    after = representation.render(views, SIDE, None)
    inside = (before.depth > 0).expand_as(target) & (before.alpha > 0.999)
    error = [(one.color - target).abs()[inside].median() for one in (before, after)]
    assert error[1] < 0.1 * error[0]


def test_a_fit_of_a_field_adds_little_speckle(tmp_path, monkeypatch):
    """Against Adam without a bound on small gradients, of which the finest cells have most."""
    config = SyncConfig(fit_steps=60, views=4, more_elevation_degrees=())
    cube = canvas_of(write_cube(tmp_path / "cube.glb"))
    views = Views(config.cameras(), torch.zeros(4, 3))
    added = []
    for eps in (synchronized.FIT_EPS, 1e-12):
        monkeypatch.setattr(synchronized, "FIT_EPS", eps)
        representation = textured(cube, shading=False)
        before = representation.render(views, SIDE, None)
        mesh = Mesh(cube.vertices, cube.faces, vertex_normals(cube.vertices, cube.faces))
        target = shown(mesh, views.cameras).color
        fit(representation, target, before, views, config, FIRST)
        after = representation.render(views, SIDE, None)
        added.append(float(speckle(after.color, after.alpha) - speckle(target, after.alpha)))
        assert (after.color - target).abs()[before.alpha.expand_as(target) > 0.999].median() < 0.03
    assert added[0] < 0.6 * added[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sync")
    model = write_tiny_sdxl(root / "sdxl")
    return model, write_tiny_controlnet(root / "net", model)


def sampler(folders, **settings):
    model, net = folders
    guidance = tiny_score_distillation(model)
    source = resolve_model(model)
    network = load_control_network(resolve_control(str(net), source), guidance.model)
    guidance.controls = (Control(network=network, condition="depth"),)
    return SynchronizedViews(SyncConfig(steps=4, views=3, **settings), guidance)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_sample_the_same_views(folders, scene, micro_batch):
    rendering, cameras, surface = scene
    views = Views(cameras, rendering.background)
    found = []
    for size in (0, micro_batch):
        one = sampler(folders)
        one.micro_batch = size
        with torch.no_grad():
            found.append(one.sample(rendering, views, surface, FIRST))
    assert_close(*found, atol=1e-2, rtol=0)
    assert 0 <= found[0].min() <= found[0].max() <= 1


def test_views_are_sampled_apart_where_they_are_never_averaged(folders, scene):
    """Without averaging, a view's image outside the surface does not depend on the other views."""
    rendering, cameras, surface = scene
    one = sampler(folders, averaged_from=1.0, averaged_until=1.0, sharpness=(0.0,))
    other = sampler(folders, averaged_from=0.0, averaged_until=1.0, sharpness=(0.0,))
    views = Views(cameras, rendering.background)
    with torch.no_grad():
        apart, together = (each.sample(rendering, views, surface, FIRST) for each in (one, other))
    assert not torch.allclose(apart, together, atol=1e-3)


def test_where_views_share_no_point_averaging_changes_nothing(folders, scene):
    """The autoencoder alone must not change latents: what it loses would add up from step to step."""
    rendering, cameras, surface = scene
    alone = replace(surface, cosine=torch.zeros_like(surface.cosine))
    views = Views(cameras, rendering.background)
    found = []
    for averaged in ((0.0, 1.0), (1.0, 1.0)):
        one = sampler(folders, averaged_from=averaged[0], averaged_until=averaged[1])
        with torch.no_grad():
            found.append(one.sample(rendering, views, alone, FIRST))
    assert_close(*found, atol=1e-5, rtol=0)


def run(folders, tmp_path, out, **init):
    model, _ = folders
    layer = {
        "run": {"device": "cpu"},
        "models": {"text": {"name": str(model)}},
        "steps": 2, "resolution": [32], "resolution_until": [],
        "representation": {"kind": "textured_mesh", "color_field": {"levels": 4, "log2_rows": 8}},
        "objectives": {"color": {"batch": 1}},
        "init": {"steps": 3, "views": 2, "more_elevation_degrees": [], "fit_steps": 5, **init},
        "logging": {"checkpoint_every": 1, "preview_every": 0},
        "export": {"texture_size": 64},
    }  # fmt: skip
    config, notes = load_config([layer]), []
    task = pipeline.Task("a red chair", mesh=write_cube(tmp_path / "cube.glb"))
    with noisy_export():
        result = pipeline.generate(
            task, out=tmp_path / out, config=config, on_event=lambda event: notes.append(event.message)
        )
    return result, json.loads((result.path / "manifest.json").read_text()), notes


def test_a_run_starts_from_its_initial_views(folders, tmp_path):
    controls = {"depth": {"model": str(folders[1])}}
    first, manifest, notes = run(folders, tmp_path, "one", controls=controls)
    again, _, _ = run(folders, tmp_path, "two", controls=controls)
    without, plain, _ = run(folders, tmp_path, "three")
    assert manifest["seconds"]["init"] > 0
    assert any("initial views" in note for note in notes)
    assert first.files[0].read_bytes() == again.files[0].read_bytes()
    assert first.files[0].read_bytes() != without.files[0].read_bytes()
    assert "init" not in plain["seconds"]


def test_without_a_controlnet_there_are_no_initial_views_and_a_line_says_so(folders, tmp_path):
    _, _, notes = run(folders, tmp_path, "one", controls={})
    assert "initial views: none, as no ControlNet is set for them (init.controls)" in notes
