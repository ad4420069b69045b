"""The execution of a run: its stages one after the other, in all processes that make it, and the export."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from pgc3d.assets import export_run
from pgc3d.build.models import LoadedModels, LocatedModel, locate_models
from pgc3d.build.run import Built, RunContext, build_stage
from pgc3d.checkpoint_files import Checkpoint
from pgc3d.config import Config
from pgc3d.continuation import newest_checkpoint
from pgc3d.environment import peak_memory
from pgc3d.events import Event, ignore
from pgc3d.guidance.synchronized import SyncConfig
from pgc3d.inputs.background import style_loader
from pgc3d.interfaces import Representation
from pgc3d.kernels import share_cores
from pgc3d.planning.eta import Eta, operations_of
from pgc3d.planning.plan import plan_run
from pgc3d.rendering import build_rasterizer
from pgc3d.session import Session
from pgc3d.stages import handover_of
from pgc3d.task import Task
from pgc3d.tensorboard import written_to_tensorboard
from pgc3d.types import Cameras, Rendering, Views


@dataclass(frozen=True)
class RunResult:
    """The end of a run or of an export."""

    path: Path  # the run directory
    files: tuple[Path, ...]  # that were written
    stopped_by: int | None = None  # the number of a signal, None where the run is done


def follow(session: Session) -> RunResult:
    """Take part in the run of the first process, whose directory is only read."""
    share_cores(session.processes.size)
    nothing: Any = None
    shared = session.processes.gather(nothing)[0]
    if shared is None:
        return RunResult(session.run.path, ())
    (session.config, session.record, resumed), session.on_event = shared, ignore
    config, run = session.config, session.run
    located = locate_models(config, session.device, styled="style" in session.record)
    checkpoints = {name: newest_checkpoint(run, config, name) for name in config.stages} if resumed else {}
    return execute(session, located, checkpoints)


def execute(
    session: Session, located: Mapping[str, LocatedModel], checkpoints: dict[str, Checkpoint | None]
) -> RunResult:
    """Build and optimise each stage in turn, and export the last one, unless a signal stops the run.

    `checkpoints` holds those that stages continue from; each is removed once it is used, to free its memory.
    """
    if session.processes.size > 1:
        share_cores(session.processes.size)
    if session.config.logging.tensorboard and session.processes.leads:
        with written_to_tensorboard(session.run.path, session.on_event) as session.on_event:
            return _run_stages(session, located, checkpoints)
    return _run_stages(session, located, checkpoints)


def _run_stages(
    session: Session, located: Mapping[str, LocatedModel], checkpoints: dict[str, Checkpoint | None]
) -> RunResult:
    run, device, processes = session.run, session.device, session.processes
    with session.recorded():
        session.on_event(Event("build"))
        session.config, expected = _planned(session, located)
        if expected:
            session.on_event(Event("build", message=expected))
            session.record["expected"] = expected
        config, representation = session.config, None
        session.eta = Eta(config, operations_of(config, located), device=device.type)
        task = Task.from_record(session.record, run.path)
        models = LoadedModels(
            located,
            device,
            low_memory=config.run.low_memory,
            decoders=any(use.decoder for use in config.requires().models.values()),
            style=style_loader(task.style),
        )
        rasterizer = build_rasterizer(config.run.rasterizer, device)
        context = RunContext.of(config, task, rasterizer, device, models, run)
        for name, stage in config.stages.items():
            checkpoint = checkpoints.pop(name, None)
            is_last = name == list(config.stages)[-1]
            if checkpoint is not None and checkpoint.step >= stage.steps and not is_last:
                continue
            representation = _optimize_stage(session, context, name, checkpoint)
            if representation is None:
                break
        if processes.size > 1:
            session.record["processes"] = processes.gather(peak_memory(device))
        processes.finish()
        files: list[Path] = []
        if representation is not None and processes.leads:
            files = export_run(session, representation, rasterizer)
        return RunResult(run.path, tuple(files), session.stopped_by)


def _planned(session: Session, located: Mapping[str, LocatedModel]) -> tuple[Config, str]:
    """The configuration with which the run fits the devices of all its processes, and a line for the user."""
    processes = session.processes
    planned, line = plan_run(
        session.config,
        located,
        session.device,
        processes=processes.size,
        on_device=processes.on_device,
    )
    runs = processes.gather(planned.run)
    views = min((run.micro_batch for run in runs if run.micro_batch), default=0)
    low_memory = any(run.low_memory for run in runs)
    return replace(planned, run=replace(planned.run, micro_batch=views, low_memory=low_memory)), line


def _optimize_stage(
    session: Session, context: RunContext, name: str, checkpoint: Checkpoint | None
) -> Representation | None:
    """The representation of a stage after its last step; None where a signal stopped it earlier."""
    built = begin_stage(session, context, name, checkpoint)
    representation = built.problem.representation
    render_views = asset_renderer(session, representation)
    finished = session.optimize(name, built, checkpoint, lambda path: _write_sheet(path, render_views))
    return representation if finished else None


def begin_stage(session: Session, context: RunContext, name: str, checkpoint: Checkpoint | None) -> Built:
    """The objects of a stage, with the same parameters in all processes.

    Args:
        session: of the run.
        context: of the run, with models.
        name: of the stage.
        checkpoint: that will be loaded into them, None where the stage begins.
    """
    config = context.config
    if len(config.stages) > 1:
        session.note(f"stage {name}: {config.stages[name].steps} steps")
    models = cast("LoadedModels", context.models)
    models.keep_only(config.stages[name].requires().models)
    session.started()
    with session.timed("build"):
        # A checkpoint would replace the stage's start.
        start = session.processes.first_then_others(
            lambda: (
                handover_of(session.run, context, name, session.note, keep=session.processes.leads)
                if checkpoint is None
                else None
            )
        )
        begun = checkpoint is not None or not session.processes.leads
        built = build_stage(context, name, start, begun=begun)
    session.add_start_parts()
    init = config.stages[name].init
    return built if checkpoint is not None or init is None else _initialized(session, built, init)


def _initialized(session: Session, built: Built, init: SyncConfig) -> Built:
    """The objects of a stage with initial colours, which the first process computes and the others receive.

    GPUs need not round alike, so that parameters which each process computed could differ.
    """
    if built.initialize is not None:
        session.note(f"initial views: {init.count}, sampled together on the surface in {init.steps} steps")
        with session.timed("init"):
            built.initialize()
    else:
        session.note("initial views: none, as no ControlNet is set for them (init.controls)")
    session.processes.copy_from_first(built.problem.representation.parameter_store().tensors())
    return replace(built, initialize=None)  # frees its ControlNet


def asset_renderer(session: Session, representation: Representation) -> Callable[[Cameras], Rendering]:
    """A function that renders the asset on white, in evaluation mode, at the resolution of previews."""

    def render_views(cameras: Cameras) -> Rendering:
        background = torch.ones(len(cameras), 3, device=session.device)
        size = session.config.logging.preview_resolution
        return representation.render(Views(cameras.to(session.device), background), size, None)

    return render_views


def _write_sheet(path: Path, render_views: Callable[[Cameras], Rendering]) -> None:
    from pgc3d.exporting.turntable import write_sheet

    write_sheet(path, render_views)
