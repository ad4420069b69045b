"""Stages that start from others: of the run, of another run, from YAML."""

import dataclasses
import shutil

import pytest
import torch
from stage_runs import (  # noqa: F401 - fixtures
    COARSE,
    LAYER,
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

from pgc3d import pipeline
from pgc3d.build.run import build_representation
from pgc3d.checkpoint import unpack_representation
from pgc3d.config import Config, StageConfig, dump_config, load_config
from pgc3d.errors import ConfigError, RunDirectoryError
from pgc3d.representation.dmtet_config import DMTetConfig
from pgc3d.run_directory import RunDirectory
from pgc3d.signals import StopFlag
from pgc3d.stages import handover_of, with_absolute_starts


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
