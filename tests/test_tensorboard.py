"""Event files of TensorBoard: what they hold, and that a run that continues repeats no step."""

import sys

import pytest
from PIL import Image
from test_cli import TINY, checkpoint, run  # noqa: F401 - fixtures

from pgc3d import tensorboard
from pgc3d.errors import RunDirectoryError
from pgc3d.events import Event
from pgc3d.optimize import StepReport
from pgc3d.tensorboard import written_to_tensorboard

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own imports


def read(folder):
    """Steps and values of the scalar, and the steps of the images, as TensorBoard displays them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    tags = found.Tags()
    scalars = [(event.step, event.value) for event in found.Scalars("loss")] if tags["scalars"] else []
    return scalars, [event.step for event in found.Images("preview")] if tags["images"] else []


def write(folder, steps, *, stage="main", scale=1.0):
    """The events of some steps; a preview after every third one."""
    seen = []
    with written_to_tensorboard(folder, seen.append) as callback:
        for step in steps:
            metrics = {"loss": scale * step} if step % 2 == 0 else None
            callback(Event("optimize", report=StepReport(step, 20, metrics), stage=stage))
            if step % 3 == 0:
                path = folder / f"step-{step:06d}.png"
                Image.new("RGB", (8, 8), "red").save(path)
                callback(Event("optimize", file=path, kind="preview", stage=stage))
    return seen


def test_metrics_and_previews_are_written_and_events_passed_on(tmp_path):
    pytest.importorskip("tensorboard")
    seen = write(tmp_path, range(1, 7))
    assert len(seen) == 8
    assert read(tmp_path / "tensorboard" / "main") == ([(2, 2.0), (4, 4.0), (6, 6.0)], [3, 6])


def test_a_run_that_continues_repeats_no_step(tmp_path):
    """Killed after step 8, resumed from the checkpoint of step 4."""
    pytest.importorskip("tensorboard")
    write(tmp_path, range(1, 9))
    write(tmp_path, range(5, 11), scale=10.0)
    scalars, images = read(tmp_path / "tensorboard" / "main")
    assert scalars == [(2, 2.0), (4, 4.0), (6, 60.0), (8, 80.0), (10, 100.0)]
    assert images == [3, 6, 9]


def test_each_stage_has_its_own_steps(tmp_path):
    pytest.importorskip("tensorboard")
    write(tmp_path, range(1, 5), stage="coarse")
    write(tmp_path, range(1, 3), stage="fine")
    assert [step for step, _ in read(tmp_path / "tensorboard" / "coarse")[0]] == [2, 4]
    assert [step for step, _ in read(tmp_path / "tensorboard" / "fine")[0]] == [2]


def test_a_link_is_not_followed(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tensorboard").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirectoryError, match="symbolic link"):
        write(tmp_path, range(1, 3))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_without_the_package_it_is_one_line_and_no_folder(run, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    code, out, err = run("text", "x", "--model", checkpoint, "--tensorboard", "--out", "o", *TINY)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "pip install 'pgc3d[tensorboard]'" in err
    assert not (tmp_path / "o").exists()
