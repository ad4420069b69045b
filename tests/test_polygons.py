"""Triangulation of polygons: covered exactly, none folded, whatever the corners."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_reading import normals

from pgc3d.mesh_io.polygons import triangulate

# ---- polygons


def plane(seed):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return rotation


@st.composite
def star_polygons(draw):
    """Simple polygons around the origin, most of them with notches, in any plane and at any place."""
    count = draw(st.integers(5, 40))
    radius = np.array(draw(st.lists(st.floats(0.1, 1.0), min_size=count, max_size=count)))
    shift = np.array(draw(st.lists(st.floats(0.1, 0.9), min_size=count, max_size=count)))
    angle = 2 * np.pi * (np.arange(count) + shift) / count
    flat = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(count)], axis=1)
    turn = draw(st.integers(0, count - 1))
    return np.roll(flat, turn, axis=0) @ plane(draw(st.integers(0, 99))).T * draw(st.floats(1e-3, 1e3))


def cut(points):
    count = len(points)
    triangles, polygon = triangulate(points, np.arange(count), np.array([count]))
    assert (polygon == 0).all()
    return triangles


def newell(points):
    return np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0) / 2


@given(star_polygons())
@settings(deadline=None, max_examples=100)
def test_simple_polygons_are_covered_exactly(points):
    triangles, whole = cut(points), newell(points)
    assert triangles.shape == (len(points) - 2, 3)
    assert set(triangles.reshape(-1).tolist()) == set(range(len(points)))
    vectors, area = normals(points, triangles), np.linalg.norm(whole)
    assert np.linalg.norm(vectors, axis=1).sum() == pytest.approx(area, rel=1e-9)
    assert (vectors @ whole > 0).all()


@given(star_polygons(), st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_corners_on_the_sides_change_nothing(points, more):
    steps = np.linspace(0, 1, more + 1)[:-1]
    along = points[:, None] + steps[:, None] * (np.roll(points, -1, axis=0) - points)[:, None]
    divided = along.reshape(-1, 3)
    triangles, whole = cut(divided), newell(points)
    assert len(triangles) == len(divided) - 2
    vectors = normals(divided, triangles)
    assert np.linalg.norm(vectors, axis=1).sum() == pytest.approx(np.linalg.norm(whole), rel=1e-6)
    assert (vectors @ whole > -1e-12 * (whole @ whole)).all()


@given(st.integers(4, 60), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_convex_polygons_stay_fans(count, seed):
    angle = 2 * np.pi * np.arange(count) / count
    points = np.stack([2 * np.cos(angle), np.sin(angle), 0 * angle], axis=1) @ plane(seed).T
    step = np.arange(1, count - 1)
    assert cut(points).tolist() == np.stack([0 * step, step, step + 1], axis=1).tolist()


@pytest.mark.parametrize("turn", range(10))
def test_a_hole_behind_a_bridge_stays_open(turn):
    ring = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]
    points = np.roll(np.array([(*point, 0.0) for point in ring]), turn, axis=0)
    vectors = normals(points, cut(points))
    assert vectors[:, 2].min() > -1e-12
    assert vectors[:, 2].sum() == pytest.approx(12)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize(
    "ring",
    [
        [(0, 0), (1, 1), (1, 0), (0, 1)],  # crosses itself
        [(0, 0), (1, 0), (2, 0), (3, 0), (1.5, 0)],  # no area
        [(0, 0)] * 6,
        [(0, 0), (1, 0), (1, 0), (1, 1), (0, 1), (0, 1)],
        [(0, 1), (0.6, -0.8), (-1, 0.3), (1, 0.3), (-0.6, -0.8)],  # a pentagram
        [(0, 0), (2, 0), (1, 0), (1, 1), (1, 0), (0, 2)],  # spikes
        [(0, 0), (1, float("nan")), (1, 1), (0, 1), (-1, 0)],
        [(0, 0), (1, float("inf")), (1, 1), (0, 1), (-1, 0)],
    ],
)
def test_degenerate_polygons_give_as_many_triangles(ring, scale):
    points = np.array([(*point, 0.0) for point in ring]) * scale
    triangles = cut(points)
    assert triangles.shape == (len(ring) - 2, 3)
    assert triangles.min() >= 0
    assert triangles.max() < len(ring)


@given(st.integers(4, 80), st.integers(0, 10_000), st.booleans())
@settings(deadline=None, max_examples=40)
def test_random_corners_give_as_many_triangles(count, seed, whole_numbers):
    points = np.random.default_rng(seed).normal(size=(count, 3)) * 3
    points = np.rint(points) if whole_numbers else points
    assert cut(points).shape == (count - 2, 3)


def test_a_long_comb_takes_no_time():
    x = np.linspace(0, 1, 1500)
    comb = np.stack([x, np.where(np.arange(1500) % 2, 1.0, 0.1), 0 * x], axis=1)
    points = np.concatenate([[[0, 0, 0], [1, 0, 0]], comb[::-1]])
    vectors = normals(points, cut(points))
    assert (vectors[:, 2] > 0).all()
    assert vectors[:, 2].sum() == pytest.approx(newell(points)[2])


def test_bent_quad_is_cut_where_it_does_not_fold():
    points = np.array([[0, 0, 0], [2, 0, 0.3], [0.4, 0.4, 0], [0, 2, 0.3]])
    for turn in range(4):
        turned = np.roll(points, turn, axis=0)
        assert (normals(turned, cut(turned)) @ newell(turned) > 0).all()


def test_polygons_of_many_sizes_keep_their_order():
    rings = [np.array([(*p, k) for p in ring]) for k, ring in enumerate(
        [[(0, 0), (1, 0), (0, 1)], [(0, 0)], [(0, 0), (2, 0), (0.4, 0.4), (0, 2)], [(0, 0), (1, 1)],
         [(0, 0), (1, 0), (1, 1), (0, 1)], [(0, 0), (1, 0), (0, 2)]]
    )]  # fmt: skip
    counts = np.array([len(ring) for ring in rings])
    points = np.concatenate(rings)
    triangles, polygon = triangulate(points, np.arange(len(points)), counts)
    assert polygon.tolist() == [0, 2, 2, 4, 4, 5]
    assert (points[triangles][..., 2] == polygon[:, None]).all()
