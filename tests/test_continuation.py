"""`resume --steps`: a run goes on to another number of steps, and nothing of it is lost."""

import json
import shutil

import numpy as np
import pytest
from meshes import write_cube
from PIL import Image
from safetensors.torch import load_file
from test_cli import run  # noqa: F401 - a fixture
from test_run_damage import SETTINGS

from pgc3d import pipeline
from pgc3d.config import load_config
from pgc3d.errors import ConfigError
from pgc3d.signals import StopFlag
from pgc3d.task import Task


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_cube(folder / "cube.glb")
    rgba = np.zeros((48, 48, 4), np.uint8)
    rgba[8:40, 8:40] = (200, 60, 30, 255)
    Image.fromarray(rgba).save(folder / "image.png")
    Image.fromarray(np.tile(np.arange(0, 192, 4, dtype=np.uint8), (48, 1))).save(folder / "depth.png")
    return folder


def generate(inputs, out, *overrides, **calls):
    config = load_config([SETTINGS], overrides=["logging.preview_every=0", *overrides])
    task = Task(image=inputs / "image.png", mesh=inputs / "cube.glb", depth=inputs / "depth.png")
    pipeline.generate(task, out=out, config=config, **calls)
    return out


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    return generate(inputs, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def last(folder, step):
    return load_file(folder / f"checkpoints/second/step-{step:06d}.safetensors")


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"]) for line in lines]


def same(first, second):
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


def test_a_finished_run_goes_on_and_keeps_its_asset(copy):
    asset, messages = (copy / "asset.glb").read_bytes(), []
    result = pipeline.resume(copy, steps=8, on_event=lambda event: messages.append(event.message))
    assert [path.name for path in result.files] == ["asset-2.glb"]
    assert (copy / "asset.glb").read_bytes() == asset
    assert metrics(copy) == [("first", step) for step in range(1, 4)] + [
        ("second", step) for step in range(1, 9)
    ]
    record = manifest(copy)
    assert record["continued"] == [{"stage": "second", "done": 5, "steps": 5, "to": 8}]
    assert (record["status"], record["stages"]["second"]) == ("done", {"status": "done", "steps": 8})
    assert {"asset.glb", "asset-2.glb"} <= set(record["files"])
    assert load_config([copy / "config.yaml"]).last.steps == 8
    assert (
        "stage second goes on from step 5, 62 % of 8, over which schedules and phases now stretch" in messages
    )
    assert pipeline.resume(copy).files == ()  # it is done
    pipeline.resume(copy, steps=9)
    assert [entry["to"] for entry in manifest(copy)["continued"]] == [8, 9]


def test_with_constant_schedules_it_is_the_run_of_so_many_steps(inputs, copy, tmp_path):
    whole = generate(inputs, tmp_path / "whole", "stages.second.steps=8")
    pipeline.resume(copy, steps=8)
    assert same(last(copy, 8), last(whole, 8))


def test_schedules_stretch_over_all_steps(inputs, tmp_path):
    """Half of the steps without a change of the parameters, then another half: after 4 of 4 the rate is 0."""
    half = "stages.second.optimizer.lr_scale=[0.0, 1.0, 0.4, 1.0, 0.401, 0.0]"
    run_ = generate(inputs, tmp_path / "run", half, "stages.second.steps=4")
    before = last(run_, 4)
    longer = shutil.copytree(run_, tmp_path / "longer")
    pipeline.resume(longer, steps=5)  # at progress 1 the rate is 0
    assert same(*({k: v for k, v in found.items() if k.startswith("representation.")} for found in (
        before, last(longer, 5))))  # fmt: skip
    pipeline.resume(run_, steps=100, stop=(stop := StopFlag()), on_event=lambda event: _stop(event, stop))
    after = last(run_, 6)  # at progress 4 / 99 the rate is 1
    assert any((before[k] != after[k]).any() for k in before if k.startswith("representation."))


def _stop(event, stop):
    if event.report is not None and event.report.step == 6:
        stop.signal = 15


def test_a_stopped_run_can_take_fewer_or_more_steps(inputs, tmp_path):
    stop = StopFlag()

    def report(event):
        if event.report is not None and (event.stage, event.report.step) == ("second", 2):
            stop.signal = 15

    stopped = generate(inputs, tmp_path / "run", on_event=report, stop=stop)
    pipeline.resume(stopped, steps=4)
    assert manifest(stopped)["stages"]["second"] == {"status": "done", "steps": 4}
    assert (stopped / "asset.glb").is_file()


@pytest.mark.parametrize("steps", [0, 4, -1, 10**9])
def test_a_wrong_number_changes_nothing(copy, steps):
    before = {path: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=r"steps must (be more|lie in)"):
        pipeline.resume(copy, steps=steps)
    assert {path: path.read_bytes() for path in before} == before


def test_the_same_number_is_nothing_new(copy):
    assert pipeline.resume(copy, steps=5).files == ()
    assert "continued" not in manifest(copy)


def test_a_prompt_is_refused_with_the_reason(run, copy):
    code, out, err = run("resume", copy, "--prompt", "a blue chair")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "got 'a blue chair': the steps that are done were made for the run's own prompt" in err
