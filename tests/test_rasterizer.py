import importlib.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgc3d.cameras import turntable
from pgc3d.errors import BackendUnavailableError
from pgc3d.interfaces import Rasterizer
from pgc3d.rendering import build_rasterizer
from pgc3d.rendering.cpu import CpuRasterizer

# numpy, which interprets the Triton kernels here, warns of what CUDA computes silently
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or torch.cuda.is_available(),
    reason="triton is not installed, or compiles its kernels for CUDA",
)


@pytest.fixture(params=["cpu", pytest.param("triton", marks=needs_triton)])
def rasterizer(request):
    if request.param == "cpu":
        return CpuRasterizer()
    from pgc3d.rendering.triton import TritonRasterizer

    return TritonRasterizer()


def one_triangle(points, w=(1.0, 1.0, 1.0)):
    """Clip positions [1, 3, 4] of a triangle given in normalised device coordinates."""
    corners = [[x * k, y * k, z * k, k] for (x, y, z), k in zip(points, w, strict=True)]
    return torch.tensor([corners]), torch.tensor([[0, 1, 2]])


def scene(dtype=torch.float64):
    """Two views of a tetrahedron with four free vertices."""
    vertices = torch.tensor(
        [[0.8, -0.5, 0.1], [-0.7, -0.6, 0.3], [0.1, 0.8, -0.1], [0.05, -0.1, 0.7]], dtype=dtype
    )
    faces = torch.tensor([[0, 2, 3], [2, 1, 3], [1, 0, 3], [0, 1, 2]])
    clip_from_world = turntable(2).clip_from_world.to(dtype)
    clip = torch.nn.functional.pad(vertices, (0, 1), value=1.0) @ clip_from_world.transpose(1, 2)
    return clip, faces


def test_auto_gives_the_cpu_backend_on_the_cpu():
    rasterizer = build_rasterizer("auto", torch.device("cpu"))
    assert isinstance(rasterizer, CpuRasterizer)
    assert isinstance(rasterizer, Rasterizer)


@pytest.mark.parametrize(("backend", "device"), [("cpu", "cuda"), ("triton", "cpu")])
def test_backend_refuses_another_device(backend, device):
    with pytest.raises(BackendUnavailableError, match=f"got {device}.*use "):
        build_rasterizer(backend, torch.device(device))


def test_row_0_is_on_top_and_x_grows_to_the_right(rasterizer):
    clip, faces = one_triangle([(0.1, 0.1, 0.0), (0.9, 0.1, 0.0), (0.9, 0.9, 0.0)])
    mask = rasterizer.rasterize(clip, faces, (8, 16)).mask[0, ..., 0]
    assert mask[:4, 8:].sum() > 0
    assert mask[4:].sum() == 0
    assert mask[:, :8].sum() == 0
    assert mask[0].sum() < mask[3].sum()


def test_layout_is_u_v_depth_and_index_plus_one(rasterizer):
    clip, faces = one_triangle([(-3.0, -1.0, -0.5), (3.0, -1.0, 0.5), (0.0, 5.0, 0.25)], w=(1.0, 2.0, 3.0))
    data = rasterizer.rasterize(clip, faces, (9, 9)).data[0]
    assert (data[..., 3] == 1).all()
    weights = torch.stack([data[..., 0], data[..., 1], 1 - data[..., 0] - data[..., 1]], dim=-1)
    position = weights @ clip[0]  # perspective-correct weights mix homogeneous positions
    centres = (torch.arange(9) + 0.5) / 9 * 2 - 1
    torch.testing.assert_close(position[..., 0] / position[..., 3], centres.expand(9, 9), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        position[..., 1] / position[..., 3], -centres[:, None].expand(9, 9), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(position[..., 2] / position[..., 3], data[..., 2], atol=1e-5, rtol=0)


def test_nearer_triangle_wins_whatever_the_order_and_winding(rasterizer):
    near = [[-1, -1, -0.5, 1], [1, -1, -0.5, 1], [0, 1, -0.5, 1]]
    far = [[-1, -1, 0.5, 1], [1, -1, 0.5, 1], [0, 1, 0.5, 1]]
    clip = torch.tensor([near + far], dtype=torch.float32)
    for faces, expected in (
        ([[0, 1, 2], [3, 4, 5]], 1),
        ([[3, 4, 5], [0, 2, 1]], 2),
        ([[5, 4, 3], [0, 1, 2]], 2),
    ):
        data = rasterizer.rasterize(clip, torch.tensor(faces), (16, 16)).data
        assert set(data[..., 3].unique().tolist()) == {0.0, float(expected)}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_no_pixel_falls_between_neighbouring_triangles(seed):
    generator = torch.Generator().manual_seed(seed)
    size = 6
    grid = torch.linspace(-1.2, 1.2, size)
    points = torch.cartesian_prod(grid, grid) + 0.2 * (torch.rand(size * size, 2, generator=generator) - 0.5)
    w = 0.5 + 2 * torch.rand(size * size, 1, generator=generator)
    clip = torch.cat([points * w, 0 * w, w], dim=1)[None]
    index = torch.arange(size * size).reshape(size, size)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    faces = torch.stack([torch.stack([a, b, c], -1), torch.stack([b, d, c], -1)]).reshape(-1, 3)
    assert CpuRasterizer().rasterize(clip, faces, (64, 64)).mask.all()


def test_triangle_across_the_camera_plane_is_drawn_in_front_only(rasterizer):
    # A floor at y = -1 from behind the camera to the horizon: the lower half of the picture.
    world = torch.tensor([[-50.0, -1.0, 5.0], [50.0, -1.0, 5.0], [0.0, -1.0, -1000.0]])
    clip = torch.stack([world[:, 0], world[:, 1], 0 * world[:, 2], -world[:, 2]], dim=1)[None]
    mask = rasterizer.rasterize(clip, torch.tensor([[0, 1, 2]]), (16, 16)).mask[0, ..., 0]
    assert mask[:8].sum() == 0
    assert mask[9:].all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda clip: clip[0, 0].fill_(math.nan),
        lambda clip: clip[0, 1, 3].fill_(math.inf),
        lambda clip: clip[..., 3].neg_(),
        lambda clip: clip[0, 1].copy_(clip[0, 0]),
        lambda clip: clip.zero_(),
    ],
    ids=["nan", "infinite", "behind", "degenerate", "all zero"],
)
def test_bad_triangles_are_not_drawn(rasterizer, spoil):
    clip, faces = one_triangle([(-1.0, -1.0, 0.0), (1.0, -1.0, 0.0), (0.0, 1.0, 0.0)])
    spoil(clip)
    clip.requires_grad_()
    data = rasterizer.rasterize(clip, faces, (8, 8)).data
    assert (data == 0).all()
    data.sum().backward()
    assert (clip.grad == 0).all()


def test_empty_mesh_gives_an_empty_picture(rasterizer):
    fragments = rasterizer.rasterize(torch.zeros(2, 0, 4), torch.zeros(0, 3, dtype=torch.int64), (5, 7))
    assert fragments.data.shape == (2, 5, 7, 4)
    assert (fragments.data == 0).all()
    output = rasterizer.interpolate(torch.zeros(1, 0, 3), fragments, torch.zeros(0, 3, dtype=torch.int64))
    assert (output == 0).all()


def test_uv_gradient_matches_finite_differences():
    clip, faces = scene()
    rasterizer = CpuRasterizer()
    fragments = rasterizer.rasterize(clip, faces, (16, 16))
    # Pixels that change their triangle under the step would spoil the difference.
    weight = torch.rand(2, 16, 16, 2, generator=torch.Generator().manual_seed(0), dtype=clip.dtype)
    clip.requires_grad_()

    def loss(clip):
        moved = rasterizer.rasterize(clip, faces, (16, 16))
        same = (moved.data[..., 3:] == fragments.data[..., 3:]) & (fragments.data[..., 3:] > 0)
        assert same.sum() == (fragments.data[..., 3:] > 0).sum()
        return (moved.data[..., :2] * weight * same).sum()

    gradient = torch.autograd.grad(loss(clip), clip)[0]
    assert gradient.abs().max() > 1
    with torch.no_grad():
        for index in [(0, 0, 0), (0, 1, 1), (0, 3, 3), (1, 2, 0), (1, 3, 1), (1, 1, 3)]:
            step = torch.zeros_like(clip)
            step[index] = 1e-7
            difference = (loss(clip + step) - loss(clip - step)) / 2e-7
            torch.testing.assert_close(gradient[index], difference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sets", [1, 2])
def test_interpolation_gradients_match_finite_differences(sets):
    clip, faces = scene()
    rasterizer = CpuRasterizer()
    data = rasterizer.rasterize(clip, faces, (6, 6)).data
    generator = torch.Generator().manual_seed(0)
    attributes = torch.rand(sets, 4, 2, generator=generator, dtype=clip.dtype, requires_grad=True)

    def evaluate(attributes, uv):
        fragments = type(rasterizer.rasterize(clip, faces, (6, 6)))(torch.cat([uv, data[..., 2:]], dim=-1))
        return rasterizer.interpolate(attributes, fragments, faces)

    assert torch.autograd.gradcheck(evaluate, (attributes, data[..., :2].clone().requires_grad_()))


def test_interpolating_one_gives_the_mask(rasterizer):
    clip, faces = scene(torch.float32)
    fragments = rasterizer.rasterize(clip, faces, (16, 16))
    torch.testing.assert_close(rasterizer.interpolate(torch.ones(1, 4, 1), fragments, faces), fragments.mask)
