"""The frame that a result and the truth of a picture share: where an image run's camera sees both."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_evaluation import BEST, SMALL, chair, clip_model  # noqa: F401 - fixtures

from pgc3d.cameras import reference_view
from pgc3d.cli.app import main
from pgc3d.errors import InputError
from pgc3d.evaluation import benchmark
from pgc3d.evaluation.items import Item, read_items
from pgc3d.evaluation.measure import Measure, Result, score
from pgc3d.evaluation.procedural import place_in_view, write_procedural_set
from pgc3d.evaluation.render import render_views
from pgc3d.inputs.image import frame_image
from pgc3d.mesh_io.mesh_file import read_mesh, write_mesh
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.rendering.mesh_renderer import project
from pgc3d.view_config import ViewConfig

SHARED = replace(SMALL, frame="shared")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return read_items(write_procedural_set(tmp_path_factory.mktemp("benchmark"), rasterizer=CpuRasterizer()))


@pytest.fixture(scope="module")
def framed(chair):
    placed, right = place_in_view(chair, ViewConfig(20.0), border=0.2)
    assert right
    return placed


def test_a_perfect_result_scores_perfectly(framed, clip_model):
    assert clip_model(framed, framed, frame="shared") == pytest.approx(BEST)


@pytest.mark.parametrize(("scale", "shift"), [(1.1, 0.0), (1.0, 0.1)], ids=["scaled", "moved"])
def test_place_and_size_count_in_the_shared_frame_alone(framed, clip_model, scale, shift):
    changed = replace(framed, vertices=scale * framed.vertices + torch.tensor([shift, 0.0, 0.0]))
    own, shared = clip_model(changed, framed), clip_model(changed, framed, frame="shared")
    assert own["psnr"] > 50
    assert own["chamfer"] < 1e-5
    assert shared["psnr"] < 30
    assert shared["input_psnr"] < 30
    assert shared["mask_iou"] < 0.97
    assert shared["chamfer"] > 0.02
    assert shared["volume_iou"] < 0.9


def test_lengths_are_in_radii_of_the_truth(framed, clip_model):
    """A small move is as far as the move, whatever the frame's own unit."""
    moved = replace(framed, vertices=framed.vertices + torch.tensor([0.0, 0.01, 0.0]))
    twice = [replace(mesh, vertices=2 * mesh.vertices) for mesh in (moved, framed)]
    found, doubled = clip_model(moved, framed, frame="shared"), clip_model(*twice, frame="shared")
    for name in ("chamfer", "psnr", "volume_iou"):
        assert doubled[name] == pytest.approx(found[name], rel=1e-3)


def test_runs_take_the_inputs_as_they_are(items):
    """What a run makes of the input is what its camera sees of the truth."""
    for item in items:
        assert item.frame == "input"
        picture = Image.open(io.BytesIO(frame_image(item.image).png()))
        found = torch.from_numpy(np.array(picture)).float()[..., 3] / 255
        camera = reference_view(ViewConfig(item.elevation_degrees))
        truth = render_views(read_mesh(item.truth), camera, picture.width, rasterizer=CpuRasterizer()).alpha
        both = torch.minimum(found, truth[0, ..., 0]).sum() / torch.maximum(found, truth[0, ..., 0]).sum()
        assert both > 0.985, item.name  # half a pixel around the torus and the chair's legs


@settings(deadline=None)
@given(
    elevation=st.floats(-60, 60),
    border=st.floats(0.1, 0.5),
    seed=st.integers(0, 2**16),
)
def test_a_placed_mesh_is_framed_or_said_not_to_be(chair, elevation, border, seed):
    generator = torch.Generator().manual_seed(seed)
    stretch = torch.rand(3, generator=generator) + 0.2
    points = chair.vertices * stretch
    mesh = replace(chair, vertices=points / points.norm(dim=1).max())
    view = ViewConfig(elevation)
    placed, right = place_in_view(mesh, view, border=border)
    clip = project(placed.vertices, reference_view(view))[0]
    screen = clip[:, :2] / clip[:, 3:]
    low, high = screen.amin(0), screen.amax(0)
    is_framed = (low + high).abs().max() < 0.01 and abs((high - low).max() - 2 * (1 - border)) < 0.01
    assert is_framed or not right
    unplaced, unscaled = (m.vertices - m.vertices.mean(0) for m in (placed, mesh))
    scale = unplaced.norm() / unscaled.norm()
    torch.testing.assert_close(unplaced, unscaled * scale, atol=1e-4, rtol=0)  # a similarity


def test_what_cannot_be_framed_says_so(chair):
    """A rod that points at the camera would have to be enlarged until the camera is inside."""
    rod = replace(chair, vertices=chair.vertices * torch.tensor([0.02, 0.02, 1.0]))
    assert not place_in_view(rod, ViewConfig(0.0), border=0.2)[1]


def test_an_item_without_a_frame_is_refused(items, tmp_path):
    lost = [*items[:1], replace(items[1], frame="own")]
    with pytest.raises(InputError, match="1 of 2 have not: box"):
        benchmark.evaluate(lost, [], out=tmp_path, measure=Measure(protocol=SHARED), notify=print)


def test_the_table_names_the_frame_and_baselines_stand_in_it(items, tmp_path):
    (record,) = benchmark.evaluate(
        items[1:2], [], out=tmp_path, measure=Measure(protocol=SHARED), baselines=["hull"], notify=print
    )
    assert record.metrics["input_mask_iou"] > 0.95
    assert (tmp_path / "table.md").read_text().startswith("| metric, shared frame | hull |")


def test_alignment_and_the_shared_frame_exclude_each_other(items, capsys):
    path = items[0].image.parents[1] / "items.jsonl"
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(path), "--align", "--frame", "shared"])
    assert ended.value.code == 2
    assert "--align must go with --frame own" in capsys.readouterr().err
    with pytest.raises(ValueError, match="alignment must be none"):
        replace(SHARED, alignment="rotation")


def test_a_run_with_another_camera_is_not_measured_in_the_shared_frame(tmp_path, framed):
    write_mesh(tmp_path / "truth.glb", framed, "glb")
    item = Item("a-chair", image=tmp_path / "x.png", truth=tmp_path / "truth.glb", frame="input")
    for folder, view in (("usual", "elevation_degrees: 15.0"), ("other", "fovy_degrees: 49.1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.yaml").write_text(f"view:\n  {view}\n")
        result = Result(folder, item, 0, write_mesh(tmp_path / folder / "asset.glb", framed, "glb")[0])
        assert not score(result, Measure(protocol=SMALL)).error
        assert ("default camera" in score(result, Measure(protocol=SHARED)).error) == (folder == "other")
