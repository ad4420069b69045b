import math

import pytest
import torch
import trimesh
from torch import Tensor

from pgc3d.exporting.bake import TexelSurface, bake, fill, query, surface_texels, vertex_colors
from pgc3d.geometry.uv import UvAtlas, unwrap
from pgc3d.rendering import build_rasterizer
from pgc3d.types import Material

SIZE = 96


def textured(points: Tensor) -> Material:
    """A smooth colour that differs everywhere on the surface."""
    return Material(
        base_color=0.5 + 0.4 * torch.sin(2 * points),
        roughness=0.5 + 0.3 * points[:, :1].clamp(-1, 1),
        metallic=torch.full_like(points[:, :1], 0.25),
    )


@pytest.fixture(scope="module")
def rasterizer():
    return build_rasterizer("cpu", torch.device("cpu"))


@pytest.fixture(scope="module", params=["xatlas", "triangles"])
def sphere(request) -> tuple[Tensor, UvAtlas]:
    mesh = trimesh.creation.icosphere(subdivisions=2)
    vertices, faces = torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces)
    limit = 60.0 if request.param == "xatlas" else 0.0
    return vertices, unwrap(vertices, faces, texture_size=SIZE, time_limit=limit)


def sample(image: Tensor, uv: Tensor) -> Tensor:
    """Bilinear look-up as a viewer does it, v upwards."""
    grid = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], dim=-1)[None, None]
    picture = image.permute(2, 0, 1)[None].float() / 255
    found = torch.nn.functional.grid_sample(picture, grid, align_corners=False, padding_mode="border")
    return found[0, :, 0].T


def test_texture_returns_the_field_everywhere_on_the_surface(sphere, rasterizer):
    vertices, atlas = sphere
    textures = bake(vertices, atlas, textured, texture_size=SIZE, rasterizer=rasterizer)
    weights = torch.distributions.Dirichlet(torch.ones(3)).sample((len(atlas.uv_faces), 4))
    points = torch.einsum("fsc,fcd->fsd", weights, vertices[atlas.vertex[atlas.uv_faces]]).reshape(-1, 3)
    uv = torch.einsum("fsc,fcd->fsd", weights, atlas.uv[atlas.uv_faces]).reshape(-1, 2)
    expected = textured(points)
    tolerance = 0.05 if atlas.method == "xatlas" else 0.25  # triangles of a few texels
    error = (sample(textures.base_color, uv) - expected.base_color).abs()
    assert error.max() < tolerance
    assert error.mean() < 0.01
    surface = sample(textures.metallic_roughness, uv)
    assert (surface[:, 1:2] - expected.roughness).abs().max() < tolerance
    torch.testing.assert_close(surface[:, 2:], expected.metallic, atol=1 / 255, rtol=0)


def test_charts_smaller_than_a_texel_have_their_own_colour(rasterizer):
    mesh, generator = trimesh.creation.icosphere(subdivisions=4), torch.Generator().manual_seed(0)
    vertices, faces = torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces)
    vertices = vertices * (1 + 0.03 * torch.randn(len(vertices), 1, generator=generator))
    atlas = unwrap(vertices, faces, texture_size=128, padding=0)
    image = bake(vertices, atlas, textured, texture_size=128, rasterizer=rasterizer).base_color
    middle = vertices[faces].mean(dim=1)
    error = (sample(image, atlas.uv[atlas.uv_faces].mean(dim=1)) - textured(middle).base_color).abs()
    assert (error > 0.15).float().mean() < 0.02
    assert error.max() < 0.5


def test_texels_lie_on_the_surface(sphere, rasterizer):
    vertices, atlas = sphere
    points, covered = surface_texels(
        TexelSurface.of(vertices, atlas), texture_size=SIZE, rasterizer=rasterizer
    )
    assert covered.float().mean() > 0.3
    radius = points[covered].norm(dim=1)
    assert radius.max() <= 1 + 1e-5
    assert radius.min() > 0.9


def test_no_texel_stays_empty(sphere, rasterizer):
    vertices, atlas = sphere
    textures = bake(vertices, atlas, textured, texture_size=SIZE, rasterizer=rasterizer)
    low, high = 255 * 0.1 - 1, 255 * 0.9 + 1
    assert textures.base_color.min() >= low
    assert textures.base_color.max() <= high
    assert not textures.covered.all()


def test_smallest_mip_level_has_the_charts_brightness(rasterizer):
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    atlas = UvAtlas(0.1 + 0.3 * vertices[:, :2], torch.tensor([[0, 1, 2]]), torch.arange(3), "triangles")

    def grey(points: Tensor) -> Material:
        flat = torch.full_like(points[:, :1], 0.6)
        return Material(base_color=flat.expand(-1, 3), roughness=flat, metallic=flat)

    textures = bake(vertices, atlas, grey, texture_size=64, rasterizer=rasterizer)
    assert set(textures.base_color.unique().tolist()) == {round(0.6 * 255)}


def test_row_zero_is_the_top_of_the_texture(rasterizer):
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    atlas = UvAtlas(vertices[:, :2], torch.tensor([[0, 1, 2], [0, 2, 3]]), torch.arange(4), "triangles")
    points, covered = surface_texels(TexelSurface.of(vertices, atlas), texture_size=16, rasterizer=rasterizer)
    assert covered.all()
    centre = (torch.arange(16) + 0.5) / 16
    torch.testing.assert_close(points[0, :, 0], centre, atol=1e-5, rtol=0)
    torch.testing.assert_close(points[:, 0, 1], 1 - centre, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8), (7, 13), (1, 5)])
def test_fill_keeps_what_is_known_and_stays_in_its_range(shape):
    generator = torch.Generator().manual_seed(0)
    values = 0.3 + 0.4 * torch.rand(*shape, 2, generator=generator)
    known = torch.rand(*shape, generator=generator) > 0.7
    known[0, 0] = True
    filled = fill(values * known[..., None], known)
    torch.testing.assert_close(filled[known], values[known])
    assert filled.min() >= values[known].min() - 1e-6
    assert filled.max() <= values[known].max() + 1e-6


def test_padding_continues_the_nearest_chart():
    values = torch.zeros(16, 16, 1)
    values[:, :4], values[:, 12:] = 0.2, 0.8
    known = (values > 0)[..., 0]
    filled = fill(values, known)
    assert math.isclose(filled[8, 6, 0].item(), 0.2, abs_tol=1e-6)
    assert math.isclose(filled[8, 9, 0].item(), 0.8, abs_tol=1e-6)


def test_query_in_chunks_is_the_query_at_once(monkeypatch):
    monkeypatch.setattr("pgc3d.exporting.bake.CHUNK", 7)
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    expected = textured(points)
    torch.testing.assert_close(query(textured, points)[:, :3], expected.base_color)
    assert query(textured, points[:0]).shape == (0, 5)
    assert vertex_colors(points, textured).shape == (30, 3)


@pytest.mark.parametrize("texels", [1, 700, 96 * 33])
def test_an_image_baked_in_bands_is_the_image_at_once(sphere, rasterizer, monkeypatch, texels):
    vertices, atlas = sphere
    whole = bake(vertices, atlas, textured, texture_size=SIZE, rasterizer=rasterizer)
    monkeypatch.setattr("pgc3d.exporting.bake.BAND", texels)
    bands = bake(vertices, atlas, textured, texture_size=SIZE, rasterizer=rasterizer)
    other = bands.covered != whole.covered  # by rounding, texels at the very edge of a face
    assert other.float().mean() < 1e-3
    for name in ("base_color", "metallic_roughness"):
        difference = (getattr(bands, name).int() - getattr(whole, name).int()).abs()
        assert difference[whole.covered & ~other].max() <= 1
        assert (difference > 1).float().mean() < 5e-3
