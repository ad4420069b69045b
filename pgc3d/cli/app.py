"""The command line: parse, call one library function, print, and map errors to a line and an exit code."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pgc3d.choices import Format, ImageGuidanceName, Texture, UvChoice
from pgc3d.cli import refine_options as parts
from pgc3d.cli.batch_command import batch
from pgc3d.cli.config_commands import config_app
from pgc3d.cli.console import Bar, close_stdout, deliver, prepare_streams
from pgc3d.cli.doctor_command import doctor
from pgc3d.cli.evaluation_commands import ablate, evaluate
from pgc3d.cli.inspect_command import inspect
from pgc3d.cli.json_lines import End
from pgc3d.cli.launch import (
    be_quiet_behind_the_first,
    command_line,
    end_with_launcher,
    end_without_the_lost,
    in_processes,
)
from pgc3d.cli.library import import_library
from pgc3d.cli.models_commands import models_app
from pgc3d.cli.options import (
    DepthOption,
    ExportOutOption,
    FacesOption,
    GuidanceOption,
    HeightOption,
    NormalOption,
    OriginOption,
    OutOption,
    RunArgument,
    RunOptions,
    StageOption,
    TextureOption,
    UnitOption,
    UpOption,
    collected,
    configured,
    with_output_options,
    with_run_options,
)
from pgc3d.cli.output import Warnings, choose_output, current
from pgc3d.cli.plan_command import plan
from pgc3d.cli.prompt_file import HELP as PROMPT_FILE
from pgc3d.cli.prompt_file import read_prompt
from pgc3d.cli.report_command import report
from pgc3d.cli.running import exit_code_of, generate_run
from pgc3d.cli.style_options import (
    StyleAdapterOption,
    StyleOption,
    StyleWeightOption,
    style_settings,
)
from pgc3d.cli.view_command import view
from pgc3d.disk import default_folder
from pgc3d.errors import Pgc3dError
from pgc3d.imports import own_process
from pgc3d.run_files import require_folder_of_run
from pgc3d.start_times import count_from_process

UsageError: Any = typer.BadParameter.__base__  # wherever typer keeps click's

app = typer.Typer(
    help="Textured 3D assets from prompts, images and meshes, by clipped score distillation.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(config_app, name="config")
app.add_typer(models_app, name="models")
app.command()(inspect)
app.command()(doctor)


def _version(show: bool | None) -> None:
    if show:
        from pgc3d import __version__

        deliver(f"pgc3d {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool | None, typer.Option("--version", callback=_version, is_eager=True)] = None,
) -> None:
    pass


@app.command()
@in_processes
@with_output_options
@with_run_options
def text(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help=f'What to make, as in "a (red:1.3) chair"{PROMPT_FILE}.')
    ],
    *,
    guidance: GuidanceOption = "auto",
    style: StyleOption = None,
    style_weight: StyleWeightOption = None,
    style_adapter: StyleAdapterOption = None,
    out: OutOption = None,
    options: RunOptions,
) -> int:
    """Make a textured asset from a prompt."""
    from pgc3d.prompt_weights import plain_text, require_prompt
    from pgc3d.task import Task

    prompt = read_prompt(prompt, stdin=collected.get() is None)
    require_prompt(prompt)
    resolved = configured(guidance, options, own=style_settings(options, style, style_weight, style_adapter))
    folder = out or default_folder(Path("runs"), plain_text(prompt), resolved.run.seed)
    return generate_run(Task(prompt, style=style), folder, resolved)


@app.command()
@in_processes
@with_output_options
@with_run_options
def image(
    input_image: Annotated[Path, typer.Argument(metavar="INPUT", help="Image of one object.")],
    *,
    guidance: Annotated[
        ImageGuidanceName,
        typer.Option(help="auto is zero123 with a CUDA device and local weights, else the bundled mini."),
    ] = "auto",
    prompt: Annotated[str, typer.Option(help="Also use a text-to-image model, for unseen sides.")] = "",
    elevation: Annotated[
        float | None, typer.Option(help="Degrees that the camera was above the object.")
    ] = None,
    no_matting: Annotated[bool, typer.Option("--no-matting", help="Remove a plain background.")] = False,
    border: Annotated[
        float | None, typer.Option(help="Fraction of the prepared image's side beside the object.")
    ] = None,
    depth: DepthOption = None,
    normal: NormalOption = None,
    out: OutOption = None,
    options: RunOptions,
) -> int:
    """Make a textured asset from an image of it."""
    from pgc3d.inputs.formats import require_small_file
    from pgc3d.task import Task

    prompt = read_prompt(prompt, stdin=collected.get() is None)
    if collected.get() is None:
        require_small_file(input_image)
    import_library()
    from pgc3d.presets import IMAGE

    own = {
        "image": {"matting": False if no_matting else None, "border": border},
        "view": {"elevation_degrees": elevation},
    }
    resolved = configured(guidance, options, IMAGE, own, prompted=bool(prompt))
    folder = out or default_folder(Path("runs"), input_image.stem, resolved.run.seed)
    return generate_run(Task(prompt, image=input_image, depth=depth, normal=normal), folder, resolved)


@app.command()
@in_processes
@with_output_options
@with_run_options
def texture(
    mesh: Annotated[
        Path, typer.Argument(metavar="MESH", help="A glb, gltf, obj, ply, stl, usdz, off, 3mf or fbx file.")
    ],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help=f'The object, as in "a (rusty:1.3) chair"{PROMPT_FILE}.')
    ],
    *,
    guidance: GuidanceOption = "auto",
    up: Annotated[
        str | None, typer.Option(metavar="AXIS", help="The file's axis that points up: +y, or +z, -x ...")
    ] = None,
    front: Annotated[
        str | None, typer.Option(metavar="AXIS", help="Direction of the front: +z, or -y where z is up.")
    ] = None,
    texture: Annotated[
        Texture | None, typer.Option(help="Optimise a field, baked at the end, or the texture image itself.")
    ] = None,
    uv: Annotated[
        UvChoice | None,
        typer.Option(
            help="auto: the file's texture coordinates where no texel is used twice, else new ones; own: the "
            "file's, even where points share texels or the image repeats; new: new ones."
        ),
    ] = None,
    pbr: Annotated[
        bool, typer.Option("--pbr", help="Also learn roughness and metallic, under environment lights.")
    ] = False,
    negative: Annotated[str | None, typer.Option(help="What the images should not show.")] = None,
    background: Annotated[
        list[str] | None,
        typer.Option(help="Background colour (name, '#rrggbb'), random, or an image file; repeatable."),
    ] = None,
    style: StyleOption = None,
    style_weight: StyleWeightOption = None,
    style_adapter: StyleAdapterOption = None,
    refine: parts.RefineOption = False,
    init: parts.InitOption = None,
    strength: parts.StrengthOption = None,
    mask: parts.MaskOption = None,
    only: parts.OnlyOption = None,
    keep: parts.KeepOption = None,
    out: OutOption = None,
    options: RunOptions,
) -> int:
    """Texture a mesh from a prompt; its geometry does not change."""
    from pgc3d.errors import InputError
    from pgc3d.mesh_io.limits import require_limited
    from pgc3d.prompt_weights import plain_text, require_prompt
    from pgc3d.task import Task

    prompt = read_prompt(prompt, stdin=collected.get() is None)
    require_prompt(prompt)
    if collected.get() is None:
        require_limited(mesh)
    if options.faces:
        raise InputError(f"--faces must not be given with an input mesh, got {options.faces}; remove it")
    given = parts.RefineOptions(
        refine=refine, init=init, strength=strength, mask=mask, only=tuple(only or ()), keep=tuple(keep or ())
    )
    import_library()
    from pgc3d.presets import TEXTURE, split_backgrounds

    source = given.source(options.texture_size)
    image_size = options.texture_size if texture == "image" and not source else None
    own: dict[str, Any] = {"up": up, "front": front, "texture": texture, "image_size": image_size, "uv": uv}
    own |= {"source": source} | ({"material": {"kind": "pbr"}, "shading": True} if pbr else {})
    backgrounds, background_image = split_backgrounds(background or [])
    guided = {"negative_prompt": negative, **given.guidance()}
    every = {"backgrounds": backgrounds or None, "guidance": guided}
    layers = {"representation": own} | style_settings(options, style, style_weight, style_adapter)
    # an OBJ comes back as one; of the other formats, GLB holds all contents
    defaults = {"export": {"format": "obj"}} if mesh.suffix.lower() == ".obj" else {}
    command = replace(TEXTURE, defaults=defaults)
    resolved = configured(
        guidance,
        options,
        command,
        layers,
        every_objective=every,
        refine=given.starts,
        sync=given.initial_views,
    )
    folder = out or default_folder(Path("runs"), f"{mesh.stem} {plain_text(prompt)}", resolved.run.seed)
    task = Task(
        prompt, mesh=mesh, background=background_image, style=style, texture=given.texture, mask=mask,
        only=given.only, keep=given.keep,
    )  # fmt: skip
    return generate_run(task, folder, resolved)


@app.command()
@in_processes
@with_output_options
def resume(
    run: RunArgument,
    edited: Annotated[bool, typer.Option("--edited", help="Accept an edited RUN/config.yaml.")] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps that the last stage goes on to, also of a finished run; its schedules stretch over "
            "them, and the earlier asset stays."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> int:
    """Continue a run that was stopped, or go on with a finished one to more steps."""
    from pgc3d.errors import InputError

    if prompt is not None:
        raise InputError(
            f"--prompt must not be given to resume, got {prompt!r}: the steps that are done were made for "
            "the run's own prompt; start a new run"
        )
    require_folder_of_run(run)
    import_library()
    from pgc3d import pipeline

    return exit_code_of(run, lambda **calls: pipeline.resume(run, edited=edited, steps=steps, **calls))


@app.command()
def export(  # noqa: PLR0917 - one option each
    run: RunArgument,
    out: ExportOutOption = None,
    format_: Annotated[
        Format | None, typer.Option("--format", help="That of --out, else the run's own when not given.")
    ] = None,
    texture_size: TextureOption = None,
    faces: FacesOption = None,
    height: HeightOption = None,
    unit: UnitOption = None,
    up: UpOption = None,
    origin: OriginOption = None,
    stage: StageOption = None,
) -> int:
    """Write the asset of a run as a mesh file."""
    require_folder_of_run(run)
    import_library()
    from pgc3d import pipeline

    bar = Bar()
    pipeline.export(
        run, out=out, file_format=format_, texture_size=texture_size, faces=faces, stage=stage, on_event=bar,
        placing={"height": height, "unit": unit, "up": up, "origin": origin},
    )  # fmt: skip
    bar.close()
    return 0


@app.command()
def render(run: RunArgument, stage: StageOption = None) -> int:
    """Write a turntable video and a sheet of six views of a run."""
    require_folder_of_run(run)
    import_library()
    from pgc3d import pipeline

    bar = Bar()
    pipeline.render(run, stage=stage, on_event=bar)
    bar.close()
    return 0


app.command("eval")(evaluate)
app.command()(ablate)
app.command()(report)
app.command()(batch)
app.command(context_settings={"ignore_unknown_options": True})(plan)
app.command()(view)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code.

    Args:
        arguments: behind `pgc3d`; those of the process, which is then the command line's alone, when None.
    """
    if arguments is None:
        own_process()
        count_from_process()
    # How long an OpenMP thread spins before it sleeps. A short run of `mini` on two cores: 17 s with this and
    # with 30 000, 20 s with 1000; two runs at once: 30, 62 and 25 s. The library's default is 300 000.
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")
    logging.basicConfig(level=logging.WARNING, handlers=[Warnings()])
    prepare_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    be_quiet_behind_the_first()
    end_with_launcher()
    command_line.set(given)
    try:
        choose_output(given)
        code = app(given, standalone_mode=False)
    except Pgc3dError as error:
        current().fail(str(error), error.exit_code)
        code = error.exit_code
        end_without_the_lost(error)
    except UsageError as error:
        code = _usage_error(error)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
        current().end(End("stopped", code, "", ()), advice="stopped")
    except BrokenPipeError:  # the reader of the help text has closed its end
        code = 0
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        current().fail(f"{named}{error.strerror or error}", 2)
        code = 2
    close_stdout()
    sys.exit(code if isinstance(code, int) else 0)


def _usage_error(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        deliver(f"{error.format_message()}\n")
        return 2
    current().fail(error.format_message(), 2)
    return 2
