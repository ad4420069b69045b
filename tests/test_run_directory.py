import errno
import json
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from run_folders import run, save  # noqa: F401 - fixtures

from pgc3d.checkpoint_files import Checkpoint
from pgc3d.disk import replace_file, require_free_space, sha256
from pgc3d.errors import RunDirectoryError
from pgc3d.run_directory import RunDirectory


def test_checkpoint_comes_back_as_it_was(run):
    state = torch.Generator().manual_seed(3).get_state()
    run.save_checkpoint(
        "main", Checkpoint(7, {"a.b": torch.arange(4.0), "state": state}, {"groups": [{"lr": 0.1}]})
    )
    loaded = run.load_checkpoint("main")
    assert loaded.step == 7
    assert loaded.values == {"groups": [{"lr": 0.1}]}
    torch.testing.assert_close(loaded.tensors["a.b"], torch.arange(4.0))
    assert torch.equal(loaded.tensors["state"], state)


def test_tensors_that_share_memory_can_be_saved(run):
    shared = torch.zeros(4)
    run.save_checkpoint("main", Checkpoint(1, {"a": shared, "b": shared[:2]}))
    assert set(run.load_checkpoint("main").tensors) == {"a", "b"}


def test_two_newest_checkpoints_are_kept(run):
    for step in (10, 20, 30, 40):
        save(run, step)
    assert [path.stem for path in run.checkpoints("main")] == ["step-000040", "step-000030"]
    assert len(list((run.path / "checkpoints" / "main").iterdir())) == 4


def damage_tensors(path):
    content = bytearray(path.with_suffix(".safetensors").read_bytes())
    content[-1] ^= 1
    path.with_suffix(".safetensors").write_bytes(content)


def cut_tensors(path):
    path.with_suffix(".safetensors").write_bytes(path.with_suffix(".safetensors").read_bytes()[:20])


def remove_tensors(path):
    path.with_suffix(".safetensors").unlink()


def cut_json(path):
    path.write_text('{"step": 4')


def empty_json(path):
    path.write_text("[]")


@pytest.mark.parametrize("damage", [damage_tensors, cut_tensors, remove_tensors, cut_json, empty_json])
def test_damaged_checkpoint_falls_back_to_the_one_before(run, damage, caplog):
    save(run, 10)
    save(run, 20)
    damage(run.checkpoints("main")[0])
    with caplog.at_level(logging.WARNING):
        assert run.load_checkpoint("main").step == 10
    assert "step-000020 is damaged" in caplog.text


def test_all_checkpoints_damaged_is_an_error(run):
    save(run, 10)
    save(run, 20)
    for path in run.checkpoints("main"):
        damage_tensors(path)
    with pytest.raises(RunDirectoryError, match="all 2 are damaged"):
        run.load_checkpoint("main")


def test_stages_have_their_own_checkpoints(run):
    save(run, 10)
    run.save_checkpoint("fine", Checkpoint(3, {"x": torch.zeros(2)}))
    for step in (4, 5):
        run.save_checkpoint("fine", Checkpoint(step, {"x": torch.zeros(2)}))
    assert [path.stem for path in run.checkpoints("main")] == ["step-000010"]
    assert [path.stem for path in run.checkpoints("fine")] == ["step-000005", "step-000004"]
    assert run.load_checkpoint("main").step == 10
    assert run.load_checkpoint("fine").step == 5
    assert run.load_checkpoint("other") is None
    assert not (run.path / "checkpoints" / "other").exists()


def test_metrics_of_other_stages_stay(run):
    for stage, step in (("main", 1), ("main", 2), ("fine", 1), ("fine", 2)):
        run.log_metrics({"stage": stage, "step": step})
    run.drop_metrics("fine", after=1)
    run.drop_metrics("other", after=0)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [("main", 1), ("main", 2), ("fine", 1)]


def test_run_without_checkpoints_has_none(run):
    assert run.load_checkpoint("main") is None


def test_existing_folder_is_refused_unless_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    run = RunDirectory.create(tmp_path / "empty")
    run.write_manifest({"status": "running"})
    with pytest.raises(RunDirectoryError, match=r"must not exist or be empty.*or continue it"):
        RunDirectory.create(tmp_path / "empty")


def test_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunDirectoryError, match="must not exist"):
        RunDirectory.create(tmp_path / "file")
    with pytest.raises(RunDirectoryError, match="must be writable"):
        RunDirectory.create(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"config\.yaml is missing"):
        RunDirectory.open(tmp_path)


def test_second_process_is_locked_out(run):
    code = (
        "import sys; from pathlib import Path; from pgc3d.run_directory import RunDirectory\n"
        "with RunDirectory.open(Path(sys.argv[1])): pass"
    )
    with run:
        other = subprocess.run(
            [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False
        )
    assert f"process {os.getpid()} is writing it" in other.stderr
    with run:
        pass


def test_full_disk_is_one_line_and_keeps_the_old_file(run, monkeypatch):
    target = run.path / "file"
    replace_file(target, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunDirectoryError, match="disk must have space"):
        replace_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert not list(run.path.glob("*.tmp")) + list(run.path.glob(".*.tmp"))


def test_too_little_free_space_is_refused_before_the_start(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RunDirectoryError, match="must have 5 MB free"):
        require_free_space(tmp_path / "a" / "b", 5_000_000)


def test_metrics_are_json_lines(run):
    run.log_metrics({"stage": "main", "step": 1, "loss": 0.5})
    run.log_metrics({"stage": "main", "step": 2, "loss": 0.25})
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_damaged_manifest_is_one_line(run):
    (run.path / "manifest.json").write_text("{")
    with pytest.raises(RunDirectoryError, match="must be a run's manifest"):
        run.read_manifest()


def test_hashes_name_files_inside_the_folder(run):
    hashes = run.hash_files([run.config])
    assert hashes == {"config.yaml": sha256(run.config)}
