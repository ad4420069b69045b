"""Batches on clusters of Ray that are really started, and an HTTP server of S3; a minute or more each."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from test_batch import ENVIRONMENT, TINY, write_inputs, write_list
from tiny import ROOT, _script

from pgc3d.batch.places import Bucket, Folder
from pgc3d.batch.storage import Storage

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
BUCKET = "s3://assets/batch"


def entries(folder, count, steps=8):
    """Jobs from prompts and on a mesh, with a checkpoint every two steps."""
    write_inputs(folder)
    small = {**TINY, "logging": TINY["logging"] | {"checkpoint_every": 2}}
    (folder / "tiny.yaml").write_text(json.dumps(small))
    text = {"guidance": "mini", "config": "tiny.yaml", "set": ["objectives.color.batch=1"], "steps": steps}
    mesh = {"mesh": "in/crate.glb", "guidance": "mini", "steps": 4, "resolution": 32, "texture-size": 128}
    kinds = ({"prompt": "a chair", **text}, {"prompt": "a crate", "device": "cpu", **mesh})
    return [{**kinds[number % 2], "name": f"job-{number}"} for number in range(count)]


class Batch:
    """`pgc3d batch` in a process of its own, with its output in out.txt and log.txt."""

    def __init__(self, folder, *options, environment=None):
        command = [sys.executable, "-m", "pgc3d", "batch", "list.yaml", *options]
        self.log = folder / "log.txt"
        with (folder / "out.txt").open("w") as out, self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=ENVIRONMENT | (environment or {}), stdout=out, stderr=log
            )

    def wait_for(self, pattern, seconds=200):
        """Until there is a line that matches."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.log.read_text()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def kill_worker(self, name):
        """Kill the process that makes an asset."""
        (worker,) = (
            process
            for process in psutil.process_iter(["cmdline"])
            if (process.info["cmdline"] or [""])[0] == f"ray::pgc3d {name}"
        )
        worker.kill()

    def end(self):
        """The exit code, the jobs that a line names as done, and all lines."""
        code = self.process.wait(timeout=400)
        text = self.log.read_text()
        return code, sorted(re.findall(r"^\[([\w-]+)\] done: ", text, re.MULTILINE)), text


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of a server on this machine, whose address is in the environment."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="assets")
    yield values
    server.stop()


def test_killed_workers_of_random_jobs_lose_nothing_and_make_nothing_twice(tmp_path, capsys):
    """The script, with the same bytes in all parts."""
    script = _script("check_cluster")
    small = ["--assets", "6", "--measured", "2", "--jobs", "2", "--kills", "2", "--kill-every", "8"]
    assert script.main([str(tmp_path / "out"), *small]) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "cluster.json").read_text())
    rows = {row["part"]: row for row in found["rows"]}
    assert rows["kills"]["kills"] == 2
    assert 1 <= sum(rows["kills"]["lost"].values()) <= 2  # a process may have just ended its job
    assert len(rows["kills"]["done"]) == 6
    assert (tmp_path / "out" / "4-kills.txt").read_text().count("\n") == 6  # paths of assets alone


def test_a_run_in_storage_goes_on_from_its_checkpoint_when_its_worker_dies(tmp_path, bucket):
    write_list(tmp_path / "list.yaml", entries(tmp_path, 3, steps=400))
    batch = Batch(tmp_path, "--ray", "auto", "--out", BUCKET, environment=bucket)
    place = Bucket(Storage(BUCKET))
    batch.wait_for(r"\[job-0\] optimize: step")
    end = time.monotonic() + 100
    while not place.has_begun("job-0"):
        assert time.monotonic() < end
        time.sleep(0.2)
    batch.kill_worker("job-0")
    code, done, text = batch.end()
    assert (code, done) == (0, ["job-0", "job-1", "job-2"]), text
    assert re.search(r"\[job-0\] its worker on .* is lost, and it begins again", text)
    assert re.search(r"\[job-0\] attempt 2 of 4, on .*, from its last checkpoint", text)
    assets = [f"{BUCKET}/job-{number}/asset.{'glb' if number % 2 else 'stl'}" for number in range(3)]
    assert sorted((tmp_path / "out.txt").read_text().split()) == assets
    storage = Storage(BUCKET)
    assert storage.names() == {"job-0", "job-1", "job-2", "status.json"}
    assert [entry.asset for entry in place.read().values()] == assets
    for asset in assets:
        assert storage.read(asset.removeprefix(f"{BUCKET}/"))
    again = Batch(tmp_path, "--ray", "auto", "--out", BUCKET, environment=bucket).end()
    assert again[:2] == (0, [])


def test_a_job_whose_workers_always_die_fails_alone(tmp_path):
    write_list(tmp_path / "list.yaml", entries(tmp_path, 2, steps=2000))
    batch = Batch(tmp_path, "--ray", "auto", "--attempts", "2")
    batch.wait_for(r"\[job-0\] optimize: step")
    batch.kill_worker("job-0")
    batch.wait_for(r"\[job-0\] attempt 2 of 2, on .*, from its last checkpoint")
    batch.kill_worker("job-0")
    code, done, text = batch.end()
    assert (code, done) == (1, ["job-1"]), text
    reason = Folder(tmp_path / "runs" / "list").read()["job-0"].reason
    assert reason.startswith(
        "the worker of a run must end with a result, but 2 of them were lost, the last one on"
    )


def test_a_signal_stops_all_workers_saved_and_the_same_command_goes_on(tmp_path):
    write_list(tmp_path / "list.yaml", entries(tmp_path, 4, steps=400))
    batch = Batch(tmp_path, "--ray", "auto")
    batch.wait_for(r"\[job-0\] optimize: step")
    batch.process.send_signal(signal.SIGINT)
    code, _, text = batch.end()
    assert code == 128 + signal.SIGINT, text
    assert "[job-0] stopped and saved" in text
    found = Folder(tmp_path / "runs" / "list").read()
    assert found["job-0"].state == "waiting"
    code, done, text = Batch(tmp_path, "--ray", "auto").end()
    assert (code, len(done)) == (0, sum(entry.state != "done" for entry in found.values())), text
    assert re.search(r"\[job-0\] on .*, from its last checkpoint", text)
    assert all(entry.state == "done" for entry in Folder(tmp_path / "runs" / "list").read().values())


@pytest.fixture
def nodes():
    """Two nodes of one core each on this machine: the address of the first, and the process of the second."""
    environment = os.environ | TOKEN | {"RAY_USAGE_STATS_ENABLED": "0"}
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
    head = [*ray, "--head", "--port", "6399", "--include-dashboard", "false"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    first = subprocess.Popen(head, **quiet)
    time.sleep(10)
    second = subprocess.Popen([*ray, "--address", "127.0.0.1:6399"], **quiet)
    time.sleep(10)
    yield "127.0.0.1:6399", second
    for process in (second, first):
        kill_all(process)


def kill_all(process):
    """Kill a process with all below it."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        member.kill()
    process.wait()


def test_jobs_of_a_node_that_dies_are_made_on_another(tmp_path, nodes):
    address, second = nodes
    write_list(tmp_path / "list.yaml", entries(tmp_path, 3, steps=40))
    batch = Batch(tmp_path, "--ray", address, environment=TOKEN)
    batch.wait_for(r"\[job-0\] optimize: step")
    batch.wait_for(r"\[job-1\] begins")
    kill_all(second)
    code, done, text = batch.end()
    assert (code, done) == (0, ["job-0", "job-1", "job-2"]), text
    assert len(re.findall(r"is lost, and it begins again: .*Node", text)) == 1, text
    assert len(re.findall("attempt 2 of 4", text)) == 1


def test_the_parts_of_a_batch_are_measured():
    command = [sys.executable, ROOT / "scripts" / "measure_cluster.py", "--repeats", "1"]
    small = ["--jobs", "10", "--megabytes", "0.1", "--job-seconds", "10"]
    found = subprocess.run([*command, *small], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    parts = [float(line.split("|")[2]) for line in found.stdout.splitlines()[2:10]]
    assert len(parts) == 8
    assert all(seconds > 0 for seconds in parts[:3])
    assert "10 assets, 10 s for a job, 1 at once on a node" in found.stdout
