"""The options of the commands, and the configuration that results from them."""

import functools
import inspect
import shlex
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from pgc3d.choices import Backend, Baseline, Device, Frame, Origin, Quality, TextGuidanceName, Unit
from pgc3d.cli.completion import complete_model, complete_pipeline, complete_run
from pgc3d.cli.console import notify
from pgc3d.cli.library import import_library
from pgc3d.start_times import timed

# typer has no options that are lists of a Literal
BaselineName = StrEnum("BaselineName", {name.upper(): name for name in get_args(Baseline)})  # type: ignore[misc]


def not_empty(value: Any) -> Any:
    """Refuse an empty value, as from a shell variable that is not set."""
    if value is not None and str(value) == "":
        raise typer.BadParameter("it must not be empty")
    return value


def _folder(text: str) -> Path:
    return Path(not_empty(text))


GuidanceOption = Annotated[
    TextGuidanceName,
    typer.Option(help="auto is sdxl with a CUDA device and local weights, else the bundled mini."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(help="New folder; runs/NAME-SEED when not given.", parser=_folder, metavar="PATH"),
]
BatchOutOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of the runs, or URL with --ray, of an earlier batch too; runs/LIST if not given.",
        callback=not_empty,
        metavar="PATH",
    ),
]
ExportOutOption = Annotated[
    Path | None,
    typer.Option(
        help="New file, as chair.obj, or a folder; in RUN when not given.", parser=_folder, metavar="PATH"
    ),
]
StageOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Stage of the run; the last one when not given.")
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder that a run wrote.", autocompletion=complete_run)
]
DepthOption = Annotated[
    Path | None,
    typer.Option(metavar="MAP", help="The image's relative depth, near is bright: grey PNG or .npy."),
]
NormalOption = Annotated[
    Path | None,
    typer.Option(metavar="MAP", help="Its normals: x right, y up, z to the viewer; RGB or .npy in [0, 1]."),
]
FrameOption = Annotated[
    Frame, typer.Option(help="own: each mesh centred and scaled on its own; shared: by the truth alone.")
]
HeightOption = Annotated[float | None, typer.Option(help="Scale the mesh to this height, in --unit.")]
UnitOption = Annotated[
    Unit | None,
    typer.Option(help="Of --height, and of the file's numbers; m when not given. glTF and USDZ: metres."),
]
UpOption = Annotated[
    str | None, typer.Option(metavar="AXIS", help="Turn the mesh so that +y, or +z, -x ... is up.")
]
OriginOption = Annotated[
    Origin | None, typer.Option(help="Point at (0, 0, 0): middle of the bottom, centre, or as it is.")
]
TextureOption = Annotated[int | None, typer.Option(help="Side of the texture in pixels.")]
FacesOption = Annotated[int | None, typer.Option(help="Decimate to this many triangles, 0 keeps all.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Folder in diffusers' layout, safetensors file, hub id, or alias (sdxl-turbo).",
        callback=not_empty,
        autocompletion=complete_model,
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Same seed, same result (on a CPU).")]
DeviceOption = Annotated[Device | None, typer.Option(help="auto is CUDA where there is one.")]
ConfigOption = Annotated[list[Path] | None, typer.Option("--config", help="YAML file; may be repeated.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For other programs.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting; may be repeated.")
]


@dataclass(frozen=True)
class ListedJobs:
    """The jobs of a list, and how `batch` would run them."""

    jobs: Sequence[Any]  # a `batch.job.Job` each
    sweep_steps: int | None  # of each of several seeds
    processes: int  # at once


@dataclass(frozen=True)
class Collector:
    """Where commands that would make an asset put its task and configuration instead, see `runs_of`."""

    notify: Callable[[str], None] = notify  # receives the lines about automatic choices
    runs: list[tuple[Any, Any]] = field(default_factory=list)  # a `Task` and a `Config` each
    lists: list[ListedJobs] = field(default_factory=list)


collected: ContextVar[Collector | None] = ContextVar("collected", default=None)
MAKERS = ("text", "image", "texture")  # commands that make an asset
PLACEHOLDER = "a"  # of inputs that a command line lacks


@dataclass(frozen=True)
class RunOptions:
    """The options of a run; None leaves a setting to the presets."""

    model: ModelOption = None
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]",
            help="Safetensors added to the model, or OWNER/NAME[:FILE] of the hub; may be repeated.",
        ),
    ] = None
    seed: SeedOption = None
    device: DeviceOption = None
    rasterizer: Annotated[
        Backend | None, typer.Option(help="auto is our own: triton on CUDA, cpu on a CPU.")
    ] = None
    steps: Annotated[int | None, typer.Option(help="Optimisation steps.")] = None
    resolution: Annotated[
        int | None,
        typer.Option(help="Pixels of the renders at the end; earlier phases keep their proportion."),
    ] = None
    quality: Annotated[
        Quality | None,
        typer.Option(help="Preset of steps, resolution and texture size; else standard. fast is of texture."),
    ] = None
    pipeline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Stages of text or image, see `pgc3d config list`; else dmtet.",
            autocompletion=complete_pipeline,
        ),
    ] = None
    clip: Annotated[
        str | None, typer.Option(metavar="RULE", help="none, pixel, pixel=0.3 ...: of every diffusion model.")
    ] = None
    texture_size: TextureOption = None
    faces: FacesOption = None
    low_memory: Annotated[
        bool | None, typer.Option("--low-memory", help="Less memory, more time; the same result.")
    ] = None
    tensorboard: Annotated[
        bool | None,
        typer.Option("--tensorboard", help="Also write metrics and previews to RUN/tensorboard, an extra."),
    ] = None
    config: ConfigOption = None
    set_: SetOption = None

    def given(self) -> list[str]:
        """The names of the options that were given, as on the command line."""
        names = [item.name for item in fields(self) if getattr(self, item.name) is not None]
        return [f"--{name.rstrip('_').replace('_', '-')}" for name in names]

    def settings(self) -> dict[str, Any]:
        """The options as a nested mapping of settings."""
        return {
            "models": {"text": {"loras": self.lora}},
            "run": {
                "seed": self.seed,
                "device": self.device,
                "steps": self.steps,
                "low_memory": self.low_memory,
                "rasterizer": self.rasterizer,
            },
            "export": {"texture_size": self.texture_size, "faces": self.faces},
            "logging": {"tensorboard": self.tensorboard},
        }


def with_run_options(command: Callable[..., int]) -> Callable[..., int]:
    """The command with the fields of `RunOptions` as options, in place of its parameter `options`."""
    hints = get_type_hints(RunOptions, include_extras=True)
    shared = {
        item.name: inspect.Parameter(
            item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=hints[item.name]
        )
        for item in fields(RunOptions)
    }

    @functools.wraps(command)
    def flat(**values: Any) -> int:
        from pgc3d.early_config import check_early

        options = RunOptions(**{name: values.pop(name) for name in shared})
        check_early(options.config or [], options.set_ or [], rule=options.clip)
        return command(**values, options=options)

    own = inspect.signature(command).parameters.values()
    parameters = [parameter for parameter in own if parameter.name != "options"]
    flat.__signature__ = inspect.Signature([*parameters, *shared.values()])  # type: ignore[attr-defined]
    return flat


def with_output_options(command: Callable[..., int]) -> Callable[..., int]:
    """The command with --json and --quiet, which `choose_output` has read when it begins."""
    own = {
        "json_lines": Annotated[
            bool, typer.Option("--json", help="Progress as JSON lines on stdout, for other programs.")
        ],
        "quiet": Annotated[bool, typer.Option("--quiet", help="Print only errors and the files' names.")],
    }

    @functools.wraps(command)
    def plain(**values: Any) -> int:
        return command(**{name: value for name, value in values.items() if name not in own})

    signature = inspect.signature(command)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in own.items()
    ]
    plain.__signature__ = inspect.Signature([*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    return plain


def configured(
    guidance: Any,
    options: RunOptions,
    command: Any = None,
    own: dict[str, Any] | None = None,
    *,
    prompted: bool = False,
    refine: bool = False,
    sync: bool | None = None,
    every_objective: dict[str, Any] | None = None,
) -> Any:
    """The configuration of a command; automatic choices and options without effect are printed.

    Args:
        guidance: a `GuidanceName`.
        options: those that all runs have.
        command: a `presets.Command`; text when None.
        own: a nested mapping of the settings of the command's own options.
        prompted: whether there is a prompt in addition to an image.
        refine: whether a texture is refined.
        sync: whether colours start from views that are sampled together; None leaves it to the quality.
        every_objective: a nested mapping for each of the objectives.

    Raises:
        ConfigError: a key, a value or a combination is wrong.
    """
    import_library()
    from pgc3d.clip_rules import parse_rule
    from pgc3d.presets import TEXT, configure

    with timed("configuration"):
        config, notes = configure(
            command or TEXT,
            guidance=guidance,
            prompted=prompted,
            refine=refine,
            sync=sync,
            model=options.model,
            quality=options.quality,
            pipeline=options.pipeline,
            clip=parse_rule(options.clip) if options.clip is not None else None,
            files=options.config or [],
            options=options.settings() | (own or {}),
            resolution=options.resolution,
            every_objective=every_objective,
            overrides=options.set_ or [],
        )
    collector = collected.get()
    for note in notes:
        (collector.notify if collector is not None else notify)(note)
    return config


def configured_item(item: Any, *, guidance: str, options: RunOptions) -> Any:
    """The configuration of a benchmark's item; at module level, so that it can be sent to other processes."""
    from pgc3d.pipelines import takes_prompt
    from pgc3d.presets import IMAGE, TEXT

    if item.image is None:
        return configured(guidance, options, TEXT)
    own = {"view": {"elevation_degrees": item.elevation_degrees}}
    prompted = takes_prompt(IMAGE.name, options.pipeline)
    return configured(guidance, options, IMAGE, own, prompted=prompted)


def configurations_of(line: str) -> list[Any]:
    """The configurations of the runs that a command line would begin, without running it.

    Args:
        line: as behind `pgc3d` on the command line, as "texture --guidance sdxl"; inputs may be missing.

    Raises:
        InputError: the line begins no run.
        UsageError: an option is unknown, or its value is not valid.
    """
    from pgc3d.errors import InputError

    arguments = shlex.split(line)
    if not arguments or arguments[0] not in MAKERS:
        raise InputError(f"--for must begin with {', '.join(MAKERS)}, got {line!r}")
    return [config for _, config in collected_from(arguments, fill=True).runs]


def runs_of(arguments: Sequence[str], *, notify: Callable[[str], None] = notify) -> list[tuple[Any, Any]]:
    """The `Task` and the `Config` of each run that a command line would begin, without running it.

    Args:
        arguments: those behind `pgc3d`.
        notify: receives the lines about automatic choices.

    Raises:
        UsageError: an option is unknown, its value is not valid, or an input is missing.
        Pgc3dError: see `errors`.
    """
    return collected_from(arguments, notify=notify).runs


def collected_from(
    arguments: Sequence[str], *, notify: Callable[[str], None] = notify, fill: bool = False
) -> Collector:
    """The runs and the lists of jobs that a command line would begin, without running it.

    Args:
        arguments: those behind `pgc3d`.
        notify: receives the lines about automatic choices.
        fill: whether inputs may be missing.

    Raises:
        UsageError: an option is unknown, its value is not valid, or an input is missing.
        Pgc3dError: see `errors`.
    """
    from pgc3d.cli.app import app

    missing = 2 if fill else 0  # a command has two inputs at most
    for filled in range(missing + 1):
        collector = Collector(notify)
        token = collected.set(collector)
        try:
            app([*arguments, *(filled * [PLACEHOLDER])], standalone_mode=False)
        except Exception as error:
            if type(error).__name__ != "MissingParameter" or filled == missing:
                raise
        else:
            return collector
        finally:
            collected.reset(token)
    raise AssertionError("the last attempt returns or raises")
