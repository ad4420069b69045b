"""The clipping study: many objects, rules and seeds, a line of results for each run, tables and plots of all.

    python scripts/study_clipping.py OUT --jobs 8                       # the whole study, on a GPU
    python scripts/study_clipping.py OUT --small                        # minutes on a CPU
    python scripts/study_clipping.py OUT --prompt "a red chair" --rules none,pixel=0.1 --seeds 1
    python scripts/study_clipping.py OUT --summary                      # tables and plots of what is there

OUT/results.jsonl grows by a line with every run; runs that are in it are not repeated, so that a study can be
stopped at any time and made in several sittings. The linear encoder and the fine-tuned VAE are made at the
start where a rule asks for them. At the end, and with --summary:

    OUT/summary.md      means with 95 % bootstrap intervals over objects and seeds, paired differences to
                        `none` and to `pixel=0.1`; a difference whose interval holds zero is a tie
    OUT/summary.png     the same as a plot (needs matplotlib, in the extra `dev`)
    OUT/sheets/*.png    six views of every rule's asset, by object, first seed
    OUT/views/          the views, by run

A rule is one of `pgc3d ablate`, with +linear behind it for gradients through the linear encoder, or +vae for
the fine-tuned VAE.
"""

import argparse
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pictures import PROMPTS
from PIL import Image
from study_summary import REFERENCES, plot_summary, read_results, summarize

from pgc3d import pipeline
from pgc3d.ablate import parse_rule
from pgc3d.config import Config
from pgc3d.configure import GuidanceName, Quality, configure
from pgc3d.errors import Pgc3dError
from pgc3d.export.gltf import encode_png
from pgc3d.export.mesh_file import read_mesh
from pgc3d.export.roundtrip import comparison_views, render_asset
from pgc3d.export.turntable import tile, to_bytes
from pgc3d.image_statistics import statistics
from pgc3d.render import build_rasterizer
from pgc3d.run import replace_file
from pgc3d.task import Task

RULES = (
    "none", "parameter", "channel=0.1", "pngd=0.1", "pixel=0.01", "pixel=0.03", "pixel=0.1", "pixel=0.3",
    "pixel=1", "l2=0.1", "adaptive", "none+linear", "pixel=0.1+linear", "none+vae", "pixel=0.1+vae",
)  # fmt: skip
SMALL_RULES = ("none", "pixel=0.1", "pngd=0.1")
LOGGED = ("clipped_fraction", "gradient_p50", "gradient_p90", "gradient_p99", "gradient_max")
VIEW_SIZE = 256


@dataclass(frozen=True)
class Job:
    """One run of the study."""

    kind: Literal["text"]
    task: str  # the prompt
    rule: str
    seed: int

    @property
    def slug(self) -> str:
        """A file name of its own."""
        return re.sub(r"[^a-z0-9=.+]+", "-", f"{self.kind} {self.task} {self.rule} {self.seed}".lower())


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share."""

    out: Path
    guidance: GuidanceName = "mini"
    quality: Quality = "standard"
    device: str = "auto"
    steps: int | None = None
    overrides: tuple[str, ...] = ()
    threads: int = 1

    @property
    def linear_encoder(self) -> Path:
        return self.out / "linear_encoder.json"

    @property
    def vae(self) -> Path:
        return self.out / "vae"


def text_jobs(prompts: Sequence[str], rules: Sequence[str], seeds: int) -> list[Job]:
    """All objects and rules of the first seed, then of the next: one that is cut short is balanced."""
    return [Job("text", prompt, rule, seed) for seed in range(seeds) for prompt in prompts for rule in rules]


def rule_options(rule: str, settings: Settings) -> dict[str, Any]:
    """A rule as a layer of the configuration."""
    clip, _, variant = rule.partition("+")
    objective: dict[str, Any] = {"clip": asdict(parse_rule(clip))}
    options: dict[str, Any] = {"objectives": {"color": objective}}
    if variant == "linear":
        objective["guidance"] = {"linear_encoder": str(settings.linear_encoder)}
    elif variant == "vae":
        options["model"] = {"vae": str(settings.vae)}
    elif variant:
        raise SystemExit(f"behind a rule there may be +linear or +vae, got {rule!r}")
    return options


def job_config(job: Job, settings: Settings) -> Config:
    """The configuration of a run."""
    run = {"seed": job.seed, "device": settings.device, "steps": settings.steps}
    config, _ = configure(
        guidance=settings.guidance,
        quality=settings.quality,
        options={"run": run, **rule_options(job.rule, settings)},
        overrides=settings.overrides,
    )
    return config


def run_job(job: Job, settings: Settings) -> dict[str, Any]:
    """Make an asset and measure it; the run directory goes, its six views and its numbers stay."""
    torch.set_num_threads(settings.threads)
    start = time.perf_counter()
    line: dict[str, Any] = asdict(job) | {"metrics": {}, "error": ""}
    with tempfile.TemporaryDirectory(dir=settings.out) as folder:
        run = Path(folder) / "run"
        try:
            result = pipeline.generate(Task(job.task), out=run, config=job_config(job, settings))
        except Pgc3dError as error:
            return line | {"error": str(error)}
        metrics = read_log(run / "metrics.jsonl")
        metrics |= measure_asset(result.files[0], settings.out / "views" / f"{job.slug}.png")
    return line | {"metrics": metrics | {"seconds": time.perf_counter() - start}}


def read_log(path: Path) -> dict[str, float]:
    """Means over the run of what was logged about the gradient."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {name: sum(line[f"color/{name}"] for line in lines) / len(lines) for name in LOGGED}


def measure_asset(file: Path, picture: Path) -> dict[str, float]:
    """Statistics of six views of an exported file, which are written too."""
    device = torch.device("cpu")
    cameras, background = comparison_views(device)
    rendering = render_asset(
        read_mesh(file), cameras, VIEW_SIZE, background=background, rasterizer=build_rasterizer("cpu", device)
    )
    replace_file(picture, encode_png(to_bytes(torch.cat(list(rendering.color), dim=1))))
    return statistics(rendering.color, rendering.alpha)


def work_off(
    jobs: Iterable[Job], results: Path, work: Callable[[Job], dict[str, Any]], *, processes: int
) -> None:
    """Do the jobs that have no line yet and append a line for each, as they end."""
    _end_last_line(results)
    done = {(line["kind"], line["task"], line["rule"], line["seed"]) for line in read_results(results)}
    left = [job for job in jobs if (job.kind, job.task, job.rule, job.seed) not in done]
    print(f"{len(left)} runs to do, {len(done)} lines are there already", flush=True)

    def keep(line: dict[str, Any]) -> None:
        # One short line in one write: whole, or cut off at the end of the file and then left out.
        with results.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(f"{line['task']}, {line['rule']}, seed {line['seed']}: {line['error'] or 'done'}", flush=True)

    if processes == 1:
        for job in left:
            keep(work(job))
        return
    # Spawned, because CUDA does not survive a fork.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(work, job) for job in left]):
            keep(future.result())


def _end_last_line(path: Path) -> None:
    """Keep what a crash left of a line apart from the next one."""
    if path.exists() and path.read_bytes()[-1:] not in {b"", b"\n"}:
        with path.open("a", encoding="utf-8") as stream:
            stream.write("\n")


def prepare(rules: Iterable[str], settings: Settings, *, small: bool) -> None:
    """Fit the linear encoder and fine-tune the VAE where a rule asks for one that is not there."""
    scripts = Path(__file__).parent
    variants = {rule.partition("+")[2] for rule in rules}
    shared = ["--model", settings.guidance, "--device", settings.device]
    if "linear" in variants and not settings.linear_encoder.exists():
        command = [scripts / "fit_linear_encoder.py", settings.linear_encoder, *shared]
        command += ["--count", "16"] if small else ["--count", "200"]
        subprocess.run([sys.executable, *map(str, command)], check=True)
    if "vae" in variants and not settings.vae.exists():
        command = [scripts / "finetune_vae_encoder.py", settings.vae, *shared]
        command += ["--count", "16", "--minutes", "0.5"] if small else ["--count", "400", "--minutes", "3"]
        subprocess.run([sys.executable, *map(str, command)], check=True)


def write_sheets(out: Path, lines: Sequence[dict[str, Any]]) -> None:
    """For every object the views of all rules, first seed."""
    (out / "sheets").mkdir(exist_ok=True)
    for task in dict.fromkeys(line["task"] for line in lines):
        rows, labels = [], []
        for line in lines:
            job = Job(line["kind"], line["task"], line["rule"], line["seed"])
            picture = out / "views" / f"{job.slug}.png"
            if job.task == task and job.seed == 0 and picture.exists():
                rows.append(pixels(picture))
                labels.append(job.rule)
        if rows:
            path = out / "sheets" / f"{re.sub(r'[^a-z0-9]+', '-', task.lower())}.png"
            Image.fromarray(tile(rows, 1, labels).numpy()).quantize(256).save(path, optimize=True)


def pixels(path: Path) -> torch.Tensor:
    """A picture as uint8 [H, W, 3]."""
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
    parser.add_argument("--rules", help="instead of the built-in list, separated by commas")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, on one device")
    parser.add_argument("--guidance", choices=("mini", "sdxl"), default="mini")
    parser.add_argument("--quality", choices=("draft", "standard", "high"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--set", action="append", dest="overrides", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    arguments.quality = arguments.quality or ("draft" if arguments.small else "standard")
    arguments.seeds = arguments.seeds or (1 if arguments.small else 3)
    return arguments


def main() -> None:
    """Command line."""
    arguments = parse_arguments()
    small: bool = arguments.small
    rules = arguments.rules.split(",") if arguments.rules else (SMALL_RULES if small else RULES)
    prompts = arguments.prompt or (PROMPTS[:2] if small else PROMPTS)
    settings = Settings(
        out=arguments.out.absolute(),
        guidance=arguments.guidance,
        quality=arguments.quality,
        device=arguments.device,
        steps=arguments.steps,
        overrides=tuple(arguments.overrides),
        threads=max(1, torch.get_num_threads() // arguments.jobs),
    )
    results = settings.out / "results.jsonl"
    if not arguments.summary:
        (settings.out / "views").mkdir(parents=True, exist_ok=True)
        prepare(rules, settings, small=small)
        jobs = text_jobs(prompts, rules, arguments.seeds)
        work_off(jobs, results, partial(run_job, settings=settings), processes=arguments.jobs)
    lines = read_results(results)
    write_sheets(settings.out, lines)
    table = summarize(lines, references=REFERENCES)
    replace_file(settings.out / "summary.md", table.encode())
    plot_summary(settings.out / "summary.png", lines)
    print(table)


if __name__ == "__main__":
    main()
