import dataclasses
import json

import pytest
import torch
from sessions import CONFIG, CPU, built, color, no_preview, session, stop_at  # noqa: F401 - fixtures

from pgc3d.adaptive_clip import AdaptiveClip
from pgc3d.checkpoint import pack, unpack
from pgc3d.errors import DivergedError, OutOfMemoryError, RunDirectoryError
from pgc3d.run_directory import RunDirectory
from pgc3d.session import Session, explain_memory
from pgc3d.signals import StopFlag


@pytest.mark.parametrize("step", [1, 5, 7])
def test_stopped_and_continued_run_ends_like_an_uninterrupted_one(session, tmp_path, step):
    whole, first, second = built(), built(), built(seed=99)
    with RunDirectory.create(tmp_path / "whole") as run:
        Session(run, CONFIG, CPU, lambda event: None, StopFlag()).optimize("main", whole, None, no_preview)

    session.on_event = stop_at(session, step)
    assert not session.optimize("main", first, None, no_preview)
    session.stop.signal = None
    checkpoint = session.run.load_checkpoint("main")
    assert checkpoint.step == step
    assert session.optimize("main", second, checkpoint, no_preview)

    torch.testing.assert_close(color(second), color(whole), rtol=0, atol=0)


def test_signal_before_the_first_step_leaves_a_checkpoint(session):
    session.stop.signal = 2
    assert not session.optimize("main", built(), None, no_preview)
    assert session.run.load_checkpoint("main").step == 1


def test_signal_in_the_last_step_leaves_the_export_to_resume(session):
    session.on_event = stop_at(session, CONFIG.last.steps)
    assert not session.optimize("main", built(), None, no_preview)
    session.stop.signal = None
    assert session.optimize("main", built(), session.run.load_checkpoint("main"), no_preview)


def test_signal_during_the_export_stops_nothing(session):
    with session.recorded():
        assert session.optimize("main", built(), None, no_preview)
        session.stop.signal = 15
    assert session.run.read_manifest()["status"] == "done"


def test_steps_that_a_crash_lost_are_told_once(session):
    path = session.run.path / "metrics.jsonl"
    session.on_event = stop_at(session, 5)
    session.optimize("main", built(), None, no_preview)
    session.stop.signal = None
    for step in (8, 12):  # written after the last checkpoint
        session.run.log_metrics({"stage": "main", "step": step, "loss": 1.0})
    with path.open("a") as stream:
        stream.write('{"stage": "main", "step": 1')
    assert session.optimize("main", built(), session.run.load_checkpoint("main"), no_preview)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert not any("loss" in line for line in lines)


def test_what_is_due_is_written(session):
    session.optimize("main", built(), None, no_preview)
    assert [path.name for path in sorted((session.run.path / "previews" / "main").glob("step-*"))] == [
        "step-000005.png",
        "step-000010.png",
        "step-000012.png",  # the last one
    ]
    lines = (session.run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8, 12]
    assert session.run.load_checkpoint("main").step == 12


def test_diverged_run_keeps_the_last_good_state(session):
    parts = built(broken=frozenset(range(3, 100)))
    with pytest.raises(DivergedError), session.recorded():
        session.optimize("main", parts, None, no_preview)
    saved = built()
    unpack(session.run.load_checkpoint("main"), saved)
    torch.testing.assert_close(color(saved), color(parts), rtol=0, atol=0)
    assert session.run.read_manifest()["status"].startswith("failed: gradients must be finite")


def test_manifest_says_how_the_run_went(session):
    with session.recorded():
        assert session.run.read_manifest()["status"] == "running"
        session.optimize("main", built(), None, no_preview)
        session.run.config.write_text("run: {}")
        session.made("export", [session.run.config])
    manifest = session.run.read_manifest()
    assert manifest["status"] == "done"
    assert manifest["prompt"] == "a red chair"
    assert {"python", "pgc3d", "torch"} <= set(manifest["versions"])
    assert {"render", "guidance", "backward", "optimizer", "checkpoint"} <= set(manifest["seconds"])
    assert manifest["peak_memory_bytes"]["resident"] > 0
    assert set(manifest["files"]) == {"config.yaml"}


def test_checkpoint_of_another_configuration_is_refused(session):
    session.run.save_checkpoint("main", pack(built(), 3))
    other = dataclasses.replace(built(), states={"clip.normal": AdaptiveClip().build()})
    with pytest.raises(RunDirectoryError, match=r"must fit the run's config\.yaml"):
        unpack(session.run.load_checkpoint("main"), other)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
    ids=["cuda", "python", "torch"],
)
def test_running_out_of_memory_says_what_to_lower(error):
    with pytest.raises(OutOfMemoryError, match=r"lower --resolution \(now 16\)"), explain_memory(CONFIG, CPU):
        raise error
