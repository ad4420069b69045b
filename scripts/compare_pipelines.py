"""Pipelines side by side: what they cost, and whether their objects are right and whole.

    python scripts/compare_pipelines.py OUT --device cuda --jobs 8            # 15 prompts, 3 seeds
    python scripts/compare_pipelines.py OUT --arms magic3d,magic3d+none --prompt "a horse" --seeds 1
    python scripts/compare_pipelines.py OUT --summary                         # tables of what is there

An arm is a pipeline of `pgc3d text`, or one and a clipping rule, see its options --pipeline and --clip.
OUT/results.jsonl grows by a line with every run; runs that are in it are not repeated, so that a comparison
can be made in several sittings. Differences are to the first arm, paired by prompt and seed, see
`study_clipping.py`. Measured are R-precision (bundled CLIP), the topology of the exported mesh, and its
silhouettes against those of images that the prior draws of the same prompt from the same views, see
`pgc3d.evaluation.wholeness`. Seconds are those of the whole command; with --jobs they hold for that many at
once.

    OUT/summary.md      the tables
    OUT/sheets/*.png    six views of every arm's asset, by prompt, first seed
    OUT/samples/        silhouettes of the prior's images, made once
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_gallery import PROMPTS
from sample_images import LoadedFolder, draw_views, load_model
from study_clipping import work_off, write_sheets
from study_jobs import Device, Job, hash_of, make_jobs, measure_views
from study_summary import read_results, summarize

from pgc3d import pipeline
from pgc3d.build.run import resolve_device
from pgc3d.cameras import turntable
from pgc3d.clip_rules import parse_rule
from pgc3d.config import Config
from pgc3d.disk import replace_file
from pgc3d.errors import Pgc3dError
from pgc3d.evaluation.wholeness import image_silhouettes, mesh_silhouettes, silhouette_iou, wholeness
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.presets import TEXT, configure
from pgc3d.rendering import build_rasterizer
from pgc3d.task import Task

ARMS = ("dmtet", "magic3d")
VIEWS, ELEVATION_DEGREES = 6, 20.0
SIDE = 128  # of silhouettes
SAMPLES = 4  # images of the prior for each view


@dataclass(frozen=True)
class Settings:
    """Common settings of all runs of a comparison."""

    out: Path
    device: Device = "auto"
    model: str = "mini"  # whose images are drawn
    steps: int | None = None  # at most, of every stage
    samples: int = SAMPLES
    sampling_steps: int = 30
    overrides: tuple[str, ...] = ()

    def silhouettes(self, prompt: str) -> Path:
        """The file of the silhouettes of the prior's images."""
        return self.out / "samples" / f"{Job('text', prompt, 'prior', 0).slug}.npz"


def job_config(job: Job, settings: Settings) -> Config:
    """The configuration of a run; its rule is the name of an arm."""
    name, _, rule = job.rule.partition("+")
    run = {"seed": job.seed, "device": settings.device}
    config, _ = configure(
        TEXT,
        guidance="mini",
        pipeline=name,
        clip=parse_rule(rule) if rule else None,
        options={"run": run},
        overrides=settings.overrides,
    )
    if settings.steps is not None:
        most = settings.steps
        stages = {key: replace(stage, steps=min(stage.steps, most)) for key, stage in config.stages.items()}
        config = replace(config, stages=stages)
    if settings.model != "mini":
        models = {key: replace(model, name=settings.model) for key, model in config.models.items()}
        config = replace(config, models=models)
    return config


def fingerprint(job: Job, settings: Settings) -> str:
    """Hash of a run's settings except seed and device."""
    return hash_of(job_config(job, settings))


def require_same_settings(jobs: Sequence[Job], results: Path, settings: Settings) -> None:
    """Check that the lines that are there come from the settings of the command line."""
    expected = {job.rule: fingerprint(job, settings) for job in jobs}
    for line in read_results(results):
        if line["settings"] != expected.get(line["rule"], line["settings"]):
            raise SystemExit(
                f"error: {results} must hold runs with these settings, but those of {line['rule']} were made "
                "with others, or its preset has changed; use another OUT"
            )


def draw_silhouettes(prompt: str, loaded: LoadedFolder, settings: Settings) -> torch.Tensor:
    """Silhouettes of the prior's images of a prompt from the compared views: bool [N, B, H, W]."""
    cameras = turntable(VIEWS, elevation_degrees=ELEVATION_DEGREES)
    drawn = draw_views(
        loaded, prompt, cameras, count=settings.samples, size=SIDE, steps=settings.sampling_steps
    )
    return torch.stack([image_silhouettes(images).cpu() for images in drawn])


def prepare(prompts: Sequence[str], settings: Settings) -> None:
    """Draw the prior's images of the prompts that have no silhouettes yet."""
    (settings.out / "samples").mkdir(parents=True, exist_ok=True)
    (settings.out / "views").mkdir(exist_ok=True)
    missing = [prompt for prompt in prompts if not settings.silhouettes(prompt).exists()]
    if not missing:
        return
    loaded = load_model(settings.model, resolve_device(settings.device))
    for prompt in missing:
        drawn = draw_silhouettes(prompt, loaded, settings)
        with tempfile.TemporaryDirectory(dir=settings.out) as folder:
            path = Path(folder) / "samples.npz"
            np.savez_compressed(path, silhouettes=drawn.numpy())
            replace_file(settings.silhouettes(prompt), path.read_bytes())
        print(f"{prompt}: drawn", flush=True)


def measure(file: Path, prompt: str, settings: Settings) -> dict[str, float]:
    """The topology of a mesh file, and its silhouettes against those of the prior's images."""
    mesh, device = read_mesh(file), torch.device("cpu")
    cameras = turntable(VIEWS, elevation_degrees=ELEVATION_DEGREES)
    own = mesh_silhouettes(
        mesh.vertices, mesh.faces, cameras, SIDE, rasterizer=build_rasterizer("cpu", device)
    )
    others = torch.from_numpy(np.load(settings.silhouettes(prompt))["silhouettes"])
    return asdict(wholeness(mesh.vertices, mesh.faces)) | silhouette_iou(own, others)


def run_job(job: Job, settings: Settings) -> dict[str, Any]:
    """The line of a run; its six views are written, its run directory is deleted."""
    line: dict[str, Any] = asdict(job) | {"settings": fingerprint(job, settings), "metrics": {}, "error": ""}
    with tempfile.TemporaryDirectory(dir=settings.out) as folder:
        start = time.perf_counter()
        try:
            result = pipeline.generate(
                Task(job.task), out=Path(folder) / "run", config=job_config(job, settings)
            )
        except Pgc3dError as error:
            return line | {"error": str(error)}
        metrics = {"seconds": time.perf_counter() - start}
        metrics |= measure_views(result.files[0], settings.out / "views" / f"{job.slug}.png", job.task)
        metrics |= measure(result.files[0], job.task, settings)
    return line | {"metrics": metrics}


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", default=",".join(ARMS), help="separated by commas; the first one is"
                        " what the others are compared with")  # fmt: skip
    parser.add_argument("--prompt", action="append", help="instead of the built-in list; may be repeated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, on one device")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--model", default="mini", help="instead of the bundled one")
    parser.add_argument("--steps", type=int, help="at most, of every stage")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="images of the prior for each view")
    parser.add_argument("--sampling-steps", type=int, default=30)
    parser.add_argument("--set", action="append", dest="overrides", default=[], metavar="KEY=VALUE")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    """Run the jobs that have no line yet."""
    settings = Settings(
        out=arguments.out.absolute(), device=arguments.device, model=arguments.model, steps=arguments.steps,
        samples=arguments.samples, sampling_steps=arguments.sampling_steps,
        overrides=tuple(arguments.overrides),
    )  # fmt: skip
    prompts, arms = arguments.prompt or PROMPTS, arguments.arms.split(",")
    jobs = make_jobs("text", prompts, arms, arguments.seeds)
    results = settings.out / "results.jsonl"
    require_same_settings(jobs, results, settings)
    prepare(prompts, settings)
    work_off(jobs, results, partial(run_job, settings=settings), processes=arguments.jobs)


def main() -> None:
    """Command line."""
    arguments = parse_arguments()
    if not arguments.summary:
        try:
            run(arguments)
        except Pgc3dError as error:
            raise SystemExit(f"error: {error}") from error
    order = arguments.arms.split(",")
    lines = [line for line in read_results(arguments.out / "results.jsonl") if line["rule"] in order]
    if not lines:
        raise SystemExit(f"{arguments.out} must have results to sum up, got none")
    lines.sort(key=lambda line: order.index(line["rule"]))
    write_sheets(arguments.out, lines)
    text = summarize(lines, references=order[:1])
    replace_file(arguments.out / "summary.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
