"""The queue of a batch: which jobs run, in which order, and what the status file has about them.

OUT, a folder or the URL of storage, holds

    status.json            state, reason, asset, seconds, peak memory and ranking of each job, see `job.Entry`
    NAME/                  the run of each job, see `run_directory`
    sweeps/NAME/SEED/      the first steps of the seeds that were not continued, with ranking.json

The same list and folder resume a batch that was stopped or killed: jobs that are done stay, runs that have
begun are resumed, and jobs that failed stay so unless they are retried. A job is matched by its name and a
hash of its entry, its input files and its configuration files.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from pgc3d.batch.job import Entry, Job, Outcome
from pgc3d.batch.lists import SWEEPS
from pgc3d.batch.places import Place
from pgc3d.batch.processes import Died, run_processes
from pgc3d.batch.work import run_job
from pgc3d.errors import InputError
from pgc3d.events import Event
from pgc3d.signals import StopFlag


@dataclass(frozen=True)
class BatchOptions:
    """How a batch is run."""

    retriever: Path | None = None  # folder of the CLIP model that ranks the seeds of a sweep; None: bundled
    processes: int = 1  # at once
    sweep_steps: int | None = None  # of each seed; a quarter of all when None
    retry: bool = False  # jobs that failed


@dataclass(frozen=True)
class Observer:
    """Who receives the progress of a batch."""

    notify: Callable[[str], None]  # a line
    on_event: Callable[[str, Event], None]  # the name of a job, and an event of its run


@dataclass(frozen=True)
class Calls:
    """What a runner has from the queue; see `processes.run_processes`."""

    stop: StopFlag  # once its `signal` is set, no further job begins, and those that run receive it
    on_begin: Callable[[str], None]  # with the name of each job that begins
    on_event: Callable[[str, Event], None]  # with the name of a job, and an event of its run


@runtime_checkable
class Runner(Protocol):
    """What makes the jobs: processes of this machine, or workers of a cluster."""

    def __call__(self, jobs: Mapping[str, Job], calls: Calls) -> Iterator[tuple[str, Outcome | Died]]:
        """The name of each job and how it ended, as they end."""


@dataclass(frozen=True)
class LocalRunner:
    """Makes the jobs in processes of this machine."""

    out: Path  # the batch's folder
    options: BatchOptions

    def __call__(self, jobs: Mapping[str, Job], calls: Calls) -> Iterator[tuple[str, Outcome | Died]]:
        """The name of each job and how it ended, as they end."""
        options = self.options
        shared = (self.out, options.sweep_steps, options.retriever, options.processes)
        return run_processes(
            run_job,
            {name: (job, *shared) for name, job in jobs.items()},
            processes=options.processes,
            stop=calls.stop,
            on_begin=calls.on_begin,
            on_event=calls.on_event,
        )


def run_batch(
    jobs: Sequence[Job],
    *,
    place: Place,
    runner: Runner,
    options: BatchOptions,
    observer: Observer,
    stop: StopFlag,
) -> dict[str, Entry]:
    """Run the jobs of a list that are not done yet.

    Args:
        jobs: with different names.
        place: new or of an earlier batch.
        runner: makes the jobs.
        options: see there.
        observer: receives the progress.
        stop: once its `signal` is set, no further job begins, and those that run save and end.

    Returns:
        The records of the jobs, by their names.

    Raises:
        InputError: a job has changed since its run began.
        RunDirectoryError: another batch uses the place, or its status file is damaged.
    """
    with place.locked():
        earlier = place.read()
        entries = match_jobs(jobs, earlier, place, retry=options.retry)
        unlisted = {name: entry for name, entry in earlier.items() if name not in entries}
        queue = _Queue(place, entries, unlisted, options, observer)
        queue.refuse(jobs)
        waiting = {job.name: job for job in jobs if queue.entries[job.name].state in {"waiting", "running"}}
        queue.begin()
        for name, answer in runner(waiting, Calls(stop, queue.started, observer.on_event)):
            queue.ended(name, answer)
        return queue.entries


def match_jobs(
    jobs: Sequence[Job], earlier: Mapping[str, Entry], place: Place, *, retry: bool
) -> dict[str, Entry]:
    """The record of each job: an earlier one, or a new one.

    Args:
        jobs: of the list.
        earlier: the records of the status file.
        place: of the batch.
        retry: run failed jobs again.

    Raises:
        InputError: a job has changed since its run began.
    """
    entries, changed = {}, []
    for job in jobs:
        entry = earlier.get(job.name)
        new = Entry(job.name, job.digest, folder=place.path(job.name))
        same = entry is not None and (entry.digest == job.digest or (job.error and not job.is_invalid))
        if entry is None or (not same and not place.has_begun(job.name)):
            entry = new
        elif not same:
            changed.append(job.name)
        elif (entry.state == "done" and not place.has_run(job.name)) or (
            entry.state == "failed" and (retry or job.error)
        ):
            entry = replace(new, seconds=entry.seconds)
        asset = place.path(job.name, Path(entry.asset).name) if entry.asset else ""
        entries[job.name] = replace(entry, folder=new.folder, asset=asset)  # it may have been moved
    if changed:
        raise InputError(
            f"the entries of runs must be as when they began, but changed: {', '.join(changed)}; give them "
            f"other names, or remove their folders in {place.path()} and {place.path(SWEEPS)}"
        )
    return entries


class _Queue:
    """The records of the jobs, in memory and on the disk, and the lines about them."""

    def __init__(
        self,
        place: Place,
        entries: dict[str, Entry],
        unlisted: Mapping[str, Entry],
        options: BatchOptions,
        observer: Observer,
    ) -> None:
        self.place, self.entries, self.unlisted = place, entries, unlisted
        self.options, self.notify = options, observer.notify
        self._begun: dict[str, float] = {}  # time of the clock, of those that run
        self._took: list[float] = []  # seconds of those that ended here

    def refuse(self, jobs: Sequence[Job]) -> None:
        """Record the jobs that cannot run."""
        for job in jobs:
            if job.error and self.entries[job.name].state != "done":
                self._set(job.name, state="failed", reason=job.error)
                self.notify(f"[{job.name}] failed: {job.error}")

    def begin(self) -> None:
        """Write the first status, and a line about the whole."""
        self._write()
        self.notify(self._summary())

    def started(self, name: str) -> None:
        """Record that the process of a job begins."""
        self._begun[name] = time.monotonic()
        self._set(name, state="running", reason="")
        self._write()
        self.notify(f"[{name}] begins, job {list(self.entries).index(name) + 1} of {len(self.entries)}")

    def ended(self, name: str, answer: Outcome | Died) -> None:
        """Record the answer of the process of a job."""
        outcome = Outcome("failed", str(answer)) if isinstance(answer, Died) else answer
        took = time.monotonic() - self._begun.pop(name)
        self._set(
            name,
            state="waiting" if outcome.state == "stopped" else outcome.state,
            reason=outcome.reason,
            asset=self.place.path(name, Path(outcome.asset).name) if outcome.asset else "",
            seed=outcome.seed,
            ranking=outcome.ranking,
            seconds=round(self.entries[name].seconds + took, 1),
            peak_memory_bytes=dict(outcome.peak_memory_bytes),
        )
        self._write()
        if outcome.state != "stopped":
            self._took.append(took)
        self.notify(self._line(self.entries[name], outcome.state))
        self.notify(self._summary())

    def _line(self, entry: Entry, state: str) -> str:
        peak = "".join(f", {kind} {size / 1e9:.2f} GB" for kind, size in entry.peak_memory_bytes.items())
        how = {"failed": f"failed: {entry.reason}", "stopped": "stopped and saved"}
        text = how.get(state, f"done: {entry.asset}")
        return f"[{entry.name}] {text}, in {duration(entry.seconds)}{peak}"

    def _summary(self) -> str:
        """The numbers of the whole, and the time that is left."""
        states = [entry.state for entry in self.entries.values()]
        done, failed = states.count("done"), states.count("failed")
        left = len(states) - done - failed
        text = f"{done} of {len(states)} done, {failed} failed, {left} left"
        if self._took and left:
            mean = sum(self._took) / len(self._took)
            text += f", about {duration(mean * left / min(self.options.processes, left))}"
        return text

    def _write(self) -> None:
        self.place.write(self.entries, self.unlisted)

    def _set(self, name: str, **values: object) -> None:
        self.entries[name] = replace(self.entries[name], **values)  # type: ignore[arg-type]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
