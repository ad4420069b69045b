"""The library's entry points: make an asset, continue a run, and export or render what a run made."""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from pgc3d import __version__, build, stage
from pgc3d.checkpoint import unpack_representation
from pgc3d.checkpoint_files import Checkpoint
from pgc3d.config import Config, dump_config, load_config
from pgc3d.disk import replace_file, require_free_space, sha256
from pgc3d.errors import DivergedError, InputError, RunDirectoryError
from pgc3d.export.canvas import save_canvas
from pgc3d.export.export import ExportReport, export_asset
from pgc3d.export.painting import export_painting
from pgc3d.interfaces import Meshable, Rasterizer, Representation
from pgc3d.model_record import describe_models, require_same_models, with_absolute_paths
from pgc3d.plan import plan_run
from pgc3d.prompts import prompt_notes
from pgc3d.render import build_rasterizer
from pgc3d.representation.textured_mesh import PaintedMesh
from pgc3d.run import RunDirectory
from pgc3d.session import Event, Reporter, Session, explain_memory
from pgc3d.signals import StopFlag
from pgc3d.task import KEPT, Task
from pgc3d.teachers import Models, locate_models, model_notes
from pgc3d.types import Cameras, Canvas, Rendering, Views

FREE_SPACE = 500_000_000  # bytes: two checkpoints, the asset with its textures, previews


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    path: Path
    files: tuple[Path, ...]
    stopped_by: int | None = None  # the signal, None where the run is done


def ignore(event: Event) -> None:
    """Report to nobody."""


def generate(
    task: Task,
    *,
    out: Path,
    config: Config | None = None,
    report: Reporter = ignore,
    stop: StopFlag | None = None,
) -> RunResult:
    """Make an asset.

    Args:
        task: what to make; its files are prepared and kept in the run.
        out: the run directory; must not exist or be empty.
        config: `load_config()` when None.
        report: called at every step edge and for every file made.
        stop: where it is set, the run saves at the next step edge and returns.

    Raises:
        Pgc3dError: one line that says what to do; the run directory keeps the last good state.
    """
    config = config or load_config()
    config = with_absolute_paths(config)
    device = build.resolve_device(config.run.device)
    stage.require_fitting(config, task)
    build_rasterizer(config.run.rasterizer, device)  # refused before there is a folder

    def say(message: str) -> None:
        report(Event("build", message=message))

    backdrop = build.prepare_task_backdrop(config, task, say)
    canvas = _take_mesh(task, config, device, report)
    models = locate_models(config, device)
    check_prompt(task, config, models, report)
    check_cameras(config, models, report)
    pictures = dict(build.prepare_task_photo(config, task, say))
    if backdrop is not None:
        pictures["background"] = backdrop
    inputs = {name: {"name": path.name, "sha256": sha256(path)} for name, path in task.files.items()}
    require_free_space(out, FREE_SPACE)
    described = describe_models(config, models)
    with RunDirectory.create(out) as run:
        run.begin()
        replace_file(run.config, dump_config(config).encode())
        kept = _keep_inputs(run, task, canvas, pictures)
        record = kept.record(run.path) | {"seed": config.run.seed} | described
        record |= {"inputs": inputs, "files": run.hash_files(list(kept.files.values()))}
        record |= {"config": run.config_digest()}
        session = Session(run, config, device, report, stop or StopFlag(), record)
        for name in pictures:
            report(Event("build", file=kept.files[name]))
        return _execute(session, models, None)


def check_prompt(task: Task, config: Config, models: Models, report: Reporter) -> None:
    """Refuse an empty prompt, and report what the model will not read in it and what it was not made for.

    Raises:
        InputError: a text-to-image model is asked and the prompt is empty.
    """
    if not models.text:
        return
    build.require_prompt(task.prompt)
    notes = prompt_notes(task.prompt, models.text.vocabulary or (), config.model.name)
    for note in [*notes, *model_notes(config, models)]:
        report(Event("build", message=note))


def check_cameras(config: Config, models: Models, report: Reporter) -> None:
    """Report where a novel-view model was trained with other cameras than the configuration has."""
    if models.image is None:
        return
    used = {**vars(config.view), "border": config.photo.border}
    for name, value in models.image.cameras.items():
        if not math.isclose(used[name], value):
            message = f"{models.image.name} was trained with {name} {value:g}, this run has {used[name]:g}"
            report(Event("build", message=message))


def _take_mesh(task: Task, config: Config, device: torch.device, report: Reporter) -> Canvas | None:
    """The user's mesh ready for painting."""
    if task.mesh is None:
        return None
    return stage.adopt_mesh(
        config, task.mesh, device, lambda message: report(Event("build", message=message))
    )


def _keep_inputs(run: RunDirectory, task: Task, canvas: Canvas | None, pictures: Mapping[str, bytes]) -> Task:
    """Write what was made of the user's files into the run; the task with these in their place."""
    kept: dict[str, Any] = {name: run.path / KEPT[name] for name in pictures}
    for name, content in pictures.items():
        replace_file(kept[name], content)
    if canvas is not None:
        kept["mesh"] = run.path / KEPT["mesh"]
        save_canvas(kept["mesh"], canvas)
    return replace(task, **kept)


def resume(
    path: Path, *, edited: bool = False, report: Reporter = ignore, stop: StopFlag | None = None
) -> RunResult:
    """Continue a run that was stopped; on a CPU it ends as if it had never stopped.

    Args:
        path: the run directory.
        edited: go on with a `config.yaml` that was changed since the run wrote it.
        report: called at every step edge and for every file made.
        stop: where it is set, the run saves at the next step edge and returns.

    Raises:
        RunDirectoryError: the folder is not a run, is in use, has only damaged checkpoints, or the
            configuration, the inputs or the weights are no longer those of the run.
    """
    with RunDirectory.open(path) as run:
        record = _read_record(run, report, edited=edited)
        config = load_config([run.config])
        checkpoint = _newest(run, config, report)
        if record.get("status") == "done" and checkpoint and checkpoint.step >= config.run.steps:
            report(Event("export", message=f"nothing to do: {path} is done; use `pgc3d export {path}`"))
            run.write_manifest(record)
            return RunResult(path, ())
        device = build.resolve_device(config.run.device)
        models = locate_models(config, device)
        if edited:
            record |= describe_models(config, models)
        require_same_models(record, config, models)
        session = Session(run, config, device, report, stop or StopFlag(), record)
        return _execute(session, models, checkpoint)


def _read_record(run: RunDirectory, report: Reporter, *, edited: bool = False) -> dict[str, Any]:
    """The manifest of a run whose configuration and inputs are as it left them."""
    record, found = run.read_manifest(), run.config_digest()
    if "config" not in record:
        message = f"{run.path} was made by an earlier pgc3d, without hashes: it is taken as it is"
        report(Event("build", message=message))
    elif record["config"] != found and not edited:
        raise RunDirectoryError(
            f"{run.config} must be as the run wrote it, but was edited or damaged; put it back, or look "
            f"through it and use `pgc3d resume {run.path} --edited`, or start a new run with --config "
            f"{run.config}"
        )
    run.require_same_inputs(record)
    return record | {"config": found}


def _newest(run: RunDirectory, config: Config, report: Reporter) -> Checkpoint | None:
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        report(Event("build", message=f"{run.path} has no checkpoint yet: beginning with the first step"))
    elif checkpoint.step > config.run.steps:
        raise RunDirectoryError(
            f"run.steps of {run.config} must be at least {checkpoint.step}, which are done, got "
            f"{config.run.steps}; raise it"
        )
    return checkpoint


def export(
    path: Path,
    *,
    file_format: str | None = None,
    texture_size: int | None = None,
    faces: int | None = None,
    report: Reporter = ignore,
) -> RunResult:
    """Write the asset of a run's newest checkpoint, beside what was exported before."""
    if faces is not None and "mesh" in RunDirectory.open(path).read_manifest():
        raise InputError(f"--faces must not be given for a painted mesh, which stays as it is, got {faces}")
    changes = {"export": {"format": file_format, "texture_size": texture_size, "faces": faces}}
    with _finished(path, changes, report) as (session, representation, rasterizer):
        return RunResult(path, tuple(_export(session, representation, rasterizer)))


def render(path: Path, *, report: Reporter = ignore) -> RunResult:
    """Write a turntable and a sheet of six views of a run's newest checkpoint."""
    with _finished(path, {}, report) as (session, representation, _):
        from pgc3d.export.turntable import write_sheet, write_turntable

        sheet, video = free_name(path / "views.png"), free_name(path / "turntable.mp4")
        with session.timed("render_files"):
            write_sheet(sheet, _painter(session, representation))
            write_turntable(video, _painter(session, representation))
        session.made("render", [sheet, video])
        return RunResult(path, (sheet, video))


@contextmanager
def _finished(
    path: Path, changes: Mapping[str, Any], report: Reporter
) -> Iterator[tuple[Session, Representation, Rasterizer]]:
    """Open a run and load its asset, without any model."""
    with RunDirectory.open(path) as run:
        manifest = _read_record(run, report)
        config = load_config([run.config], options=changes)
        checkpoint = run.load_checkpoint()
        if checkpoint is None:
            raise RunDirectoryError(f"{path} must have a checkpoint, but has none; use `pgc3d resume {path}`")
        device = build.resolve_device(config.run.device)
        session = Session(run, config, device, report, StopFlag(), manifest)
        with explain_memory(config, device):
            rasterizer = build_rasterizer(config.run.rasterizer, device)
            task = Task.from_record(manifest, run.path)
            representation = stage.build_representation(config, task, rasterizer, device)
            unpack_representation(checkpoint, representation)
            try:
                yield session, representation, rasterizer
            finally:  # a file that does not show what the run showed is there as well
                run.write_manifest(session.record)


def _execute(session: Session, models: Models, checkpoint: Checkpoint | None) -> RunResult:
    """Build, optimise, export; stops between steps when asked to."""
    run = session.run
    with session.recorded():
        session.report(Event("build"))
        session.config, expected = plan_run(session.config, models, session.device)
        if expected:
            session.report(Event("build", message=expected))
            session.record["expected"] = expected
        config = session.config
        with session.timed("build"):
            task = Task.from_record(session.record, run.path)
            built = build.build(config, task, models, session.device)
        files: list[Path] = []
        representation = built.problem.representation
        paint = _painter(session, representation)
        if session.optimize(built, checkpoint, lambda path: _write_sheet(path, paint)):
            files = _export(session, representation, built.rasterizer)
    return RunResult(run.path, tuple(files), session.stopped_by)


def _painter(session: Session, representation: Representation) -> Callable[[Cameras], Rendering]:
    """Render as a person wants to see it: whole, on white."""

    def paint(cameras: Cameras) -> Rendering:
        background = torch.ones(len(cameras), 3, device=session.device)
        size = session.config.logging.preview_resolution
        return representation.render(Views(cameras.to(session.device), background), size, None)

    return paint


def _write_sheet(path: Path, paint: Callable[[Cameras], Rendering]) -> None:
    from pgc3d.export.turntable import write_sheet

    write_sheet(path, paint)


def _write_asset(session: Session, representation: Representation, rasterizer: Rasterizer) -> ExportReport:
    settings = session.config.export
    path = free_name(session.run.path / f"asset.{settings.format}")
    metadata = {"prompt": session.record["prompt"], "seed": session.config.run.seed, "pgc3d": __version__}
    if isinstance(representation, PaintedMesh):
        return export_painting(
            representation,
            path,
            format=settings.format,
            texture_size=settings.texture_size,
            metadata=metadata,
            rasterizer=rasterizer,
        )
    return export_asset(
        cast("Meshable", representation),
        path,
        format=settings.format,
        texture_size=settings.texture_size,
        faces=settings.faces or None,
        metadata=metadata,
        rasterizer=rasterizer,
    )


def _export(session: Session, representation: Representation, rasterizer: Rasterizer) -> list[Path]:
    session.report(Event("export"))
    with session.timed("export"):
        report = _write_asset(session, representation, rasterizer)
    files = [file.path for file in report.files]
    session.made("export", files)
    session.record["export"] = {"psnr": report.psnr, "faces": report.faces, "seconds": dict(report.seconds)}
    found = f"{report.psnr:.1f} dB between {files[0].name} read back and the run's own render"
    if not report.faithful:
        raise DivergedError(
            f"an export must show what the run showed, got {found}; {_remedy(session, representation)}"
        )
    dropped = f", loose pieces dropped ({report.dropped:.1%} of the surface)" if report.dropped > 1e-3 else ""
    session.report(Event("export", message=f"{report.faces} faces{dropped}, PSNR {found}"))
    return files


def _remedy(session: Session, representation: Representation) -> str:
    if not isinstance(representation, PaintedMesh):
        return "raise --texture-size or --faces"
    if session.config.export.format == "ply":
        return "its vertices are too few to carry the colours, use --format glb or obj"
    return "raise --texture-size"


def default_folder(parent: Path, prompt: str, seed: int) -> Path:
    """A new folder below `parent`, named after the prompt and the seed."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-") or "run"
    return free_name(parent / f"{slug}-{seed}")


def free_name(path: Path) -> Path:
    """The path itself, or with the first number that makes it new."""
    number, candidate = 1, path
    while os.path.lexists(candidate):  # a link that leads nowhere is something, too
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate
