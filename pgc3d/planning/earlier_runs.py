"""The times of a run that was made, in the form of measured ones, so that another is planned with them."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pgc3d.config import Config, StageConfig, load_config
from pgc3d.errors import InputError
from pgc3d.plain_files import read_file
from pgc3d.planning.eta import WARM_UP
from pgc3d.planning.known_models import KnownModel, evaluations, known_model, work_of
from pgc3d.planning.plan_times import Parts, StepTime, Times, Work
from pgc3d.run_directory import RunDirectory
from pgc3d.run_files import METRICS

SECONDS = "seconds/"  # in metrics: of a part of a step


def times_of_run(path: Path, device: str) -> Times:
    """The times of the steps and of the parts of a run, of one process.

    Args:
        path: the run directory.
        device: name of the device that a run is planned for, which must be that of this run.

    Raises:
        InputError: the run was made on another device or in several processes, or it measured no step.
        RunDirectoryError: the folder is not a run, or its manifest is damaged.
    """
    run = RunDirectory.open(path)
    record, config = run.read_manifest(), load_config([run.config])
    made = record.get("device", {})
    own = "cpu" if made.get("type") == "cpu" else str(made.get("name", "an unknown device"))
    if own != ("cpu" if device.startswith("cpu") else device):
        raise InputError(f"--like must name a run that was made on {device}, got {path}, made on {own}")
    if "processes" in record:
        raise InputError(f"--like must name a run of one process, got {path}, made by several")
    models = {name: known_model(config.models[name], use) for name, use in config.requires().models.items()}
    steps = tuple(_steps(run, config, models, device))
    if not steps:
        raise InputError(
            f"--like must name a run with steps of one model that were measured, got {path} without; name "
            "another one, or use --time-per-step"
        )
    seconds = record.get("seconds", {})
    last = steps[-1].work.model
    start, build, export = (seconds.get(name) for name in ("start", "build", "export"))
    note = f"start is not known from {path}" if start is None else ""
    parts = Parts(last, device, str(path), start=start, build=build, export=export, note=note)
    return Times(steps=steps, parts=(parts,))


def _steps(
    run: RunDirectory, config: Config, models: Mapping[str, KnownModel], device: str
) -> Iterator[StepTime]:
    """The mean time of a step in each phase with one kind of work."""
    found: dict[tuple[str, int], list[tuple[int, float]]] = defaultdict(list)
    for record in _records(run):
        stage = config.stages.get(str(record.get("stage")))
        if stage is None or not isinstance(record.get("step"), int):
            continue
        step = record["step"]
        side = stage.resolution_at((step - 1) / max(stage.steps - 1, 1))
        parts = [value for name, value in record.items() if name.startswith(SECONDS)]
        found[record["stage"], side].append((step, float(sum(parts))))
    for (name, side), times in found.items():
        stage = config.stages[name]
        warm = [seconds for step, seconds in times if step > max(WARM_UP, config.logging.log_every)]
        works = _works(config, stage, side, models)
        kinds = {work for work, _ in works}
        if warm and len(kinds) == 1:
            ms, count = 1000 * sum(warm) / len(warm), sum(count for _, count in works)
            yield StepTime(kinds.pop(), device, ms, count, stage.representation.kind, side, str(run.path))


def _works(
    config: Config, stage: StageConfig, side: int, models: Mapping[str, KnownModel]
) -> list[tuple[Work, int]]:
    """The work of each objective with a model, and the number of its images."""
    found = [
        (work_of(config, objective, name, use, side, models[name]), objective.batch)
        for objective, name, use in evaluations(stage)
    ]
    return [(work, count) for work, count in found if work is not None]


def _records(run: RunDirectory) -> Iterator[dict[str, Any]]:
    """The lines of the metrics that are whole."""
    for line in read_file(run.path / METRICS).splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record
