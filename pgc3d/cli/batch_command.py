"""`pgc3d batch`: the jobs of a list, one after the other, in parallel, or on a cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pgc3d.choices import GuidanceName
from pgc3d.cli.console import notify
from pgc3d.cli.json_lines import End
from pgc3d.cli.options import (
    BatchOutOption,
    ListedJobs,
    RunOptions,
    collected,
    with_output_options,
    with_run_options,
)
from pgc3d.cli.output import Progress, current


@with_output_options
@with_run_options
def batch(
    jobs_list: Annotated[
        Path,
        typer.Argument(
            metavar="LIST",
            help="YAML, CSV or JSON lines (.jsonl): a job each. Text (.txt): a prompt each line.",
        ),
    ],
    *,
    guidance: Annotated[
        GuidanceName | None, typer.Option(help="Of the entries without their own, as all options below.")
    ] = None,
    out: BatchOutOption = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Number of parallel processes.")] = 1,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed jobs again, too.")] = False,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Run the others where entries are not valid.")
    ] = False,
    sweep_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each of several seeds; a quarter if not given.")
    ] = None,
    retriever: Annotated[Path | None, typer.Option(help="CLIP that ranks seeds, else bundled.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a cluster of Ray: HOST:PORT of its head, or auto for this machine's.",
        ),
    ] = None,
    gpus_per_job: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="With --ray: part of a GPU for each job; by its models when not given."
        ),
    ] = None,
    cpus_per_job: Annotated[
        int | None,
        typer.Option(min=1, help="With --ray: CPU cores for each job; 2 with a whole GPU, else 1."),
    ] = None,
    attempts: Annotated[
        int, typer.Option(min=1, max=100, help="With --ray: attempts for a job whose worker dies.")
    ] = 4,
    options: RunOptions,
) -> int:
    """Run many jobs; the same command again resumes them. Exit code 1 where a job failed.

    Options of a run are for all entries; an entry's own value wins.
    """
    from pgc3d.batch.lists import require_list

    require_list(jobs_list)
    place = _place(out or f"runs/{jobs_list.stem}", ray, gpus_per_job, cpus_per_job, jobs)
    from pgc3d.batch.queue import BatchOptions  # with torch, which takes a second
    from pgc3d.cli.batch_rows import Defaults, read_jobs

    listed = read_jobs(jobs_list, notify, Defaults.of(guidance, options))
    _require_valid(jobs_list, listed, skip_invalid=skip_invalid)
    if (collector := collected.get()) is not None:
        collector.lists.append(ListedJobs(listed, sweep_steps, jobs))
        return 0
    how = BatchOptions(retriever, jobs, sweep_steps, retry)
    if ray is None:
        return _on_this_machine(listed, place, how)
    return _on_cluster(listed, place, how, (ray, gpus_per_job, cpus_per_job, attempts))


def _place(out: str, ray: str | None, gpus: float | None, cpus: int | None, jobs: int) -> Any:
    """The place that --out means.

    Raises:
        InputError: options do not go together.
    """
    from pgc3d.batch.places import Bucket, Folder
    from pgc3d.batch.storage import Storage
    from pgc3d.errors import InputError

    out = out.removeprefix("file://")
    if ray is None and (gpus is not None or cpus is not None):
        raise InputError("--gpus-per-job and --cpus-per-job must go with --ray, got none; add --ray auto")
    if ray is None and "://" in out:
        raise InputError(f"--out must be a folder without --ray, got {out}; add --ray auto")
    if ray is not None and jobs > 1:
        raise InputError(
            f"--jobs must not be given with --ray, which runs as many as fit, got {jobs}; use --cpus-per-job"
        )
    return Bucket(Storage(out.rstrip("/"))) if "://" in out else Folder(Path(out))


def _require_valid(path: Path, jobs: Sequence[Any], *, skip_invalid: bool) -> None:
    from pgc3d.errors import InputError

    invalid = [job for job in jobs if job.error and job.is_invalid]
    if invalid and not skip_invalid:
        for job in invalid:
            notify(f"{path}, {job.error}")
        raise InputError(
            f"every entry of {path} must be valid, but {len(invalid)} of {len(jobs)} are not, see "
            "above; correct them, or use --skip-invalid"
        )


def _on_this_machine(jobs: Sequence[Any], place: Any, options: Any) -> int:
    from pgc3d.batch.queue import LocalRunner

    return _run(jobs, place, options, LocalRunner(place.root, options))


def _on_cluster(jobs: Sequence[Any], place: Any, options: Any, values: tuple[Any, ...]) -> int:
    """Run a batch on a cluster, with the values of `ClusterOptions`."""
    from pgc3d.batch.cluster import ClusterOptions, ClusterRunner
    from pgc3d.batch.connection import connected

    cluster = ClusterOptions(*values)
    with connected(cluster.address, notify) as ray:  # before our handlers of signals, since Ray sets its own
        runner = ClusterRunner(ray, place, options, cluster)
        return _run(jobs, place, replace(options, processes=runner.slots(jobs, notify)), runner)


def _run(jobs: Sequence[Any], place: Any, options: Any, runner: Any) -> int:
    """Run a batch, with its progress; returns its exit code."""
    from pgc3d.batch.queue import Observer, run_batch
    from pgc3d.signals import stop_on_signals

    bars = _Bars(drawn=options.processes == 1)
    current().start(place.path())
    with stop_on_signals() as stop:
        try:
            entries = run_batch(
                jobs,
                place=place,
                runner=runner,
                options=options,
                observer=Observer(bars.notify, bars),
                stop=stop,
            )
        finally:
            bars.close()
    return _end(place.path(), entries, stop.signal)


def _end(place: str, entries: Mapping[str, Any], signal: int | None) -> int:
    """Print how a batch ended; returns its exit code."""
    failed = [entry for entry in entries.values() if entry.state == "failed"]
    for entry in failed:
        current().fail_job(entry.name, entry.reason)
    files = tuple(entry.asset for entry in entries.values() if entry.asset)
    code = 128 + int(signal) if signal is not None else 1 if failed else 0
    status = "stopped" if signal is not None else "failed" if failed else "done"
    advice = "stopped and saved; continue with the same command" if signal is not None else ""
    current().end(End(status, code, place, files), advice=advice)
    return code


class _Bars:
    """The progress of each job that runs."""

    def __init__(self, *, drawn: bool) -> None:
        self._drawn = drawn
        self._bars: dict[str, Progress] = {}

    def __call__(self, name: str, event: Any) -> None:
        if name not in self._bars:
            self.close(others=self._drawn)
            self._bars[name] = current().progress(name, drawn=self._drawn)
        self._bars[name](event)

    def notify(self, line: str) -> None:
        """Print a line below the bars."""
        self.close(others=self._drawn)
        notify(line)

    def close(self, *, others: bool = True) -> None:
        """End the bars, where they are drawn."""
        for bar in self._bars.values() if others else ():
            bar.close()
