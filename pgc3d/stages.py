"""The start of a stage: the last checkpoint of an earlier stage, of this run or of another one."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgc3d.build.run import RunContext, build_representation
from pgc3d.checkpoint import unpack_representation
from pgc3d.checkpoint_files import Checkpoint
from pgc3d.config import Config, load_config
from pgc3d.disk import sha256
from pgc3d.errors import ConfigError, InputError, RunDirectoryError
from pgc3d.inputs.mesh import prepare_surface, save_prepared
from pgc3d.layers import nearest
from pgc3d.run_directory import RunDirectory
from pgc3d.task import Task
from pgc3d.types import Handover


def handover_of(
    run: RunDirectory, context: RunContext, name: str, notify: Callable[[str], None], *, keep: bool = True
) -> Handover | None:
    """The hand-over of the stage that the stage `name` starts from; None where it has no start.

    Where the stage textures the surface it starts from, that is prepared and written into the run.

    Args:
        run: the run's directory.
        context: of the run.
        name: of the stage.
        notify: receives lines about what the start found and lost.
        keep: write that surface, which otherwise another process of the run did.

    Raises:
        RunDirectoryError: the start has no checkpoint.
        InputError: the stage textures a surface, and the start has none.
    """
    start = context.config.stages[name].start
    if not start:
        return None
    if start in context.config.stages:
        handover = _load(run, context, start, notify)
    else:
        other, stage = _other_run(start)
        config = load_config([other.config])
        task = Task.from_record(other.read_manifest(), other.path)
        theirs = RunContext.of(config, task, context.rasterizer, context.device, run=other)
        handover = _load(other, theirs, stage, notify)
    if keep and context.config.stages[name].representation.requires().start:
        _keep_surface(run, context.config, name, handover, notify)
    return handover


def _keep_surface(
    run: RunDirectory, config: Config, name: str, start: Handover, notify: Callable[[str], None]
) -> None:
    """Write the mesh that a stage textures, made from the surface of its start."""
    if start.surface is None:
        raise InputError(
            f"stages.{name} must start from a stage with a surface, got one without; use representation.mesh "
            "'given'"
        )
    settings = config.export
    prepared = prepare_surface(
        start.surface, faces=settings.faces or None, texture_size=settings.texture_size
    )
    save_prepared(run.stage_mesh(name), prepared)
    notify(f"stage {name} textures the surface of {config.stages[name].start}: {len(prepared.faces)} faces")


def _load(run: RunDirectory, context: RunContext, stage: str, notify: Callable[[str], None]) -> Handover:
    representation = build_representation(context, stage)
    unpack_representation(_last(run, stage), representation)
    handover = representation.handover()
    for note in handover.notes:
        notify(note)
    return handover


def _last(run: RunDirectory, stage: str) -> Checkpoint:
    checkpoint = run.load_checkpoint(stage)
    if checkpoint is None:
        raise RunDirectoryError(
            f"the stage {stage} of {run.path} must have a checkpoint to start from, but has none; use `pgc3d "
            f"resume {run.path}`"
        )
    return checkpoint


def _other_run(start: str, stages: Collection[str] = ()) -> tuple[RunDirectory, str]:
    """The run and the stage that RUN or RUN:STAGE names; the last stage where none is named."""
    path, stage = _split(start)
    if not Path(path).is_dir():
        raise ConfigError(
            f"a stage must start from an earlier stage or the folder of a run, got {start!r}"
            f"{nearest(start, stages)}"
        )
    run = RunDirectory.open(Path(path))
    stages = load_config([run.config]).stages
    if stage and stage not in stages:
        raise ConfigError(
            f"the run {path} must have the stage to start from, got {stage!r}{nearest(stage, stages)}"
        )
    return run, stage or list(stages)[-1]


def _split(start: str) -> tuple[str, str]:
    """The folder and the stage of RUN or RUN:STAGE; an existing folder may have a colon in its name."""
    path, colon, stage = start.rpartition(":")
    whole = not colon or Path(start).expanduser().is_dir()
    return (start, "") if whole else (path, stage)


def with_absolute_starts(config: Config) -> Config:
    """The configuration with absolute paths for the runs that stages start from."""
    return replace(
        config,
        stages={
            name: replace(stage, start=_absolute(stage.start, config.stages))
            for name, stage in config.stages.items()
        },
    )


def _absolute(start: str, stages: Collection[str]) -> str:
    """The start with an absolute path; the name of a stage stays, even where a folder has the same name."""
    path, stage = _split(start)
    folder = Path(path).expanduser()
    if not start or start in stages or not folder.is_dir():
        return start
    return f"{folder.absolute()}:{stage}" if stage else str(folder.absolute())


def start_records(config: Config) -> dict[str, Any]:
    """The record of other runs that stages start from, for a manifest: the checkpoint's file and its hash.

    Raises:
        ConfigError: there is no such run or stage.
        RunDirectoryError: it has no checkpoint.
    """
    starts = {}
    for name, stage in config.stages.items():
        if stage.start and stage.start not in config.stages:
            run, other = _other_run(stage.start, [known for known in config.stages if known != name])
            _last(run, other)
            newest = run.checkpoints(other)[0]
            starts[name] = {"path": str(newest), "sha256": sha256(newest)}
    return {"starts": starts} if starts else {}


def require_same_starts(record: Mapping[str, Any], config: Config) -> None:
    """Check that the other runs that unfinished stages start from have not changed since the run began.

    Args:
        record: the manifest.
        config: of the run.

    Raises:
        RunDirectoryError: one was continued, or its checkpoint is missing.
    """
    known = record.get("starts", {})
    pending = [name for name in known if record.get("stages", {}).get(name, {}).get("status") != "done"]
    if not pending:
        return
    current = start_records(config).get("starts", {})
    for name in pending:
        if current.get(name, {}).get("sha256") != known[name]["sha256"]:
            raise RunDirectoryError(
                f"stages.{name} must start from {known[name]['path']} as it was when the run began, but that "
                "has changed; put it back, or start a new run"
            )
