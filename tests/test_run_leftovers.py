"""What a killed process left in a folder, folders in which no run began, and full disks."""

import os
import resource
import signal

import pytest
from run_folders import FOLDERS, run, save, used  # noqa: F401 - fixtures

from pgc3d.errors import RunDirectoryError
from pgc3d.plain_files import is_temporary, temporary_name
from pgc3d.run_directory import PREPARING, RunDirectory


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
