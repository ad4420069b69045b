"""The clipping study: many objects, rules and seeds, a line of results for each run, tables and plots of all.

    python scripts/study_clipping.py OUT --jobs 8                       # the whole study, on a GPU
    python scripts/study_clipping.py OUT --small                        # minutes on a CPU
    python scripts/study_clipping.py OUT --items BENCHMARK/items.jsonl  # images in place of prompts
    python scripts/study_clipping.py OUT --prompt "a red chair" --rules none,pixel=0.1 --seeds 1
    python scripts/study_clipping.py OUT --summary                      # tables and plots of what is there

OUT/results.jsonl grows by a line with every run; runs that are in it are not repeated, so that a study can be
stopped at any time and made in several sittings, prompts and images one after the other. The linear encoder
and the fine-tuned VAE are made at the start where a rule needs them. At the end, and with --summary:

    OUT/summary.md      means with 95 % bootstrap intervals over objects and seeds, paired differences to
                        `none` and to `pixel=0.1`; a difference whose interval holds zero is a tie
                        images are also measured against the truth, see `pgc3d eval --frame`
    OUT/summary.png     the same as a plot (needs matplotlib, in the extra `dev`)
    OUT/sheets/*.png    six views of every rule's asset, by object, first seed; an image's truth is on top
    OUT/views/          the views, by run

A rule is one of `pgc3d ablate`, with +linear behind it for gradients through the linear encoder (prompts
only), or +vae for the fine-tuned VAE; with --pipeline also `own`, those of its preset. It clips the gradient
of the text-to-image or novel-view model, never that of the reference view.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from sample_images import PROMPTS
from study_jobs import Job, Kind, Settings, fingerprint, job_config, make_jobs, measure_views, run_job
from study_summary import plot_summary, read_results, report

from pgc3d.build.models import locate_models
from pgc3d.build.run import resolve_device
from pgc3d.disk import replace_file
from pgc3d.errors import Pgc3dError
from pgc3d.evaluation.items import Item, read_items
from pgc3d.evaluation.processes import in_processes
from pgc3d.exporting.turntable import tile

AnyJob = TypeVar("AnyJob", bound=Any)
RULES = (
    "none", "parameter", "channel=0.1", "pngd=0.1", "pixel=0.01", "pixel=0.03", "pixel=0.1", "pixel=0.3",
    "pixel=1", "l2=0.1", "adaptive", "none+linear", "pixel=0.1+linear", "none+vae", "pixel=0.1+vae",
)  # fmt: skip
IMAGE_RULES = tuple(rule for rule in RULES if not rule.endswith("+linear"))
SMALL_RULES = ("none", "pixel=0.1", "pngd=0.1")


def work_off(
    jobs: Sequence[AnyJob], results: Path, work: Callable[[AnyJob], dict[str, Any]], *, processes: int
) -> None:
    """Run the jobs that have no line yet and append a line for each when it ends.

    A job is a dataclass whose fields are entries of its line.
    """
    _end_last_line(results)
    names = [field.name for field in fields(jobs[0])] if jobs else []
    done = {tuple(line[name] for name in names) for line in read_results(results)}
    left = [job for job in jobs if tuple(getattr(job, name) for name in names) not in done]
    print(f"{len(left)} runs to do, {len(done)} lines are there already", flush=True)
    for job, line in in_processes(work, {job: (job,) for job in left}, processes=processes):
        # One short line in one write: whole, or cut off at the end of the file and then left out.
        with results.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        facts = ", ".join(str(getattr(job, name)) for name in names)
        print(f"{facts}: {line['error'] or 'done'}", flush=True)


def require_same_settings(jobs: Sequence[Job], results: Path, settings: Settings) -> None:
    """Check that the lines of a study come from the same settings; older lines have none and pass."""
    examples = {(job.kind, job.task): job for job in jobs}
    expected = {key: fingerprint(job, settings) for key, job in examples.items()}
    for line in read_results(results):
        known = expected.get((line["kind"], line["task"]))
        if known is not None and line.get("settings", known) != known:
            raise SystemExit(
                f"error: {results} must hold runs with these settings, but {line['task']!r} was made with "
                "another quality, number of steps, guidance, model or --set; use another OUT"
            )


def _end_last_line(path: Path) -> None:
    """End a line that a crash cut off, so that the next one is separate."""
    if path.exists() and path.read_bytes()[-1:] not in {b"", b"\n"}:
        with path.open("a", encoding="utf-8") as stream:
            stream.write("\n")


def prepare(rules: Iterable[str], settings: Settings, *, small: bool) -> None:
    """Fit the linear encoder and fine-tune the VAE where a rule needs one that is missing."""
    scripts = Path(__file__).parent
    variants = {rule.partition("+")[2] for rule in rules}
    shared = ["--model", settings.model or settings.guidance, "--device", settings.device]
    if "linear" in variants and not settings.linear_encoder.exists():
        command = [scripts / "fit_linear_encoder.py", settings.linear_encoder, *shared]
        command += ["--count", "16"] if small else ["--count", "200"]
        subprocess.run([sys.executable, *map(str, command)], check=True)
    if "vae" in variants and not settings.vae.exists():
        if settings.items and settings.guidance != "mini":
            raise SystemExit(
                f"+vae must have a fine-tuned VAE of the novel-view model in {settings.vae}, got none; make "
                "it with finetune_vae_encoder.py from a text-to-image model with the same VAE"
            )
        command = [scripts / "finetune_vae_encoder.py", settings.vae, *shared]
        command += ["--count", "16", "--minutes", "0.5"] if small else ["--count", "400", "--minutes", "3"]
        subprocess.run([sys.executable, *map(str, command)], check=True)


def truth_views(out: Path, name: str) -> Path:
    """The path of the views of an item's truth."""
    return out / "views" / f"{Job('image', name, 'truth', 0).slug}.png"


def write_sheets(out: Path, lines: Sequence[dict[str, Any]]) -> None:
    """For every object the views of all rules, first seed, below those of the truth where there is one."""
    (out / "sheets").mkdir(exist_ok=True)
    jobs = [Job(line["kind"], line["task"], line["rule"], line["seed"]) for line in lines]
    for kind, task in dict.fromkeys((job.kind, job.task) for job in jobs):
        own = [job for job in jobs if (job.kind, job.task, job.seed) == (kind, task, 0)]
        paths = {job.rule: out / "views" / f"{job.slug}.png" for job in own}
        if kind == "image":
            paths = {"truth": truth_views(out, task)} | paths
        rows = {rule: pixels(path) for rule, path in paths.items() if path.exists()}
        if rows.keys() - {"truth"}:
            name = re.sub(r"[^a-z0-9]+", "-", task.lower())
            path = out / "sheets" / f"{'image-' if kind == 'image' else ''}{name}.png"
            sheet = Image.fromarray(tile(list(rows.values()), 1, list(rows)).numpy())
            sheet.quantize(256).save(path, optimize=True)


def position(line: dict[str, Any]) -> int:
    """The rank of a line's rule in the study, for sorting; other rules come last."""
    return (*RULES, line["rule"]).index(line["rule"])


def pixels(path: Path) -> torch.Tensor:
    """An image as uint8 [H, W, 3]."""
    import numpy as np

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--small", action="store_true", help="two objects, one seed, three rules, draft")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    parser.add_argument("--prompt", action="append", help="instead of the built-in list; may be repeated")
    parser.add_argument("--items", type=Path, help="list of a benchmark, whose images replace the prompts")
    parser.add_argument("--item", action="append", help="one of its names instead of all; may be repeated")
    parser.add_argument("--rules", help="instead of the built-in list, separated by commas")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, on one device")
    parser.add_argument("--guidance", choices=("mini", "sdxl", "sd", "zero123"), help="default: mini")
    parser.add_argument("--model", help="folder or hub id instead of the guidance's own, e.g. a Zero123's")
    parser.add_argument("--pipeline", help="of the runs, see `pgc3d config list`; default: one stage")
    parser.add_argument("--quality", choices=("draft", "standard", "high"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--set", action="append", dest="overrides", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    if arguments.items and arguments.prompt:
        parser.error("--prompt must not stand beside --items: run the script once for each")
    if arguments.item and not arguments.items:
        parser.error("--item must stand beside --items")
    arguments.guidance = arguments.guidance or ("auto" if arguments.model else "mini")
    arguments.quality = arguments.quality or ("draft" if arguments.small else "standard")
    arguments.seeds = arguments.seeds or (1 if arguments.small else 3)
    return arguments


def choose_items(path: Path, names: Sequence[str] | None, *, small: bool) -> tuple[Item, ...]:
    """The image items of a list, or those of the given names.

    Raises:
        InputError: the list cannot be read.
        SystemExit: a name is not in it, or it has no image.
    """
    items = {item.name: item for item in read_items(path) if item.image is not None}
    unknown = [name for name in names or () if name not in items]
    if unknown or not items:
        raise SystemExit(f"{path} must have items with an image, got no {', '.join(unknown) or 'item'}")
    chosen = [items[name] for name in names or items]
    return tuple(chosen[:2] if small and not names else chosen)


def start(arguments: argparse.Namespace) -> tuple[Settings, list[Job]]:
    """The settings and jobs of the command line, checked before any run.

    Raises:
        Pgc3dError: an option is not valid; a line with the remedy.
    """
    small: bool = arguments.small
    kind: Kind = "image" if arguments.items else "text"
    items = choose_items(arguments.items, arguments.item, small=small) if arguments.items else ()
    settings = Settings(
        out=arguments.out.absolute(),
        guidance=arguments.guidance,
        model=arguments.model,
        quality=arguments.quality,
        device=arguments.device,
        steps=arguments.steps,
        overrides=tuple(arguments.overrides),
        pipeline=arguments.pipeline,
        items=items,
    )
    all_rules = IMAGE_RULES if items else RULES
    rules = arguments.rules.split(",") if arguments.rules else (SMALL_RULES if small else all_rules)
    tasks = [item.name for item in items] or arguments.prompt or (PROMPTS[:2] if small else PROMPTS)
    jobs = make_jobs(kind, tasks, rules, arguments.seeds)
    for job in make_jobs(kind, tasks[:1], rules, 1):
        config = job_config(job, settings)
        if not settings.vae.exists():  # `prepare` makes it
            config = job_config(replace(job, rule=job.rule.removesuffix("+vae")), settings)
        locate_models(config, resolve_device(settings.device))
    return settings, jobs


def run(arguments: argparse.Namespace) -> None:
    """Run the jobs that have no line yet."""
    settings, jobs = start(arguments)
    (settings.out / "views").mkdir(parents=True, exist_ok=True)
    prepare({job.rule for job in jobs}, settings, small=arguments.small)
    for item in settings.items:
        if item.truth is not None and not truth_views(settings.out, item.name).exists():
            measure_views(item.truth, truth_views(settings.out, item.name))
    results = settings.out / "results.jsonl"
    require_same_settings(jobs, results, settings)
    work_off(jobs, results, partial(run_job, settings=settings), processes=arguments.jobs)


def main() -> None:
    """Command line."""
    arguments = parse_arguments()
    if not arguments.summary:
        try:
            run(arguments)
        except Pgc3dError as error:
            raise SystemExit(f"error: {error}") from error
    out: Path = arguments.out
    lines = sorted(read_results(out / "results.jsonl"), key=position)
    if not lines:
        raise SystemExit(f"{out} must have results to sum up, got none")
    write_sheets(out, lines)
    text = report(lines)
    replace_file(out / "summary.md", text.encode())
    plot_summary(out / "summary.png", lines)
    print(text)


if __name__ == "__main__":
    main()
