"""The report of one run, or of two in comparison, as a file."""

from collections.abc import Sequence
from pathlib import Path

from pgc3d.disk import free_name, write_files
from pgc3d.errors import InputError
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.report.facts import gather_run
from pgc3d.report.page import render_page

NAME = "report.html"


def write_report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write one HTML file that needs no network.

    Args:
        paths: the folders of one run or two, finished or not.
        out: the file, or a folder for it; `NAME` in the first run's folder when None. A file that exists is
            not replaced: the new name gets a number.

    Returns:
        The file.

    Raises:
        InputError: there are other numbers of runs, or the file cannot be written.
        RunDirectoryError: a folder is not a run, holds links or a damaged manifest, or its run made no step.
        OSError: a file of a run cannot be read.
    """
    if len(paths) not in {1, 2}:
        raise InputError(f"a report must have one run or two, got {len(paths)}; leave some out")
    rasterizer = CpuRasterizer()
    runs = [gather_run(path, rasterizer=rasterizer) for path in paths]
    target = paths[0] if out is None else out
    target = free_name(target / NAME if target.is_dir() else target)
    write_files({target: render_page(runs).encode("utf-8", errors="backslashreplace")})
    return target
