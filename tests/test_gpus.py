"""`--gpus`: the processes of a command, with gloo on a CPU, and the end of a run when one of them ends."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
from PIL import Image
from test_kills import ENVIRONMENT, STAGES, TINY, status
from test_pipeline import noisy_export
from tiny import write_tiny_sdxl

from pgc3d.cli.app import main
from pgc3d.cli.launch import launch
from pgc3d.cli.options import runs_of
from pgc3d.errors import BackendUnavailableError, InputError
from pgc3d.parallel import Place
from pgc3d.pipeline import resume
from pgc3d.run_directory import RunDirectory

SECONDS = 30.0  # until a run has ended after one of its processes was killed, on a busy computer


def begin(*arguments, **streams):
    command = [sys.executable, "-m", "pgc3d", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True, **streams)


def command_of(folder, model, out, *, gpus):
    """The command that begins a run, or continues it."""
    if status(out) not in {None, "preparing"}:
        return ["resume", out, "--gpus", gpus]
    config = folder / "tiny.yaml"
    stages = {
        name: {**stage, "objectives": {"color": {"batch": 2}}} for name, stage in TINY["stages"].items()
    }
    config.write_text(json.dumps({**TINY, "stages": stages}))
    return ["text", "a red chair", "--model", model, "--config", config, "--out", out, "--gpus", gpus]


def process_of(launcher, rank):
    """The process of a rank; None where it has ended."""
    with suppress(psutil.Error):
        for child in psutil.Process(launcher.pid).children():
            if child.environ().get("RANK") == str(rank):
                return child
    return None


def lines(out):
    return (out / "metrics.jsonl").read_text().count("\n") if (out / "metrics.jsonl").exists() else 0


def wait_for(process, condition):
    while process.poll() is None and not condition():
        time.sleep(0.02)


def ended(process):
    """The exit code of a command and its lines on stderr, as soon as it has ended."""
    start = time.monotonic()
    _, text = process.communicate(timeout=3 * SECONDS)
    assert "Traceback" not in text, text
    assert time.monotonic() - start < SECONDS
    return process.returncode, text.splitlines()


def require_finished(out, process):
    text = process.communicate()[1]
    assert process.returncode in {0, 5}, text  # random weights make noise, which may be too fine to export
    manifest = json.loads((out / "manifest.json").read_text())
    assert {name: stage["steps"] for name, stage in manifest["stages"].items()} == STAGES
    assert (out / "asset.glb").exists()


def image_command(folder, out):
    """The command that begins a run without a diffusion model."""
    rgba = np.zeros((48, 48, 4), np.uint8)
    rgba[8:40, 8:40] = (200, 60, 30, 255)
    Image.fromarray(rgba).save(folder / "image.png")
    view = {"guidance": {"kind": "reference"}, "cameras": {"kind": "reference"}, "clip": {"kind": "adaptive"}}
    stage = {
        "steps": 4000, "resolution": [16], "resolution_until": [],
        "objectives": {"view": {**view, "batch": 2}},
        "representation": {"resolution": 8, "color_field": {"levels": 2, "log2_rows": 6}},
    }  # fmt: skip
    config = {**TINY, "image": {"size": 64}, "stages": {"main": stage}}
    (folder / "tiny.yaml").write_text(json.dumps(config))
    return ["image", folder / "image.png", "--config", folder / "tiny.yaml", "--out", out, "--gpus", 2]


def test_lines_are_those_of_the_first_process_and_one_process_continues_the_run(tmp_path):
    out = tmp_path / "run"
    process = begin(*image_command(tmp_path, out), "--json")
    wait_for(process, lambda: lines(out) > 5)
    process_of(process, 1).kill()
    text, errors = process.communicate(timeout=3 * SECONDS)
    assert (process.returncode, errors) == (6, "")
    found = [json.loads(line) for line in text.splitlines()]
    events = [line["event"] for line in found]
    assert (events.count("start"), events.count("error"), events[-1]) == (1, 1, "error")
    steps = [line["step"] for line in found if line["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert (found[-1]["exit_code"], found[-1]["text"]) == (
        6,
        "all 2 processes of a run must go on, but one ended or was killed; use `pgc3d resume` to continue "
        "from the last checkpoint",
    )
    shown = {line["kind"] for line in found if line["event"] == "file"}
    assert shown == {"input", "preview", "clipping", "checkpoint"}
    done = RunDirectory.open(out).load_checkpoint("main").step
    with noisy_export():
        resume(out, steps=done + 2)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["stages"]["main"] == {"status": "done", "steps": done + 2}
    assert (out / "asset.glb").exists()


def test_processes_read_the_prompt_of_the_command_and_an_error_is_one_line(tmp_path):
    (tmp_path / "prompt").write_bytes(b"a \xff")
    with (tmp_path / "prompt").open() as stdin:
        process = begin("text", "-", "--gpus", "2", "--device", "cpu", stdin=stdin)
    code, told = ended(process)
    assert (code, told) == (2, [
        "error: a prompt must be UTF-8 text, got byte 2 of the standard input that is not; convert the file"
    ])  # fmt: skip


@pytest.mark.slow
def test_a_run_whose_process_is_killed_ends_with_a_line_and_is_continued_by_any_number(tmp_path):
    model, out = write_tiny_sdxl(tmp_path / "model"), tmp_path / "run"
    process = begin(*command_of(tmp_path, model, out, gpus=2))
    wait_for(process, lambda: lines(out) > 5)
    process_of(process, 1).kill()
    code, told = ended(process)
    assert code == 6
    assert [line for line in told if "error" in line] == [
        "error: all 2 processes of a run must go on, but one ended or was killed; use `pgc3d resume` to "
        "continue from the last checkpoint"
    ]
    process = begin(*command_of(tmp_path, model, out, gpus=2))
    before = lines(out)
    wait_for(process, lambda: lines(out) > before + 2)
    process_of(process, 1).send_signal(signal.SIGTERM)
    code, told = ended(process)
    assert code == 128 + signal.SIGTERM
    assert told[-1] == f"stopped and saved; continue with: pgc3d resume {out}"
    assert sum("stopped" in line for line in told) == 1
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "stopped by signal 15"
    assert len(manifest["processes"]) == 2
    require_finished(out, begin("resume", out))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, None], ids=["the first", "the launcher"])
def test_a_run_without_its_first_process_or_its_launcher_ends(tmp_path, rank):
    model, out = write_tiny_sdxl(tmp_path / "model"), tmp_path / "run"
    process = begin(*command_of(tmp_path, model, out, gpus=2))
    wait_for(process, lambda: lines(out) > 3)
    workers = [process_of(process, number) for number in (0, 1)]
    (process if rank is None else workers[rank]).kill()
    _, text = process.communicate(timeout=SECONDS)
    psutil.wait_procs(workers, timeout=SECONDS)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    assert "Traceback" not in text
    if rank is None:
        assert json.loads((out / "manifest.json").read_text())["status"] == "stopped by signal 15"
    else:
        assert process.returncode == 6
        assert text.splitlines()[-1] == (
            "error: all 2 processes of a run must go on, but process 0 was killed by SIGKILL; use `pgc3d "
            "resume` to continue from the last checkpoint"
        )


TOO_MANY = (
    "error: 2 processes must have as many GPUs, but 0 were found; use --gpus 1, or several processes on the "
    "processor with --device cpu"
)


def test_a_process_without_a_gpu_of_its_own_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SystemExit, match="2"):
        main(["text", "a", "--out", str(tmp_path / "run")])
    assert [line for line in capsys.readouterr().err.splitlines() if "error" in line] == [TOO_MANY]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_more_processes_than_gpus_are_refused_in_one_line(tmp_path):
    environment = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pgc3d", "text", "a", "--gpus", "2", "--out", str(tmp_path / "run")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert [line for line in found.stderr.splitlines() if "error" in line] == [TOO_MANY]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_error_of_the_command_line_is_one_line(capfd):
    assert launch(["text", "a", "--gpus", "2", "--set", "nothing=1", "--device", "cpu"], 2) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_list_of_runs_has_no_processes():
    with pytest.raises(InputError, match="--gpus must be an option of one run, got 2 in a list"):
        runs_of(["text", "a", "--gpus", "2"])


def test_a_process_without_torchruns_variables_is_alone():
    full = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert Place.of(full) == Place(1, 2)
    assert Place.of({}) == Place(0, 1)
    for name in full:  # as on a cluster that sets some of them for all programs
        assert Place.of({key: value for key, value in full.items() if key != name}) == Place(0, 1)
    with pytest.raises(BackendUnavailableError, match="on one computer, got 2 of 4"):
        Place.of({**full, "WORLD_SIZE": "4"})


@pytest.mark.slow
def test_a_run_of_torchrun_is_that_of_the_option(tmp_path):
    model, out = write_tiny_sdxl(tmp_path / "model"), tmp_path / "run"
    arguments = [*map(str, command_of(tmp_path, model, out, gpus=2))]
    start = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pgc3d"]
    found = subprocess.run(
        [sys.executable, *start, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (out / "asset.glb").exists(), found.stderr
    assert len(json.loads((out / "manifest.json").read_text())["processes"]) == 2


@pytest.mark.slow
def test_a_run_of_three_processes_survives_kills_at_random_moments(tmp_path):
    kills, rng = int(os.environ.get("PGC3D_KILLS", "10")), random.Random(0)
    model, number, done = write_tiny_sdxl(tmp_path / "model"), 0, 0
    while done < kills:
        out = tmp_path / f"run-{number}"
        number += 1
        for _ in range(4):
            process = begin(*command_of(tmp_path, model, out, gpus=3))
            wait_for(process, out.exists)
            time.sleep(rng.uniform(0.0, 12.0))
            victim = process_of(process, rng.randrange(3))
            if victim is None:  # the run is done
                process.communicate()
                break
            victim.kill()
            code, told = ended(process)
            if code in {0, 5}:
                break  # it had done its part
            assert code == 6
            assert sum(line.startswith("error") for line in told) == 1, told
            done += 1
        require_finished(out, begin(*command_of(tmp_path, model, out, gpus=rng.choice([1, 2]))))
