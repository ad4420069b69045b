"""`pgc3d batch`: the jobs of a list, one after the other or in parallel."""

from collections.abc import Mapping
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
def batch(  # noqa: PLR0913 - one option each
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
    options: RunOptions,
) -> int:
    """Run many jobs; the same command again resumes them. Exit code 1 where a job failed.

    Options of a run are for all entries; an entry's own value wins.
    """
    from pgc3d.batch.lists import require_list

    require_list(jobs_list)
    from pgc3d.batch.queue import BatchOptions, Observer, run_batch  # with torch, which takes a second
    from pgc3d.cli.batch_rows import Defaults, read_jobs
    from pgc3d.errors import InputError
    from pgc3d.mini import clip_model
    from pgc3d.signals import stop_on_signals

    listed = read_jobs(jobs_list, notify, Defaults.of(guidance, options))
    invalid = [job for job in listed if job.error and job.is_invalid]
    if invalid and not skip_invalid:
        for job in invalid:
            notify(f"{jobs_list}, {job.error}")
        raise InputError(
            f"every entry of {jobs_list} must be valid, but {len(invalid)} of {len(listed)} are not, see "
            "above; correct them, or use --skip-invalid"
        )
    if (collector := collected.get()) is not None:
        collector.lists.append(ListedJobs(listed, sweep_steps, jobs))
        return 0
    how = BatchOptions(retriever or clip_model(), jobs, sweep_steps, retry)
    folder = out or Path("runs") / jobs_list.stem
    bars = _Bars(drawn=jobs == 1)
    current().start(folder)
    with stop_on_signals() as stop:
        try:
            entries = run_batch(
                listed, out=folder, options=how, observer=Observer(bars.notify, bars), stop=stop
            )
        finally:
            bars.close()
    return _end(folder, entries, stop.signal)


def _end(folder: Path, entries: Mapping[str, Any], signal: int | None) -> int:
    """Print how a batch ended; returns its exit code."""
    failed = [entry for entry in entries.values() if entry.state == "failed"]
    for entry in failed:
        current().fail_job(entry.name, entry.reason)
    files = tuple(entry.asset for entry in entries.values() if entry.asset)
    code = 128 + int(signal) if signal is not None else 1 if failed else 0
    status = "stopped" if signal is not None else "failed" if failed else "done"
    advice = "stopped and saved; continue with the same command" if signal is not None else ""
    current().end(End(status, code, str(folder), files), advice=advice)
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
