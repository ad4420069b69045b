"""Folders of runs, for tests."""

import pytest
import torch

from pgc3d.checkpoint_files import Checkpoint
from pgc3d.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    directory.config.write_text("{}")
    directory.write_manifest({"prompt": "a red chair"})
    return directory


def save(run, step):
    run.save_checkpoint("main", Checkpoint(step, {"x": torch.full((3,), float(step))}, {"lr": 0.1}))


FOLDERS = ["checkpoints", "previews", "checkpoints/main", "previews/main"]


@pytest.fixture
def used(run):
    """A run with all its files, opened once."""
    with run:
        run.log_metrics({"stage": "main", "step": 1})
        run.preview("main", 1).write_bytes(b"x")
        save(run, 10)
        save(run, 20)
    return run
