"""Batches on a cluster, without one: what jobs take of a node, how inputs get there and results come back."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import yaml
from documentation import PAGES, Page
from meshes import write_cube
from test_batch import write_list
from test_cli import run  # noqa: F401 - fixture
from test_docs import require_parsed
from tiny import _script

from pgc3d.batch.archives import packed, unpack
from pgc3d.batch.inputs import received, sent_inputs
from pgc3d.batch.job import Entry, Job
from pgc3d.batch.places import Bucket, Folder
from pgc3d.batch.resources import Resources, fitting, placed, resources_of
from pgc3d.batch.staging import INCOMING, STATES, Desk, FolderStaging, UrlStaging
from pgc3d.batch.storage import Storage
from pgc3d.config import load_config
from pgc3d.errors import RunDirectoryError
from pgc3d.run_directory import RunDirectory
from pgc3d.task import Task

MINI, LARGE = "models.text.name=mini", "models.text.name=sdxl"


@pytest.mark.parametrize(
    ("settings", "given", "has_gpus", "expected"),
    [
        ([MINI], {}, True, Resources(1, 0.25)),
        ([MINI], {}, False, Resources(1, 0.0)),
        ([LARGE], {}, True, Resources(2, 1.0)),
        ([LARGE], {}, False, Resources(2, 1.0)),  # waits for a node with a GPU
        ([LARGE, "run.device=cpu"], {}, True, Resources(1, 0.0)),
        ([MINI, "run.device=cuda"], {}, False, Resources(1, 0.25)),
        ([LARGE], {"gpus": 0.5}, True, Resources(1, 0.5)),
        ([MINI], {"gpus": 0.0, "cpus": 4}, True, Resources(4, 0.0)),
    ],
)
def test_a_job_takes_what_its_models_need(settings, given, has_gpus, expected):
    config = load_config(overrides=settings)
    found = resources_of(config, **({"gpus": None, "cpus": None} | given), has_gpus=has_gpus)
    assert found == expected
    device = placed(Job("a", "0", config=config), found).config.run.device
    assert device == ("cpu" if found.gpus == 0 else config.run.device)


def test_as_many_jobs_fit_as_cores_and_gpus_suffice_for():
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 64.0}]
    assert fitting(Resources(1, 0.25), nodes) == 8 + 3
    assert fitting(Resources(1, 1 / 3), nodes) == 6 + 3
    assert fitting(Resources(2, 1.0), nodes) == 2 + 1
    assert fitting(Resources(2, 0.0), nodes) == 4 + 1 + 32
    assert fitting(Resources(1, 1.0), nodes[2:]) == 0


def test_inputs_reach_a_machine_that_does_not_have_them(tmp_path):
    """With the files that a mesh names; equal files of the machine are used where they are."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    write_cube(here / "crate.gltf")
    (here / "image.png").write_bytes(b"an image")
    store = {}
    task = Task("a crate", mesh=here / "crate.gltf", image=here / "image.png")
    sent = sent_inputs(task, lambda content: store.setdefault(len(store), content) and len(store) - 1)
    assert received(task, sent, there, store.__getitem__) == task
    assert not there.exists()
    (here / "image.png").write_bytes(b"another")  # as of another machine
    arrived = received(task, sent, there, store.__getitem__)
    assert (arrived.mesh, arrived.image.read_bytes()) == (task.mesh, b"an image")
    contents = {path.name: path.read_bytes() for path in here.iterdir() if path.name != "image.png"}
    assert len(contents) > 1
    for path in here.iterdir():
        path.unlink()
    arrived = received(task, sent, there, store.__getitem__)
    assert {path.name: path.read_bytes() for path in arrived.mesh.parent.iterdir()} == contents
    assert arrived.prompt == "a crate"


def write_run(folder, name, *, begun=True, asset=b"asset"):
    """The folder of a run, and of its sweep, as far as staging reads them."""
    with RunDirectory.create(folder / name) as directory:
        directory.begin()
        if begun:
            directory.write_manifest({"status": "running"})
            (folder / name / "asset.glb").write_bytes(asset)
            (folder / name / ".x.pgc3d-0123abcd.tmp").touch()
    (folder / "sweeps" / name / "3").mkdir(parents=True)
    (folder / "sweeps" / name / "ranking.json").write_text("[]")


def tree(folder):
    """The paths below a folder; of files with their contents."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_archives_hold_what_there_is_of_a_job(tmp_path):
    write_run(tmp_path / "a", "x")
    write_run(tmp_path / "a", "y")
    (tmp_path / "b").mkdir()
    assert packed(tmp_path / "b", "x") == b""
    (tmp_path / "x.tar").write_bytes(packed(tmp_path / "a", "x"))
    with (tmp_path / "x.tar").open("rb") as stream:
        unpack(stream, tmp_path / "b")
    found = tree(tmp_path / "a")
    gone = {"x/.lock", "x/.x.pgc3d-0123abcd.tmp"}
    own = {name for name in found if "x" in name.split("/")} - gone | {"sweeps"}
    assert tree(tmp_path / "b") == {name: found[name] for name in own}
    assert RunDirectory(tmp_path / "b" / "x").has_begun()


def test_a_folder_that_workers_see_is_worked_in(tmp_path):
    staging = FolderStaging.open(tmp_path)
    desk = staging.enter(tmp_path / "scratch", "x", bytes)
    assert (desk.folder, desk.is_shared) == (tmp_path, True)
    write_run(tmp_path, "x")
    before = tree(tmp_path)
    staged = staging.leave(desk, "x", done=True)
    staging.publish("x", staged)
    assert staged.archive == b""
    assert tree(tmp_path) == before
    staging.close()
    assert tree(tmp_path).keys() == before.keys() - {staging.mark}


def test_a_run_returns_whole_to_a_folder_that_its_worker_does_not_see(tmp_path):
    """It goes on with what was stored; the result replaces that by a rename."""
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    write_run(out, "x", asset=b"half")
    (out / INCOMING / "left").mkdir(parents=True)
    staging = FolderStaging.open(out)
    assert not (out / INCOMING).exists()
    elsewhere = replace(staging, out=tmp_path / "none")
    scratch.mkdir()
    desk = elsewhere.enter(scratch, "x", lambda: staging.stored("x"))
    assert not desk.is_shared
    assert (scratch / "x" / "asset.glb").read_bytes() == b"half"
    (scratch / "x" / "asset.glb").write_bytes(b"whole")
    (scratch / "x" / "more").touch()
    elsewhere.save(desk, "x")
    staging.publish("x", elsewhere.leave(desk, "x", done=True))
    assert (out / "x" / "asset.glb").read_bytes() == b"whole"
    assert (out / "x" / "more").exists()
    staging.publish("y", replace(elsewhere.leave(desk, "y", done=False)))  # it made nothing
    staging.close()
    assert {path.name for path in out.iterdir()} == {"x", "sweeps"}
    assert staging.stored("y") == b""


@pytest.fixture
def storage(tmp_path):
    client = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}"
    yield Storage(f"memory:/{root}")
    if client.exists(root):
        client.rm(root, recursive=True)


def test_a_run_goes_on_from_the_state_in_storage_and_is_published_whole(storage, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    storage.write(f"{INCOMING}/left", b"")
    staging = UrlStaging.open(storage)
    assert storage.all_names(INCOMING) == []
    first.mkdir()
    desk = staging.enter(first, "x", bytes)
    assert staging.leave(desk, "x", done=False).files == ()  # nothing was made
    write_run(first, "x", asset=b"half")
    staging.save(desk, "x")
    assert storage.names(STATES) == {"x.tar"}
    second.mkdir()
    desk = staging.enter(second, "x", bytes)  # after the first worker is lost
    assert packed(second, "x") == packed(first, "x")
    (second / "x" / "asset.glb").write_bytes(b"whole")
    staged = staging.leave(desk, "x", done=True)
    assert storage.names() == {INCOMING, STATES}
    staging.publish("x", staged)
    staging.publish("x", staged)  # again, as after a kill in between
    staging.clean("x", staged)
    assert storage.read("x/asset.glb") == b"whole"
    assert set(storage.all_names("")) == {"x/asset.glb", "x/manifest.json", "sweeps/x/ranking.json"}


def test_a_run_that_is_not_whole_has_no_manifest_in_storage(storage, tmp_path):
    write_run(tmp_path, "x")
    staging = UrlStaging.open(storage)
    staged = staging.leave(Desk(tmp_path, is_shared=False), "x", done=True)
    storage.remove([f"{staged.prefix}/x/asset.glb"])
    with pytest.raises(RunDirectoryError, match="must be storage that can be reached and written, got: File"):
        staging.publish("x", staged)
    assert "x/manifest.json" not in storage.all_names("")


def test_uploads_of_checkpoints_take_a_part_of_the_time(storage, tmp_path):
    write_run(tmp_path, "x")
    desk = Desk(tmp_path, is_shared=False, uploading=100.0)
    UrlStaging(storage).save(desk, "x")
    assert storage.names() == set()
    desk.opened -= 2000.0
    UrlStaging(storage).save(desk, "x")
    assert storage.names(STATES) == {"x.tar"}


def test_storage_has_a_batch_as_a_folder_has(storage, tmp_path):
    entry = Entry("x", "0", state="done")
    write_run(tmp_path, "x")
    for place in (Folder(tmp_path / "out"), Bucket(storage)):
        with place.locked():
            assert place.read() == {}
            place.write({"x": entry}, {"y": replace(entry, name="y")})
            assert place.read() == {"x": entry, "y": replace(entry, name="y")}
            with pytest.raises(RunDirectoryError, match="another batch is writing it"), place.locked():
                pass
    assert Bucket(storage).path("x", "asset.glb") == f"{storage.url}/x/asset.glb"
    assert not Bucket(storage).has_begun("x")
    staging = UrlStaging.open(storage)
    staging.leave(Desk(tmp_path, is_shared=False), "x", done=False)
    assert Bucket(storage).has_begun("x")
    assert not Bucket(storage).has_run("x")
    staging.publish("x", staging.leave(Desk(tmp_path, is_shared=False), "x", done=True))
    assert Bucket(storage).has_run("x")


def test_an_address_where_nothing_answers_is_refused_at_once(run, tmp_path):
    pytest.importorskip("ray")
    write_list(tmp_path / "list.yaml", [{"prompt": "a chair", "guidance": "mini"}])
    for address in ("127.0.0.1:1", "nonsense"):
        code, out, err = run("batch", "list.yaml", "--ray", address)
        assert (code, out) == (2, "")
        assert f"a cluster of Ray must be reachable at HOST:PORT, got {address}, where nothing answers" in err


ERRORS = {
    "URL": (["--out", "s3://bucket/x"], "--out must be a folder without --ray, got s3://bucket/x"),
    "resources": (["--gpus-per-job", "0.5"], "must go with --ray, got none; add --ray auto"),
    "jobs": (["--ray", "auto", "--jobs", "2"], "--jobs must not be given with --ray"),
    "package": (["--ray", "auto"], 'ray must be installed for --ray, got none; pip install "pgc3d[cluster]"'),
}


@pytest.mark.parametrize(("options", "line"), ERRORS.values(), ids=ERRORS)
def test_options_that_do_not_go_together_are_one_line(run, tmp_path, monkeypatch, options, line):
    monkeypatch.setitem(sys.modules, "ray", None)
    write_list(tmp_path / "list.yaml", [{"prompt": "a chair", "guidance": "mini"}])
    code, out, err = run("batch", "list.yaml", *options)
    assert (code, out) == (2, "")
    assert line in err
    assert not Path("runs").exists()


PAGE = Page(PAGES / "cluster.md")
DIRECTIVES = {"nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "time", "signal", "requeue"}


def test_the_slurm_script_is_valid_bash_with_the_directives_that_it_reads(tmp_path):
    (block,) = (block for block in PAGE.blocks("bash") if block.attributes.get("title") == "pgc3d.slurm")
    (tmp_path / "script").write_text(block.text)
    found = subprocess.run(["bash", "-n", tmp_path / "script"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert block.text.startswith("#!/bin/bash\n#SBATCH ")
    assert set(re.findall(r"^#SBATCH --([\w-]+)", block.text, re.MULTILINE)) >= DIRECTIVES
    (words,) = re.findall(r"^command=\(pgc3d (.*)\)$", block.text, re.MULTILINE)
    require_parsed(shlex.split(words))
    assert "\n#SBATCH" not in block.text.partition("\nset -euo pipefail\n")[2]  # Slurm reads no more


def test_the_manifest_has_what_a_ray_job_needs():
    (block,) = (block for block in PAGE.blocks("yaml") if "apiVersion" in block.text)
    manifest = yaml.safe_load(block.text)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9-]+", manifest["metadata"]["name"])
    assert "--ray auto" in manifest["spec"]["entrypoint"]
    cluster = manifest["spec"]["rayClusterSpec"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", cluster["rayVersion"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert "rayStartParams" in group
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {"name", "image", "resources"} <= container.keys()
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["groupName"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]


def test_notices_of_the_measurement_are_not_among_its_tables(monkeypatch, capsys):
    """As where the address of a cluster that is gone lies in Ray's folder."""
    script = _script("measure_cluster")

    def connected(address, notify):
        notify(f"{address} is gone")
        raise KeyError

    monkeypatch.setattr(script, "connected", connected)
    with pytest.raises(KeyError):
        script.main(["--repeats", "1"])
    assert capsys.readouterr() == ("", "auto is gone\n")
