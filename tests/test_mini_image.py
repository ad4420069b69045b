"""The bundled image prior as it is shipped: it loads, and knows which way an object turns."""

import math

import pytest
import torch
import trimesh
from framing import view_groups

from pgc3d.build.models import local_image_model
from pgc3d.diffusion.zero123 import load_zero123, relative_pose
from pgc3d.geometry.normals import vertex_normals
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.rendering.mesh_renderer import render_mesh
from pgc3d.schedules import add_noise
from pgc3d.types import Material, Mesh

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
    boxes = trimesh.util.concatenate([trimesh.creation.box(bounds=part) for part in PARTS.numpy()])
    boxes.unmerge_vertices()  # flat shading
    vertices, faces = torch.tensor(boxes.vertices).float(), torch.tensor(boxes.faces).long()
    return Mesh(vertices, faces, vertex_normals(vertices, faces))


def cameras(turns):
    """Around the chair, framed in its view from the front as a user's picture is."""
    azimuth = torch.tensor([[0.0, *turns]]).deg2rad()
    elevation = torch.full_like(azimuth, math.radians(ELEVATION))
    return view_groups(chair().vertices, azimuth, elevation)[1:]


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


def test_the_prior_knows_which_way_the_object_turns(model):
    """The arm is on one side, so that a view from the right is not a mirrored one from the left."""
    diffusion, shape = model.diffusion, model.diffusion.latent_shape(len(TURNS), SIZE)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    timesteps = torch.full((len(TURNS),), 900)
    poses = {
        sign: relative_pose(cameras([sign * turn for turn in TURNS]), cameras((0.0,)), model.pose)
        for sign in (1, -1)
    }
    for sign in poses:
        latents = diffusion.encode(paint([sign * turn for turn in TURNS]).color, torch.zeros(shape))
        noisy = add_noise(latents, noise, diffusion.alphas_cumprod[timesteps])
        right, wrong = (
            (model.predict(noisy, timesteps, poses[asked])[1] - noise).square().mean()
            for asked in (sign, -sign)
        )
        assert right < 0.6 * wrong  # measured 0.3
