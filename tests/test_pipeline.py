import dataclasses
import json
import logging
import os
import shutil
import signal
import time
from contextlib import contextmanager

import pytest
import torch
from tiny import write_tiny_sdxl

from pgc3d import disk, pipeline
from pgc3d.config import load_config
from pgc3d.errors import DivergedError, InputError, RunDirectoryError, WeightsNotFoundError
from pgc3d.records import seal
from pgc3d.run_directory import RunDirectory
from pgc3d.signals import StopFlag, stop_on_signals
from pgc3d.task import Task

SETTINGS = [
    "run.steps=6",
    "run.resolution=[32]",
    "run.resolution_until=[]",
    "run.device=cpu",
    "representation.resolution=16",
    "representation.redistance_every=2",
    "objectives.color.batch=1",
    "objectives.color.clip.kind=adaptive",
    "logging.log_every=2",
    "logging.checkpoint_every=2",
    "logging.preview_every=0",
    "export.format=stl",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny")
    (folder / "vocabulary.json").write_text(json.dumps({"words": ["red", "chair"]}))
    return load_config(options={"models": {"text": {"name": str(folder)}}}, overrides=SETTINGS)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run that went through without a stop."""
    return generate(tmp_path_factory.mktemp("runs") / "whole", config)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@contextmanager
def noisy_export():
    """Random weights make noise, which may be too fine for the check of an export."""
    try:
        yield
    except DivergedError as error:
        if "export" not in str(error):
            raise


def generate(out, config, **calls):
    with noisy_export():
        pipeline.generate(Task("a red chair"), out=out, config=config, **calls)
    return out


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def mesh(folder):
    return (folder / "asset.stl").read_bytes()


def assert_same_asset(folder, other):
    """Equal but for the last bits, which change when a model is loaded twice in one process."""
    first, second = (RunDirectory.open(path).load_checkpoint("main") for path in (folder, other))
    assert first.step == second.step
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        if name.startswith("representation") and tensor.is_floating_point():
            torch.testing.assert_close(tensor, second.tensors[name], atol=2e-4, rtol=1e-3)


def stop_after(stop, step):
    def report(event):
        if event.report is not None and event.report.step == step:
            stop.signal = signal.SIGTERM

    return report


@pytest.mark.parametrize("step", [2, 3])
def test_stopped_run_resumes_to_the_same_mesh(config, finished, tmp_path, step):
    stop = StopFlag()
    out = generate(tmp_path / "stopped", config, on_event=stop_after(stop, step), stop=stop)
    assert not (out / "asset.stl").exists()
    assert "stopped by signal" in json.loads((out / "manifest.json").read_text())["status"]
    with noisy_export():
        pipeline.resume(out)
    assert_same_asset(out, finished)


def test_damaged_checkpoint_costs_steps_but_not_the_result(copy, finished, caplog):
    newest = RunDirectory.open(copy).checkpoints("main")[0].with_suffix(".safetensors")
    newest.write_bytes(newest.read_bytes()[:100])
    with caplog.at_level(logging.WARNING), noisy_export():
        pipeline.resume(copy)
    assert "step-000006 is damaged" in caplog.text
    assert_same_asset(copy, finished)


def test_finished_run_is_left_alone(copy):
    (copy / "manifest.json").write_text(json.dumps(seal(manifest(copy) | {"status": "done"})))
    messages = []
    result = pipeline.resume(copy, on_event=lambda event: messages.append(event.message))
    assert result.files == ()
    assert "nothing to do" in messages[0]


def test_run_in_use_is_refused(copy):
    with RunDirectory.open(copy), pytest.raises(RunDirectoryError, match="must not be in use"):
        pipeline.export(copy, file_format="stl")


def test_export_never_replaces_a_file(copy):
    before = mesh(copy)
    with noisy_export():
        pipeline.export(copy, file_format="stl", faces=50)
    assert mesh(copy) == before
    assert (copy / "asset-2.stl").stat().st_size < len(before)


def test_export_to_a_file_or_a_folder_takes_the_suffix_and_replaces_nothing(copy, tmp_path):
    place = tmp_path / "new" / "chair.obj"
    with noisy_export():
        pipeline.export(copy, out=place, texture_size=64)
    sides = {path.name for path in place.parent.iterdir()}
    assert sides > {"chair.obj", "chair.mtl", "chair_base_color.png"}
    assert "mtllib chair.mtl" in place.read_text()
    assert str(place) in manifest(copy)["files"]
    assert not list(copy.glob("*.obj"))
    place.unlink()
    for kept in ("chair.mtl", "chair.stl"):
        (place.parent / kept).write_text("mine")
    for name in ("chair.obj", "chair.stl"):
        with pytest.raises(InputError, match="no file is replaced"), noisy_export():
            pipeline.export(copy, out=place.with_name(name), texture_size=64)
    assert (place.parent / "chair.mtl").read_text() == (place.parent / "chair.stl").read_text() == "mine"
    assert {path.name for path in place.parent.iterdir()} == sides - {"chair.obj"} | {"chair.stl"}
    for _ in range(2):
        with noisy_export():
            pipeline.export(copy, out=tmp_path / "folder")
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"copy.stl", "copy-2.stl"}


@pytest.mark.parametrize("job", [pipeline.resume, pipeline.export, pipeline.render])
def test_edited_config_is_refused_with_the_ways_to_go_on(copy, job):
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("max_skipped: 20", "max_skipped: 21"))
    with pytest.raises(RunDirectoryError, match=r"as the run wrote it.* --edited`, or start a new run with"):
        job(copy)


def test_config_that_no_longer_fits_the_checkpoint_is_one_line(copy):
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("      resolution: 16", "      resolution: 20"))
    (copy / "manifest.json").write_text(json.dumps(seal(manifest(copy) | {"status": "stopped"})))
    with pytest.raises(RunDirectoryError, match=r"must fit the run's config\.yaml"):
        pipeline.resume(copy, edited=True)


def test_config_with_fewer_steps_than_are_done_is_one_line(copy):
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("    steps: 6", "    steps: 5"))
    with pytest.raises(RunDirectoryError, match="must be at least 6, the steps that are done, got 5"):
        pipeline.resume(copy, edited=True)


def test_edited_config_goes_on_where_that_is_wanted_and_later_without_a_word(copy):
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("    steps: 6", "    steps: 7"))
    with noisy_export():
        pipeline.resume(copy, edited=True)
    assert manifest(copy)["stages"]["main"]["steps"] == 7
    with noisy_export():
        pipeline.export(copy)


def test_unknown_words_are_said_with_close_known_ones(config, tmp_path):
    stop, messages = StopFlag(signal.SIGINT), []
    pipeline.generate(
        Task("a red chairs"),
        out=tmp_path / "run",
        config=config,
        stop=stop,
        on_event=lambda event: messages.append(event.message),
    )
    assert "does not have the word 'chairs' in its vocabulary; similar words: chair" in messages[0]


def test_empty_prompt_makes_no_folder(config, tmp_path):
    with pytest.raises(InputError, match="prompt must not be empty"):
        pipeline.generate(Task(" "), out=tmp_path / "run", config=config)
    assert not (tmp_path / "run").exists()


def test_hooks_of_other_programs_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        while stop.signal is None:
            time.sleep(0.001)
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red/chair!", "a-red-chair-7"),
        ("../../etc", "etc-7"),
        ("椅子", "run-7"),
        ("x" * 99, "x" * 48 + "-7"),
    ],
)
def test_folder_names_are_harmless(tmp_path, prompt, name):
    assert disk.default_folder(tmp_path, prompt, 7) == tmp_path / name


def test_free_names_count_up(tmp_path):
    path = tmp_path / "asset.glb"
    for expected in ("asset.glb", "asset-2.glb", "asset-3.glb"):
        free = disk.free_name(path)
        assert free.name == expected
        free.touch()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_that_ends_a_process_ends_the_run_at_a_step(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        signal.raise_signal(number)
        assert stop.signal == number
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored():
    """As SIGHUP below nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.signal is None
    signal.signal(signal.SIGHUP, before)


def test_an_error_of_the_callers_code_is_saved_and_goes_on_to_the_caller(config, finished, tmp_path):
    out = tmp_path / "run"

    def report(event):
        if event.report is not None and event.report.step == 3:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        pipeline.generate(Task("a red chair"), out=out, config=config, on_event=report)
    assert manifest(out)["status"] == "stopped by LookupError"
    with noisy_export():
        pipeline.resume(out)
    assert_same_asset(out, finished)


@pytest.fixture
def model(config, tmp_path):
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(config.models["text"].name, tmp_path / "here" / "model")


@pytest.fixture
def stopped(config, model, tmp_path, monkeypatch):
    """A run that names its model by a relative path, and was stopped."""
    monkeypatch.chdir(tmp_path / "here")
    text = dataclasses.replace(config.models["text"], name="model")
    relative = dataclasses.replace(config, models={**config.models, "text": text})
    stop = StopFlag()
    return generate(tmp_path / "run", relative, on_event=stop_after(stop, 4), stop=stop)


def test_a_run_with_a_relative_model_goes_on_from_anywhere(stopped, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.move(stopped, tmp_path / "moved")
    with noisy_export():
        pipeline.resume(tmp_path / "moved")
    assert_same_asset(tmp_path / "moved", finished)


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"]
)
def test_a_model_that_changed_is_refused(stopped, model, name):
    content = bytearray((model / name).read_bytes())
    if name.endswith(".json"):
        content = content.replace(b"0.012", b"0.013")
    else:
        content[-1] ^= 1
    (model / name).write_bytes(content)
    with pytest.raises(
        RunDirectoryError, match=r"the text model .*/here/model must be as when the run began"
    ):
        pipeline.resume(stopped)


def test_other_files_beside_a_model_may_change(stopped, model):
    (model / "README.md").write_text("mine")
    with noisy_export():
        pipeline.resume(stopped)


def test_a_model_that_is_gone_is_one_line(stopped, model, tmp_path):
    shutil.move(model, tmp_path / "elsewhere")
    with pytest.raises(WeightsNotFoundError, match=r"got .*/here/model, which does not exist"):
        pipeline.resume(stopped)


def test_a_stranger_cannot_lead_a_job_out_of_the_folder(copy, tmp_path):
    victim = tmp_path / "victim.png"
    victim.write_bytes(b"mine")
    own = (copy / "manifest.json").read_bytes()
    (copy / "manifest.json").write_text(json.dumps(seal(manifest(copy) | {"image": str(victim)})))
    for job in (pipeline.resume, pipeline.export, pipeline.render):
        with pytest.raises(RunDirectoryError, match="must be named inside its folder"):
            job(copy)
    (copy / "manifest.json").write_bytes(own)
    (copy / "asset-2.stl").symlink_to(victim)
    with noisy_export():
        pipeline.export(copy, file_format="stl")
    assert victim.read_bytes() == b"mine"
    assert (copy / "asset-3.stl").is_file()


def test_a_run_of_the_first_pgc3d_is_said_to_have_no_hashes(copy):
    first = {key: value for key, value in manifest(copy).items() if key not in {"format", "digest", "config"}}
    (copy / "manifest.json").write_text(json.dumps(first | {"status": "done"}))
    messages = []
    pipeline.resume(copy, on_event=lambda event: messages.append(event.message))
    assert "earlier pgc3d, without hashes" in messages[0]
    assert "nothing to do" in messages[1]


def test_a_folder_in_which_no_run_began_is_used_by_the_next_one(config, tmp_path, monkeypatch):
    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_store_inputs", killed)
        with pytest.raises(SystemExit):
            generate(tmp_path / "run", config)
    with pytest.raises(RunDirectoryError, match="must hold a run that has begun"):
        pipeline.resume(tmp_path / "run")
    assert "asset.stl" in {path.name for path in generate(tmp_path / "run", config).iterdir()}
