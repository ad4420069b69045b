"""A run as the work of a command: what it is made with, its output, and the exit code."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgc3d.cli.json_lines import End
from pgc3d.cli.options import collected
from pgc3d.cli.output import current


def generate_run(task: Any, folder: Path, config: Any) -> int:
    """Make the asset, or only collect its task and configuration, see `runs_of`."""
    if (collector := collected.get()) is not None:
        collector.runs.append((task, config))
        return 0
    from pgc3d import pipeline

    return exit_code_of(folder, lambda **calls: pipeline.generate(task, out=folder, config=config, **calls))


def exit_code_of(folder: Path, work: Callable[..., Any]) -> int:
    """The exit code of a job that signals can stop."""
    from pgc3d.signals import stop_on_signals

    output = current()
    output.start(folder)
    progress = output.progress()
    try:
        with stop_on_signals(insist="RANK" not in os.environ) as stop:
            result = work(on_event=progress, stop=stop)
    finally:
        progress.close()
    if result.stopped_by is not None:
        code, run = 128 + int(result.stopped_by), str(result.path)
        advice = f"stopped and saved; continue with: pgc3d resume {result.path}"
        output.end(End("stopped", code, run, ()), advice=advice)
        return code
    files = tuple(map(str, result.files))
    output.end(End("done", 0, str(result.path), files), result=f"run: {result.path}")
    return 0
