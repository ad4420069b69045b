"""One run of the clipping study: from a prompt or a benchmark's image to an asset and its numbers."""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from study_summary import SHARED

from pgc3d import pipeline
from pgc3d.build.run import resolve_device
from pgc3d.choices import Frame, GuidanceName, Quality
from pgc3d.clip_rules import parse_rule
from pgc3d.config import Config
from pgc3d.disk import replace_file
from pgc3d.errors import InputError, Pgc3dError
from pgc3d.evaluation.image_metrics import statistics
from pgc3d.evaluation.items import Item
from pgc3d.evaluation.measure import Measure, Result, score, shares_frame
from pgc3d.evaluation.protocol import Protocol
from pgc3d.evaluation.retrieval import load_retriever
from pgc3d.exporting.roundtrip import comparison_views, render_asset
from pgc3d.images import encode_png, to_bytes
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.mini import clip_model
from pgc3d.pipelines import takes_prompt
from pgc3d.presets import IMAGE, TEXT, configure
from pgc3d.rendering import build_rasterizer
from pgc3d.task import Task

Kind = Literal["text", "image"]
Device = Literal["auto", "cpu", "cuda"]
CLIPPED: dict[Kind, str] = {"text": "color", "image": "novel"}  # the objective that a rule is about
LOGGED = (
    "clipped_fraction", "nonfinite_fraction", "gradient_p50", "gradient_p90", "gradient_p99", "gradient_max",
)  # fmt: skip
AGAINST_TRUTH = (
    "psnr", "ssim", "mask_iou", "vae_distance", "chamfer", "f_score_0.05", "volume_iou", "input_psnr",
)  # fmt: skip
VIEW_SIZE = 256
OWN = "own"  # the rule of a pipeline's preset


@dataclass(frozen=True)
class Job:
    """One run of the study."""

    kind: Kind
    task: str  # the prompt, or the name of the benchmark's item
    rule: str
    seed: int

    @property
    def slug(self) -> str:
        """A file name of its own."""
        return re.sub(r"[^a-z0-9=.+]+", "-", f"{self.kind} {self.task} {self.rule} {self.seed}".lower())


@dataclass(frozen=True)
class Settings:
    """Common settings of all runs of a study."""

    out: Path
    guidance: GuidanceName = "mini"
    model: str | None = None  # a folder or hub id instead of the guidance's own
    quality: Quality = "standard"
    device: Device = "auto"
    steps: int | None = None
    overrides: tuple[str, ...] = ()
    pipeline: str | None = None  # the guidance's own presets where it is None
    items: tuple[Item, ...] = ()  # what the image jobs are about
    protocol: Protocol = Protocol()  # noqa: RUF009 - frozen; measured in each frame that an item has

    @property
    def prompted(self) -> bool:
        """Whether the pipeline takes an image and a prompt, which is then the item's caption."""
        return bool(self.items) and takes_prompt(IMAGE.name, self.pipeline)

    @property
    def linear_encoder(self) -> Path:
        return self.out / "linear_encoder.json"

    @property
    def vae(self) -> Path:
        return self.out / "vae"

    def item(self, job: Job) -> Item | None:
        """The benchmark item of an image job; None for a text job."""
        return next(item for item in self.items if item.name == job.task) if job.kind == "image" else None


def make_jobs(kind: Kind, tasks: Sequence[str], rules: Sequence[str], seeds: int) -> list[Job]:
    """All objects and rules of the first seed, then of the next: one that is cut short is balanced."""
    return [Job(kind, task, rule, seed) for seed in range(seeds) for task in tasks for rule in rules]


def rule_options(kind: Kind, rule: str, settings: Settings) -> dict[str, Any]:
    """A rule as a layer of the configuration.

    Raises:
        InputError: there is no such variant.
        ConfigError: there is no such rule.
    """
    clip, _, variant = rule.partition("+")
    if settings.pipeline is not None:  # whose stages have objectives of other names, see `job_config`
        if variant:
            raise InputError(f"a rule of a pipeline must have nothing behind +, got {rule!r}")
        return {}
    objective: dict[str, Any] = {"clip": asdict(parse_rule(clip))}
    options: dict[str, Any] = {"objectives": {CLIPPED[kind]: objective}}
    if variant == "linear" and kind == "text":
        objective["guidance"] = {"linear_encoder": str(settings.linear_encoder)}
    elif variant == "vae":
        entry = TEXT.entry if kind == "text" else IMAGE.entry
        options["models"] = {entry: {"vae": str(settings.vae)}}
    elif variant:
        raise InputError(f"behind a rule there may be +vae, and for text +linear, got {rule!r} for {kind}")
    return options


def job_config(job: Job, settings: Settings) -> Config:
    """The configuration of a run."""
    run = {"seed": job.seed, "device": settings.device, "steps": settings.steps}
    options = {"run": run, **rule_options(job.kind, job.rule, settings)}
    if item := settings.item(job):
        options["view"] = {"elevation_degrees": item.elevation_degrees}
    config, _ = configure(
        TEXT if item is None else IMAGE,
        guidance=settings.guidance,
        model=settings.model,
        quality=settings.quality if settings.pipeline is None else None,
        pipeline=settings.pipeline,
        clip=parse_rule(job.rule) if settings.pipeline is not None and job.rule != OWN else None,
        prompted=settings.prompted,
        options=options,
        overrides=settings.overrides,
    )
    return config


def fingerprint(job: Job, settings: Settings) -> str:
    """Hash of a run's settings except rule, seed and device; only runs with equal ones are compared."""
    return hash_of(job_config(replace(job, rule="none"), settings))


def hash_of(config: Config) -> str:
    """Hash of a configuration except seed and device."""
    record = asdict(config)
    for name in ("seed", "device"):
        record["run"].pop(name)
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def run_job(job: Job, settings: Settings) -> dict[str, Any]:
    """The metrics of a generated asset; its six views are written, its run directory is deleted."""
    line: dict[str, Any] = asdict(job) | {"settings": fingerprint(job, settings), "metrics": {}, "error": ""}
    item = settings.item(job)
    prompt = job.task if item is None else item.caption if settings.prompted else ""
    task = Task(prompt, image=None if item is None else item.image)
    with tempfile.TemporaryDirectory(dir=settings.out) as folder:
        run = Path(folder) / "run"
        start = time.perf_counter()
        try:
            result = pipeline.generate(task, out=run, config=job_config(job, settings))
            seconds = time.perf_counter() - start
            metrics = {} if item is None else measure_against_truth(job, item, result.files[0], settings)
        except Pgc3dError as error:
            return line | {"error": str(error)}
        shown = job.task if job.kind == "text" else None
        metrics |= measure_views(result.files[0], settings.out / "views" / f"{job.slug}.png", shown)
        if settings.pipeline is None:
            metrics |= read_log(run / "metrics.jsonl", CLIPPED[job.kind])
    return line | {"metrics": metrics | {"seconds": seconds}}


def read_log(path: Path, objective: str) -> dict[str, float]:
    """Means over the run of what was logged about an objective's gradient."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {name: sum(line[f"{objective}/{name}"] for line in lines) / len(lines) for name in LOGGED}


def measure_against_truth(job: Job, item: Item, file: Path, settings: Settings) -> dict[str, float]:
    """The benchmark's metrics: each mesh in its own frame, and as `shared_...` where both stand in one.

    Both at once, because the asset is not kept.

    Raises:
        InputError: the asset cannot be compared.
    """
    shared = item.frame == "input" and shares_frame(file)
    frames: tuple[Frame, ...] = ("own", "shared") if shared else ("own",)
    device = resolve_device(settings.device).type
    metrics: dict[str, float] = {}
    for frame in frames:
        measure = Measure(protocol=replace(settings.protocol, frame=frame), device=device)
        record = score(Result(job.rule, item, job.seed, file), measure)
        if record.error:
            raise InputError(record.error)
        prefix = SHARED if frame == "shared" else ""
        metrics |= {prefix + name: record.metrics[name] for name in AGAINST_TRUTH}
    return metrics


def measure_views(file: Path, sheet: Path, text: str | None = None) -> dict[str, float]:
    """Statistics of six views of a mesh file, which are also written, and their R-precision for the text."""
    device = torch.device("cpu")
    cameras, background = comparison_views(device)
    rendering = render_asset(
        read_mesh(file), cameras, VIEW_SIZE, background=background, rasterizer=build_rasterizer("cpu", device)
    )
    replace_file(sheet, encode_png(to_bytes(torch.cat(list(rendering.color), dim=1))))
    metrics = statistics(rendering.color, rendering.alpha)
    if text is not None:
        retriever = load_retriever(clip_model(), device)
        metrics["r_precision"] = retriever.r_precision(rendering.color, text, ())
    return metrics
