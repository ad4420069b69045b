"""The work of one job on a worker of a cluster: its folder, its inputs, the run, and its result."""

import fcntl
import logging
import os
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgc3d import __version__
from pgc3d.batch.inputs import SentInput, received
from pgc3d.batch.job import Job, Outcome
from pgc3d.batch.link import Reports, Warnings, fetched
from pgc3d.batch.lists import SWEEPS
from pgc3d.batch.staging import Desk, Staged, Staging
from pgc3d.batch.work import run_job
from pgc3d.errors import Pgc3dError
from pgc3d.events import Event
from pgc3d.kernels import use_threads
from pgc3d.run_directory import RunDirectory
from pgc3d.signals import StopFlag

SCRATCH = f"pgc3d-scratch-{os.getuid()}"  # in the folder for temporary files


@dataclass(frozen=True)
class Order:
    """What a worker needs for a job."""

    job: Job
    inputs: Mapping[str, SentInput]
    staging: Staging
    stored: Any  # reference of the archive that a worker may continue from, see `Staging.stored`
    cpus: int  # threads
    sweep_steps: int | None
    retriever: Path | None
    attempt: int = 1  # from 1 on
    attempts: int = 1  # at most
    version: str = __version__  # of pgc3d on the driver


@dataclass(frozen=True)
class Answer:
    """How a job ended, and what it made."""

    outcome: Outcome
    staged: Staged = Staged()  # noqa: RUF009 - frozen


def work(order: Order, link: Any) -> Answer:
    """Make the asset of a job, or continue with it; every error becomes the reason of a failure.

    Args:
        order: see there.
        link: the actor `link.Link`.
    """
    import ray

    if order.version != __version__:
        return _failed(
            f"pgc3d must have the same version on all nodes, got {order.version} where the batch runs and "
            f"{__version__} on {socket.gethostname()}; install one of them"
        )
    use_threads(order.cpus)
    stop, host = StopFlag(), socket.gethostname()
    reports = Reports(link, order.job.name, ray.get_runtime_context().get_node_id(), host, stop)
    handler = Warnings(lambda text: reports(Event("build", message=text)))
    logging.getLogger().addHandler(handler)
    try:
        with reports.running(), scratch_folder() as scratch:
            return _made(order, scratch, reports, stop)
    except (Pgc3dError, OSError, ValueError, tarfile.TarError) as error:
        return _failed(f"{' '.join(str(error).split())}, on {host}")
    finally:
        logging.getLogger().removeHandler(handler)


def _failed(reason: str) -> Answer:
    return Answer(Outcome("failed", reason))


def _made(order: Order, scratch: Path, reports: Reports, stop: StopFlag) -> Answer:
    name, staging = order.job.name, order.staging
    desk = staging.enter(scratch / "runs", name, lambda: bytes(fetched(order.stored)))
    task = received(order.job.task, order.inputs, scratch / "inputs", fetched)
    reports(Event("build", message=_begin_line(order, desk)))

    def on_event(event: Event) -> None:
        reports(event)
        if event.file is not None and event.kind == "checkpoint":
            _save(desk, name, staging, reports)

    outcome = run_job(
        replace(order.job, task=task),
        desk.folder,
        order.sweep_steps,
        order.retriever,
        1,
        on_event=on_event,
        stop=stop,
    )
    return Answer(outcome, staging.leave(desk, name, done=outcome.state == "done"))


def _save(desk: Desk, name: str, staging: Staging, reports: Reports) -> None:
    """Keep a checkpoint; where that fails the run goes on, and a later one may be kept."""
    try:
        staging.save(desk, name)
    except Pgc3dError as error:
        reports(Event("build", message=f"warning: this checkpoint is not kept: {error}"))


def _begin_line(order: Order, desk: Desk) -> str:
    name = order.job.name
    has_begun = RunDirectory(desk.folder / name).has_begun() or (desk.folder / SWEEPS / name).exists()
    start = "from its last checkpoint" if has_begun else "from the start"
    again = f"attempt {order.attempt} of {order.attempts}, " if order.attempt > 1 else ""
    return f"{again}on {socket.gethostname()}, {start}"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder on this node, removed at the end; and those of workers that were killed."""
    parent = Path(tempfile.gettempdir()) / SCRATCH
    parent.mkdir(mode=0o700, exist_ok=True)
    for folder in parent.iterdir():
        _remove_left(folder)
    folder = Path(tempfile.mkdtemp(dir=parent))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        (folder / "runs").mkdir()
        (folder / "inputs").mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_left(folder: Path) -> None:
    """Remove a folder that no process has locked, unless it is just being made."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if any(folder.iterdir()):
                shutil.rmtree(folder)
        finally:
            os.close(descriptor)
