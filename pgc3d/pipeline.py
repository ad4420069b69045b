"""The library's entry points: generate an asset, resume a run, and export or render its result."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float

from pgc3d.assets import export_run
from pgc3d.build.devices import require_model_devices
from pgc3d.build.inputs import (
    prepare_document,
    prepare_files,
    prepare_task_mesh,
    require_fitting,
)
from pgc3d.build.models import locate_models
from pgc3d.build.notes import run_notes
from pgc3d.build.run import (
    RunContext,
    build_representation,
    has_fixed_shape,
    resolve_device,
)
from pgc3d.checkpoint import unpack_representation
from pgc3d.choices import Format
from pgc3d.config import Config, dump_config, load_config
from pgc3d.continuation import newest_checkpoint, replace_config, stage_to_show, with_steps
from pgc3d.disk import free_name, replace_file, require_free_space, sha256
from pgc3d.errors import InputError, RunDirectoryError
from pgc3d.events import Event, EventCallback, ignore
from pgc3d.execution import RunResult, asset_renderer, execute, follow
from pgc3d.exporting.target import format_of
from pgc3d.inputs.mesh import save_prepared
from pgc3d.interfaces import Rasterizer, Representation
from pgc3d.model_record import describe_models, require_same_models, with_absolute_paths
from pgc3d.parallel import joined
from pgc3d.prompt_weights import require_prompt
from pgc3d.rendering import build_rasterizer
from pgc3d.run_directory import RunDirectory
from pgc3d.session import Session, explain_memory
from pgc3d.signals import StopFlag
from pgc3d.stages import require_same_starts, start_records, with_absolute_starts
from pgc3d.start_times import begin, timed
from pgc3d.task import PREPARED_NAMES, Task
from pgc3d.tensorboard import require_tensorboard
from pgc3d.types import Cameras, PreparedMesh

FREE_SPACE = 500_000_000  # bytes: two checkpoints, the asset with its textures, previews


def generate(
    task: Task,
    *,
    out: Path | str,
    config: Config | None = None,
    on_event: EventCallback = ignore,
    stop: StopFlag | None = None,
) -> RunResult:
    """Generate a textured asset in a new run directory.

    Args:
        task: the prompt and the input files, which are prepared and copied into the run.
        out: the run directory; must not exist or be empty.
        config: `load_config()` when None.
        on_event: called after every step, for messages, and for every file that was written.
        stop: once its `signal` is set, the run saves after the current step and returns.

    Raises:
        Pgc3dError: see `errors` for its subclasses; the run directory has the last valid state.
    """
    begin()
    config = with_absolute_starts(with_absolute_paths(config or load_config()))
    device = resolve_device(config.run.device)
    with joined(device, automatic=config.run.device == "auto") as processes:
        session = Session(RunDirectory(Path(out)), config, device, on_event, stop or StopFlag())
        session.processes = processes
        return _begin(session, task) if processes.leads else follow(session)


def _begin(session: Session, task: Task) -> RunResult:
    """Prepare the inputs, make the run directory, and execute the run."""
    config, device, notify, out = session.config, session.device, session.note, session.run.path
    require_fitting(config, task)
    require_model_devices(config, session.processes.size)
    build_rasterizer(config.run.rasterizer, device)  # fails before a folder is made
    if config.logging.tensorboard:
        require_tensorboard()
    with timed("mesh"):
        prepared = prepare_task_mesh(config, task, device, notify)
        document = None if task.mesh is None else prepare_document(task.mesh, notify)
    with timed("checks of the models"):
        located = locate_models(config, device, styled=task.style is not None)
    if config.requires().prompt:
        require_prompt(task.prompt)
    for note in run_notes(task.prompt, config, located):
        notify(note)
    images = prepare_files(config, task, prepared, device, notify)
    inputs = {name: {"name": path.name, "sha256": sha256(path)} for name, path in task.files.items()}
    require_free_space(out, FREE_SPACE)
    with timed("checks of the models"):
        described = describe_models(config, located) | start_records(config)
    with RunDirectory.create(out) as run:
        run.begin()
        replace_file(run.config, dump_config(config).encode())
        stored = _store_inputs(run, task, prepared, document, images)
        session.run, session.record = run, stored.record(run.path) | {"seed": config.run.seed} | described
        session.record |= {"inputs": inputs, "files": run.hash_files(list(stored.files.values()))}
        session.record |= {"config": run.config_digest()}
        for name in images:
            session.on_event(Event("build", file=stored.files[name], kind="input"))
        session.processes.gather((config, session.record, False))
        return execute(session, located, {})


def _store_inputs(
    run: RunDirectory,
    task: Task,
    prepared: PreparedMesh | None,
    document: bytes | None,
    images: Mapping[str, bytes],
) -> Task:
    """The task with the prepared inputs, which are written into the run, in place of the user's files."""
    stored: dict[str, Any] = {name: run.path / PREPARED_NAMES[name] for name in images}
    for name, content in images.items():
        replace_file(stored[name], content)
    stored["document"] = None
    if prepared is not None:
        stored["mesh"] = run.path / PREPARED_NAMES["mesh"]
        save_prepared(stored["mesh"], prepared)
    if document is not None:
        stored["document"] = run.path / PREPARED_NAMES["document"]
        replace_file(stored["document"], document)
    return replace(task, mask=None, **stored)  # a mask is in the file of the textures


def resume(
    path: Path | str,
    *,
    edited: bool = False,
    steps: int | None = None,
    on_event: EventCallback = ignore,
    stop: StopFlag | None = None,
) -> RunResult:
    """Continue a run that was stopped; on a CPU the result is that of an uninterrupted run.

    Args:
        path: the run directory.
        edited: accept a `config.yaml` that was edited after the run wrote it.
        steps: that the last stage goes on to, also of a finished run, whose asset is written under a new
            name; schedules stretch over all of them. The run's own number when None.
        on_event: called after every step, for messages, and for every file that was written.
        stop: once its `signal` is set, the run saves after the current step and returns.

    Raises:
        RunDirectoryError: the folder is not a run, is in use, has only damaged checkpoints, or the
            configuration, the inputs or the weights are no longer those of the run.
        ConfigError: as many steps as `steps` are done already.
    """
    begin()
    run = RunDirectory.open(Path(path))
    _config_digest(run, run.read_manifest(), edited=edited)
    config = load_config([run.config])
    device = resolve_device(config.run.device)
    with joined(device, automatic=config.run.device == "auto") as processes:
        session = Session(run, config, device, on_event, stop or StopFlag())
        session.processes = processes
        return _continue(session, edited=edited, steps=steps) if processes.leads else follow(session)


def _continue(session: Session, *, edited: bool, steps: int | None) -> RunResult:
    """Execute what is left of a run."""
    path, device, notify = session.run.path, session.device, session.note
    with RunDirectory.open(path) as run:
        session.run, session.record = run, _read_record(run, session.on_event, edited=edited)
        config = load_config([run.config])
        if steps is not None:
            config, session.record = with_steps(run, config, session.record, steps, session.on_event)
        session.config = config
        require_model_devices(config, session.processes.size)
        checkpoints = {name: newest_checkpoint(run, config, name) for name in config.stages}
        last = checkpoints[next(reversed(config.stages))]
        if session.record.get("status") == "done" and last is not None and last.step == config.last.steps:
            message = f"nothing to do: {path} is done; use `pgc3d export {path}`"
            session.on_event(Event("export", message=message))
            run.write_manifest(session.record)
            session.processes.gather(None)
            return RunResult(path, ())
        if not any(checkpoints.values()):
            notify(f"{path} has no checkpoint yet: starting with the first step")
        located = locate_models(config, device, styled="style" in session.record)
        if edited:
            session.record |= describe_models(config, located) | start_records(config)
        require_same_models(session.record, config, located)
        require_same_starts(session.record, config)
        if steps is not None:
            session.record = replace_config(run, config, session.record)
        session.processes.gather((config, session.record, True))
        return execute(session, located, checkpoints)


def _read_record(run: RunDirectory, on_event: EventCallback, *, edited: bool = False) -> dict[str, Any]:
    """The manifest of a run, after a check that its configuration and inputs have not changed."""
    record = run.read_manifest()
    digest = _config_digest(run, record, edited=edited)
    if "config" not in record:
        message = f"{run.path} was made by an earlier pgc3d, without hashes: changes cannot be detected"
        on_event(Event("build", message=message))
    run.require_same_inputs(record)
    return record | {"config": digest}


def _config_digest(run: RunDirectory, record: Mapping[str, Any], *, edited: bool) -> str:
    """The hash of a run's configuration, after a check that it is the one in its manifest."""
    digest = run.config_digest()
    if record.get("config", digest) != digest and not edited:
        raise RunDirectoryError(
            f"{run.config} must be as the run wrote it, but was edited or damaged; put it back, or check it "
            f"and use `pgc3d resume {run.path} --edited`, or start a new run with --config {run.config}"
        )
    return digest


def export(
    path: Path | str,
    *,
    out: Path | str | None = None,
    file_format: Format | None = None,
    texture_size: int | None = None,
    faces: int | None = None,
    placing: Mapping[str, Any] | None = None,
    stage: str | None = None,
    on_event: EventCallback = ignore,
) -> RunResult:
    """Write the asset of a run's newest checkpoint as a mesh file; existing files are not replaced.

    Args:
        path: the run directory.
        out: a new file, whose suffix is the format, or a folder; a new name in the run directory when None.
        file_format: that of `out`, else the run's own when None.
        texture_size: side in pixels; the run's own when None.
        faces: decimate to this many triangles, 0 for all; the run's own when None.
        placing: settings of `PlacingConfig`; the run's own when None.
        stage: name of a stage; the last one that has begun when None.
        on_event: called for messages and for every file that was written.

    Raises:
        InputError: an option does not fit the run, or a file exists already or cannot be written.
        RunDirectoryError: the folder is not a run, is in use, or has no valid checkpoint.
        DivergedError: the renders of the file differ from the run's own.
    """
    path = Path(path)
    if faces is not None and has_fixed_shape(RunDirectory.open(path), stage):
        raise InputError(
            f"--faces must not be given for a textured input mesh, whose geometry is fixed, got {faces}; "
            "remove it"
        )
    place = None if out is None else Path(out)
    chosen = file_format if place is None else format_of(place, file_format)
    changes = {"format": chosen, "texture_size": texture_size, "faces": faces, "placing": placing}
    with _opened(path, {"export": changes}, stage, on_event) as (session, representation, rasterizer):
        return RunResult(path, tuple(export_run(session, representation, rasterizer, place)))


def render(path: Path | str, *, stage: str | None = None, on_event: EventCallback = ignore) -> RunResult:
    """Write a turntable video and a sheet of six views of a run's newest checkpoint.

    Args:
        path: the run directory.
        stage: name of a stage; the last one that has begun when None.
        on_event: called for messages and for every file that was written.

    Raises:
        RunDirectoryError: the folder is not a run, is in use, or has no valid checkpoint.
    """
    path = Path(path)
    with _opened(path, {}, stage, on_event) as (session, representation, _):
        from pgc3d.exporting.turntable import write_sheet, write_turntable

        sheet, video = free_name(path / "views.png"), free_name(path / "turntable.mp4")
        with session.timed("render_files"):
            write_sheet(sheet, asset_renderer(session, representation))
            write_turntable(video, asset_renderer(session, representation))
        session.made("render", [sheet, video])
        return RunResult(path, (sheet, video))


def rendered_views(path: Path | str, cameras: Cameras) -> Float[torch.Tensor, "B H W 3"]:
    """A run's newest checkpoint on white, in sRGB on the CPU, at the resolution of previews.

    Args:
        path: the run directory.
        cameras: B views.

    Raises:
        RunDirectoryError: the folder is not a run, is in use, or has no valid checkpoint.
    """
    with _opened(Path(path), {}, None, ignore) as (session, representation, _), torch.no_grad():
        return asset_renderer(session, representation)(cameras).color.detach().cpu()


@contextmanager
def _opened(
    path: Path, changes: Mapping[str, Any], stage: str | None, on_event: EventCallback
) -> Iterator[tuple[Session, Representation, Rasterizer]]:
    """Open a run and load the asset of a stage, without loading any model."""
    with RunDirectory.open(path) as run:
        manifest = _read_record(run, on_event)
        config = load_config([run.config], options=changes)
        name, checkpoint = stage_to_show(run, config, stage, manifest)
        device = resolve_device(config.run.device)
        session = Session(run, config, device, on_event, StopFlag(), manifest, stage=name)
        with explain_memory(config, device):
            rasterizer = build_rasterizer(config.run.rasterizer, device)
            context = RunContext.of(config, Task.from_record(manifest, run.path), rasterizer, device, run=run)
            representation = build_representation(context, name)
            unpack_representation(checkpoint, representation)
            try:
                yield session, representation, rasterizer
            finally:  # a file that failed the comparison with the run's renders is recorded too
                run.write_manifest(session.record)
