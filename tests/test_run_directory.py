import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from pgc3d.checkpoint_files import Checkpoint
from pgc3d.disk import replace_file, require_free_space, sha256
from pgc3d.errors import RunDirectoryError
from pgc3d.plain_files import is_temporary, temporary_name
from pgc3d.records import seal
from pgc3d.run_directory import PREPARING, RunDirectory
from pgc3d.task import Task


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    directory.config.write_text("{}")
    directory.write_manifest({"prompt": "a red chair"})
    return directory


def save(run, step):
    run.save_checkpoint("main", Checkpoint(step, {"x": torch.full((3,), float(step))}, {"lr": 0.1}))


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


FOLDERS = ["checkpoints", "previews", "checkpoints/main", "previews/main"]
PARTS = ["config.yaml", "manifest.json", "metrics.jsonl", ".lock"]


@pytest.fixture
def used(run):
    """A run with all its files, opened once."""
    with run:
        run.log_metrics({"stage": "main", "step": 1})
        run.preview("main", 1).write_bytes(b"x")
        save(run, 10)
        save(run, 20)
    return run


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


def test_tensors_without_a_record_are_said_and_later_removed(run, caplog):
    save(run, 10)
    save(run, 20)
    (run.path / "checkpoints" / "main" / "step-000020.json").unlink()  # a kill before it was written
    assert run.load_checkpoint("main").step == 10
    assert "step-000020 has no record" in caplog.text
    save(run, 30)
    save(run, 40)
    assert len(list((run.path / "checkpoints" / "main").iterdir())) == 4


def test_what_a_kill_left_is_removed_and_nothing_else(used, tmp_path):
    left = [used.path / folder / temporary_name("a.json") for folder in (".", *FOLDERS)]
    mine = [used.path / name for name in (".mine.tmp", "x.tmp", ".a.json.deadbeef.tmp")]
    for path in (*left, *mine):
        path.write_text("x")
    link = used.path / temporary_name("link")
    (tmp_path / "outside").write_text("mine")
    link.symlink_to(tmp_path / "outside")
    with used:
        pass
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in (*mine, link))


@pytest.mark.parametrize(
    "name", ["asset.glb", "turntable.mp4", "step-000001.json", "x" * 250, "ä" * 120, ".lock"]
)
def test_temporary_names_are_known_again_and_keep_their_suffix(name):
    found = temporary_name(name)
    assert is_temporary(found)
    assert not is_temporary(name)
    assert len(os.fsencode(found)) <= 255
    assert os.path.splitext(found)[1] == (os.path.splitext(name)[1] or ".tmp")  # noqa: PTH122


def stages_of_a_start(path):
    """What lies in a new folder, after each thing that is done before the run begins."""
    path.mkdir(parents=True)
    yield
    (path / "previews").mkdir()
    yield
    (path / "checkpoints").mkdir()
    yield
    (path / ".lock").write_text("123")
    yield
    (path / temporary_name("manifest.json")).write_text('{"st')
    yield
    RunDirectory(path).write_manifest({"status": PREPARING})
    yield
    for name in ("config.yaml", "input.png", "mesh.safetensors"):
        (path / name).write_text("half")
        yield


@pytest.mark.parametrize("stage", range(9))
def test_a_folder_in_which_no_run_began_is_used_again(tmp_path, stage):
    path = tmp_path / "run"
    start = stages_of_a_start(path)
    for _ in range(stage + 1):
        next(start)
    if stage:
        with pytest.raises(RunDirectoryError, match=r"must hold a run that has begun.*start it again"):
            RunDirectory.open(path)
    with RunDirectory.create(path) as run:
        run.begin()
    assert {entry.name for entry in path.iterdir()} == {"previews", "checkpoints", ".lock", "manifest.json"}


@pytest.mark.parametrize(
    "name",
    ["mine.txt", "previews/mine.png", "checkpoints/step-000001.json", "checkpoints/main/", "asset.glb"],
)
@pytest.mark.parametrize("prepared", [True, False])
def test_a_folder_with_anything_else_in_it_is_not_used(tmp_path, name, prepared):
    run = RunDirectory.create(tmp_path / "run")
    if prepared:
        run.write_manifest({"status": PREPARING})
    mine = run.path / name
    mine.mkdir() if name.endswith("/") else mine.write_text("mine")
    with pytest.raises(RunDirectoryError, match="must not exist or be empty"):
        RunDirectory.create(run.path)
    assert mine.is_dir() if name.endswith("/") else mine.read_text() == "mine"


@pytest.mark.parametrize("name", [".lock", "config.yaml", "input.png"])
def test_files_of_those_names_that_pgc3d_did_not_write_stay(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"choose another --out$"):
        RunDirectory.create(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_of_two_processes_that_begin_in_one_folder_one_does(tmp_path):
    first, second = RunDirectory.create(tmp_path / "run"), RunDirectory.create(tmp_path / "run")
    with first:
        first.begin()
        with pytest.raises(RunDirectoryError, match="must not be in use"), second:
            pass
        first.write_manifest({"status": "running"})
    with second, pytest.raises(RunDirectoryError, match="another process"):
        second.begin()
    assert first.read_manifest()["status"] == "running"


@pytest.fixture
def small_disk(run):
    """A limit on the size of files, as a disk that is full; nothing is replaced by anything."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, heard)


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.__enter__(),
        lambda run: run.write_manifest({"prompt": "a red chair"}),
        lambda run: run.log_metrics({"stage": "main", "step": 2}),
        lambda run: save(run, 30),
    ],
    ids=["lock", "manifest", "metrics", "checkpoint"],
)
def test_a_disk_without_room_is_one_line_and_loses_nothing(used, small_disk, write):
    kept = {
        path: path.read_bytes() for path in used.path.rglob("*") if path.is_file() and path.name != ".lock"
    }
    small_disk(0)
    with pytest.raises(RunDirectoryError, match="must be writable, got: File too large"):
        write(used)
    small_disk(resource.RLIM_INFINITY)
    assert {path: path.read_bytes() for path in kept} == kept
    assert {path for path in used.path.rglob("*") if path.is_file() and path.name != ".lock"} == set(kept)
    with used:
        assert used.load_checkpoint("main").step == 20


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
    code = "import sys; sys.modules['fcntl'] = None; from pgc3d.cli.app import main; main(['resume', 'x'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: pgc3d must run on a POSIX system")
    assert len(found.stderr.splitlines()) == 1
