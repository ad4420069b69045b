"""Runs that are killed again and again, in every phase, and end with the same bytes as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tiny import write_tiny_sdxl

from pgc3d.plain_files import is_temporary

KILLS = int(os.environ.get("PGC3D_KILLS", "50"))
CHAIN = 8  # kills of one run, before it may end
STAGES = {"coarse": 10, "fine": 14}  # steps
TINY = {
    "run": {"device": "cpu"},
    "stages": {
        name: {
            "steps": steps,
            "start": "" if name == "coarse" else "coarse",
            "resolution": [32],
            "resolution_until": [],
            "representation": {"resolution": resolution, "redistance_every": 3},
            "objectives": {"color": {"batch": 1, "clip": {"kind": "adaptive"}}},
        }
        for (name, steps), resolution in zip(STAGES.items(), (12, 16), strict=True)
    },
    "logging": {"log_every": 1, "preview_every": 3, "checkpoint_every": 4, "preview_resolution": 64},
    "export": {"texture_size": 64, "faces": 200},
}
PHASES = ("begin", "build", "steps", "checkpoint", "preview", "between", "export")
WAITS = {
    "begin": 0.03,
    "build": 1.0,
    "steps": 1.0,
    "checkpoint": 0.02,
    "preview": 0.05,
    "between": 0.5,
    "export": 1.5,
}  # seconds
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}


def status(folder):
    try:
        return json.loads((folder / "manifest.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        return None


def count(folder, name, pattern):
    """How many files of the stages match, in one of the run's folders."""
    return len(list((folder / name).glob(f"*/{pattern}"))) if (folder / name).is_dir() else 0


def temporaries(folder):
    return {path for path in folder.rglob(".*") if is_temporary(path.name)}


def marks(folder):
    """What shows each phase; one that grows after the start of a process is the phase's beginning."""
    found = (folder / "checkpoints").glob("*/*") if folder.is_dir() else ()
    names = [f"{path.parent.name}/{path.name}" for path in found]
    return {
        "begin": folder.is_dir() and (folder / ".lock").exists(),
        "build": status(folder) == "running",
        "steps": (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size,
        "checkpoint": tuple(sorted(names)),
        "preview": count(folder, "previews", "*") + count(folder, "previews", ".*.tmp"),
        "between": f"coarse/step-{STAGES['coarse']:06d}.json" in names,
        "export": f"fine/step-{STAGES['fine']:06d}.json" in names,
    }


def start(checkpoint, folder):
    """A process that begins the run, or goes on with one that has begun."""
    if status(folder) in {None, "preparing"}:
        tiny = checkpoint.with_name("tiny.yaml")
        tiny.write_text(json.dumps(TINY))  # which is YAML
        arguments = ["text", "a red chair", "--model", str(checkpoint), "--config", str(tiny)]
        arguments += ["--out", str(folder)]
    else:
        arguments = ["resume", str(folder)]
    command = [sys.executable, "-m", "pgc3d", *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def kill_in(phase, rng, checkpoint, folder):
    """Kill a process in a phase, or soon after; returns the phase, None where the process had ended."""
    before = marks(folder)
    with start(checkpoint, folder) as process:
        while process.poll() is None:
            now = marks(folder)
            if now[phase] and (now[phase] != before[phase] or phase in {"begin", "between", "export"}):
                break
            time.sleep(0.001)
        time.sleep(rng.uniform(0, WAITS[phase]))
        process.send_signal(signal.SIGKILL)
        error = process.stderr.read().decode()
    assert "Traceback" not in error, error
    assert process.returncode in {-signal.SIGKILL, 0, 5}, error
    return phase if process.returncode < 0 else None


def finish(checkpoint, folder):
    with start(checkpoint, folder) as process:
        error = process.communicate()[1].decode()
    assert process.returncode in {0, 5}, error  # random weights make noise, which may be too fine to export
    assert "Traceback" not in error, error


def metrics(folder):
    """The stages and the steps of a run's metrics, as they were written."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["stage"], line["step"]) for line in lines]


def geometry(path):
    """The binary part of a GLB file: positions, faces, texture coordinates and images.

    A process that is killed after it wrote the asset leaves it, and the next calls its own asset-2: a name
    that stands in the other part.
    """
    content = path.read_bytes()
    return content[20 + int.from_bytes(content[12:16], "little") :]


@pytest.mark.slow
def test_killed_runs_end_with_the_same_mesh(tmp_path):
    checkpoint, rng = write_tiny_sdxl(tmp_path / "model"), random.Random(0)
    finish(checkpoint, tmp_path / "whole")
    expected = geometry(tmp_path / "whole" / "asset.glb")
    assert len(expected) > 1000
    told = [(name, step + 1) for name, steps in STAGES.items() for step in range(steps)]
    assert metrics(tmp_path / "whole") == told
    kills, left, number = Counter(), 0, 0
    while sum(kills.values()) < KILLS:
        folder: Path = tmp_path / f"run-{number}"
        number += 1
        for _ in range(min(CHAIN, KILLS - sum(kills.values()))):
            # later phases come later: in a row of kills each one has its turn
            phase = rng.choice(PHASES)
            killed = kill_in(phase, rng, checkpoint, folder)
            left += bool(temporaries(folder))
            if killed is None:
                break
            kills[killed] += 1
        finish(checkpoint, folder)
        assets = sorted(folder.glob("asset*.glb"))
        assert assets
        assert all(geometry(path) == expected for path in assets), folder
        assert not temporaries(folder)
        assert metrics(folder) == told
    print(f"{sum(kills.values())} kills of {number} runs: {dict(kills)}, {left} left a temporary file")  # noqa: T201
