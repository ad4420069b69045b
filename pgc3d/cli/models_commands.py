"""`pgc3d models`: what is on this disk, fetching ahead of a run, and checks of what was fetched."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pgc3d.cli.completion import complete_alias
from pgc3d.cli.console import deliver, notify
from pgc3d.cli.options import JsonOption, configurations_of

models_app = typer.Typer(help="List, fetch and check models.", no_args_is_help=True, rich_markup_mode=None)
NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME...",
        help="Aliases or hub ids; all on this disk if none.",
        autocompletion=complete_alias,
    ),
]


@models_app.command("list")
def list_(*, json_: JsonOption = False) -> int:
    """Print the aliases, the commits they are pinned to, and what is on this disk; uses no network."""
    from pgc3d.diffusion.catalog import entries

    found = entries()
    if json_:
        deliver(f"{json.dumps([asdict(entry) for entry in found], indent=1, default=str)}\n")
        return 0
    rows = [("name", "on disk", "commit", "licence", "repository")]
    rows += [
        (item.name, _bytes(item.size), item.commit[:8] or "-", item.licence, item.repository or "bundled")
        for item in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    deliver("".join(f"{line.rstrip()}\n" for line in lines))
    return 0


@models_app.command()
def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...", help="Aliases or hub ids of whole models.", autocompletion=complete_alias
        ),
    ] = None,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="COMMAND",
            help='What a command needs, as in "texture --guidance sdxl"; its inputs may be left out.',
        ),
    ] = None,
    *,
    half: Annotated[bool, typer.Option("--half", help="Files for a CUDA device: half the size.")] = False,
) -> int:
    """Fetch models, or exactly the files that a command needs, into the hub's cache."""
    import torch

    from pgc3d.build.models import locate_models
    from pgc3d.diffusion.catalog import fetch
    from pgc3d.errors import InputError

    if not names and for_ is None:
        raise InputError("pull must have names of models or --for COMMAND, got none; see `pgc3d models list`")
    device = torch.device("cuda" if half or torch.cuda.is_available() else "cpu")
    for name in names or []:
        _say(name, fetch(name, half=device.type == "cuda"))
    for config in configurations_of(for_) if for_ is not None else []:
        for located in locate_models(config, device).values():
            for folder in (located.folder, *located.controls.values()):
                _say(folder.name, folder.file or folder.path)
    return 0


@models_app.command()
def verify(names: NamesArgument = None) -> int:
    """Read every file of models and compare it with its hash; exit code 1 where something is damaged."""
    from pgc3d.diffusion.catalog import entries, entry
    from pgc3d.diffusion.catalog import verify as verify_entry

    damaged = 0
    for item in [entry(name) for name in names] if names else entries():
        if not item.folders:
            if names:
                deliver(f"{item.name}: not on this disk\n")
                damaged += 1
            continue
        result = verify_entry(item)
        damaged += bool(result.problems)
        state = "damaged" if result.problems else "whole"
        deliver(
            f"{item.name}: {state}, {result.files} files, {_bytes(result.size)}, {result.hashed} hashed\n"
        )
        for problem in result.problems:
            deliver(f"  {problem}\n")
    return 1 if damaged else 0


@models_app.command()
def path(name: Annotated[str, typer.Argument(metavar="NAME", help="Alias or hub id.")]) -> int:
    """Print the folder of a model that is on this disk."""
    from pgc3d.diffusion.catalog import entry
    from pgc3d.errors import WeightsNotFoundError

    found = entry(name)
    if not found.folders:
        raise WeightsNotFoundError(
            f"{name} must be on this disk, got nothing of it; fetch it with `pgc3d models pull {name}`"
        )
    deliver("".join(f"{folder}\n" for folder in found.folders))
    return 0


def _say(name: str, folder: Path) -> None:
    from pgc3d.diffusion.aliases import ALIASES
    from pgc3d.diffusion.hub import recorded

    licence = recorded(ALIASES.get(name, name)).get("licence", "")
    notify(f"{name}{f', licence {licence}' if licence else ''}")
    deliver(f"{folder}\n")


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size else "-"
