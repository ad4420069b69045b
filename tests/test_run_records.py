"""The records of a run: manifests, checkpoints and inputs that were edited or damaged."""

import json
import subprocess
import sys

import pytest
from run_folders import run, save, used  # noqa: F401 - fixtures

from pgc3d.errors import RunDirectoryError
from pgc3d.records import seal
from pgc3d.task import Task


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"status": 3}, "status must be text"),
        ({"prompt": None}, "prompt must be text, got null"),
        ({"prompt": "\ud800"}, "half a surrogate"),
        ({"image": 4}, "image must be text, got a number"),
        ({"mesh": None}, "mesh must be text, got null"),
        ({"background": ["x"]}, "background must be text, got a list"),
        ({"seed": True}, "seed must be a whole number"),
        ({"stages": {"main": {"steps": -1}}}, r"stages\.main\.steps must lie in"),
        ({"stages": {"main": {"steps": 10**400}}}, "far more"),
        ({"stages": {"main": {"status": None}}}, "must be text, got null"),
        ({"stages": ["main"]}, "stages must be an object, got a list"),
        ({"starts": {"main": {"path": "x"}}}, r"starts\.main must hold sha256"),
        ({"starts": {"main": "x"}}, r"starts\.main must be an object"),
        ({"seconds": []}, "seconds must be an object, got a list"),
        ({"seconds": {"build": float("nan")}}, "must be finite"),
        ({"seconds": {"build": "1"}}, "must be a number, got text"),
        ({"files": {"a": 1}}, r"files\.a must be text"),
        ({"models": {"text": "mini"}}, "must be an object"),
        ({"models": {"text": {"commit": None}}}, "must hold name"),
        ({"loras": {}}, "loras must be a list"),
        ({"loras": [{"path": "x", "scale": 1}]}, r"loras\[0\] must hold sha256"),
        ({"out_of_memory": [{"step": 1, "micro_batch": 0}]}, r"\[0\]\.micro_batch must lie in"),
        ({"out_of_memory": [3]}, r"out_of_memory\[0\] must be an object"),
        ({"format": 2}, "of a later pgc3d .format 2, this one reads 1.; update pgc3d"),
        ({"format": "1"}, "format must be a whole number"),
    ],
)
def test_wrong_types_in_the_manifest_are_one_line(run, record, line):
    (run.path / "manifest.json").write_text(json.dumps(seal({"format": 1, **record})))
    with pytest.raises(RunDirectoryError, match=line):
        Task.from_record(run.read_manifest(), run.path)


@pytest.mark.parametrize(
    "content", ["", "[]", "1", "{" * 100_000, '{"a":' * 100_000, "\x00", '{"prompt": 1', "\xff"]
)
def test_a_manifest_that_is_no_record_is_one_line(run, content):
    (run.path / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RunDirectoryError, match="must be a run's manifest, but is damaged"):
        run.read_manifest()


def test_one_changed_letter_of_the_manifest_is_noticed(run):
    run.write_manifest({"prompt": "a red chair", "export": {"psnr": float("inf")}})
    assert run.read_manifest()["prompt"] == "a red chair"
    text = (run.path / "manifest.json").read_text()
    (run.path / "manifest.json").write_text(text.replace("a red chair", "a bed chair"))
    with pytest.raises(RunDirectoryError, match="damaged or edited"):
        run.read_manifest()


def test_records_of_the_first_pgc3d_are_read(run):
    (run.path / "manifest.json").write_text(json.dumps({"prompt": "a red chair", "status": "running"}))
    assert run.read_manifest()["prompt"] == "a red chair"
    save(run, 10)
    path = run.checkpoints("main")[0]
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: record[name] for name in ("step", "sha256", "values")}))
    assert run.load_checkpoint("main").step == 10


@pytest.mark.parametrize(
    "change",
    [
        {"values": None},
        {"values": []},
        {"step": "20"},
        {"step": -1},
        {"step": 10},
        {"step": 2.0},
        {"step": 10**30},
        {"sha256": None},
        {"format": 9},
    ],
    ids=str,
)
def test_a_record_of_a_checkpoint_with_wrong_types_counts_as_damage(used, change, caplog):
    path = used.checkpoints("main")[0]
    path.write_text(json.dumps(seal(json.loads(path.read_text()) | change)))
    assert used.load_checkpoint("main").step == 10
    assert "step-000020 is damaged" in caplog.text


def test_a_checkpoint_whose_record_was_edited_counts_as_damage(used, caplog):
    path = used.checkpoints("main")[0]
    path.write_text(path.read_text().replace('"lr": 0.1', '"lr": NaN'))
    assert used.load_checkpoint("main").step == 10
    assert "digest" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../other/input.png",
        "a/../../b",
        "C:\\x.png",
        "\\\\host\\x",
        "..\\x",
        "",
        ".",
        "a\x00b",
        "a\nb",
    ],
)
def test_names_in_a_manifest_lead_nowhere_else(run, name):
    with pytest.raises(RunDirectoryError, match="must be named inside its folder"):
        Task.from_record({"image": name}, run.path)


@pytest.mark.parametrize("link", ["input.png", "inputs"])
def test_inputs_behind_links_are_refused(run, tmp_path, link):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "input.png").write_bytes(b"x")
    target = tmp_path / "outside" / ("input.png" if link == "input.png" else "")
    (run.path / link).symlink_to(target)
    name = link if link == "input.png" else "inputs/input.png"
    with pytest.raises(RunDirectoryError, match="got a symbolic link"):
        run.require_same_inputs({"image": name})


@pytest.mark.parametrize("change", ["other content", "gone"])
def test_inputs_that_changed_are_refused(run, change):
    path = run.path / "input.png"
    path.write_bytes(b"picture")
    record = {"image": "input.png", "files": run.hash_files([path])}
    run.require_same_inputs(record)
    path.write_bytes(b"Picture") if change == "other content" else path.unlink()
    with pytest.raises(RunDirectoryError, match=r"must be as when the run began|must exist"):
        run.require_same_inputs(record)


def test_without_file_locks_there_is_one_line_at_the_start():
    code = "import sys; sys.modules['fcntl'] = None; from pgc3d.cli.app import main; main(['text', 'x'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: pgc3d must run on a POSIX system")
    assert len(found.stderr.splitlines()) == 1
