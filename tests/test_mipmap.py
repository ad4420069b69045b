import pytest
import torch
from meshes import wavy_strip
from torch.autograd import gradcheck

from pgc3d.cameras import orbit
from pgc3d.geometry.normals import face_normals
from pgc3d.rendering.mesh_renderer import sample_texture
from pgc3d.rendering.mipmap import footprint_level, mip_chain, sample_chain, uv_gradients


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_level_zero_is_the_bilinear_lookup():
    image, uv = draw(16, 16, 3), draw(200, 2, seed=1) * 1.2 - 0.1
    for level in (0.0, -3.0):
        found = sample_chain(mip_chain(image), 16, uv, torch.full((200,), level))
        torch.testing.assert_close(found, sample_texture(image, uv))


def test_last_level_is_the_mean():
    image, uv = draw(16, 16, 3), draw(50, 2, seed=1)
    for level in (4.0, 9.0):
        found = sample_chain(mip_chain(image), 16, uv, torch.full((50,), level).double())
        torch.testing.assert_close(found, image.mean((0, 1)).expand(50, 3))


def test_between_two_levels_both_count_linearly():
    chain, uv = mip_chain(draw(16, 16, 3)), draw(50, 2, seed=1)

    def at(level):
        return sample_chain(chain, 16, uv, torch.full((50,), level).double())

    torch.testing.assert_close(at(1.25), 0.75 * at(1.0) + 0.25 * at(2.0))


def test_gradient_agrees_with_finite_differences():
    uv, level = draw(12, 2, seed=1), 4 * draw(12, seed=2)
    weight = 0.1 + draw(8, 8, seed=3)
    image = draw(8, 8, 2).requires_grad_()
    assert gradcheck(lambda texels: sample_chain(mip_chain(texels, weight), 8, uv, level), (image,))


def test_what_has_no_weight_does_not_bleed():
    weight = torch.full((8, 8), 1e-6, dtype=torch.float64)
    weight[:, :3] = 1.0
    image = draw(8, 8, 3)
    image[:, :3] = 0.25
    chain = mip_chain(image, weight)
    torch.testing.assert_close(chain[-1], torch.full((3,), 0.25, dtype=torch.float64), atol=1e-5, rtol=0)


def test_uv_gradients_give_back_the_differences_along_edges():
    mesh = wavy_strip()
    gradient = uv_gradients(mesh)
    for first, second in ((0, 1), (1, 2), (2, 0)):
        edge = mesh.vertices[mesh.faces[:, second]] - mesh.vertices[mesh.faces[:, first]]
        expected = mesh.uv[mesh.uv_faces[:, second]] - mesh.uv[mesh.uv_faces[:, first]]
        torch.testing.assert_close((gradient @ edge[..., None])[..., 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("degrees", [0.0, 50.0])
def test_footprint_is_that_of_the_neighbouring_pixel(degrees):
    """A plate one unit wide that carries the whole image: how far the next ray lies in uv, by hand."""
    mesh, size, resolution, distance = wavy_strip(), 256, 64, 3.0
    vertices = mesh.vertices * torch.tensor([1.0, 1.0, 0.0])
    plate = type(mesh)(**{**vars(mesh), "vertices": vertices})
    angle, fovy = torch.tensor([degrees]).deg2rad(), torch.tensor([40.0]).deg2rad()
    cameras = orbit(angle, torch.zeros(1), torch.tensor([distance]), fovy)
    face = torch.tensor([0])
    level = footprint_level(
        uv_gradients(plate)[face],
        torch.zeros(1, 3),
        face_normals(plate.vertices, plate.faces)[face],
        torch.tensor([0]),
        cameras,
        resolution=resolution,
        texture_size=size,
    )
    step = 2 * distance * torch.tan(fovy / 2) / resolution / torch.cos(angle)
    torch.testing.assert_close(level, torch.log2(step * size), atol=1e-4, rtol=0)
