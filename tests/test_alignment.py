"""Normalisation takes out scale and place; alignment takes out turns, never reflections."""

import math
from dataclasses import replace

import pytest
import torch

from pgc3d.errors import InputError
from pgc3d.evaluation.alignment import align, candidate_rotations, normalize_mesh, rigid
from pgc3d.evaluation.procedural import shapes
from pgc3d.evaluation.shape_metrics import chamfer_distance, nearest_distances
from pgc3d.geometry.normals import vertex_normals
from pgc3d.geometry.sampling import sample_surface
from pgc3d.mesh_io.asset import MeshAsset


def mesh(name):
    vertices, faces, _ = shapes()[name]
    return MeshAsset(vertices, faces, vertex_normals(vertices, faces))


def mirrored(asset):
    flip = torch.tensor([-1.0, 1.0, 1.0])
    return replace(
        asset, vertices=asset.vertices * flip, normals=asset.normals * flip, faces=asset.faces.flip(1)
    )


def turn_about_y(angle):
    sine, cosine = math.sin(angle), math.cos(angle)
    return torch.tensor([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])


def distance(first, second):
    clouds = [
        sample_surface(each.vertices, each.faces, 4096, torch.Generator().manual_seed(seed))[0]
        for seed, each in enumerate((first, second))
    ]
    return chamfer_distance(*nearest_distances(*clouds))


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (7.0, 2.0), (300.0, -1000.0)])
def test_normalisation_takes_out_scale_and_place(scale, shift):
    asset = mesh("one-armed-chair")
    moved = replace(asset, vertices=asset.vertices * scale + shift)
    first, second = normalize_mesh(asset).vertices, normalize_mesh(moved).vertices
    torch.testing.assert_close(first, second, atol=1e-3 if shift < 0 else 1e-5, rtol=0)
    torch.testing.assert_close(second.norm(dim=1).max(), torch.tensor(1.0))
    torch.testing.assert_close(second.amin(0), -second.amax(0), atol=1e-4, rtol=0)


def test_unused_vertices_do_not_count():
    asset = mesh("box")
    more = replace(
        asset,
        vertices=torch.cat([asset.vertices, torch.full((1, 3), 50.0)]),
        normals=torch.cat([asset.normals, torch.ones(1, 3)]),
    )
    assert torch.equal(normalize_mesh(more).vertices[:-1], normalize_mesh(asset).vertices)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_mesh_without_extent_is_refused(value):
    asset = mesh("box")
    with pytest.raises(InputError, match="to be compared must have"):
        normalize_mesh(replace(asset, vertices=torch.full_like(asset.vertices, value)))


def test_candidates_are_turns():
    turns = candidate_rotations()
    assert len(turns) == 144
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(144))
    torch.testing.assert_close(turns @ turns.transpose(1, 2), torch.eye(3).expand(144, 3, 3))
    assert torch.equal(turns[0], torch.eye(3))
    assert len(torch.unique(turns.mul(1e4).round(), dim=0)) == 144


@pytest.mark.parametrize(
    "turn",
    [
        turn_about_y(2.0),
        torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]) @ turn_about_y(-0.4),
    ],
    ids=["yaw", "other axes"],
)
def test_a_turned_object_is_found_again(turn):
    truth = normalize_mesh(mesh("one-armed-chair"))
    turned = normalize_mesh(rigid(truth, turn, torch.zeros(3)))
    aligned, found = align(turned, truth, seed=0)
    torch.testing.assert_close(found @ turn, torch.eye(3), atol=0.05, rtol=0)
    assert distance(aligned, truth) < 0.5 * distance(turned, truth)
    torch.testing.assert_close(aligned.normals.norm(dim=1), turned.normals.norm(dim=1))


def test_the_same_object_stays_where_it_is():
    truth = normalize_mesh(mesh("one-armed-chair"))
    aligned, found = align(truth, truth, seed=0)
    assert torch.equal(found, torch.eye(3))
    assert torch.equal(aligned.vertices, truth.vertices)


def test_a_mirrored_object_stays_mirrored():
    truth = normalize_mesh(mesh("one-armed-chair"))
    aligned, found = align(mirrored(truth), truth, seed=0)
    assert torch.linalg.det(found) > 0
    assert distance(aligned, truth) > 1.3 * distance(truth, truth)
