"""`pgc3d report`: one HTML file about a run, or a comparison of two."""

from pathlib import Path
from typing import Annotated

import typer

from pgc3d.cli.completion import complete_run
from pgc3d.cli.console import emit
from pgc3d.cli.options import RunArgument
from pgc3d.run_files import require_folder_of_run


def report(
    run: RunArgument,
    other: Annotated[
        Path | None,
        typer.Argument(metavar="RUN_B", help="Another run to compare with.", autocompletion=complete_run),
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="New file; RUN/report.html when not given. Existing files stay.", metavar="FILE"),
    ] = None,
) -> int:
    """Write an HTML file about a run that needs no network; with a second run, a comparison."""
    runs = [run] if other is None else [run, other]
    for folder in runs:
        require_folder_of_run(folder)
    from pgc3d.report.write import write_report  # with torch, which takes a second

    emit(str(write_report(runs, out)))
    return 0
