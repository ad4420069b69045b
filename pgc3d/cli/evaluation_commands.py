"""`pgc3d eval` and `pgc3d ablate`: measure results, and compare clipping rules."""

import functools
from pathlib import Path
from typing import Annotated, cast

import typer

from pgc3d.choices import Baseline, GuidanceName, Space
from pgc3d.cli.console import Bar, deliver, notify
from pgc3d.cli.options import (
    BaselineName,
    ConfigOption,
    DeviceOption,
    FrameOption,
    GuidanceOption,
    ModelOption,
    OutOption,
    RunOptions,
    SeedOption,
    SetOption,
    configured,
    configured_item,
    with_run_options,
)
from pgc3d.disk import default_folder


@with_run_options
def evaluate(
    items: Annotated[Path, typer.Argument(metavar="LIST", help="JSON lines: input, truth, caption.")],
    results: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER...", help="Results of a method: ITEM[-SEED].glb or run folders."),
    ] = None,
    *,
    options: RunOptions,
    out: Annotated[Path, typer.Option(help="Folder of measurements, may exist.")] = Path("evaluation"),
    baseline: Annotated[
        list[BaselineName] | None, typer.Option(help="Also measure this baseline; may be repeated.")
    ] = None,
    align: Annotated[bool, typer.Option("--align", help="Rotate results to fit the truth.")] = False,
    frame: FrameOption = "own",
    retriever: Annotated[Path | None, typer.Option(help="CLIP for r_precision, else bundled.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of parallel processes.")] = 1,
    run: Annotated[bool, typer.Option("--run", help="First make the results that FOLDER lacks.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per item with --run, from --seed on.")] = 1,
    guidance: Annotated[GuidanceName, typer.Option(help="With --run.")] = "auto",
) -> int:
    """Compare results with ground truth; the options from --model on belong to --run."""
    from pgc3d.build.run import resolve_device
    from pgc3d.errors import InputError
    from pgc3d.evaluation import benchmark
    from pgc3d.evaluation.items import read_items
    from pgc3d.evaluation.measure import Measure
    from pgc3d.evaluation.protocol import Protocol
    from pgc3d.evaluation.results import table
    from pgc3d.events import ignore
    from pgc3d.mini import clip_model

    if align and frame == "shared":
        raise InputError("--align must go with --frame own, got --frame shared; remove one of both")
    unused = [name for name in options.given() if name != "--device"]
    if not run and (unused or guidance != "auto" or seeds != 1):
        names = ", ".join(unused) or "--guidance and --seeds"
        raise InputError(f"{names} must go with --run, got none; remove them or add --run")
    folders, listed = results or [], read_items(items)
    measure = Measure(
        protocol=Protocol(alignment="rotation" if align else "none", frame=frame),
        device=resolve_device(options.device or "auto").type,
        retriever=retriever or clip_model(),
    )

    if run:
        config_of = functools.partial(configured_item, guidance=guidance, options=options)
        make = functools.partial(
            benchmark.make_item, configured=config_of, on_event=Bar() if jobs == 1 else ignore
        )
        first = options.seed or 0
        benchmark.make_missing(
            listed, folders, make, seeds=range(first, first + seeds), jobs=jobs, notify=notify
        )
    records = benchmark.evaluate(
        listed, folders, out=out, measure=measure, jobs=jobs, notify=notify,
        baselines=cast("list[Baseline]", [name.value for name in baseline or []]),
    )  # fmt: skip
    deliver(f"{table(records, frame)}\n")
    return 0


def ablate(  # noqa: PLR0917 - one option each
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Content of the image.")],
    guidance: GuidanceOption = "auto",
    rules: Annotated[
        str,
        typer.Option(help="none, pixel, l2, channel, pngd, global, parameter, adaptive, relative; 0.3."),
    ] = "none,channel,pngd,pixel",
    space: Annotated[Space, typer.Option(help="What is optimised.")] = "pixels",
    learning_rate: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 0.03,
    start: Annotated[str, typer.Option(help="Colour of the initial image, or noise.")] = "#bfbfbf",
    out: OutOption = None,
    model: ModelOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each rule.")] = 100,
    resolution: Annotated[
        int | None, typer.Option(help="Side in pixels; a run's first phase when not given.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Optimise one image under several clipping rules: the cheapest way to compare them."""
    from pgc3d.evaluation.ablation import ablate as run_ablation
    from pgc3d.task import Task

    sets = [
        *([f"run.resolution=[{resolution}]", "run.resolution_until=[]"] if resolution else []),
        *(set_ or []),
    ]
    options = RunOptions(model=model, seed=seed, device=device, steps=steps, config=config, set_=sets)
    resolved = configured(guidance, options)
    folder = out or default_folder(Path("runs"), f"ablate {prompt}", resolved.run.seed)
    names = [rule.strip() for rule in rules.split(",") if rule.strip()]
    bar = Bar()
    run_ablation(
        Task(prompt), out=folder, config=resolved, rules=names, space=space,
        learning_rate=learning_rate, start=start, on_event=bar,
    )  # fmt: skip
    bar.close()
    return 0
