"""The Triton rasteriser's kernels against their numba twin, interpreted on the CPU or compiled on CUDA."""

import pytest
import torch
from test_triton import devices

from pgc3d.kernels import zbuffer_numba

# numpy, which interprets the kernels on the CPU, warns of what CUDA computes silently
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def agree(clip, faces, height, width, device):
    """Look at a scene with both; the picture of the twin."""
    from pgc3d.kernels import zbuffer_triton

    expected = zbuffer_numba.find_visible(clip, faces, height, width)
    found = zbuffer_triton.find_visible(clip.to(device), faces.to(device), height, width)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-6, rtol=0)
    return expected


def soup(seed, vertices=60, triangles=50, size=0.4):
    """Two views of small and large triangles, some behind or across the camera plane, some spoiled."""
    generator = torch.Generator().manual_seed(seed)
    centre = 2.4 * torch.rand(2, vertices // 3, 1, 3, generator=generator) - 1.2
    corners = centre + size * torch.randn(2, vertices // 3, 3, 3, generator=generator)
    w = 0.5 + 2 * torch.rand(2, vertices, 1, generator=generator)
    clip = torch.cat([corners.reshape(2, vertices, 3) * w, w], dim=2)
    faces = torch.arange(vertices).reshape(-1, 3)
    shared = torch.randint(vertices, (triangles - len(faces), 3), generator=generator)
    clip[:, 4, 3] *= -1
    clip[0, 9:15, 3] *= -1
    clip[0, 15] = torch.nan
    clip[1, 19, 2] = torch.inf
    clip[1, 22] = clip[1, 21]
    return clip, torch.cat([faces, shared])


@devices
@pytest.mark.parametrize(
    ("seed", "height", "width"), [(0, 40, 40), (1, 17, 70), (2, 64, 9), (3, 1, 33), (4, 5, 1)]
)
def test_random_triangles_look_the_same(seed, height, width, device):
    clip, faces = soup(seed)
    picture = agree(clip, faces, height, width, device)
    assert (picture[..., 3] > 0).any()


@devices
@pytest.mark.parametrize("seed", [0, 1])
def test_meshes_look_the_same(seed, device):
    """Random meshes without gaps: shared edges, triangles of a few pixels, more than one block of items."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = 14, 19
    grid = torch.cartesian_prod(torch.linspace(-1.2, 1.2, rows), torch.linspace(-1.2, 1.2, columns))
    grid = grid + 0.05 * torch.randn(rows * columns, 2, generator=generator)
    w = 0.5 + 2 * torch.rand(rows * columns, 1, generator=generator)
    z = 0.9 * torch.rand(rows * columns, 1, generator=generator)
    clip = torch.cat([grid * w, z * w, w], dim=1)[None]
    picture = agree(clip, grid_faces(rows, columns), 48, 60, device)
    assert (picture[..., 3] > 0).all()


def grid_faces(rows, columns):
    index = torch.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    return torch.stack([torch.stack([a, b, c], -1), torch.stack([b, d, c], -1)]).reshape(-1, 3)


@devices
def test_a_pixel_on_an_edge_belongs_to_the_lowest_index(device):
    """Vertices on the centres of pixels 0, 3 and 6, so that edges run through centres; one depth for all."""
    centre = (torch.arange(8) + 0.5) / 8 * 2 - 1
    grid = torch.cartesian_prod(centre[:7:3], -centre[:7:3])
    clip = torch.cat([grid, torch.zeros(9, 1), torch.ones(9, 1)], dim=1)[None]
    faces = grid_faces(3, 3)
    triangle = agree(clip, faces, 8, 8, device)[0, ..., 3]
    assert (triangle[:7, :7] > 0).all()
    assert triangle.count_nonzero() == 49
    highest = len(faces) + 1 - agree(clip, faces.flip(0), 8, 8, device)[0, ..., 3]
    assert (triangle[:7, :7] <= highest[:7, :7]).all()
    assert (triangle[3, :7] < highest[3, :7]).all()


@devices
@pytest.mark.parametrize("w", [(1.0, 1.0, 1.0), (1.0, 2.0, 0.5), (1.0, 1.0, -0.5), (-1.0, 1.0, -2.0)])
def test_large_triangles_look_the_same(w, device):
    corners = torch.tensor([[-9.0, -7.0, 0.1], [11.0, -8.0, 0.2], [0.5, 6.0, 0.3]])
    w = torch.tensor(w)[:, None]
    clip = torch.cat([corners * w.abs(), w], dim=1)[None]
    agree(clip, torch.tensor([[0, 1, 2]]), 37, 91, device)


@devices
@pytest.mark.parametrize(("sets", "channels"), [(1, 6), (2, 1), (2, 3)])
@pytest.mark.parametrize("need_attributes", [True, False])
def test_interpolation_and_its_gradients_agree(sets, channels, need_attributes, device):
    from pgc3d.kernels import zbuffer_triton

    clip, faces = soup(5)
    data = zbuffer_numba.find_visible(clip, faces, 13, 31)
    generator = torch.Generator().manual_seed(0)
    attributes = torch.randn(sets, clip.shape[1], channels, generator=generator)
    gradient = torch.randn(2, 13, 31, channels, generator=generator)
    there = [tensor.to(device) for tensor in (attributes, data, faces)]
    expected = zbuffer_numba.interpolate(attributes, data, faces)
    torch.testing.assert_close(zbuffer_triton.interpolate(*there).cpu(), expected)
    options = {"need_attributes": need_attributes}
    expected = zbuffer_numba.interpolate_backward(gradient, attributes, data, faces, **options)
    found = zbuffer_triton.interpolate_backward(gradient.to(device), *there, **options)
    assert (found[0] is None) == (not need_attributes)
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)


@devices
def test_position_gradients_agree(device):
    from pgc3d.kernels import zbuffer_triton

    clip, faces = soup(6)
    data = zbuffer_numba.find_visible(clip, faces, 30, 24)
    gradient = torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
    gradient[:, ::2] = 0
    expected = zbuffer_numba.find_visible_backward(gradient, clip, data, faces)
    found = zbuffer_triton.find_visible_backward(*(x.to(device) for x in (gradient, clip, data, faces)))
    assert expected.abs().max() > 1
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-3)
