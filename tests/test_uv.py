import logging

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from pgc3d.geometry.uv import UvAtlas, triangle_atlas, unwrap


def torus() -> tuple[Tensor, Tensor]:
    mesh = trimesh.creation.torus(1.0, 0.4, major_sections=16, minor_sections=8)
    return torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces, dtype=torch.int64)


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
