"""The bundled image prior as it is shipped: it loads, and knows which way an object turns."""

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import pgc3d.mini
from pgc3d.cameras import fill_distance, frame_points, orbit
from pgc3d.diffusion.zero123 import load_zero123, relative_pose
from pgc3d.geometry.normals import vertex_normals
from pgc3d.render.cpu import CpuRasterizer
from pgc3d.render.mesh_renderer import render_mesh
from pgc3d.schedules import add_noise
from pgc3d.teachers import local_image_model
from pgc3d.types import Material, Mesh

FOLDER = Path(pgc3d.mini.__file__).parent / "image"
SIZE = 256
TURNS = (30.0, 60.0)
ELEVATION = 20.0
# low and high corners: seat, four legs, back, and an arm on one side only
PARTS = torch.tensor([
    [[-0.4, 0.0, -0.4], [0.4, 0.1, 0.4]],
    *[[[x, -0.5, z], [x + 0.1, 0.0, z + 0.1]] for x in (-0.4, 0.3) for z in (-0.4, 0.3)],
    [[-0.4, 0.1, -0.4], [0.4, 0.7, -0.3]],
    [[0.3, 0.25, -0.3], [0.4, 0.35, 0.4]],
])  # fmt: skip


def chair():
    corners = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    quads = ([0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3])
    faces = torch.tensor([[a, b, c] for a, b, c, _ in quads] + [[a, c, d] for a, _, c, d in quads])
    vertices = PARTS[:, None, 0] + corners * (PARTS[:, None, 1] - PARTS[:, None, 0])
    flat = vertices.reshape(-1, 1, 3)[faces + 8 * torch.arange(len(PARTS))[:, None, None]].reshape(-1, 3)
    apart = torch.arange(len(flat)).reshape(-1, 3)  # flat shading
    return Mesh(flat, apart, vertex_normals(flat, apart))


def cameras(turns):
    """Around the chair, framed in its view from the front as a user's picture is."""
    azimuth = torch.tensor(turns).deg2rad()
    elevation, fovy = (torch.full_like(azimuth, math.radians(angle)) for angle in (ELEVATION, 40.0))
    nearest = fill_distance(fovy[:1], torch.ones(1)) / 1.25
    zero = torch.zeros(1)
    target, distance = frame_points(
        chair().vertices, zero, elevation[:1], fovy[:1], border=0.2, nearest=nearest
    )
    return orbit(azimuth, elevation, distance.expand_as(azimuth), fovy, target.expand(len(azimuth), -1))


def paint(turns):
    def material(points):
        red = torch.tensor([0.7, 0.1, 0.1]).expand(len(points), 3)
        return Material(red, torch.ones(len(points), 1), torch.zeros(len(points), 1))

    views, white = cameras(turns), torch.ones(len(turns), 3)
    return render_mesh(chair(), views, SIZE, white, rasterizer=CpuRasterizer(), material=material)


@pytest.fixture(scope="module")
def model():
    first = paint((0.0,))
    photo = torch.cat([first.color - 1 + first.alpha, first.alpha], dim=-1)[0]
    return load_zero123(local_image_model("mini"), photo)


def test_weights_are_safetensors_in_half_precision_of_at_most_40_megabytes():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 40e6
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    for file in FOLDER.rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118
        assert {tensor.dtype for tensor in tensors} == {torch.float16}
        assert all(torch.isfinite(tensor).all() for tensor in tensors)


def error(model, turns, asked):
    """Of the clean pictures that the model expects, on views at `turns` when it is asked for `asked`."""
    diffusion = model.diffusion
    latents = diffusion.encode(paint(turns).color, torch.zeros(diffusion.latent_shape(len(turns), SIZE)))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    timesteps = torch.full((len(turns),), 900)
    signal = diffusion.alphas_cumprod[timesteps]
    pose = relative_pose(cameras(asked), cameras((0.0,)), model.pose)
    _, conditional = model.predict(add_noise(latents, noise, signal), timesteps, pose)
    return (conditional - noise).square().mean((1, 2, 3))


def test_the_prior_knows_which_way_the_object_turns(model):
    """The arm is on one side, so that a view from the right is not a mirrored one from the left."""
    for sign in (1.0, -1.0):
        turns = tuple(sign * turn for turn in TURNS)
        right, wrong = error(model, turns, turns), error(model, turns, tuple(-turn for turn in turns))
        assert right.mean() < 0.6 * wrong.mean()  # measured 0.3
