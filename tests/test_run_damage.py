"""Whatever is done to a file of a run's folder: the same result, a fallback that is said, or one line."""

import hashlib
import json
import logging
import os
import random
import shutil
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from meshes import write_cube
from PIL import Image
from safetensors.torch import load_file, save_file

from pgc3d import pipeline
from pgc3d.config import load_config
from pgc3d.errors import Pgc3dError
from pgc3d.records import seal
from pgc3d.signals import StopFlag
from pgc3d.task import Task

STAGE = {  # no diffusion model: what is tested is the folder
    "resolution": [16],
    "resolution_until": [],
    "representation": {
        "kind": "textured_mesh",
        "texture": "field",
        "color_field": {"levels": 2, "log2_rows": 6},
    },
    "objectives": {
        "reference": {
            "guidance": {"kind": "reference", "depth": 0.1},
            "cameras": {"kind": "reference"},
            "clip": {"kind": "adaptive"},
            "batch": 1,
        }
    },
}
SETTINGS = {
    "run": {"device": "cpu"},
    "image": {"size": 64},
    "stages": {"first": {**STAGE, "steps": 3}, "second": {**STAGE, "steps": 5, "start": "first"}},
    "logging": {"log_every": 1, "checkpoint_every": 2, "preview_every": 3, "preview_resolution": 32},
    "export": {"texture_size": 64},
}
STOP = ("second", 4)  # steps before the stop: two checkpoints, one preview
FOLDERS = [f"{kind}{stage}" for kind in ("checkpoints", "previews") for stage in ("", "/first", "/second")]
CASES = 200
WRONG = [None, True, -1, 2.5, 10**30, float("nan"), float("inf"), "x", [], {}, [[]], "../../victim", "\ud800"]
SAID = ("damaged", "no record", "earlier pgc3d", "no checkpoint")
SECONDS = 120  # for one job; a pipe that is opened would wait for ever


def make(folder):
    """A run that was stopped; its inputs are a picture, a depth map and a mesh."""
    folder.mkdir()
    write_cube(folder / "cube.glb")
    rgba = np.zeros((48, 48, 4), np.uint8)
    rgba[8:40, 8:40] = (200, 60, 30, 255)
    Image.fromarray(rgba).save(folder / "picture.png")
    Image.fromarray(np.tile(np.arange(0, 192, 4, dtype=np.uint8), (48, 1))).save(folder / "depth.png")
    task = Task(image=folder / "picture.png", mesh=folder / "cube.glb", depth=folder / "depth.png")
    stop = StopFlag()

    def report(event):
        if event.report is not None and (event.stage, event.report.step) == STOP:
            stop.signal = signal.SIGTERM

    pipeline.generate(task, out=folder / "run", config=load_config([SETTINGS]), on_event=report, stop=stop)
    return folder / "run"


@dataclass(frozen=True)
class Damage:
    """What is done to a copy of the folder; `elsewhere` is outside of it and must not change."""

    name: str
    place: str
    seed: int

    def __str__(self):
        return f"{self.name} {self.place} {self.seed}"

    def apply(self, folder, elsewhere):
        path, rng = folder / self.place, random.Random(self.seed)
        globals()[f"do_{self.name}"](path, elsewhere / path.name, rng)


def do_flip(path, _, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def do_burst(path, _, rng):
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    content[start : start + 32] = rng.randbytes(32)
    path.write_bytes(content)


def do_cut(path, _, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.choice([0, 1, rng.randrange(len(content))])])


def do_extend(path, _, rng):
    path.write_bytes(path.read_bytes() + rng.randbytes(40))


def do_remove(path, _, rng):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def do_link(path, outside, rng):
    """To a copy elsewhere, which the run could read, or write to, as if it were its own."""
    shutil.copytree(path, outside) if path.is_dir() else shutil.copy(path, outside)
    do_remove(path, outside, rng)
    path.symlink_to(outside)


def do_dangle(path, outside, rng):
    do_remove(path, outside, rng)
    path.symlink_to(outside.with_name("new"))


def do_folder(path, _, rng):
    path.unlink()
    path.mkdir()
    (path / "something").write_text("mine")


def do_pipe(path, outside, rng):
    do_remove(path, outside, rng)
    os.mkfifo(path)


def do_file(path, outside, rng):
    do_remove(path, outside, rng)
    path.write_text("mine")


def do_device(path, outside, rng):
    do_remove(path, outside, rng)
    path.symlink_to("/dev/full")


def places(record, found=()):
    """The keys that lead to every value of a JSON tree."""
    entries = record.items() if isinstance(record, dict) else enumerate(record)
    for key, value in entries:
        yield (*found, key)
        if isinstance(value, dict | list):
            yield from places(value, (*found, key))


def do_type(path, _, rng):
    """One value of another type, in a record whose digest says that nothing is wrong."""
    record = json.loads(path.read_text())
    place = rng.choice([place for place in places(record) if place[-1] != "digest"])
    parent = record
    for key in place[:-1]:
        parent = parent[key]
    value = rng.choice([value for value in WRONG if type(value) is not type(parent[place[-1]])])
    parent[place[-1]] = value
    path.write_text(json.dumps(seal(record)))


def do_line(path, _, rng):
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    lines[number] = rng.choice(["", f"{lines[number]}9", "a: [", "- x", "\x00"])
    path.write_text("\n".join(lines))


def do_tensors(path, _, rng):
    """Other tensors than the configuration has, under a hash that fits them."""
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    kind = rng.choice(["shape", "type", "nan", "missing", "more"])
    tensor = tensors.pop(name)
    if kind == "shape":
        tensors[name] = torch.cat([tensor.reshape(-1), tensor.reshape(-1)])
    elif kind == "type":
        tensors[name] = tensor.to(torch.float64 if tensor.dtype != torch.float64 else torch.int8)
    elif kind == "nan" and tensor.is_floating_point():
        tensors[name] = torch.full_like(tensor, float("nan"))
    elif kind == "more":
        tensors |= {name: tensor, f"{name}.more": tensor.clone()}
    save_file(tensors, path)
    record = json.loads(path.with_suffix(".json").read_text())
    record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(seal(record)))


ANY = ("flip", "burst", "cut", "extend", "remove", "link", "dangle", "folder", "pipe", "device")
KINDS = {
    ".json": (*ANY, "type", "type", "type", "type"),
    ".yaml": (*ANY, "line", "line", "line"),
    ".safetensors": (*ANY, "tensors", "tensors", "tensors"),
}


def damages(folder, count):
    """So many kinds of damage, spread evenly over the files and the folders in the run."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    rng = random.Random(0)
    for number in range(count):
        place = files[number % len(files)]
        kinds = KINDS.get(Path(place).suffix, ANY)
        if place in FOLDERS:
            kinds = ("remove", "link", "dangle", "file", "pipe")
        if place == "mesh.safetensors":
            kinds = ANY
        yield Damage(rng.choice(kinds), place, number)


def contents(folder):
    """What lies in a folder, links as such."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def outcome(job, folder, elsewhere, expected, log):
    """How a job on a damaged folder ends: "same", "said", "line", or what must not be."""
    before, messages = contents(elsewhere), []

    def hang(*_):
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        made = getattr(pipeline, job)(folder, on_event=lambda event: messages.append(event.message))
        found = [path.read_bytes() for path in made.files]
    except Pgc3dError as error:
        found = None if "\n" not in str(error) else f"several lines: {error}"
    except BaseException as error:  # the point is that there is no other
        found = f"traceback: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    if contents(elsewhere) != before:
        return "changed a file outside"
    if found is None or isinstance(found, str):
        return found or "line"
    told = "\n".join([*filter(None, messages), log.text])
    if found == expected:
        return "same"
    said = any(word in told for word in SAID)
    return "said" if said and job != "resume" else "another result, in silence"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The stopped run, and what each job makes of it."""
    root = tmp_path_factory.mktemp("damage")
    run, expected = make(root / "made"), {}
    for job in ("resume", "export", "render"):
        copy = shutil.copytree(run, root / job)
        expected[job] = [path.read_bytes() for path in getattr(pipeline, job)(copy).files]
        assert expected[job]
    return run, expected


def try_all(whole, tmp_path, caplog, chosen):
    run, expected = whole
    counts, bad = Counter(), []
    for damage in chosen:
        folder, elsewhere = tmp_path / f"run-{damage.seed}", tmp_path / f"elsewhere-{damage.seed}"
        elsewhere.mkdir()
        (elsewhere / "victim").write_text("mine")
        shutil.copytree(run, folder)
        damage.apply(folder, elsewhere)
        caplog.clear()
        job = ("resume", "export", "resume", "render")[damage.seed % 4]
        with caplog.at_level(logging.WARNING):
            found = outcome(job, folder, elsewhere, expected[job], caplog)
        counts[found.partition(":")[0]] += 1
        if found not in ("same", "said", "line"):
            bad.append(f"{job} after {damage}: {found}")
        for place in (folder, elsewhere):
            shutil.rmtree(place)
    print(dict(counts))  # noqa: T201 - the numbers of the long test
    assert not bad, f"{dict(counts)}\n" + "\n".join(bad)
    return counts


def test_a_damaged_folder_ends_well(whole, tmp_path, caplog):
    """A part of the whole test."""
    chosen = list(damages(whole[0], CASES))[::14]
    assert set(try_all(whole, tmp_path, caplog, chosen)) >= {"same", "line"}


@pytest.mark.slow
def test_a_folder_damaged_in_two_hundred_ways_ends_well(whole, tmp_path, caplog):
    chosen = list(damages(whole[0], CASES))
    assert {damage.place for damage in chosen} >= {*FOLDERS, "checkpoints/first/step-000003.safetensors"}
    assert {damage.place for damage in chosen} == {
        str(path.relative_to(whole[0])) for path in whole[0].rglob("*")
    }
    counts = try_all(whole, tmp_path, caplog, chosen)
    assert sum(counts.values()) == CASES
    assert set(counts) == {"same", "said", "line"}
