"""A run of two stages, for tests."""

import json
import shutil
import signal

import pytest
import torch
from test_pipeline import noisy_export
from tiny import write_tiny_sdxl

from pgc3d import pipeline
from pgc3d.build import models
from pgc3d.build.run import RunContext
from pgc3d.config import load_config
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.run_directory import RunDirectory
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


def tensors(folder, stage):
    return RunDirectory.open(folder).load_checkpoint(stage).tensors


def context(folder, config=None):
    config = config or load_config([folder / "config.yaml"])
    return RunContext.of(config, TASK, CpuRasterizer(), CPU)


def stopping(stop, at):
    """A report that sets a stop flag at a step edge, or before the stage's first step."""

    def report(event):
        edge = event.report and (event.stage, event.report.step)
        if edge == at or (at == ("fine", 0) and event.message.startswith("stage fine")):
            stop.signal = signal.SIGTERM

    return report
