"""`pgc3d view`: a local page that follows a run and displays its asset, or a mesh file."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pgc3d.cli.completion import complete_run
from pgc3d.cli.console import emit, notify


def view(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE", help="Folder of a run, or a mesh file.", autocompletion=complete_run
        ),
    ],
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN_B", help="Another one beside it, with linked cameras.", autocompletion=complete_run
        ),
    ] = None,
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> int:
    """Serve a page on 127.0.0.1 that follows a run, or displays a mesh file, until Ctrl-C."""
    from pgc3d.viewer.server import HOST, Server

    with Server([run] if other is None else [run, other], port) as server:
        emit(server.address)
        notify(f"from another computer: ssh -L {server.port}:{HOST}:{server.port} {os.uname().nodename}")
        notify("Ctrl-C ends it")
        if not no_browser and _has_display():
            import webbrowser

            webbrowser.open(server.one_time_address())
        server.run()
    return 0


def _has_display() -> bool:
    """Whether a browser of this computer would be visible to its user."""
    if "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform == "darwin" or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))
