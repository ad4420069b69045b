"""The kernels that compose a picture against plain torch, interpreted on the CPU or compiled on CUDA."""

import pytest
import torch
from test_mesh_renderer import BOX, BOX_FACES, plain
from test_triton import devices

from pgc3d.cameras import turntable
from pgc3d.geometry.normals import vertex_normals
from pgc3d.kernels.light import LINEAR_KNEE, SRGB_KNEE
from pgc3d.rendering import mesh_renderer
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.rendering.mesh_renderer import render_mesh
from pgc3d.types import Cameras, Fragments, Mesh

BACKGROUNDS = torch.tensor([[0.2, 0.4, 0.6], [1.0, 0.0, 0.5], [0.0, 0.0, 0.0]])


def moved(values, like):
    """On the device and in the type of another tensor, and apart from the original."""
    return values.to(like, copy=True) if values.is_floating_point() else values.to(like.device)


def cameras_like(like):
    return Cameras(**{name: moved(value, like) for name, value in vars(turntable(3)).items()})


def scene(height, width, seed=0):
    """Places, colours and fragments of three views; nothing is hit in about a third of the pixels."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.rand(3, height, width, 4, generator=generator)
    data[..., 3] = torch.where(data[..., 3] < 0.35, 0.0, (9 * data[..., 3]).ceil())
    hit = data[..., 3:].reshape(-1, 1) > 0
    places = torch.randn(len(hit), 6, generator=generator) * hit
    color = torch.rand(len(hit), 3, generator=generator)
    color[::7] *= 2 * SRGB_KNEE  # on both sides of the knee
    color[1::7], color[2::7], color[3::7, 1] = 0.0, 1.0, SRGB_KNEE * 0.999
    return places, color, data


def run(places, color, data, like, *, shading, seeds):
    """Picture and depth, and what both seeds, on them, pull at places and colours."""
    places, color = (moved(values, like).requires_grad_() for values in (places, color))
    outputs = mesh_renderer._compose(
        color,
        places,
        None,
        Fragments(data=moved(data, like)),
        cameras_like(like),
        moved(BACKGROUNDS, like),
        shading=shading,
    )
    pairs = [(o, moved(seed, like)) for o, seed in zip(outputs, seeds, strict=True) if seed is not None]
    torch.autograd.backward([output for output, _ in pairs], [seed for _, seed in pairs])
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in (places, color)]
    return [*(output.detach() for output in outputs), *gradients]


def both(places, color, data, device, *, shading=True, depth=True):
    """The same in float32 and in float64."""
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(*data.shape[:3], 7, generator=generator)]
    seeds += [torch.randn(*data.shape[:3], 1, generator=generator) if depth else None]
    likes = [torch.zeros((), device=device, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    return [run(places, color, data, like, shading=shading, seeds=seeds) for like in likes]


def check(places, color, data, device, **options):
    found, exact = both(places, color, data, device, **options)
    missed = (data[..., 3] == 0).to(device)
    assert missed.any()
    for gradient in found[2:]:
        assert not gradient[missed.flatten()].any()
    for ours, expected in zip(found, exact, strict=True):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(ours.double(), expected, rtol=2e-5, atol=2e-6 * scale)


@pytest.fixture
def fused(monkeypatch):
    """Every picture in float32 takes the kernels, on the CPU too."""
    monkeypatch.setattr(mesh_renderer, "_is_fused", lambda places, *_: places.dtype == torch.float32)


@devices
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("shading", [True, False])
@pytest.mark.parametrize("depth", [True, False])
def test_picture_and_gradients_are_those_of_torch(shading, depth, device):
    check(*scene(9, 17), device, shading=shading, depth=depth)


@devices
@pytest.mark.usefixtures("fused")
def test_depth_alone_pulls_at_points_alone(device):
    places, color, data = scene(5, 5)
    seeds = [None, torch.ones(3, 5, 5, 1)]
    like = torch.zeros((), device=device)
    found = run(places, color, data, like, shading=True, seeds=seeds)
    exact = run(places, color, data, like.double(), shading=True, seeds=seeds)
    torch.testing.assert_close([x.double() for x in found], exact, rtol=1e-5, atol=1e-5)
    assert found[2][:, :3].any()
    assert not found[2][:, 3:].any()
    assert not found[3].any()


@devices
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("length", [0.0, 1e-14, 1e-3, 1e4])
def test_normals_of_any_length(length, device):
    """Those shorter than 1e-12, zero among them, are not made unit, and neither are their gradients."""
    places, color, data = scene(4, 6)
    normal = torch.nn.functional.normalize(places[:, 3:], dim=1)
    check(torch.cat([places[:, :3], length * normal], dim=1), color, data, device)


@devices
@pytest.mark.usefixtures("fused")
def test_colors_around_both_knees_and_beyond_the_range(device):
    """The knee of sRGB in the base colour, that of linear light in the lit one."""
    places, color, data = scene(6, 50)
    ramp = torch.linspace(-0.01, 1.3 * SRGB_KNEE, len(color))
    near = (ramp - SRGB_KNEE).abs() < 1e-5  # float32 and float64 may disagree about the side
    ramp = torch.where(near, SRGB_KNEE + 1e-4, ramp)
    color = torch.stack([ramp, 12.92 * LINEAR_KNEE * color[:, 1], 0.9 + 0.4 * color[:, 2]], dim=1)
    check(places, color, data, device)


@devices
@pytest.mark.usefixtures("fused")
def test_what_is_not_finite_shows_where_it_is_hit(device):
    places, color, data = scene(4, 4)
    color[:], places[:, 5] = torch.nan, torch.nan
    like = torch.zeros((), device=device)
    seeds = [torch.ones(3, 4, 4, 7), None]
    picture, depth, of_places, of_color = run(places, color, data, like, shading=True, seeds=seeds)
    hit = data[..., 3].to(device) > 0
    assert picture[hit][:, [0, 1, 2, 5]].isnan().all()
    assert picture[~hit].isfinite().all()
    assert depth.isfinite().all()
    assert of_color[hit.flatten()].isnan().all()
    assert of_places[hit.flatten(), 5].isnan().all()
    assert not of_places[~hit.flatten()].any()


@devices
@pytest.mark.usefixtures("fused")
def test_fixed_places_get_no_gradient(device):
    places, color, data = (values.to(device) for values in scene(3, 5))
    color.requires_grad_()
    like = torch.zeros((), device=device)
    inputs = (None, Fragments(data=data), cameras_like(like), BACKGROUNDS.to(device))
    picture, _ = mesh_renderer._compose(color, places, *inputs, shading=False)
    picture.sum().backward()
    assert torch.equal(color.grad, (data[..., 3].reshape(-1, 1) > 0).float().expand_as(color))


@devices
@pytest.mark.usefixtures("fused")
def test_pictures_of_meshes_are_those_of_covered_pixels(device):
    """Through the renderer: a fused picture everywhere against one of covered pixels in float64."""
    rasterizer = CpuRasterizer() if device == "cpu" else None
    if rasterizer is None:
        from pgc3d.rendering.triton import TritonRasterizer

        rasterizer = TritonRasterizer()
    results = []
    for dtype in (torch.float32, torch.float64) if device == "cpu" else (torch.float32,) * 2:
        like = torch.zeros((), device=device, dtype=dtype)
        vertices = moved(BOX + 0.013, like).requires_grad_()
        faces = BOX_FACES.to(device)
        mesh = Mesh(vertices, faces, vertex_normals(vertices, faces))
        picture = render_mesh(
            mesh,
            cameras_like(like),
            24,
            moved(BACKGROUNDS, like),
            rasterizer=rasterizer,
            material=plain,
            everywhere=not results,
        )
        images = [picture.color, picture.normal, picture.depth, picture.alpha]
        weights = [torch.rand(i.shape, generator=torch.Generator().manual_seed(0)) for i in images]
        sum((image * moved(w, like)).sum() for image, w in zip(images, weights, strict=True)).backward()
        results.append([*images, vertices.grad])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), expected.double(), rtol=1e-4, atol=1e-3)


def test_pictures_on_the_cpu_keep_their_way():
    places, color, _ = scene(2, 2)
    assert not mesh_renderer._is_fused(places, color, turntable(3), BACKGROUNDS)


@pytest.mark.gpu
def test_pictures_on_cuda_are_fused_unless_cameras_or_backgrounds_learn():
    places, color, _ = (values.cuda() for values in scene(2, 2))
    cameras, background = cameras_like(places), BACKGROUNDS.cuda()
    assert mesh_renderer._is_fused(places, color, cameras, background)
    assert not mesh_renderer._is_fused(places.double(), color.double(), cameras, background)
    assert not mesh_renderer._is_fused(places, color, cameras, background.requires_grad_())


@pytest.mark.gpu
def test_large_pictures_on_cuda_are_those_of_torch():
    """In the mean: of so many pixels, a few are rounded across the terminator or a knee."""
    for ours, exact in zip(*both(*scene(511, 1024), "cuda"), strict=True):
        assert (ours - exact).norm() < 1e-3 * exact.norm()
