"""Steps that run out of memory, and steps that are done again."""

import dataclasses

import pytest
import torch
from fakes import PullTowardColor
from sessions import CONFIG, CPU, built, color, no_preview, session, with_objectives  # noqa: F401 - fixtures

from pgc3d.adaptive_clip import AdaptiveClip
from pgc3d.build.run import Built
from pgc3d.cameras import OrbitConfig, sample_orbit
from pgc3d.checkpoint import pack
from pgc3d.errors import OutOfMemoryError
from pgc3d.optimize import Objective, Problem
from pgc3d.pgc import PixelClip
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.representation.dmtet_config import DMTetConfig, build_dmtet
from pgc3d.representation.fields import ColorFieldConfig
from pgc3d.run_directory import RunDirectory
from pgc3d.session import Session, explain_memory
from pgc3d.signals import StopFlag


class Hungry(PullTowardColor):
    """Runs out of memory in some calls, unless it may look at `fits` views at most."""

    def __init__(self, *, at, fits, error=torch.OutOfMemoryError, **options):
        super().__init__(**options)
        self.at, self.fits, self.error, self.micro_batch, self.asked = at, fits, error, 0, 0

    def __call__(self, image, rendering, views, step):
        self.asked += 1
        if self.asked >= self.at and (self.micro_batch or len(image)) > self.fits:
            raise self.error("CUDA out of memory")
        return super().__call__(image, rendering, views, step)


def hungry(batch=2, **options):
    parts = built(batch=batch)
    objective = parts.problem.objectives["color"]
    guidance = Hungry(noise=0.3, **options)
    problem = dataclasses.replace(
        parts.problem, objectives={"color": dataclasses.replace(objective, guidance=guidance)}
    )
    return dataclasses.replace(parts, problem=problem), guidance


@pytest.mark.parametrize("at", [1, 6, 12])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError], ids=["cuda", "python"])
def test_a_step_that_runs_out_of_memory_is_done_again_with_fewer_views_at_a_time(
    session, tmp_path, at, error
):
    whole = built()
    with RunDirectory.create(tmp_path / "whole") as run:
        Session(run, CONFIG, CPU, lambda event: None, StopFlag()).optimize("main", whole, None, no_preview)
    events = []
    session.on_event = events.append
    session.config = with_objectives(color=2)
    parts, guidance = hungry(at=at, fits=1, error=error)
    with session.recorded():
        assert session.optimize("main", parts, None, no_preview)
    assert guidance.micro_batch == 1
    torch.testing.assert_close(color(parts), color(whole), rtol=0, atol=0)
    assert session.run.read_manifest()["out_of_memory"] == [{"stage": "main", "step": at, "micro_batch": 1}]
    messages = [event.message for event in events if event.message]
    assert messages == [f"out of memory in step {at}: saved, continuing with 1 views at a time"]


def test_views_are_halved_until_they_fit_and_a_resumed_run_remembers(session):
    session.config = with_objectives(color=9)
    parts, guidance = hungry(batch=9, at=4, fits=2)
    assert session.optimize("main", parts, None, no_preview)
    assert guidance.micro_batch == 2
    assert [entry["micro_batch"] for entry in session.record["out_of_memory"]] == [4, 2]
    again, guidance = hungry(batch=9, at=1, fits=2)
    session.optimize("main", again, session.run.load_checkpoint("main"), no_preview)
    assert guidance.micro_batch == 2


def test_what_cannot_be_divided_ends_with_the_last_good_state_saved(session):
    session.config = with_objectives(color=2)
    parts, _ = hungry(at=7, fits=0)
    with pytest.raises(OutOfMemoryError, match="use --low-memory"), session.recorded():
        session.optimize("main", parts, None, no_preview)
    assert session.run.load_checkpoint("main").step == 6


def test_other_runtime_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), explain_memory(CONFIG, CPU):
        raise RuntimeError("shape")


def deformed(at, rule):
    """A DMTet with two objectives; the second runs out of memory in its `at`th call."""
    asset = build_dmtet(
        DMTetConfig(resolution=12, redistance_every=4, color_field=ColorFieldConfig(log2_rows=8)),
        rasterizer=CpuRasterizer(),
        generator=torch.Generator().manual_seed(0),
    )
    clip = rule.build()
    objectives = {
        name: Objective(
            sample_cameras=lambda step: sample_orbit(2, OrbitConfig(), step.generator("cameras")),
            guidance=guidance,
            clip=clip,
            backgrounds=((1.0, 1.0, 1.0),),
        )
        for name, guidance in (
            ("a", PullTowardColor(noise=0.3)),
            ("b", Hungry(at=at, fits=1, noise=0.3)),
        )
    }
    asset.parameter_store().use_adam()
    return Built(
        problem=Problem(representation=asset, objectives=objectives),
        rasterizer=CpuRasterizer(),
        states={"clip": clip} if isinstance(rule, AdaptiveClip) else {},
    )


@pytest.mark.parametrize("rule", [PixelClip(), AdaptiveClip()])
def test_a_step_that_is_done_again_counts_once(tmp_path, rule):
    config, ends = with_objectives(a=2, b=2), []
    for at in (1000, 4):
        parts = deformed(at, rule)
        with RunDirectory.create(tmp_path / str(at)) as run:
            session = Session(run, config, CPU, lambda event: None, StopFlag())
            assert session.optimize("main", parts, None, no_preview)
        assert bool(session.record.get("out_of_memory")) == (at == 4)
        ends.append(pack(parts, 12).tensors)
    whole, again = ends
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        assert torch.equal(again[name], value), name


def test_a_resumed_run_never_looks_at_more_views_than_it_may_now(session):
    session.config = with_objectives(color=8)
    session.record["out_of_memory"] = [{"step": 3, "micro_batch": 4}]
    parts, guidance = hungry(batch=8, at=1, fits=1)
    guidance.micro_batch = 1
    assert session.optimize("main", parts, None, no_preview)
    assert guidance.micro_batch == 1
    assert len(session.record["out_of_memory"]) == 1
