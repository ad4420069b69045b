"""The command line: parse, call one library function, print, and map errors to a line and an exit code."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pgc3d.errors import Pgc3dError

UsageError: Any = typer.BadParameter.__base__  # wherever typer keeps click's

app = typer.Typer(
    help="Textured 3D assets from a prompt, by score distillation with pixel-wise gradient clipping.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")


class GuidanceName(StrEnum):
    """Who judges the pictures."""

    AUTO = "auto"
    MINI = "mini"
    SDXL = "sdxl"


class Quality(StrEnum):
    """How much time to spend."""

    DRAFT = "draft"
    STANDARD = "standard"
    HIGH = "high"


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Format(StrEnum):
    """Mesh file formats."""

    GLB = "glb"
    OBJ = "obj"
    PLY = "ply"
    STL = "stl"


GuidanceOption = Annotated[
    GuidanceName,
    typer.Option(help="auto is sdxl with a CUDA device and local weights, else the bundled mini."),
]
ModelOption = Annotated[str | None, typer.Option(help="Folder in diffusers' layout, or hub id.")]
ConfigOption = Annotated[list[Path] | None, typer.Option("--config", help="YAML file; may be repeated.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting; may be repeated.")
]
SeedOption = Annotated[int | None, typer.Option(help="Same seed, same asset (on a CPU).")]
DeviceOption = Annotated[Device | None, typer.Option(help="auto is CUDA where there is one.")]
StepsOption = Annotated[int | None, typer.Option(help="Optimisation steps.")]
ResolutionOption = Annotated[
    int | None, typer.Option(help="Pixels of the last stage; earlier stages keep their proportion.")
]
QualityOption = Annotated[Quality, typer.Option(help="Steps, resolution and texture size together.")]
TextureOption = Annotated[int | None, typer.Option(help="Side of the texture in pixels.")]
FacesOption = Annotated[int | None, typer.Option(help="Decimate to this many triangles, 0 keeps all.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that a run wrote.")]


def _version(show: bool | None) -> None:
    if show:
        from pgc3d import __version__

        print(f"pgc3d {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool | None, typer.Option("--version", callback=_version, is_eager=True)] = None,
) -> None:
    pass


@app.command()
def text(  # noqa: PLR0917 - one option each
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='What to make, as in "a red chair".')],
    guidance: GuidanceOption = GuidanceName.AUTO,
    model: ModelOption = None,
    out: Annotated[Path | None, typer.Option(help="New folder; runs/NAME-SEED when not given.")] = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    steps: StepsOption = None,
    resolution: ResolutionOption = None,
    quality: QualityOption = Quality.STANDARD,
    texture_size: TextureOption = None,
    faces: FacesOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Make a textured asset from a prompt."""
    from pgc3d import pipeline
    from pgc3d.task import Task

    options = _options(seed, device, steps, texture_size, faces)
    resolved = _configured(guidance, model, quality, config, options, resolution, set_)
    folder = out or pipeline.default_folder(Path("runs"), prompt, resolved.run.seed)
    return _run(lambda **calls: pipeline.generate(Task(prompt), out=folder, config=resolved, **calls))


@app.command()
def resume(run: RunArgument) -> int:
    """Continue a run that was stopped."""
    from pgc3d import pipeline

    return _run(lambda **calls: pipeline.resume(run, **calls))


@app.command()
def export(
    run: RunArgument,
    format_: Annotated[Format | None, typer.Option("--format", help="As in the run when not given.")] = None,
    texture_size: TextureOption = None,
    faces: FacesOption = None,
) -> int:
    """Write the asset of a run as a mesh file."""
    from pgc3d import pipeline

    name = format_.value if format_ else None
    bar = _Bar()
    pipeline.export(run, file_format=name, texture_size=texture_size, faces=faces, report=bar)
    bar.close()
    return 0


@app.command()
def render(run: RunArgument) -> int:
    """Write a turntable film and a sheet of six views of a run."""
    from pgc3d import pipeline

    bar = _Bar()
    pipeline.render(run, report=bar)
    bar.close()
    return 0


@config_app.command()
def show(  # noqa: PLR0917 - one option each
    guidance: GuidanceOption = GuidanceName.AUTO,
    model: ModelOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    steps: StepsOption = None,
    resolution: ResolutionOption = None,
    quality: QualityOption = Quality.STANDARD,
    texture_size: TextureOption = None,
    faces: FacesOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Print the configuration that `pgc3d text` would use with the same options."""
    from pgc3d.config import dump_config

    options = _options(seed, device, steps, texture_size, faces)
    resolved = _configured(guidance, model, quality, config, options, resolution, set_)
    print(dump_config(resolved), end="")
    return 0


@config_app.command()
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file.")], set_: SetOption = None
) -> int:
    """Check a configuration file."""
    from pgc3d.config import load_config

    load_config([file], overrides=set_ or [])
    print(f"{file} is valid")
    return 0


def _options(
    seed: int | None, device: Device | None, steps: int | None, texture_size: int | None, faces: int | None
) -> dict[str, Any]:
    return {
        "run": {"seed": seed, "device": device.value if device else None, "steps": steps},
        "export": {"texture_size": texture_size, "faces": faces},
    }


def _configured(
    guidance: GuidanceName,
    model: str | None,
    quality: Quality,
    files: list[Path] | None,
    options: dict[str, Any],
    resolution: int | None,
    overrides: list[str] | None,
) -> Any:
    """The configuration that the options ask for; says what was chosen for the user."""
    from pgc3d.configure import configure

    config, note = configure(
        guidance=guidance.value,
        model=model,
        quality=quality.value,
        files=files or [],
        options=options,
        resolution=resolution,
        overrides=overrides or [],
    )
    _say(note)
    return config


def _run(work: Callable[..., Any]) -> int:
    """Do a job that can be stopped; returns the exit code."""
    from pgc3d.pipeline import stop_on_signals

    bar = _Bar()
    try:
        with stop_on_signals() as stop:
            result = work(report=bar, stop=stop)
    finally:
        bar.close()
    if result.stopped_by is not None:
        _say(f"stopped and saved; continue with: pgc3d resume {result.path}")
        return 128 + int(result.stopped_by)
    print(f"run: {result.path}")
    return 0


class _Bar:
    """Draws the events of a run: a bar on stderr, a line on stdout for each file made."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, event: Any) -> None:
        if event.message:
            _say(event.message)
        elif event.file is not None:
            self.close()
            print(event.file)
        elif event.report is not None:
            self._step(event)
        else:
            self.close()
            _say(f"{event.stage} ...")

    def _step(self, event: Any) -> None:
        from tqdm import tqdm

        report = event.report
        if self._bar is None:
            self._bar = tqdm(total=report.steps, initial=report.step - 1, desc=event.stage, unit="step")
        self._bar.update(report.step - self._bar.n)
        if report.metrics:
            clipped = [v for name, v in report.metrics.items() if name.endswith("/clipped_fraction")]
            self._bar.set_postfix_str(
                f"clipped {100 * sum(clipped) / len(clipped):.0f} %, memory {event.memory / 1e9:.2f} GB"
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _say(message: str) -> None:
    if message:
        print(message, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    # How long an OpenMP thread spins before it sleeps: never makes a step twice as long on a quiet computer,
    # the library's default (ten times this) several times as long on a busy one.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
    try:
        code = app(list(arguments) if arguments is not None else None, standalone_mode=False)
    except Pgc3dError as error:
        _say(f"error: {error}")
        code = error.exit_code
    except UsageError as error:
        code = _usage_error(error)
    except (KeyboardInterrupt, typer.Abort):
        _say("stopped")
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _usage_error(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 2
    _say(f"error: {error.format_message()}")
    return 2
