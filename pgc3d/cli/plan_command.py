"""`pgc3d plan`: the time, the memory and the cost of a command, without running it."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pgc3d.cli.completion import complete_run
from pgc3d.cli.console import deliver, plain_line
from pgc3d.cli.options import MAKERS, JsonOption, ListedJobs, collected_from

LIST = "batch"


def plan(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...",
            help="text, image, texture or batch with its options; inputs of a run may be left out.",
        ),
    ],
    *,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE", help="One with measured times, as H200; this computer's if not given."
        ),
    ] = None,
    gpus: Annotated[
        str, typer.Option(metavar="N,...", help="GPUs of one run, as 1,2,4; of a list, GPUs of each node.")
    ] = "1",
    nodes: Annotated[int, typer.Option(min=1, help="Computers that a list is divided over.")] = 1,
    price: Annotated[float | None, typer.Option(min=0.0, help="Of one GPU for an hour.")] = None,
    time_per_step: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.0, help="Of each step, on one GPU.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="A run on the same device, whose times count first.",
            autocompletion=complete_run,
        ),
    ] = None,
    json_: JsonOption = False,
) -> int:
    """Print the time, the memory and the cost of a command without running it.

    Nothing is fetched, and inputs are not read. Times are measured ones, and where there are none it is
    stated.
    """
    from pgc3d.errors import InputError

    counts = _counts(gpus)
    if command[0] not in (*MAKERS, LIST):
        raise InputError(f"plan must have a command of {', '.join((*MAKERS, LIST))}, got {command[0]!r}")
    if command[0] == LIST and len(counts) > 1:
        raise InputError(f"--gpus must be one number for a list, the GPUs of each node, got {gpus}")
    if command[0] != LIST and nodes > 1:
        raise InputError(f"--nodes must go with batch, got {nodes} for {command[0]}; a run uses one computer")
    found = collected_from(command, fill=command[0] != LIST)
    if command[0] == LIST:
        runs, notes = _listed(found.lists[0])
        together = {"nodes": nodes, "gpus": counts[0]}
        counts = (1,)
    else:
        from pgc3d.planning.forecast import Seeds

        runs, notes = [(shlex.join(command), config, Seeds()) for _, config in found.runs], []
        together = {}
    forecasts = _forecasts(runs, on=on, gpus=counts, step_seconds=time_per_step, like=like)
    from pgc3d.planning.fleet import fleet

    total = fleet(forecasts, price=price, **together)
    if json_:
        deliver(f"{json.dumps(_record(forecasts, total, notes), indent=1)}\n")
        return 0
    lines = list(_jobs(forecasts, total)) if command[0] == LIST else list(_one(forecasts[0]))
    if command[0] == LIST or price is not None:
        lines += _total(total)
    deliver("".join(f"{plain_line(line)}\n" for line in [*lines, *notes]))
    return 0


def _counts(text: str) -> tuple[int, ...]:
    """The numbers of GPUs that an option lists."""
    from pgc3d.errors import InputError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and 1 <= int(part) <= 64 for part in parts):
        raise InputError(f"--gpus must be numbers from 1 to 64, as 1,2,4, got {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def _listed(found: ListedJobs) -> tuple[list[tuple[str, Any, Any]], list[str]]:
    """The runs of a list, and lines about what is not planned."""
    from pgc3d.errors import InputError
    from pgc3d.planning.forecast import Seeds

    runs = [
        (job.name, job.config, Seeds(len(job.seeds), found.sweep_steps))
        for job in found.jobs
        if not job.error
    ]
    notes = [f"{job.name} is left out: {job.error}" for job in found.jobs if job.error]
    if not runs:
        raise InputError(f"the list must have a job that can run, but none of {len(notes)} can: {notes[0]}")
    if found.processes > 1:
        notes.append(f"times are of one job at a time on a GPU: --jobs {found.processes} was not measured")
    return runs, notes


def _forecasts(
    runs: Sequence[tuple[str, Any, Any]],
    *,
    on: str | None,
    gpus: tuple[int, ...],
    step_seconds: float | None,
    like: Path | None,
) -> list[Any]:
    from pgc3d.planning.earlier_runs import times_of_run
    from pgc3d.planning.forecast import Settings, forecast, planned_device
    from pgc3d.planning.plan_times import MEASURED

    settings = Settings(MEASURED, on, step_seconds, gpus)
    if like is not None:
        device = planned_device(runs[0][1], settings).name
        settings = Settings(MEASURED | times_of_run(like, device), on, step_seconds, gpus)
    return [forecast(title, config, settings, seeds) for title, config, seeds in runs]


def _record(forecasts: Sequence[Any], total: Any, notes: Sequence[str]) -> dict[str, Any]:
    """The plan for other programs; times are seconds, memory is bytes, null where it is unknown."""
    runs = [
        asdict(item) | {"stepping": item.stepping, "seconds": item.seconds, "missing": item.missing}
        for item in forecasts
    ]
    return {"runs": runs, "all": asdict(total) | {"cost": total.cost}, "notes": list(notes)}


def _one(item: Any) -> Iterator[str]:
    """The lines of one run."""
    models = " and ".join(item.models)
    yield f"{item.title}: {item.steps} steps, {item.images} images, {models} on {item.device}"
    rows = [("start", item.start), ("build", item.build), ("initial views", item.initial_views)]
    for name, seconds in rows:
        yield _row(name, "none" if seconds == 0 and name == "initial views" else _time(seconds))
    for phase in item.phases:
        several = f" of {phase.stage}" if len({other.stage for other in item.phases}) > 1 else ""
        whole = None if phase.step_seconds is None else phase.step_seconds * phase.steps
        each = "" if phase.step_seconds is None else f", {1000 * phase.step_seconds:.0f} ms each"
        images = f"{phase.images} image{'s' if phase.images > 1 else ''} a step{each}"
        yield _row("steps", f"{_time(whole)}: {phase.steps}{several} at {phase.side} px, {images}")
    yield _row("export", _time(item.export))
    yield _row("all", _sum(item))
    for row in item.gpus:
        yield from _memory(row, item)
    yield from (_row("note", note) for note in item.notes)
    if item.sources:
        yield _row("measured", ", ".join(item.sources))


def _memory(row: Any, item: Any) -> Iterator[str]:
    """The line of a number of GPUs."""
    free = "" if item.free_bytes is None else f" of {item.free_bytes / 1e9:.1f}"
    size = "" if row.bytes is None else f"at most {row.bytes / 1e9:.1f}{free} GB"
    if row.gpus == 1:
        yield _row("memory", "; ".join(part for part in (size, row.note) if part))
        return
    time = "" if row.seconds is None else f"steps {_time(row.seconds)}"
    memory = f"memory of each {size}" if size else ""
    yield _row(f"{row.gpus} GPUs", "; ".join(part for part in (time, memory, row.note) if part))


def _row(name: str, text: str) -> str:
    return f"  {name:15}{text}"


def _sum(item: Any) -> str:
    first = "" if item.first_start is None else f"; about {_time(item.first_start)} more on its first start"
    if item.seconds is None:
        return "not known without the time of the steps"
    if item.missing:
        return f"{_time(item.seconds)}, not counting {', '.join(item.missing)}{first}"
    return f"{_time(item.seconds)}{first}"


def _jobs(forecasts: Sequence[Any], total: Any) -> Iterator[str]:
    """The lines of the jobs of a list."""
    steps, images = (sum(getattr(item, name) for item in forecasts) for name in ("steps", "images"))
    yield f"{total.jobs} jobs: {steps} steps, {images} images on {forecasts[0].device}"
    times = [item.seconds for item in forecasts if item.seconds is not None]
    if times:
        yield _row("a job", f"{_time(min(times))} to {_time(max(times))}")
    yield _row("nodes", f"{total.nodes} with {total.gpus} GPU{'s' if total.gpus > 1 else ''} each")
    yield from dict.fromkeys(_row("note", note) for item in forecasts for note in item.notes)
    sources = dict.fromkeys(source for item in forecasts for source in item.sources)
    if sources:
        yield _row("measured", ", ".join(sources))


def _total(total: Any) -> Iterator[str]:
    """The lines of the time and the cost of all runs."""
    if total.seconds is None:
        yield _row("all jobs", "not known without the time of the steps")
        return
    without = f", not counting {', '.join(total.missing)}" if total.missing else ""
    yield _row("all jobs", f"{_time(total.seconds)}{without}")
    yield _row("assets", f"{total.assets_per_hour or 0.0:.1f} an hour")
    if total.cost is not None:
        hours, each = f"{total.gpu_hours:.2f} hours of a GPU", total.cost / total.jobs
        yield _row("cost", f"{total.cost:.2f} for {hours}, {each:.3f} for an asset")


def _time(seconds: float | None) -> str:
    """Seconds in words: of a small number, minutes or hours beyond."""
    if seconds is None:
        return "not measured"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:.1f} h"
