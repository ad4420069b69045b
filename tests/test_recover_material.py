"""A known material is found again from renders under known lights."""

import dataclasses
from pathlib import Path

import pytest
import torch


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    import recover_material

    return recover_material


def test_errors_shrink_in_every_property(script):
    """From random patches against one material, 0.2 to 0.5, to a fraction of that in a few steps."""
    setting = script.Setting(steps=60, resolution=32)
    start = script.recover(script.LIGHTS["five lights, turned"], dataclasses.replace(setting, steps=1))
    found = script.recover(script.LIGHTS["five lights, turned"], setting)
    assert found["base colour"] < 0.5 * start["base colour"]
    assert found["roughness"] < 0.8 * start["roughness"]
    assert found["metallic"] < 0.8 * start["metallic"]


def test_the_sphere_is_closed_and_outward(script):
    mesh = script.sphere(8)
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    assert ((normal * (a + b + c)).sum(1) > 0).all()
    edges = torch.cat([mesh.welded_faces[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
    _, count = torch.unique(edges.sort(dim=1).values, dim=0, return_counts=True)
    assert (count == 2).all()
    assert ((mesh.uv >= 0) & (mesh.uv <= 1)).all()
