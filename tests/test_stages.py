"""Runs of several stages: what one leaves for the next, where they stop, and what is kept of each."""

import dataclasses
import json
import shutil
import signal

import pytest
import torch
from test_pipeline import noisy_export
from tiny import write_tiny_sdxl

from pgc3d import pipeline
from pgc3d.build import models
from pgc3d.build.run import RunContext, build_representation
from pgc3d.checkpoint import unpack_representation
from pgc3d.config import Config, StageConfig, dump_config, load_config
from pgc3d.errors import ConfigError, InputError, RunDirectoryError
from pgc3d.geometry.sampling import sample_surface
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.representation.dmtet_config import DMTetConfig
from pgc3d.representation.fields import start_colors
from pgc3d.run_directory import RunDirectory
from pgc3d.signals import StopFlag
from pgc3d.stages import handover_of, with_absolute_starts
from pgc3d.task import Task

CPU = torch.device("cpu")
TASK = Task("a red chair")
COARSE, FINE = 3, 4  # steps
SHAPE = {"resolution": 12, "redistance_every": 2, "color_field": {"levels": 4, "log2_rows": 8}}
STAGE = {
    "steps": COARSE,
    "resolution": [16],
    "resolution_until": [],
    "representation": SHAPE,
    "objectives": {"color": {"batch": 1, "clip": {"kind": "adaptive"}}},
}
LAYER = {
    "run": {"device": "cpu"},
    "stages": {
        "coarse": STAGE,
        "fine": {
            **STAGE,
            "steps": FINE,
            "start": "coarse",
            "resolution": [32],
            "representation": {**SHAPE, "resolution": 20},
        },
    },
    "logging": {"log_every": 1, "checkpoint_every": 2, "preview_every": 2, "preview_resolution": 16},
    "export": {"format": "stl", "texture_size": 64},
}
ORDER = [("coarse", step) for step in range(1, COARSE + 1)] + [("fine", step) for step in range(1, FINE + 1)]


class Gone(Exception):
    """What a caller's own code raises."""


def once(load):
    """A loader that remembers what it loaded from each folder."""
    loaded = {}

    def load_once(folder, *values, **options):
        key = (folder.path, repr(values), repr(options))
        if key not in loaded:
            loaded[key] = load(folder, *values, **options)
        return loaded[key]

    return load_once


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """The last bits of what a model returns depend on where in the memory its weights lie."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("load_latent_diffusion", "encode_prompts"):
            patch.setattr(models, name, once(getattr(models, name)))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def config(model):
    return load_config([LAYER], options={"models": {"text": {"name": str(model)}}})


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that went through, and what it said of its steps."""
    out, told = tmp_path_factory.mktemp("runs") / "whole", []
    generate(
        out, config, on_event=lambda event: event.report and told.append((event.stage, event.report.step))
    )
    assert told == ORDER
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def generate(out, config, **calls):
    with noisy_export():
        pipeline.generate(TASK, out=out, config=config, **calls)
    return out


def resume(out, **calls):
    with noisy_export():
        pipeline.resume(out, **calls)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(line["stage"], line["step"]) for line in map(json.loads, lines)]


def tensors(folder, stage):
    return RunDirectory.open(folder).load_checkpoint(stage).tensors


def assert_same_run(folder, other):
    for stage in ("coarse", "fine"):
        first, second = tensors(folder, stage), tensors(other, stage)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), f"{stage} {name}"
    assert (folder / "asset.stl").read_bytes() == (other / "asset.stl").read_bytes()


def context(folder, config=None):
    config = config or load_config([folder / "config.yaml"])
    return RunContext.of(config, TASK, CpuRasterizer(), CPU)


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


def stopping(stop, at):
    """A report that sets a stop flag at a step edge, or before the stage's first step."""

    def report(event):
        edge = event.report and (event.stage, event.report.step)
        if edge == at or (at == ("fine", 0) and event.message.startswith("stage fine")):
            stop.signal = signal.SIGTERM

    return report


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
    for stage, previews, checkpoints in (("coarse", [2], [3, 2]), ("fine", [2, 4], [4, 2])):
        found = sorted(path.name for path in (whole / "previews" / stage).iterdir())
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
    shutil.rmtree(copy / "checkpoints" / "fine")  # as before that stage began
    assert pipeline.render(copy).files[0].read_bytes() == shown["coarse"]
    with pytest.raises(RunDirectoryError, match="must have a checkpoint of fine, but has none"):
        pipeline.export(copy, stage="fine")


@pytest.mark.parametrize("job", [pipeline.export, pipeline.render])
def test_an_unknown_stage_is_one_line_with_the_nearest_one(copy, job):
    with pytest.raises(InputError, match=r"one of coarse, fine, got 'coarze'; did you mean 'coarse'\?$"):
        job(copy, stage="coarze")


def from_run(config, start):
    """The second stage alone, with another start."""
    return dataclasses.replace(
        config, stages={"fine": dataclasses.replace(config.stages["fine"], start=start)}
    )


def test_a_run_goes_on_from_a_stage_of_another_one(config, copy, whole, tmp_path, monkeypatch):
    """As that run's own next stage does; the start is found from any folder."""
    monkeypatch.chdir(tmp_path)
    stop = StopFlag()
    out = generate(
        tmp_path / "next", from_run(config, "copy:coarse"), on_event=stopping(stop, ("fine", 2)), stop=stop
    )
    newest = RunDirectory.open(copy).checkpoints("coarse")[0]
    assert manifest(out)["starts"]["fine"]["path"] == str(newest)
    assert load_config([out / "config.yaml"]).last.start == f"{copy}:coarse"
    monkeypatch.chdir(out)
    resume(out)
    expected = tensors(whole, "fine")
    for name, tensor in tensors(out, "fine").items():
        assert torch.equal(tensor, expected[name]), name
    assert (out / "asset.stl").read_bytes() == (whole / "asset.stl").read_bytes()


def test_a_run_without_a_stage_means_its_last_one(config, copy):
    run, start = RunDirectory(copy / "new"), from_run(config, str(copy))
    fine = handover_of(run, context(copy, start), "fine", print)
    expected = build_representation(context(copy), "fine")
    unpack_representation(RunDirectory.open(copy).load_checkpoint("fine"), expected)
    assert torch.equal(fine.surface.vertices, expected.to_mesh().vertices)


@pytest.mark.parametrize("change", ["other bytes", "gone", "went on"])
def test_a_run_to_start_from_that_changed_is_one_line(config, copy, tmp_path, change):
    stop = StopFlag()
    out = generate(
        tmp_path / "next", from_run(config, f"{copy}:coarse"), on_event=stopping(stop, ("fine", 1)), stop=stop
    )
    other = RunDirectory.open(copy)
    newest = other.load_checkpoint("coarse")
    if change == "gone":
        shutil.rmtree(copy)
    elif change == "went on":
        other.save_checkpoint("coarse", dataclasses.replace(newest, step=newest.step + 1))
    else:
        changed = {**newest.tensors, "representation.base": newest.tensors["representation.base"] + 0.01}
        other.save_checkpoint("coarse", dataclasses.replace(newest, tensors=changed))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    expected = "or the folder of a run, got" if change == "gone" else "must start from .* has changed"
    with pytest.raises((ConfigError, RunDirectoryError), match=expected) as error:
        pipeline.resume(out)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("start", "line"),
    [
        ("nowhere", "an earlier stage or the folder of a run, got 'nowhere'$"),
        ("{copy}:coarze", "must have the stage to start from, got 'coarze'; did you mean 'coarse'"),
        ("{copy}/gone:coarse", "an earlier stage or the folder of a run"),
        ("{copy}/previews", "must be the folder of a run"),
    ],
)
def test_a_run_to_start_from_that_is_missing_is_one_line_and_makes_no_folder(
    config, copy, tmp_path, start, line
):
    with pytest.raises((ConfigError, RunDirectoryError), match=line) as error:
        generate(tmp_path / "next", from_run(config, start.format(copy=copy)))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "next").exists()


def test_a_run_to_start_from_that_has_no_checkpoint_is_one_line_and_makes_no_folder(config, copy, tmp_path):
    shutil.rmtree(copy / "checkpoints" / "coarse")
    with pytest.raises(RunDirectoryError, match="must have a checkpoint to start from, but has none"):
        generate(tmp_path / "next", from_run(config, f"{copy}:coarse"))
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("start", ["fine", "coarse"])
def test_a_stage_starts_from_one_before_it(start):
    with pytest.raises(ConfigError, match=rf"stages\.coarse\.start must be a stage before it.*got '{start}'"):
        load_config([LAYER], overrides=[f"stages.coarse.start={start}"])


def test_an_unknown_start_is_one_line_with_the_nearest_stage(config, tmp_path):
    fine = dataclasses.replace(config.stages["fine"], start="coarze")
    wrong = dataclasses.replace(config, stages={**config.stages, "fine": fine})
    with pytest.raises(ConfigError, match="got 'coarze'; did you mean 'coarse'"):
        generate(tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_the_name_of_a_stage_changes_no_start(config, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "coarse")
    monkeypatch.chdir(tmp_path)
    assert with_absolute_starts(config) == config
    for start, expected in (("coarse", tmp_path / "coarse"), ("coarse:fine", f"{tmp_path}/coarse:fine")):
        assert with_absolute_starts(from_run(config, start)).last.start == str(expected)


def test_stages_draw_numbers_of_their_own(whole, config):
    """Two stages of one kind do not begin with the same random weights, nor see the same views."""
    same = dataclasses.replace(config, stages=dict.fromkeys(("a", "b"), config.stages["coarse"]))
    found = context(whole, same)
    first, second = (build_representation(found, name) for name in ("a", "b"))
    assert not torch.equal(first.color.grid.table, second.color.grid.table)


def test_a_file_without_stages_is_one_stage():
    config = load_config([{"run": {"steps": 7}, "representation": {"resolution": 16}}])
    assert list(config.stages) == ["main"]
    assert (config.last.steps, config.last.representation.resolution) == (7, 16)
    assert config.first is config.last


def test_stages_come_back_from_their_yaml(config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config([path]) == config
    assert list(load_config([path]).stages) == ["coarse", "fine"]


def test_a_layer_over_one_of_several_stages_keeps_the_others(config, tmp_path):
    path = tmp_path / "over.yaml"
    path.write_text("stages:\n  coarse:\n    steps: 9\n    representation: {resolution: 16}\n")
    found = load_config([LAYER, path])
    plain = load_config([LAYER])
    assert list(found.stages) == ["coarse", "fine"]
    assert found.stages["fine"] == plain.stages["fine"]
    coarse = plain.stages["coarse"]
    shape = dataclasses.replace(coarse.representation, resolution=16)
    assert found.stages["coarse"] == dataclasses.replace(coarse, steps=9, representation=shape)
    last = load_config([LAYER], overrides=["run.steps=11"])
    assert [stage.steps for stage in last.stages.values()] == [COARSE, 11]


def test_new_stages_replace_the_one_of_the_defaults():
    found = load_config([{"run": {"steps": 5}}, {"stages": {"a": {"steps": 1}, "b": {"start": "a"}}}])
    assert {name: stage.steps for name, stage in found.stages.items()} == {"a": 1, "b": 5}
    assert load_config().stages == {"main": StageConfig()}
    assert isinstance(Config().last.representation, DMTetConfig)
