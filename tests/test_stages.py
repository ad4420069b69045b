"""Runs of several stages: what one leaves for the next, where they stop, and what is kept of each."""

import dataclasses
import json
import shutil

import pytest
import torch
from stage_runs import (  # noqa: F401 - fixtures
    COARSE,
    FINE,
    ORDER,
    config,
    context,
    copy,
    generate,
    loaded_once,
    manifest,
    model,
    resume,
    stopping,
    tensors,
    whole,
)
from test_pipeline import noisy_export

from pgc3d import pipeline
from pgc3d.build.run import build_representation
from pgc3d.checkpoint import unpack_representation
from pgc3d.errors import InputError, RunDirectoryError
from pgc3d.geometry.sampling import sample_surface
from pgc3d.representation.fields import start_colors
from pgc3d.run_directory import RunDirectory
from pgc3d.signals import StopFlag
from pgc3d.stages import handover_of


class Gone(Exception):
    """What a caller's own code raises."""


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(line["stage"], line["step"]) for line in map(json.loads, lines)]


def assert_same_run(folder, other):
    for stage in ("coarse", "fine"):
        first, second = tensors(folder, stage), tensors(other, stage)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), f"{stage} {name}"
    assert (folder / "asset.stl").read_bytes() == (other / "asset.stl").read_bytes()


def with_fine(config, **changes):
    """A configuration whose second stage has another representation."""
    fine = config.stages["fine"]
    representation = dataclasses.replace(fine.representation, **changes)
    stages = {**config.stages, "fine": dataclasses.replace(fine, representation=representation)}
    return dataclasses.replace(config, stages=stages)


def with_field(config, **changes):
    return dataclasses.replace(config.stages["fine"].representation.color_field, **changes)


def ends_and_starts(folder, config):
    """The first stage at its end and the second one at its start."""
    found = context(folder, config)
    coarse = build_representation(found, "coarse")
    run = RunDirectory.open(folder)
    unpack_representation(run.load_checkpoint("coarse"), coarse)
    return coarse, build_representation(found, "fine", handover_of(run, found, "fine", print))


def surface_points(mesh, count=2000):
    return sample_surface(mesh.vertices, mesh.faces, count, torch.Generator().manual_seed(0))[0]


def test_shape_and_colours_are_handed_over(whole, config):
    coarse, fine = ends_and_starts(whole, config)
    one, two = (surface_points(asset.to_mesh()) for asset in (coarse, fine))
    distance = torch.cdist(one, two)
    away = torch.cat([distance.amin(dim=0), distance.amin(dim=1)])
    assert away.max() < coarse.cell
    assert away.mean() < 0.35 * coarse.cell
    assert torch.equal(coarse.material(one).base_color, fine.material(one).base_color)
    started = build_representation(context(whole, config), "fine")
    assert (started.material(one).base_color - fine.material(one).base_color).abs().mean() > 1e-3


def test_a_stage_with_another_field_has_the_colours_fitted(whole, config):
    coarse, fine = ends_and_starts(whole, with_fine(config, color_field=with_field(config, levels=5)))
    points = surface_points(coarse.to_mesh())
    assert_colors_are_close(fine.material(points), coarse.material(points))


def assert_colors_are_close(found, expected):
    away = (found.base_color - expected.base_color).abs()
    assert away.mean() < 0.01
    assert away.max() < 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"log2_rows": 9},
        {"hidden": 16},
        {"finest": 200},  # the table's size stays
        {"color": (0.2, 0.6, 0.4)},  # which the weights are relative to
    ],
    ids=lambda change: next(iter(change)),
)
def test_weights_are_copied_only_where_they_mean_the_same(whole, config, change):
    own = change if "color" in change else {"color_field": with_field(config, **change)}
    run, found = RunDirectory.open(whole), context(whole, with_fine(config, **own))
    coarse, fine = (build_representation(found, stage) for stage in ("coarse", "fine"))
    unpack_representation(run.load_checkpoint("coarse"), coarse)
    points = surface_points(coarse.to_mesh())
    generator = torch.Generator().manual_seed(0)
    start_colors(fine.color, coarse.handover(), generator, steps=60, batch=1024)
    assert_colors_are_close(fine.material(points), coarse.material(points))


def raising(at):
    def report(event):
        edge = event.report and (event.stage, event.report.step)
        if edge == at or (at == ("fine", 0) and event.message.startswith("stage fine")):
            raise Gone

    return report


STOPS = [("coarse", 1), ("coarse", COARSE), ("fine", 0), ("fine", 2)]


@pytest.mark.parametrize("at", STOPS, ids=lambda at: f"{at[0]} {at[1]}")
@pytest.mark.parametrize("how", ["flag", "exception"])
def test_a_run_that_stops_in_any_stage_ends_as_if_it_had_not(config, whole, tmp_path, at, how):
    out, stop, told = tmp_path / "run", StopFlag(), []
    if how == "flag":
        generate(out, config, on_event=stopping(stop, at), stop=stop)
        assert manifest(out)["status"] == "stopped by signal 15"
    else:
        with pytest.raises(Gone):
            generate(out, config, on_event=raising(at))
        assert manifest(out)["status"] == "stopped by Gone"
    assert not (out / "asset.stl").exists()
    done = metrics(out)
    assert done == ORDER[: len(done)]
    # a signal before a stage's first step ends it after that
    assert done[-1] == (at if at[1] else ("fine", 1) if how == "flag" else ("coarse", COARSE))
    resume(out, on_event=lambda event: event.report and told.append((event.stage, event.report.step)))
    assert done + told == ORDER
    assert metrics(out) == ORDER
    assert_same_run(out, whole)


def test_a_run_keeps_metrics_previews_checkpoints_and_steps_of_each_stage(whole):
    assert metrics(whole) == ORDER
    for stage, previews, checkpoints in (("coarse", [2, 3], [3, 2]), ("fine", [2, 4], [4, 2])):
        found = sorted(path.name for path in (whole / "previews" / stage).glob("step-*"))
        assert found == [f"step-{step:06d}.png" for step in previews]
        found = [path.stem for path in RunDirectory.open(whole).checkpoints(stage)]
        assert found == [f"step-{step:06d}" for step in checkpoints]
    assert manifest(whole)["stages"] == {
        "coarse": {"status": "done", "steps": COARSE},
        "fine": {"status": "done", "steps": FINE},
    }


def test_steps_of_a_stage_that_a_crash_lost_are_told_once(config, whole, tmp_path):
    out, stop = tmp_path / "run", StopFlag()
    generate(out, config, on_event=stopping(stop, ("fine", 2)), stop=stop)
    assert manifest(out)["stages"]["fine"] == {"status": "begun", "steps": 2}
    with (out / "metrics.jsonl").open("a") as stream:  # written after the last checkpoint
        stream.write('{"stage": "fine", "step": 3}\n{"stage": "fi')
    resume(out)
    assert metrics(out) == ORDER
    assert_same_run(out, whole)


def test_a_damaged_end_of_the_first_stage_is_made_again(copy, whole, caplog):
    """Nothing of the second stage has begun; the first goes on from the checkpoint before."""
    shutil.rmtree(copy / "checkpoints" / "fine")
    newest = RunDirectory.open(copy).checkpoints("coarse")[0].with_suffix(".safetensors")
    newest.write_bytes(newest.read_bytes()[:100])
    (copy / "asset.stl").unlink()
    resume(copy)
    assert "step-000003 is damaged" in caplog.text
    assert_same_run(copy, whole)
    assert metrics(copy) == ORDER


def test_a_run_without_checkpoints_says_where_it_begins(copy, whole):
    messages = []
    for stage in ("coarse", "fine"):
        shutil.rmtree(copy / "checkpoints" / stage)
    (copy / "asset.stl").unlink()
    resume(copy, on_event=lambda event: messages.append(event.message))
    assert any("no checkpoint yet: starting with the first step" in message for message in messages)
    assert_same_run(copy, whole)


def test_fewer_steps_of_a_stage_than_are_done_are_one_line(copy):
    text = (copy / "config.yaml").read_text()
    assert text.count(f"    steps: {COARSE}") == 1
    (copy / "config.yaml").write_text(text.replace(f"    steps: {COARSE}", f"    steps: {COARSE - 1}"))
    with pytest.raises(RunDirectoryError, match=r"stages\.coarse\.steps in .* must be at least 3, the steps"):
        pipeline.resume(copy, edited=True)


def test_a_stage_can_be_exported_and_rendered(copy, whole):
    messages, before = [], (copy / "asset.stl").read_bytes()
    with noisy_export():
        pipeline.export(copy, stage="coarse")
    with noisy_export():
        pipeline.export(copy)
    assert (copy / "asset.stl").read_bytes() == before
    assert (copy / "asset-2.stl").read_bytes() != before
    assert (copy / "asset-3.stl").read_bytes() == before
    shown = {}
    for stage in ("coarse", "fine", None):
        made = pipeline.render(copy, stage=stage, on_event=lambda event: messages.append(event.message))
        shown[stage] = made.files[0].read_bytes()
    assert shown["coarse"] != shown["fine"]
    assert shown[None] == shown["fine"]
    shutil.rmtree(copy / "checkpoints" / "fine")
    with pytest.raises(RunDirectoryError, match="must have a checkpoint of fine, but has none"):
        pipeline.render(copy)  # another stage would be another result
    run = RunDirectory.open(copy)
    manifest = run.read_manifest()
    del manifest["stages"]["fine"]  # as before that stage began
    run.write_manifest(manifest)
    assert pipeline.render(copy).files[0].read_bytes() == shown["coarse"]
    with pytest.raises(RunDirectoryError, match="must have a checkpoint of fine, but has none"):
        pipeline.export(copy, stage="fine")


@pytest.mark.parametrize("job", [pipeline.export, pipeline.render])
def test_an_unknown_stage_is_one_line_with_the_nearest_one(copy, job):
    with pytest.raises(InputError, match=r"one of coarse, fine, got 'coarze'; did you mean 'coarse'\?$"):
        job(copy, stage="coarze")
