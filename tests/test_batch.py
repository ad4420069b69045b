"""Many runs from a list: what an entry means, what a failure stops, and what a kill leaves."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_work import work
from meshes import write_cube
from PIL import Image
from test_cli import checkpoint, run  # noqa: F401 - fixtures

from pgc3d.batch.job import Entry, Job
from pgc3d.batch.lists import FORMATS, names_of, parse_seeds, read_rows
from pgc3d.batch.places import Folder
from pgc3d.batch.processes import Died, run_processes
from pgc3d.batch.queue import match_jobs
from pgc3d.batch.ranking import best_first, measured
from pgc3d.batch.status import locked
from pgc3d.cli.batch_rows import parameters_of, read_jobs
from pgc3d.cli.options import MAKERS, configurations_of
from pgc3d.errors import InputError, RunDirectoryError
from pgc3d.signals import StopFlag

ENTRIES = [
    {"prompt": "a red chair, plain", "guidance": "mini", "steps": 7, "seeds": 3, "seed": 5},
    {"image": "in/Car.png", "guidance": "mini", "elevation": 20, "no-matting": True},
    {"mesh": "in/crate.glb", "prompt": "a crate", "guidance": "mini", "set": ["run.seed=2", "run.steps=9"]},
    {"prompt": "a red chair, plain", "guidance": "mini", "clip": "none", "seeds": [4, 9], "name": "two"},
]
TINY = {
    "run": {"device": "cpu", "steps": 8, "resolution": [32], "resolution_until": []},
    "representation": {"resolution": 16, "redistance_every": 3},
    "logging": {"log_every": 2, "preview_every": 0, "preview_resolution": 32, "checkpoint_every": 4},
    "export": {"texture_size": 64, "format": "stl", "faces": 0},
}

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}


def write_inputs(folder):
    """A mesh and an image below `folder`."""
    (folder / "in").mkdir()
    write_cube(folder / "in" / "crate.glb")
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[10:50, 15:40] = (200, 60, 30, 255)
    Image.fromarray(rgba).save(folder / "in" / "Car.png")
    return folder


def write_list(path, entries):
    if path.suffix == ".csv":
        keys = list(dict.fromkeys(key for entry in entries for key in entry))
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, keys)
            writer.writeheader()
            joined = [
                {k: ";".join(map(str, v)) if isinstance(v, list) else v for k, v in entry.items()}
                for entry in entries
            ]
            writer.writerows(joined)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(entry)}\n\n" for entry in entries))
    else:
        path.write_text(json.dumps(entries))  # which is YAML
    return path


@pytest.mark.parametrize("suffix", sorted({*FORMATS} - {".txt"}))
def test_an_entry_means_what_the_command_line_means(tmp_path, monkeypatch, suffix):
    """In every format, from any folder."""
    write_inputs(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    notes = []
    jobs = read_jobs(write_list(tmp_path / f"list{suffix}", ENTRIES), notes.append)
    assert [job.error for job in jobs] == [""] * 4
    assert [job.name for job in jobs] == ["a-red-chair-plain", "car", "crate-a-crate", "two"]
    assert [job.seeds for job in jobs] == [(5, 6, 7), (0,), (2,), (4, 9)]
    assert [job.task.prompt for job in jobs] == ["a red chair, plain", "", "a crate", "a red chair, plain"]
    assert (jobs[1].task.image, jobs[2].task.mesh) == (tmp_path / "in/Car.png", tmp_path / "in/crate.glb")
    lines = [
        "text x --guidance mini --steps 7 --seed 5",
        "image x.png --guidance mini --elevation 20 --no-matting",
        "texture x.glb x --guidance mini --set run.seed=2 --set run.steps=9",
        "text x --guidance mini --clip none",
    ]
    for job, line in zip(jobs, lines, strict=True):
        assert [job.config] == configurations_of(line)


@pytest.mark.parametrize("command", MAKERS)
def test_every_option_of_a_command_but_out_is_a_key(command):
    """With its form: a path, a list, a switch."""
    found = parameters_of(command)
    assert {"quality", "pipeline", "guidance", "clip", "set", "model", "low-memory"} <= found.keys()
    assert "out" not in found
    assert {key for key, item in found.items() if not item.flag} == {
        "text": {"prompt"},
        "image": {"image"},
        "texture": {"mesh", "prompt"},
    }[command]
    assert found["config"].is_path
    assert found["set"].is_list
    switches = {key for key, item in found.items() if item.is_switch}
    own = {"text": set(), "image": {"no-matting"}, "texture": {"pbr", "refine"}}
    assert switches == {"low-memory", "tensorboard"} | own[command]


INVALID = {
    "unknown key": ({"prompt": "x", "qualty": "draft"}, "got 'qualty'; did you mean 'quality'?"),
    "another command's key": ({"prompt": "x", "pbr": True}, "must be an option of text"),
    "no input": ({"quality": "draft"}, "it must have one of mesh, image, prompt, got guidance, quality"),
    "missing file": ({"image": "none.png"}, "image must be a file, got none at"),
    "missing prompt": ({"mesh": "in/crate.glb"}, "must have mesh and prompt for texture, got no prompt"),
    "wrong value": ({"prompt": "x", "steps": 0}, "steps must lie in [1, 10000000], got 0"),
    "not a number": ({"prompt": "x", "steps": "many"}, "Invalid value for '--steps'"),
    "wrong choice": ({"prompt": "x", "quality": "best"}, "Invalid value for '--quality'"),
    "wrong setting": ({"prompt": "x", "set": "run.stepz=3"}, "Did you mean: 'steps'?"),
    "several values": ({"prompt": "x", "steps": [1, 2]}, "steps must be one value, got [1, 2]"),
    "a mapping": ({"prompt": "x", "set": {"a": 1}}, "set must be text or a number, got {'a': 1}"),
    "switch": ({"prompt": "x", "low-memory": "maybe"}, "low-memory must be true or false, got 'maybe'"),
    "command": ({"command": "txt", "prompt": "x"}, "command must be one of text, image, texture, got 'txt'"),
    "empty prompt": ({"prompt": " "}, "the prompt must not be empty"),
    "seeds": ({"prompt": "x", "seeds": 0}, "seeds must be a number from 1 to 64 or a list"),
    "seeds and seed": ({"prompt": "x", "seeds": [1], "seed": 3}, "must not be a list beside seed"),
    "name": ({"prompt": "x", "name": "../x"}, "name must be up to 64 letters"),
    "reserved name": ({"prompt": "x", "name": "sweeps"}, "name must be up to 64 letters"),
    "no mapping": ("a red chair", "it must hold keys and values, got 'a red chair'"),
    "first of a name": ({"prompt": "x", "name": "One"}, ""),
    "name again": ({"prompt": "x", "name": "one"}, "name must be there once, got 'one' again"),
}


def test_all_errors_of_a_list_come_at_once_and_nothing_runs(run, tmp_path):
    write_inputs(tmp_path)
    entries = [
        value if isinstance(value, str) else {"guidance": "mini", **value} for value, _ in INVALID.values()
    ]
    write_list(tmp_path / "list.yaml", entries)
    before = sorted(tmp_path.iterdir())
    code, out, err = run("batch", "list.yaml")
    lines = err.splitlines()
    expected = [(number, text) for number, (_, text) in enumerate(INVALID.values(), 1) if text]
    assert (code, out, len(lines)) == (2, "", len(expected) + 1), err
    for line, (number, text) in zip(lines, expected, strict=False):
        assert line.startswith(f"list.yaml, entry {number}: ")
        assert text in line
    assert lines[-1].startswith("error: every entry of list.yaml must be valid, but 20 of 21 are not")
    assert sorted(tmp_path.iterdir()) == before


UNREADABLE = {
    "list.doc": (b"", "must be one of .yaml, .yml, .csv, .jsonl, .txt, got"),
    "empty.txt": (b"# none\n\n", "must hold at least one job"),
    "list.yaml": (b"prompt: x", "must hold a list, got a dict; begin each entry with -"),
    "empty.yaml": (b"[]", "must hold at least one job, got none"),
    "broken.yaml": (b"[{", "must be YAML, got: "),
    "empty.csv": (b"prompt\n", "must hold at least one job"),
    "quotes.csv": (b'prompt\n"a', "must be CSV, got: "),
    "latin.csv": ("prompt\na chair from Zürich".encode("latin-1"), "must be UTF-8 text"),
}


@pytest.mark.parametrize(
    ("name", "content", "line"), [(k, *v) for k, v in UNREADABLE.items()], ids=UNREADABLE
)
def test_a_list_that_cannot_be_read_is_one_line(run, tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    code, _, err = run("batch", name)
    assert (code, len(err.splitlines())) == (2, 1)
    assert line in err
    assert not (tmp_path / "runs").exists()


def test_lines_that_are_no_entries_are_named_by_their_number(tmp_path):
    (tmp_path / "list.csv").write_text("prompt,steps\na,b,c\n\nd,3\n")
    assert [(row.place, bool(row.error)) for row in read_rows(tmp_path / "list.csv")] == [
        ("line 2", True),
        ("line 4", False),
    ]
    (tmp_path / "list.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": \n[1]\n')
    assert [(row.place, bool(row.error)) for row in read_rows(tmp_path / "list.jsonl")] == [
        ("line 1", False),
        ("line 3", True),
        ("line 4", True),
    ]


def test_names_are_new_where_inputs_repeat(tmp_path):
    entries = [{"prompt": "A chair!"}, {"prompt": "a chair"}, {"name": "a-chair-2", "prompt": "b"}]
    names = names_of(read_rows(write_list(tmp_path / "list.jsonl", entries)))
    assert names == ["a-chair", "a-chair-3", "a-chair-2"]


@pytest.mark.parametrize("value", [0, 65, -1, True, 1.5, [], [1, 1], [True], [-1], "x", "1;x", "0", {}])
def test_wrong_seeds_are_refused(value):
    if value is True:
        assert parse_seeds(value, 0) == (0,)  # YAML's `yes` is one
        return
    with pytest.raises(InputError, match="seeds must be"):
        parse_seeds(value, 0)


def test_seeds_are_ranked_by_their_cosines():
    """The formulas of `ranking`, on embeddings whose cosines are known."""
    views = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = measured(3, views, torch.tensor([0.6, 0.8]))
    assert found.similarity == pytest.approx(0.7)
    assert found.consistency == pytest.approx(0.5)  # two of the four neighbours, the last and first are none
    assert found.score == pytest.approx(1.2)
    better = measured(9, views[:2], torch.tensor([1.0, 0.0]))
    failed = measured(1, views, views[0]).__class__(1, error="it diverged")
    assert [item.seed for item in best_first([failed, found, better])] == [9, 3, 1]


def test_the_status_file_comes_back_and_damage_is_one_line(tmp_path):
    entry = Entry(
        "a", "0", state="done", seed=3, seconds=1.5, ranking=(measured(3, torch.eye(2), torch.eye(2)[0]),)
    )
    Folder(tmp_path).write({"a": entry}, {})
    assert Folder(tmp_path).read() == {"a": entry}
    Folder(tmp_path).write({}, {"a": entry})  # an entry that is no longer on the list is kept
    assert Folder(tmp_path).read() == {"a": entry}
    for content in (b"{", b'{"format": 2, "jobs": []}', b'{"format": 1, "jobs": [{"name": "a"}]}'):
        (tmp_path / "status.json").write_bytes(content)
        with pytest.raises(RunDirectoryError, match="must be the status file of a batch, but is damaged"):
            Folder(tmp_path).read()
    with locked(tmp_path), pytest.raises(RunDirectoryError, match="another batch"), locked(tmp_path):
        pass


def test_processes_are_apart_and_can_be_stopped():
    """One that is killed ends none of the others, each has a new one, and the flag reaches those that run."""
    stop, begun, answers = StopFlag(), [], {}
    tasks = {name: (name,) for name in ("waits", "killed", "a", "b", "never")}

    def on_event(key, event):
        assert (key, event.message.isdecimal()) == ("waits", True)

    for key, answer in run_processes(
        work, tasks, processes=2, stop=stop, on_begin=begun.append, on_event=on_event
    ):
        answers[key] = answer
        if key == "b":
            stop.signal = signal.SIGTERM
    assert begun == ["waits", "killed", "a", "b"]
    assert answers["waits"] == signal.SIGTERM
    assert answers["killed"] == Died(-signal.SIGKILL)
    assert "was killed by SIGKILL; the system does so where memory runs out" in str(answers["killed"])
    assert len({answers["a"], answers["b"], os.getpid()}) == 3


def test_what_a_status_holds_decides_what_runs(tmp_path):
    """Failed jobs stay so unless they are retried or changed; what was running goes on."""
    states = {
        "done": "done",
        "failed": "failed",
        "begun": "running",
        "changed": "failed",
        "weights": "failed",
    }
    earlier = {name: Entry(name, "0", state=state, seconds=2.0) for name, state in states.items()}
    (tmp_path / "done").mkdir()
    jobs = [Job(name, "1" if name == "changed" else "0") for name in (*states, "new")]
    jobs[4] = Job("weights", "1", error="they are gone")  # of the machine: the digest lacks the files
    matched = match_jobs(jobs, earlier, Folder(tmp_path), retry=False)
    assert {name: entry.state for name, entry in matched.items()} == states | {
        "changed": "waiting", "weights": "waiting", "new": "waiting",
    }  # fmt: skip
    assert matched["changed"].digest == "1"
    matched = match_jobs(jobs, earlier, Folder(tmp_path), retry=True)
    assert (matched["failed"].state, matched["failed"].seconds) == ("waiting", 2.0)
    (tmp_path / "sweeps" / "changed").mkdir(parents=True)  # its seeds have begun, with the former entry
    with pytest.raises(InputError, match="but changed: changed; give them other names"):
        match_jobs(jobs, earlier, Folder(tmp_path), retry=False)
    (tmp_path / "sweeps" / "changed").rmdir()
    (tmp_path / "done").rmdir()
    assert match_jobs(jobs, earlier, Folder(tmp_path), retry=False)["done"].state == "waiting"


def test_a_batch_runs_what_it_can_and_resumes(run, checkpoint, tmp_path):
    """A sweep of two seeds and a broken mesh; then again, and with a changed entry."""
    write_inputs(tmp_path)
    (tmp_path / "broken.glb").write_text("none")
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    shared = {"model": str(checkpoint), "config": "tiny.yaml"}
    entries = [
        {"prompt": "a red chair", "seeds": 2, "set": "objectives.color.batch=1", **shared},
        {"mesh": "broken.glb", "prompt": "a crate", "guidance": "mini", "name": "crate"},
    ]
    write_list(tmp_path / "list.yaml", entries)
    code, out, err = run("batch", "list.yaml", "--sweep-steps", "3", "--jobs", "2")
    status = Folder(tmp_path / "runs" / "list").read()
    chair, crate = status.values()
    assert (code, chair.state, crate.state) == (1, "done", "failed"), err
    assert Path(chair.asset).is_file()
    assert chair.asset in out.split()
    assert "it is no GLB" in crate.reason
    best = chair.ranking[0]
    assert (chair.seed, chair.folder) == (best.seed, "runs/list/a-red-chair")
    assert best.score >= chair.ranking[1].score
    manifest = json.loads(Path(chair.folder, "manifest.json").read_text())
    assert (manifest["seed"], manifest["status"], manifest["stages"]["main"]["steps"]) == (
        best.seed,
        "done",
        8,
    )
    other = tmp_path / "runs/list/sweeps/a-red-chair" / str(chair.ranking[1].seed)
    assert json.loads((other / "manifest.json").read_text())["stages"]["main"]["steps"] == 3
    assert "1 of 2 done, 1 failed, 0 left" in err

    code, out, err = run("batch", "list.yaml")  # nothing is left to do
    assert (code, out) == (1, "")
    assert "begins" not in err
    assert Folder(tmp_path / "runs" / "list").read() == status

    entries[0]["steps"] = 9
    entries[1]["mesh"] = "in/none.glb"
    write_list(tmp_path / "list.yaml", entries)
    code, _, err = run("batch", "list.yaml", "--skip-invalid")
    assert (code, "changed: a-red-chair; give" in err) == (2, True)


def start(folder):
    command = [sys.executable, "-m", "pgc3d", "batch", "list.yaml"]
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=log, stdout=subprocess.DEVNULL)


def kill_when(folder, done, wait):
    """Kill the batch, not its processes, once so many jobs are done and one more has begun for a while."""
    process = start(folder)
    while sum(entry.state == "done" for entry in Folder(folder / "runs/list").read().values()) < done:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(wait)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_twenty_jobs_of_which_four_are_broken_survive_two_kills(tmp_path):
    """Text, images and meshes; each failure has its line, and the last job needs the memory of the second.

    The first one may compile kernels, for which it took 0.2 GB more.
    """
    write_inputs(tmp_path)
    (tmp_path / "broken.glb").write_text("none")
    (tmp_path / "broken.png").write_text("none")
    small = TINY | {"export": {"texture_size": 256, "faces": 0}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(small))
    shared = {"guidance": "mini", "config": "tiny.yaml"}
    color = {"set": ["objectives.color.batch=1"], **shared}
    entries = [{"prompt": f"a chair, number {number}", **color} for number in range(10)]
    entries[4] |= {"texture-size": 64, "faces": 200}  # fails the comparison with its renders
    entries += [{"image": "in/Car.png", "name": f"car-{number}", **shared} for number in range(3)]
    mesh = {"prompt": "a crate", "guidance": "mini", "steps": 4, "resolution": 32, "texture-size": 128}
    entries += [{"mesh": "in/crate.glb", **mesh, "device": "cpu"} for _ in range(3)]
    entries[7:7] = [
        {"mesh": "broken.glb", "prompt": "a crate", "guidance": "mini"},
        {"image": "broken.png", "guidance": "mini"},
        {"prompt": "a car", "model": "./none"},
    ]
    entries.append({"prompt": "a red chair", "seeds": 2, **color})
    assert len(write_list(tmp_path / "list.yaml", entries).read_text()) > 1000
    assert len(entries) == 20
    kill_when(tmp_path, 3, 6.0)
    kill_when(tmp_path, 9, 3.0)
    process = start(tmp_path)
    assert process.wait() == 1, (tmp_path / "log.txt").read_text()
    found = list(Folder(tmp_path / "runs/list").read().values())
    done = [entry for entry in found if entry.state == "done"]
    failed = [entry for entry in found if entry.state == "failed"]
    reasons = [entry.reason for entry in failed]
    assert (len(done), len(failed)) == (16, 4), reasons
    assert all((tmp_path / entry.asset).is_file() for entry in done)
    assert all(reason and "\n" not in reason for reason in reasons)
    first, second, last = (found[index].peak_memory_bytes["resident"] for index in (0, 1, -1))
    assert last < 1.1 * first
    assert abs(last / second - 1) < 0.1
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    print(*reasons, f"{first / 1e6:.0f} MB, {last / 1e6:.0f} MB", sep="\n")  # noqa: T201
    print(*(f"{entry.name} {entry.seconds} s" for entry in done), sep="\n")  # noqa: T201
