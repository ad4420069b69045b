"""One run of the study of time to quality: a mesh textured with so many images, and its numbers."""

import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sample_images import LoadedFolder, draw_views, encode_cameras, load_model
from study_jobs import Device, hash_of
from torch import Tensor

from pgc3d import pipeline
from pgc3d.build.run import resolve_device
from pgc3d.cameras import turntable
from pgc3d.clip_rules import parse_rule
from pgc3d.config import Config
from pgc3d.diffusion.latent import select
from pgc3d.disk import replace_file
from pgc3d.errors import ConfigError, InputError, Pgc3dError
from pgc3d.evaluation.image_metrics import speckle
from pgc3d.evaluation.retrieval import Retriever, load_retriever
from pgc3d.exporting.roundtrip import render_asset
from pgc3d.geometry.normals import vertex_normals_or_z
from pgc3d.images import encode_png, resize, to_bytes
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.mesh_file import read_mesh, write_mesh
from pgc3d.mini import clip_model
from pgc3d.presets import TEXTURE, configure
from pgc3d.rendering import build_rasterizer
from pgc3d.task import Task

VIEWS, ELEVATION_DEGREES, SIDE = 6, 20.0, 256
TIMESTEPS = (0.1, 0.3, 0.5, 0.7)  # of the prior's loss, as fractions of its schedule
SAMPLES = 4  # images of the prior for each view
SCHEDULE = "guidance.t_max=[0.0,0.98,0.6,0.5,1.0,0.4]"  # of all arms that have no others
SYNC = "sync"  # the variant with initial views that are sampled together
GRAY = "gray"  # the arm of the mesh without any colours, with 0 images
# What an arm may have behind its rule: overrides of the preset, from the number behind `=`.
VARIANTS: dict[str, Callable[[str], Sequence[str]]] = {
    "scale": lambda number: [f"guidance.guidance_scale={number}"],
    "annealed": lambda _: ["guidance.t_max=[0.0,0.98,1.0,0.1]"],
    "level": lambda _: [f"guidance.{name}=[0.0,0.9,1.0,0.05]" for name in ("t_min", "t_max")],
    "csd": lambda _: ["guidance.formula=csd"],
    "nfsd": lambda _: ["guidance.formula=nfsd", "guidance.guidance_scale=7.5"],
    "x0": lambda _: ["guidance.formula=x0"],
    "t": lambda top: [f"guidance.t_max=[0.0,{top},1.0,0.05]"],
    "linear": lambda path: [f"guidance.linear_encoder={path}", "guidance.linear_until=0.7"],
    "views": lambda number: [f"batch={number}"],
}


@dataclass(frozen=True)
class Job:
    """One run."""

    item: str
    arm: str
    images: int  # that the prior evaluates
    seed: int

    @property
    def slug(self) -> str:
        """A file name of its own."""
        return re.sub(r"[^a-z0-9=.+]+", "-", f"{self.item} {self.arm} {self.images} {self.seed}".lower())


@dataclass(frozen=True)
class Settings:
    """Common settings of all runs of a study."""

    out: Path
    meshes: Mapping[str, Path]  # of the items
    captions: Mapping[str, str]
    device: Device = "auto"
    samples: int = SAMPLES
    sampling_steps: int = 30
    overrides: tuple[str, ...] = ()

    def drawn(self, item: str) -> Path:
        """The file of what the prior's images of an item's caption are like."""
        return self.out / "samples" / f"{item}.pt"


def make_jobs(items: Sequence[str], arms: Sequence[str], budgets: Sequence[int], seeds: int) -> list[Job]:
    """All runs of the first seed, then of the next: a study that is cut short is balanced."""
    return [
        Job(item, arm, images, seed)
        for seed in range(seeds) for images in budgets for item in items for arm in arms
    ]  # fmt: skip


def arm_overrides(arm: str, preset: Config) -> tuple[str, list[str]]:
    """The clipping rule of an arm, and the overrides of what stands behind its plus signs but `sync`.

    Raises:
        InputError: there is no such variant.
    """
    rule, *variants = arm.split("+")
    found = [f"objectives.color.{SCHEDULE}"]
    for variant in variants:
        name, _, value = variant.partition("=")
        if name == SYNC:
            continue
        if name == "rate":
            rates = preset.last.optimizer.lr_scale
            scaled = [number * float(value) if place % 2 else number for place, number in enumerate(rates)]
            found.append(f"optimizer.lr_scale={scaled}")
        elif name == "pixels":
            found += [f"run.resolution=[{value}]", "run.resolution_until=[]"]
        elif name == "finest":
            found.append(f"representation.color_field.finest={value}")
        elif name in VARIANTS:
            found += [f"objectives.color.{override}" for override in VARIANTS[name](value)]
        else:
            known = ", ".join(["rate=F", "pixels=N", "finest=N", SYNC, *VARIANTS])
            raise InputError(f"behind a rule there may be {known}, got {variant!r} in {arm!r}")
    return rule, found


def job_config(job: Job, settings: Settings) -> Config:
    """The configuration of a run: the preset `texture-mini` with the arm's changes, over so many images.

    Raises:
        InputError: there is no such variant.
        ConfigError: there is no such rule, or a number does not fit.
    """
    options: dict[str, Any] = {
        "run": {"seed": job.seed, "device": settings.device},
        "logging": {"preview_every": 0},
    }
    preset, _ = configure(TEXTURE, guidance="mini", options=options)
    rule, overrides = arm_overrides(job.arm, preset)
    config, _ = configure(
        TEXTURE, guidance="mini", clip=parse_rule(rule), options=options, sync=SYNC in job.arm.split("+"),
        overrides=[*overrides, *settings.overrides],
    )  # fmt: skip
    batch = sum(objective.batch for objective in config.last.objectives.values())
    if job.images % batch:
        raise ConfigError(f"a number of images must be a multiple of the {batch} of a step, got {job.images}")
    (name,) = config.stages
    return replace(config, stages={name: replace(config.last, steps=job.images // batch)})


def fingerprint(job: Job, settings: Settings) -> str:
    """Hash of a run's settings except seed and device."""
    return hash_of(job_config(job, settings)) if job.arm != GRAY else GRAY


@cache
def _prior(device: str) -> LoadedFolder:
    return load_model("mini", torch.device(device))


@cache
def _retriever(device: str) -> Retriever:
    return load_retriever(clip_model(), torch.device(device))


def draw(item: str, settings: Settings) -> None:
    """Keep the mean embeddings and the speckle of the prior's images of an item's caption, by view."""
    device = resolve_device(settings.device).type
    cameras = turntable(VIEWS, elevation_degrees=ELEVATION_DEGREES)
    images = draw_views(
        _prior(device), settings.captions[item], cameras,
        count=settings.samples, size=SIDE, steps=settings.sampling_steps,
    )  # fmt: skip
    embedded = torch.stack([_retriever(device).embed_images(one) for one in images]).mean(0)
    noise = torch.stack([speckle(one) for one in images]).mean()
    found = {"embedding": embedded.cpu(), "speckle": noise.cpu()}
    settings.drawn(item).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.out) as folder:
        torch.save(found, Path(folder) / "drawn.pt")
        replace_file(settings.drawn(item), (Path(folder) / "drawn.pt").read_bytes())


@torch.no_grad()
def prior_loss(images: Float[Tensor, "B H W 3"], caption: str, loaded: LoadedFolder) -> float:
    """Mean squared error of the prior's noise in the views of an asset, without guidance."""
    model, count = loaded.model, len(images)
    cameras = turntable(VIEWS, elevation_degrees=ELEVATION_DEGREES)
    positive, negative = encode_cameras(loaded, caption, cameras)
    empty = select(negative, torch.zeros(count, dtype=torch.long, device=model.device))
    generator, errors = torch.Generator().manual_seed(0), []
    pixels = resize(images.to(model.device), model.resolution)
    shape = model.latent_shape(count, model.resolution)
    latents = model.encode(pixels, torch.zeros(shape, device=model.device))
    for fraction in TIMESTEPS:
        timestep = int(fraction * model.train_steps)
        alpha = model.alphas_cumprod[timestep]
        noise = torch.randn(shape, generator=generator).to(model.device)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        _, predicted = model.predict(
            noisy, torch.full((count,), timestep, device=model.device), conditional=positive,
            unconditional=empty, time_ids=model.time_ids(model.resolution, model.resolution),
        )  # fmt: skip
        errors.append((predicted - noise).square().mean())
    return float(torch.stack(errors).mean())


def measure(file: Path, job: Job, settings: Settings) -> tuple[dict[str, float], Tensor]:
    """The quality of an asset's six views, and the views, uint8 [H, 6 W, 3]."""
    device = resolve_device(settings.device).type
    cpu, caption = torch.device("cpu"), settings.captions[job.item]
    cameras = turntable(VIEWS, elevation_degrees=ELEVATION_DEGREES)
    rendering = render_asset(
        read_mesh(file), cameras, SIDE, background=torch.ones(VIEWS, 3),
        rasterizer=build_rasterizer("cpu", cpu),
    )  # fmt: skip
    retriever, images = _retriever(device), rendering.color.to(device)
    embedded, text = retriever.embed_images(images), retriever.embed_texts([caption.lower()])
    drawn = torch.load(settings.drawn(job.item), weights_only=True)
    prior = torch.nn.functional.normalize(drawn["embedding"].to(embedded), dim=-1)
    others = [name.lower() for item, name in settings.captions.items() if item != job.item]
    metrics = {
        "r_precision": retriever.r_precision(images, caption, others),
        "similarity": float((embedded @ text.T).mean()),
        "sample_distance": float(1 - (embedded * prior).sum(-1).mean()),
        "prior_loss": prior_loss(rendering.color, caption, _prior(device)),
        "speckle": float(speckle(rendering.color, rendering.alpha)),
        "sample_speckle": float(drawn["speckle"]),
        "disagreement": float(1 - (embedded * embedded.roll(1, 0)).sum(-1).mean()),
    }
    return metrics, to_bytes(torch.cat(list(rendering.color), dim=1))


def measure_gray(job: Job, settings: Settings) -> dict[str, float]:
    """The quality of a mesh in light grey, from which gains are counted."""
    mesh = read_mesh(settings.meshes[job.item])
    gray = torch.full(mesh.vertices.shape, 191, dtype=torch.uint8)
    normals = vertex_normals_or_z(mesh.vertices, mesh.faces)
    plain = MeshAsset(mesh.vertices, mesh.faces, normals, vertex_color=gray)
    with tempfile.TemporaryDirectory(dir=settings.out) as folder:
        path = Path(folder) / "gray.ply"
        write_mesh(path, plain, "ply")
        return measure(path, job, settings)[0]


def run_job(job: Job, settings: Settings) -> dict[str, Any]:
    """The line of a run; its six views are written, its run directory is deleted."""
    line: dict[str, Any] = asdict(job) | {"settings": fingerprint(job, settings), "metrics": {}, "error": ""}
    if job.arm == GRAY:
        return line | {"metrics": measure_gray(job, settings)}
    task = Task(settings.captions[job.item], mesh=settings.meshes[job.item])
    with tempfile.TemporaryDirectory(dir=settings.out) as folder:
        start = time.perf_counter()
        try:
            result = pipeline.generate(task, out=Path(folder) / "run", config=job_config(job, settings))
        except Pgc3dError as error:
            return line | {"error": str(error)}
        seconds = time.perf_counter() - start
        manifest = json.loads((result.path / "manifest.json").read_text())
        metrics, views = measure(result.files[0], job, settings)
        replace_file(settings.out / "views" / f"{job.slug}.png", encode_png(views))
    steps = {f"seconds_{name}": value for name, value in manifest["seconds"].items()}
    return line | {"metrics": metrics | {"seconds": seconds} | steps}
