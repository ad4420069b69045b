import logging

import numpy as np
import pytest
import torch
import trimesh
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from pgc3d.exporting.bake import fill
from pgc3d.geometry.own_uv import draw_atlas
from pgc3d.geometry.uv import UvAtlas, triangle_atlas, unwrap
from pgc3d.rendering.cpu import CpuRasterizer


def torus() -> tuple[Tensor, Tensor]:
    mesh = trimesh.creation.torus(1.0, 0.4, major_sections=16, minor_sections=8)
    return torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces, dtype=torch.int64)


def crumpled() -> tuple[Tensor, Tensor]:
    """A rough ball, which falls into many charts."""
    mesh, generator = trimesh.creation.icosphere(subdivisions=2), torch.Generator().manual_seed(0)
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32)
    vertices = vertices * (1 + 0.06 * torch.randn(len(vertices), 1, generator=generator))
    return vertices, torch.tensor(mesh.faces, dtype=torch.int64)


def hits(atlas: UvAtlas, size: int) -> np.ndarray:
    """How many faces contain each texel centre."""
    centre = (np.arange(size) + 0.5) / size
    grid = np.stack(np.meshgrid(centre, centre), axis=-1)
    count = np.zeros((size, size), dtype=int)
    for a, b, c in atlas.uv[atlas.uv_faces].double().numpy():
        inside = np.ones((size, size), dtype=bool)
        sign = np.sign(cross(b - a, c - a))
        for start, end in ((a, b), (b, c), (c, a)):
            inside &= sign * cross(end - start, grid - start) > 0
        count += inside
    return count


def cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


@pytest.mark.parametrize("time_limit", [60.0, 0.0], ids=["xatlas", "triangles"])
def test_atlas_covers_every_face_once(time_limit):
    vertices, faces = torus()
    atlas = unwrap(vertices, faces, texture_size=256, time_limit=time_limit)
    assert atlas.method == ("xatlas" if time_limit else "triangles")
    assert atlas.uv.min() >= 0
    assert atlas.uv.max() <= 1
    torch.testing.assert_close(atlas.vertex[atlas.uv_faces], faces)
    count = hits(atlas, 256)
    assert count.max() == 1
    assert (count > 0).mean() > 0.3
    corners = atlas.uv[atlas.uv_faces]
    area = cross((corners[:, 1] - corners[:, 0]).numpy(), (corners[:, 2] - corners[:, 0]).numpy())
    assert (np.abs(area) > 0).all()


def test_time_limit_is_kept_and_the_fallback_is_said(caplog):
    vertices, faces = torus()
    with caplog.at_level(logging.WARNING):
        atlas = unwrap(vertices, faces, texture_size=64, time_limit=1e-3)
    assert atlas.method == "triangles"
    assert "was not done after 0.001 s" in caplog.text


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_packing_holds_any_number_of_faces_of_any_size(count):
    generator = torch.Generator().manual_seed(count)
    scale = torch.logspace(-3, 1, count)[:, None, None]
    vertices = (scale * torch.rand(count, 3, 3, generator=generator)).reshape(-1, 3)
    atlas = triangle_atlas(vertices, torch.arange(3 * count).reshape(-1, 3), texture_size=64)
    assert 0 <= atlas.uv.min() < atlas.uv.max() <= 1
    if count < 100:
        assert hits(atlas, 64).max() == 1
    # A mirrored face would mirror whatever is painted on it.
    corners = atlas.uv[atlas.uv_faces].numpy()
    assert (cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) > 0).all()


def test_larger_faces_get_more_texture():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [5.1, 0, 0], [5, 0.1, 0]])
    vertices = torch.cat([vertices, vertices + 20])
    faces = torch.arange(12).reshape(-1, 3)
    corners = triangle_atlas(vertices, faces, texture_size=256).uv.reshape(-1, 3, 2)
    edge = (corners[:, 1] - corners[:, 0]).norm(dim=1)
    assert edge[0] > 4 * edge[1]


def least_padding(atlas: UvAtlas, size: int) -> float:
    """Texels of the thinnest seam of baked charts: the distance of a chart from where another one begins."""
    fragments = draw_atlas(atlas.uv, atlas.uv_faces, size, CpuRasterizer())
    edges = np.concatenate([atlas.uv_faces[:, :2], atlas.uv_faces[:, 1:]])
    charts = trimesh.graph.connected_component_labels(edges, node_count=len(atlas.uv))
    face, covered = fragments.triangle[0], fragments.mask[0, ..., 0] > 0
    label = torch.from_numpy(charts)[atlas.uv_faces[face.clamp(min=0), 0]].double() * covered
    label, distance = (
        fill(label[..., None], covered)[..., 0].numpy(),
        distance_transform_edt(~covered.numpy()),
    )
    assert len(np.unique(label)) > 5
    across = [(label[:-1] != label[1:], distance[:-1], distance[1:])]
    across += [(label[:, :-1] != label[:, 1:], distance[:, :-1], distance[:, 1:])]
    return min(np.minimum(first, second)[border].min() for border, first, second in across)


@pytest.mark.parametrize(("size", "padding"), [(256, 2), (256, 4), (512, 4), (512, 8)])
@pytest.mark.parametrize("make", [torus, crumpled], ids=["smooth", "many charts"])
def test_each_chart_is_continued_by_all_of_its_padding(make, size, padding):
    atlas = unwrap(*make(), texture_size=size, padding=padding)
    assert (atlas.method, atlas.padding) == ("xatlas", padding)
    assert least_padding(atlas, size) >= padding


def test_an_image_that_is_too_small_for_its_charts_has_less_padding():
    atlas = unwrap(*crumpled(), texture_size=64, padding=8)
    assert atlas.method == "xatlas"
    assert atlas.padding < 8
    assert least_padding(atlas, 64) >= atlas.padding


def test_charts_have_the_same_density_of_texels():
    vertices, faces = crumpled()
    atlas = unwrap(vertices, faces, texture_size=512)
    corners, flat = vertices[faces], atlas.uv[atlas.uv_faces].double()
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1) / 2
    first, second = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    drawn = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]).abs() / 2
    density = (drawn / area).sqrt()
    order = density.argsort()
    share = area[order].cumsum(0) / area.sum()
    low, high = (density[order][int((share < part).sum())] for part in (0.05, 0.95))
    assert high / low < 1.35
