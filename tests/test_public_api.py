import inspect
import subprocess
import sys

import pytest
import torch
from tiny import write_tiny_sdxl

import pgc3d
from pgc3d import Task, generate, load_config, resume
from pgc3d.rendering import build_rasterizer


def test_exported_members():
    """The public names: adding one is a decision, and removing one breaks users."""
    assert sorted(pgc3d.__all__) == [
        "Config", "Event", "Pgc3dError", "RunResult", "StopFlag", "Task", "export", "generate", "load_config",
        "pgc", "render", "resume",
    ]  # fmt: skip


@pytest.mark.parametrize("name", pgc3d.__all__)
def test_public_names_are_there_and_documented(name):
    found = getattr(pgc3d, name)
    assert inspect.getdoc(found)
    assert name in dir(pgc3d)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        _ = pgc3d.generat


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, pgc3d; print(*({'torch', 'numpy', 'omegaconf', 'typer'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


class Interrupted(Exception):
    pass


@pytest.fixture
def threads():
    """Start numba's threads: they change torch's number of threads, and with it how sums are rounded."""
    corners = torch.tensor([[[-1.0, -1.0, 0.0, 1.0], [1.0, -1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0]]])
    build_rasterizer("cpu", torch.device("cpu")).rasterize(corners, torch.tensor([[0, 1, 2]]), (8, 8))


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted])
def test_a_run_from_python_with_text_paths_survives_its_callback(tmp_path, threads, error):
    """What a callback raises reaches the caller; the run is saved and goes on to the same end."""
    model = write_tiny_sdxl(tmp_path / "model")
    config = load_config(
        overrides=[
            f"models.text.name={model}", "run.steps=4", "run.resolution=[32]", "run.resolution_until=[]",
            "representation.resolution=10", "objectives.color.batch=1", "export.format=stl", "export.faces=0",
            "logging.preview_every=0",
        ]
    )  # fmt: skip
    whole = generate(Task("a cat"), out=str(tmp_path / "whole"), config=config)

    def fail(event):
        if event.report is not None and event.report.step == 2:
            raise error

    with pytest.raises(error):
        generate(Task("a cat"), out=str(tmp_path / "run"), config=config, on_event=fail)
    again = resume(str(tmp_path / "run"))
    assert [path.name for path in again.files] == ["asset.stl"]
    assert again.files[0].read_bytes()[80:] == whole.files[0].read_bytes()[80:]
