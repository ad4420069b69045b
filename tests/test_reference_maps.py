"""The depth and normal terms of the reference view, against formulas, our own renders and a known sphere."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps import FIRST, show

from pgc3d import pgc
from pgc3d.cameras import orbit, reference_view
from pgc3d.evaluation.procedural import shapes
from pgc3d.geometry.normals import vertex_normals
from pgc3d.guidance.reference import SIDE as STATED
from pgc3d.guidance.reference import ReferenceView, depth_disagreement, normal_disagreement
from pgc3d.optimize import Objective, Problem, optimize
from pgc3d.rendering import build_rasterizer
from pgc3d.rendering.mesh_renderer import render_mesh
from pgc3d.representation.dmtet_config import DMTetConfig, build_dmtet
from pgc3d.types import Material, Mesh, Rendering, Views
from pgc3d.view_config import ViewConfig

RASTERIZER = build_rasterizer("auto", torch.device("cpu"))
CAMERA = orbit(*(torch.tensor([value]) for value in (0.7, 0.35, 3.0, math.radians(40.0))))
SIDE = 64
SCALE = (STATED / SIDE) ** 2  # of the terms' sums over the pixels


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gray(points):
    ones = torch.ones(len(points), 1)
    return Material(base_color=0.5 * ones.expand(-1, 3), roughness=ones, metallic=0 * ones)


def draw_mesh(vertices, faces, side=SIDE, camera=CAMERA):
    mesh = Mesh(vertices, faces, vertex_normals(vertices, faces))
    return render_mesh(mesh, camera, side, torch.zeros(1, 3), rasterizer=RASTERIZER, material=gray)


def chair(turn):
    """The chair with one arm rest, turned about the vertical; no reflection maps it onto itself."""
    vertices, faces, _ = shapes()["one-armed-chair"]
    cosine, sine, zero = torch.cos(turn), torch.sin(turn), torch.zeros(())
    x, z = torch.stack([cosine, zero, sine]), torch.stack([-sine, zero, cosine])
    corners = 0.65 * (vertices - torch.tensor([0.0, 0.15, 0.0]))[faces].reshape(-1, 3)  # flat: none is shared
    rotation = torch.stack([x, torch.tensor([0.0, 1.0, 0.0]), z])
    return corners @ rotation.T, torch.arange(3 * len(faces)).reshape(-1, 3)


def compare(guidance, rendering, camera=CAMERA):
    """The guidance's output for a rendering of that camera."""
    return guidance(rendering.color.detach(), rendering, Views(camera, rendering.background), FIRST)


def maps_of(rendering, camera=CAMERA):
    """Picture, inverse depth and camera-space normals, as a user would have them."""
    photo = torch.cat([rendering.color, rendering.alpha], dim=-1)[0].detach()
    depth = torch.where(rendering.depth > 0, 1 / rendering.depth.clamp(min=0.1), 0.0)[0].detach()
    normal = (2 * rendering.normal - 1) @ camera.camera_from_world[0, :3, :3].T
    return photo, depth, normal[0].detach()


# Formulas


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10), seed=st.integers(0, 99))
def test_depth_term_is_one_minus_pearsons_correlation_whatever_scale_and_shift(scale, shift, seed):
    depth, inverse = 1 + draw(2, 5, 5, 1, seed=seed), draw(1, 5, 5, 1, seed=seed + 100)
    weight = (draw(2, 5, 5, 1, seed=seed + 200) > 0.3).double()
    expected = 0.0
    for view in range(2):
        inside = weight[view].bool()
        pair = np.stack([(1 / depth[view])[inside], inverse[0][inside]])
        expected += inside.sum().item() * (1 - np.corrcoef(pair)[0, 1])
    found = depth_disagreement(depth, scale * inverse + shift, weight)
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    against = depth_disagreement(depth, -scale * inverse + shift, weight)
    torch.testing.assert_close(found + against, 2 * weight.sum())


def test_normal_term_is_one_minus_the_cosine():
    normal, wanted, weight = draw(2, 4, 4, 3), draw(2, 4, 4, 3, seed=1) - 0.5, draw(2, 4, 4, 1, seed=2)
    first, second = (2 * normal - 1).numpy(), wanted.numpy()
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    expected = (weight[..., 0].numpy() * (1 - (first * second).sum(-1) / lengths)).sum()
    assert normal_disagreement(normal, wanted, weight).item() == pytest.approx(expected)
    torch.testing.assert_close(
        normal_disagreement(normal, 7 * wanted, weight), normal_disagreement(normal, wanted, weight)
    )


def test_gradients_are_those_of_the_losses_and_reach_their_buffers_alone():
    photo, depth_map, normal_map = draw(8, 8, 4), draw(8, 8, 1, seed=1), draw(8, 8, 3, seed=2) - 0.5
    photo[2:6, 2:6, 3] = 0.9
    buffers = {"depth": 1 + draw(1, 8, 8, 1, seed=3), "normal": draw(1, 8, 8, 3, seed=4)}
    color, alpha = draw(1, 8, 8, 3, seed=5), draw(1, 8, 8, 1, seed=6)
    options = {"depth_map": depth_map, "normal_map": normal_map, "depth": 0.3, "normal": 0.7}

    def ask(**changed):
        rendering = Rendering(**(buffers | changed), color=color, alpha=alpha, background=draw(1, 3, seed=7))
        camera = orbit(*(torch.tensor([value], dtype=torch.float64) for value in (0.7, 0.35, 3.0, 0.7)))
        return compare(ReferenceView(input_image=photo, **options), rendering, camera)

    output = ask()
    assert set(output.buffers) == {"alpha", "depth", "normal"}
    for name in ("depth", "normal"):
        direction = draw(*buffers[name].shape, seed=8) - 0.5
        ends = [ask(**{name: buffers[name] + step * direction}) for step in (1e-5, -1e-5)]
        change = ends[0].metrics[f"loss_{name}"] - ends[1].metrics[f"loss_{name}"]
        along = (output.buffers[name] * direction).sum()
        torch.testing.assert_close(along, change / 2e-5, rtol=1e-4, atol=1e-7)
        others = set(output.metrics) - {f"loss_{name}"}
        assert all(torch.equal(ends[0].metrics[key], output.metrics[key]) for key in others)


def test_without_maps_there_are_no_such_terms():
    rendering = draw_mesh(*chair(torch.tensor(0.3)))
    output = compare(ReferenceView(input_image=maps_of(rendering)[0]), rendering)
    assert set(output.buffers) == {"alpha"}
    assert set(output.metrics) == {"loss_color", "loss_mask"}


def test_every_resolution_weighs_the_terms_alike():
    """Their sums are stated for one resolution, as that of the colours."""
    photo, depth, normal = maps_of(draw_mesh(*chair(torch.tensor(0.3)), side=128))
    guidance = ReferenceView(input_image=photo, depth_map=depth, normal_map=normal)
    found = []
    for side in (64, 128):
        rendering = draw_mesh(*chair(torch.tensor(0.8)), side=side)
        found.append({name: value.item() for name, value in compare(guidance, rendering).metrics.items()})
    for name in ("loss_depth", "loss_normal", "loss_mask"):
        assert found[0][name] == pytest.approx(found[1][name], rel=0.2)


EMPTY = torch.zeros(1, 8, 8, 1)
DEGENERATE = {
    "nothing was hit": (EMPTY, EMPTY),
    "a plane that faces the camera": (EMPTY + 2.5, EMPTY + 1),
    "a single pixel": (EMPTY + 2.5, torch.eye(8)[None, ..., None] * torch.eye(8)[0][:, None, None]),
}


@pytest.mark.parametrize(("depth", "alpha"), DEGENERATE.values(), ids=DEGENERATE)
def test_gradients_stay_finite_where_a_term_is_not_defined(depth, alpha):
    photo = torch.ones(8, 8, 4)
    normal = torch.full((1, 8, 8, 3), 0.5)  # the background's: no direction
    rendering = Rendering(photo[None, ..., :3], normal, depth, alpha, background=torch.zeros(1, 3))
    for normal_map in (torch.zeros(8, 8, 3), torch.ones(8, 8, 3)):
        guidance = ReferenceView(input_image=photo, depth_map=draw(8, 8, 1).float(), normal_map=normal_map)
        output = compare(guidance, rendering)
        assert all(value.isfinite().all() for value in [*output.buffers.values(), *output.metrics.values()])
        assert all(pull.abs().max() < 1e3 * (STATED / 8) ** 2 for pull in output.buffers.values())


# Conventions


SIGNS = {
    "x to the left": [-1, 1, 1], "y down": [1, -1, 1], "z away": [1, 1, -1], "all turned": [-1, -1, -1],
}  # fmt: skip


def test_normal_map_is_in_camera_space_with_x_right_y_up_z_to_the_viewer():
    """From far away the sphere at pixel (x, y), y up, has the normal (x, y, sqrt(1 - x^2 - y^2))."""
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=4)
    vertices, faces = torch.tensor(ball.vertices).float(), torch.tensor(ball.faces).long()
    camera = orbit(*(torch.tensor([value]) for value in (0.7, 0.35, 30.0, 2 * math.atan(1 / 30))))
    rendering = draw_mesh(vertices, faces, camera=camera)
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    z = (1 - x * x - y * y).clamp(min=0).sqrt()
    normal, photo = torch.stack([x, y, z], dim=-1), torch.cat([rendering.color, rendering.alpha], dim=-1)[0]

    def disagreement(normal_map):
        guidance = ReferenceView(input_image=photo, normal_map=normal_map, normal=1.0)
        return compare(guidance, rendering, camera).metrics["loss_normal"] / SCALE / photo[..., 3].sum()

    assert disagreement(normal) < 0.01
    for signs in SIGNS.values():
        assert disagreement(normal * torch.tensor(signs)) > 0.45  # the mean of 2 x^2 over the disc is 0.5
    world = normal @ camera.camera_from_world[0, :3, :3]
    assert disagreement(world) > 0.1


def test_near_is_bright():
    rendering = draw_mesh(*chair(torch.tensor(0.3)))
    photo, depth, _ = maps_of(rendering)
    near = rendering.depth[rendering.depth > 0].min()
    assert depth.max() == pytest.approx(1 / near.item(), rel=1e-3)

    def disagreement(depth_map):
        guidance = ReferenceView(input_image=photo, depth_map=depth_map, depth=1.0)
        return compare(guidance, rendering).metrics["loss_depth"] / SCALE / photo[..., 3].sum()

    assert disagreement(depth) < 0.01
    assert disagreement(1 - depth) > 1.5


def pull(name, given, turn):
    """Derivative of a term by the chair's turn, through the renderer."""
    turn = torch.tensor(turn, requires_grad=True)
    rendering = draw_mesh(*chair(turn))
    photo, depth, normal = given
    guidance = ReferenceView(input_image=photo, depth_map=depth, normal_map=normal)
    output = compare(guidance, rendering)
    torch.autograd.backward(getattr(rendering, name), output.buffers[name] / SCALE)
    return turn.grad.item(), output.metrics[f"loss_{name}"].item() / SCALE


@pytest.mark.parametrize("name", ["depth", "normal"])
def test_gradient_turns_an_asymmetric_object_towards_its_map(name):
    given = maps_of(draw_mesh(*chair(torch.tensor(0.3))))
    before, behind = pull(name, given, 0.3 - 0.15), pull(name, given, 0.3 + 0.15)
    assert before[0] < 0 < behind[0]
    right = pull(name, given, 0.3)[1]
    assert right < 0.1 * min(before[1], behind[1])


@pytest.mark.parametrize("name", ["depth", "normal"])
def test_a_mirrored_or_negated_map_is_worse(name):
    photo, depth, normal = maps_of(draw_mesh(*chair(torch.tensor(0.3))))
    right = pull(name, (photo, depth, normal), 0.3)[1]
    mirrored = photo, depth.flip(1), normal.flip(1) * torch.tensor([-1, 1, 1])
    for wrong in (mirrored, (photo, -depth, -normal)):
        assert pull(name, wrong, 0.3)[1] > 5 * right + 1.0


# In a run


def fit(*, with_maps):
    """How a shape differs from the chair after some steps: normals in degrees, correlation of depths."""
    view = reference_view(ViewConfig(elevation_degrees=15.0))
    goal = draw_mesh(*chair(torch.tensor(0.6)), camera=view)
    photo, depth, normal = maps_of(goal, view)
    maps = {"depth_map": depth, "normal_map": normal} if with_maps else {}
    shape = build_dmtet(
        DMTetConfig(resolution=24, radii=(0.6, 0.6, 0.6), eps_sdf=1e-3), rasterizer=RASTERIZER,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    guidance = ReferenceView(input_image=photo, **maps)
    objective = Objective(lambda step: view, guidance, pgc.NoClip().build(), ((1.0, 1.0, 1.0),))
    shape.parameter_store().use_adam()
    problem = Problem(representation=shape, objectives={"reference": objective})
    list(optimize(problem, steps=40, resolution_at=lambda _: SIDE))
    found = show(shape, view, SIDE, torch.zeros(1, 3))
    both = (found.alpha > 0.9)[..., 0] & (goal.alpha > 0.9)[..., 0]
    cosine = torch.cosine_similarity(2 * found.normal[both] - 1, 2 * goal.normal[both] - 1, dim=-1)
    angle = cosine.clamp(-1, 1).acos().rad2deg().mean().item()
    depths = torch.stack([1 / found.depth[both][:, 0], 1 / goal.depth[both][:, 0]])
    return angle, torch.corrcoef(depths)[0, 1].item()


def test_maps_tell_a_shape_what_picture_and_outline_do_not():
    (angle, correlation), (told_angle, told_correlation) = fit(with_maps=False), fit(with_maps=True)
    assert told_angle < 0.6 * angle
    assert told_correlation > max(0.6, correlation + 0.2)
