"""Links and other things in the place of a run's files."""

import json
import os
import shutil

import pytest
from run_folders import FOLDERS, run, save, used  # noqa: F401 - fixtures

from pgc3d.errors import RunDirectoryError
from pgc3d.run_directory import RunDirectory

PARTS = ["config.yaml", "manifest.json", "metrics.jsonl", ".lock"]


def work(path):
    """Everything that a process does with a run that is there."""
    with RunDirectory.open(path) as run:
        run.read_manifest()
        run.config_digest()
        run.load_checkpoint("main")
        run.drop_metrics("main", after=0)
        run.log_metrics({"stage": "main", "step": 2})
        run.write_manifest({})
        run.preview("main", 2)
        save(run, 30)
        save(run, 40)


@pytest.mark.parametrize("name", [*PARTS, *FOLDERS])
def test_links_in_a_run_are_never_followed(used, tmp_path, name):
    place, outside = used.path / name, tmp_path / "outside"
    shutil.move(place, outside)
    place.symlink_to(outside)
    files = [path for path in outside.rglob("*") if path.is_file()] if outside.is_dir() else [outside]
    before, entries = {path: path.read_bytes() for path in files}, set(outside.rglob("*"))
    assert before
    with pytest.raises(RunDirectoryError, match=r"must be a .* of the run itself, got a symbolic link"):
        work(used.path)
    assert {path: path.read_bytes() for path in before} == before
    assert set(outside.rglob("*")) == entries


@pytest.mark.parametrize("name", [*PARTS, *FOLDERS])
@pytest.mark.parametrize("kind", ["pipe", "folder or file", "nowhere"])
def test_other_things_in_the_place_of_a_part_are_one_line(used, tmp_path, name, kind):
    place = used.path / name
    folder = place.is_dir()
    shutil.rmtree(place) if folder else place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "nowhere":
        place.symlink_to(tmp_path / "nowhere")
    elif folder:
        place.touch()
    else:
        place.mkdir()
    with pytest.raises(RunDirectoryError, match="of the run itself, got a"):
        work(used.path)
    assert not (tmp_path / "nowhere").exists()


def test_a_run_that_is_reached_through_a_link_is_used(used, tmp_path):
    (tmp_path / "link").symlink_to(used.path)
    work(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["step-000020.json", "step-000020.safetensors"])
def test_a_link_in_the_place_of_a_checkpoint_counts_as_damage(used, tmp_path, name, caplog):
    place = used.path / "checkpoints" / "main" / name
    shutil.move(place, tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    before = (tmp_path / "outside").read_bytes()
    assert used.load_checkpoint("main").step == 10
    assert "step-000020 is damaged" in caplog.text
    save(used, 20)
    assert (tmp_path / "outside").read_bytes() == before
    assert used.load_checkpoint("main").step == 20


def test_files_with_a_second_name_are_not_written_through_it(used, tmp_path):
    """As in a backup that is made of hard links."""
    for name in PARTS:
        os.link(used.path / name, tmp_path / name)
    before = {name: (tmp_path / name).read_bytes() for name in PARTS}
    work(used.path)
    assert {name: (tmp_path / name).read_bytes() for name in PARTS} == before
    assert json.loads((used.path / "metrics.jsonl").read_text()) == {"stage": "main", "step": 2}


def test_the_newest_of_a_million_steps_is_kept(run):
    for step in (999_999, 1_000_000, 1_000_001, 10_000_000):
        save(run, step)
        assert run.load_checkpoint("main").step == step
    assert [path.stem for path in run.checkpoints("main")] == ["step-10000000", "step-1000001"]


def test_only_own_files_are_pruned(run):
    mine = ["step-000001.txt", "step-1.json", "notes.json", "step-000001-copy.safetensors"]
    save(run, 5)
    for name in mine:
        (run.path / "checkpoints" / "main" / name).write_text("mine")
    (run.path / "checkpoints" / "main" / "step-000002.json").mkdir()
    for step in (10, 20, 30):
        save(run, step)
    found = {path.name for path in (run.path / "checkpoints" / "main").iterdir()}
    assert found >= {*mine, "step-000002.json"}
    assert len(found) == len(mine) + 1 + 4
