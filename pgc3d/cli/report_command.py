"""`pgc3d report`: one HTML file about a run, or a comparison of two."""

from pathlib import Path
from typing import Annotated

import typer

from pgc3d.cli.console import emit
from pgc3d.cli.options import RunArgument, SecondRunArgument


def report(
    run: RunArgument,
    other: SecondRunArgument = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="New file; RUN/report.html when not given. Existing files stay.", metavar="FILE"),
    ] = None,
) -> int:
    """Write an HTML file about a run that needs no network; with a second run, a comparison."""
    from pgc3d.report.write import write_report

    emit(str(write_report([run] if other is None else [run, other], out)))
    return 0
