"""`pgc3d config`: print, check and list configurations."""

from pathlib import Path
from typing import Annotated

import typer

from pgc3d.cli.console import deliver, plain_line
from pgc3d.cli.options import GuidanceOption, RunOptions, SetOption, configured, with_run_options

config_app = typer.Typer(
    help="Print, check or list configurations.", no_args_is_help=True, rich_markup_mode=None
)


@config_app.command()
@with_run_options
def show(guidance: GuidanceOption = "auto", *, options: RunOptions) -> int:
    """Print the configuration that `pgc3d text` would use with the same options."""
    from pgc3d.config import dump_config

    config = configured(guidance, options)
    deliver(dump_config(config), ascii_text=lambda: dump_config(config, ascii_only=True))
    return 0


@config_app.command()
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file.")], set_: SetOption = None
) -> int:
    """Check a configuration file; prints one line where it is valid."""
    from pgc3d.early_config import check_early

    check_early([file], set_ or [])
    from pgc3d.config import load_config  # with torch, which takes a second

    load_config([file], overrides=set_ or [])
    deliver(f"{plain_line(str(file))} is valid\n")
    return 0


@config_app.command("list")
def list_() -> int:
    """Print the pipelines of `pgc3d text` and `pgc3d image`, for their option --pipeline."""
    from pgc3d.pipelines import pipelines
    from pgc3d.presets import IMAGE, TEXT

    for command in (TEXT.name, IMAGE.name):
        known = pipelines(command)
        width = max(len(pipeline.name) for pipeline in known)
        deliver(f"pgc3d {command} --pipeline\n")
        deliver("".join(f"  {pipeline.name:{width}}  {pipeline.summary}\n" for pipeline in known))
    return 0
