"""Small sessions, for tests."""

import dataclasses

import pytest
import torch
from fakes import FlatColor, PullTowardColor

from pgc3d.adaptive_clip import AdaptiveClip
from pgc3d.build.run import Built
from pgc3d.cameras import OrbitConfig, sample_orbit
from pgc3d.config import Config, LoggingConfig, ObjectiveConfig, OptimizerConfig, StageConfig
from pgc3d.optimize import Objective, Problem
from pgc3d.run_directory import RunDirectory
from pgc3d.session import Session
from pgc3d.signals import StopFlag

CPU = torch.device("cpu")
CONFIG = Config(
    stages={
        "main": StageConfig(
            steps=12, resolution=(16,), resolution_until=(), optimizer=OptimizerConfig(max_skipped=4)
        )
    },
    logging=LoggingConfig(log_every=4, preview_every=5, checkpoint_every=5),
)


def with_objectives(**batches):
    """The configuration with objectives of so many views."""
    objectives = {name: ObjectiveConfig(batch=batch) for name, batch in batches.items()}
    return dataclasses.replace(
        CONFIG, stages={"main": dataclasses.replace(CONFIG.last, objectives=objectives)}
    )


class NoRasterizer:
    def rasterize(self, clip, faces, resolution):
        raise NotImplementedError

    def interpolate(self, attributes, fragments, faces):
        raise NotImplementedError


def built(seed=0, batch=2, **guidance):
    """The real parts around a fake asset: an adaptive clip, noise in the guidance, Adam."""
    asset, clip = FlatColor(), AdaptiveClip(quantile=0.5).build()
    objective = Objective(
        sample_cameras=lambda step: sample_orbit(batch, OrbitConfig(), step.generator("cameras")),
        guidance=PullTowardColor(noise=0.3, **guidance),
        clip=clip,
        backgrounds=((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    )
    asset.parameter_store().use_adam()
    problem = Problem(representation=asset, objectives={"color": objective})
    return Built(problem=problem, rasterizer=NoRasterizer(), states={"clip.color": clip})


@pytest.fixture
def session(tmp_path):
    with RunDirectory.create(tmp_path / "run") as run:
        yield Session(run, CONFIG, CPU, lambda event: None, StopFlag(), {"prompt": "a red chair"})


def no_preview(path):
    path.write_bytes(b"")


def color(parts):
    return parts.problem.representation.color.detach()


def stop_at(session, step):
    def report(event):
        if event.report is not None and event.report.step == step:
            session.stop.signal = 15

    return report


class Gone(Exception):
    """What a caller's own code raises."""


def raise_at(step, error):
    def report(event):
        if event.report is not None and event.report.step == step:
            raise error

    return report


def finish(session, parts):
    """Resume with other objects, as a new process has them."""
    session.on_event = lambda event: None
    session.stop.signal = None
    assert session.optimize("main", parts, session.run.load_checkpoint("main"), no_preview)
    return color(parts)


@pytest.fixture
def whole(tmp_path):
    """The colour that a run without a stop ends with."""
    parts = built()
    with RunDirectory.create(tmp_path / "whole") as run:
        Session(run, CONFIG, CPU, lambda event: None, StopFlag()).optimize("main", parts, None, no_preview)
    return color(parts)
