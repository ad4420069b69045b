"""The benchmark of the held-out models: the truth stands as its input shows it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pgc3d.cameras import fill_distance, orbit
from pgc3d.evaluation.alignment import normalize_mesh
from pgc3d.evaluation.items import read_items
from pgc3d.evaluation.procedural import CHAIR
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.rendering.mesh_renderer import project

pytestmark = pytest.mark.scripts

FOLDER = Path(__file__).parents[1] / "scripts" / "mini"


def write_dataset(folder):
    """A chair with one arm rest, red to the right; a glass one; one of leaf cut-outs; one to train on."""
    import trimesh

    mesh = trimesh.util.concatenate([trimesh.creation.box(bounds=np.array(bounds)) for bounds in CHAIR])
    vertices = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1).max()
    right = mesh.triangles_center[:, 0] > 0
    arrays = {
        "vertices": vertices.astype(np.float32),
        "faces": mesh.faces.astype(np.int32),
        "normals": np.repeat(mesh.face_normals[:, None], 3, 1).astype(np.float32),
        "uv": np.zeros((len(mesh.faces), 3, 2), np.float32),
        "face_material": right.astype(np.int32),
        "material_color": np.array([[0.1, 0.1, 0.9, 1], [0.9, 0.1, 0.1, 1]], np.float32),
        "material_texture": np.array([-1, -1], np.int32),
    }
    (folder / "models").mkdir()
    np.savez(folder / "models" / "0.npz", **arrays)
    leaves = {"material_texture": np.array([-1, 0], np.int32), "texture_0": np.zeros((4, 4, 4), np.uint8)}
    np.savez(folder / "models" / "1.npz", **(arrays | leaves))
    record = {"label": "Chair", "cls": "chair", "caption": "a chair", "file": "models/0.npz", "glass": 0.0}
    records = [
        record | {"split": "train"},
        record | {"split": "test", "glass": 0.5},
        record | {"split": "test", "file": "models/1.npz"},
        record | {"split": "test"},
        record | {"split": "test"},
    ]
    (folder / "index.json").write_text(json.dumps(records))
    return torch.tensor(vertices, dtype=torch.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held-out")
    vertices = write_dataset(folder)
    command = [sys.executable, FOLDER / "make_benchmark.py", folder, folder / "out", "--texture-size", "128"]
    subprocess.run(command, check=True, capture_output=True, env={"PYTHONPATH": str(FOLDER.parents[1])})
    return vertices, read_items(folder / "out" / "items.jsonl")


def test_glass_leaves_and_training_models_are_left_out(made):
    _, items = made
    assert [item.name for item in items] == ["chair", "chair-b"]
    assert items[0].elevation_degrees == 20.0
    assert items[0].frame == "input"
    assert items[0].caption == "a chair"


def test_the_truth_is_seen_at_azimuth_0_as_the_model_at_30(made):
    vertices, items = made
    truth = normalize_mesh(read_mesh(items[0].truth)).vertices

    def outline(points, degrees):
        angle, elevation, fovy = torch.tensor([[degrees], [20.0], [40.0]]).deg2rad()
        camera = orbit(angle, elevation, fill_distance(fovy, torch.tensor([0.9])), fovy)
        clip = project(points, camera)[0]
        return clip[:, :2] / clip[:, 3:]

    turn = torch.tensor(math.radians(-30.0))
    sine, cosine = turn.sin(), turn.cos()
    expected = vertices @ torch.tensor([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]]).T
    torch.testing.assert_close(outline(expected, 0.0), outline(vertices, 30.0), atol=1e-5, rtol=0)
    center = (expected.amax(0) + expected.amin(0)) / 2
    expected = (expected - center) / (expected - center).norm(dim=1).max()
    found, sought = (points[torch.argsort(points @ torch.tensor([1.0, 7.3, 0.41]))] for points in (
        truth, torch.unique(expected.mul(1e4).round(), dim=0) / 1e4,
    ))  # fmt: skip
    torch.testing.assert_close(found, sought, atol=2e-4, rtol=0)


def test_colours_stay_on_their_side(made):
    """Baked texture: what is right of the model's middle is red, the rest blue."""
    _, items = made
    asset = read_mesh(items[0].truth)
    assert asset.normal_faces is not None
    rasterizer = CpuRasterizer()
    from pgc3d.evaluation.render import render_views

    back, front = (
        render_views(normalize_mesh(asset), orbit(*(torch.tensor([v]) for v in (az, 0.3, 3.0, 0.7))), 64,
                     rasterizer=rasterizer)
        for az in (math.pi - math.radians(30), -math.radians(30))
    )  # fmt: skip
    for view, sign in ((front, 1), (back, -1)):
        color, columns = view.color[0], torch.arange(64)
        red = (color[..., 0] > 2 * color[..., 2]) & (view.alpha[0, ..., 0] > 0.9)
        blue = (color[..., 2] > 2 * color[..., 0]) & (view.alpha[0, ..., 0] > 0.9)
        middles = [(part.sum(0) * columns).sum() / part.sum() for part in (red, blue)]
        assert sign * (middles[0] - middles[1]) > 5
