"""The checkpoints that a run continues from or is exported from, and the steps that it goes on to."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pgc3d.checkpoint_files import Checkpoint
from pgc3d.config import Config, dump_config
from pgc3d.disk import replace_file
from pgc3d.errors import ConfigError, InputError, RunDirectoryError
from pgc3d.events import Event, EventCallback
from pgc3d.layers import nearest
from pgc3d.run_directory import RunDirectory


def newest_checkpoint(run: RunDirectory, config: Config, stage: str) -> Checkpoint | None:
    """The newest checkpoint of a stage, None where it has not begun.

    Raises:
        RunDirectoryError: all checkpoints are damaged, or have more steps than the stage.
    """
    checkpoint, steps = run.load_checkpoint(stage), config.stages[stage].steps
    if checkpoint is not None and checkpoint.step > steps:
        raise RunDirectoryError(
            f"stages.{stage}.steps in {run.config} must be at least {checkpoint.step}, the steps that are "
            f"done, got {steps}; raise it"
        )
    return checkpoint


def stage_to_show(
    run: RunDirectory, config: Config, stage: str | None, manifest: Mapping[str, Any]
) -> tuple[str, Checkpoint]:
    """The stage with its newest checkpoint; without a name, the last stage that has begun.

    Raises:
        InputError: there is no such stage.
        RunDirectoryError: it has no valid checkpoint.
    """
    if stage is not None and stage not in config.stages:
        raise InputError(
            f"--stage must be one of {', '.join(config.stages)}, got {stage!r}{nearest(stage, config.stages)}"
        )
    for name in [stage] if stage else reversed(config.stages):
        if (checkpoint := run.load_checkpoint(name)) is not None:
            return name, checkpoint
        if manifest.get("stages", {}).get(name, {}).get("steps"):
            stage = name  # its checkpoints are gone: an earlier stage would be another result
            break
    raise RunDirectoryError(
        f"{run.path} must have a checkpoint{f' of {stage}' if stage else ''}, but has none; use "
        f"`pgc3d resume {run.path}`"
    )


def with_steps(
    run: RunDirectory, config: Config, record: Mapping[str, Any], steps: int, on_event: EventCallback
) -> tuple[Config, dict[str, Any]]:
    """The configuration and the manifest of a run whose last stage goes on to another number of steps.

    Schedules and phases of resolution stretch over all steps, as in a run that began with this number: it
    goes on at the progress that the steps which are done have of them. The manifest gets an entry in
    `continued`; nothing is written.

    Args:
        run: the folder, locked.
        config: of the run.
        record: its manifest.
        steps: of the last stage.
        on_event: receives a line about where schedules go on.

    Raises:
        ConfigError: so many steps are done already, or the number is not valid.
    """
    name = next(reversed(config.stages))
    stage = config.stages[name]
    checkpoint = run.load_checkpoint(name)
    done = checkpoint.step if checkpoint is not None else 0
    if steps == stage.steps:
        return config, dict(record)
    if steps <= done:
        raise ConfigError(
            f"--steps must be more than the {done} steps that are done of the stage {name}, got {steps}; "
            "raise it"
        )
    try:
        longer = replace(config, stages={**config.stages, name: replace(stage, steps=steps)})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    entry = {"stage": name, "done": done, "steps": stage.steps, "to": steps}
    progress = f"{100 * done / steps:.0f} % of {steps}, over which schedules and phases now stretch"
    on_event(Event("build", message=f"stage {name} goes on from step {done}, {progress}"))
    return longer, {**record, "continued": [*record.get("continued", ()), entry]}


def replace_config(run: RunDirectory, config: Config, record: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the configuration of a run; the manifest with its hash, which is written too."""
    replace_file(run.config, dump_config(config).encode())
    updated = {**record, "config": run.config_digest()}
    run.write_manifest(updated)
    return updated
