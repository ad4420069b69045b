"""A run of an acceptance test, from its task to an asset, and the numbers and images of that."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from acceptance_weights import Weights
from jaxtyping import Float
from study_jobs import CLIPPED, Job, Settings, measure_against_truth, read_log
from torch import Tensor

from pgc3d import pipeline
from pgc3d.build.run import resolve_device
from pgc3d.choices import Device, GuidanceName, Quality
from pgc3d.clip_rules import parse_rule
from pgc3d.config import Config, preset
from pgc3d.disk import replace_file
from pgc3d.evaluation.image_metrics import mask_iou, statistics
from pgc3d.evaluation.items import Item, read_items
from pgc3d.evaluation.procedural import write_procedural_set
from pgc3d.evaluation.protocol import Protocol
from pgc3d.evaluation.retrieval import load_retriever
from pgc3d.events import Event
from pgc3d.exporting.roundtrip import comparison_views, render_asset
from pgc3d.exporting.turntable import tile
from pgc3d.geometry.normals import vertex_normals_or_z
from pgc3d.images import encode_png, resize, to_bytes
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.mini import clip_model
from pgc3d.presets import IMAGE, TEXT, TEXTURE, Command, configure
from pgc3d.rendering import build_rasterizer
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.task import Task
from pgc3d.types import Rendering

OBJECT = "one-armed-chair"  # of the procedural set: the mesh that is textured, and the input image
GRAY = 191
SHEET_SIDE = 384  # of a view in the sheets
RETRIEVED_SIDE = 256  # of a view for the contrastive model
LOGS = 4  # at least, in a run, for the median of its times
# What makes a run fit the random miniatures and a CPU.
TINY = (
    "run.resolution=[32]", "run.resolution_until=[]", "export.texture_size=128",
    "representation.resolution=16",
)  # fmt: skip
TINY_PROTOCOL = Protocol(views=2, resolution=64, points=512, surface_views=4, grid=16)
TINY_MESH = (*TINY[:3], "objectives.color.batch=1", "representation.color_field.log2_rows=10")


@dataclass(frozen=True)
class Trial:
    """What all parts of an acceptance test share."""

    weights: Weights
    out: Path
    device: Device = "auto"
    steps_scale: float = 1.0  # factor of all steps
    seed: int = 0

    @property
    def torch_device(self) -> torch.device:
        """Where the models run."""
        return resolve_device(self.device)

    @property
    def tiny(self) -> bool:
        """Whether the models are the random miniatures."""
        return self.weights.kind == "tiny"

    def steps(self, steps: int) -> int:
        """A number of steps, scaled; 2 with miniatures."""
        return 2 if self.tiny else max(2, round(steps * self.steps_scale))

    def guidance(self, alias: str) -> GuidanceName:
        """The guidance of a model."""
        if self.weights.kind == "mini":
            return "mini"
        return "zero123" if alias.endswith("zero123") else "sdxl" if alias == "sdxl" else "sd"

    def item(self) -> Item:
        """The input image and the mesh that it shows, written where they are missing."""
        folder = self.out / "inputs"
        if not (folder / "items.jsonl").is_file():
            write_procedural_set(folder, rasterizer=CpuRasterizer())
        return next(item for item in read_items(folder / "items.jsonl") if item.name == OBJECT)


@dataclass(frozen=True)
class Outcome:
    """What a part found."""

    numbers: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)  # as JSON


@dataclass(frozen=True)
class RunWork:
    """A run of a preset."""

    command: Literal["text", "texture", "image"]
    model: str  # alias
    steps: int
    prompt: str = "a red chair"
    control: str = ""  # alias of a depth ControlNet
    clip: str = ""  # a rule in place of the preset's
    refine: bool = False
    sync: bool = False
    quality: Quality | None = None
    files: tuple[str, ...] = ()  # presets over those of the command

    @property
    def aliases(self) -> tuple[str, ...]:
        """The models that it needs."""
        return (self.model, self.control) if self.control else (self.model,)

    @property
    def preset_command(self) -> Command:
        """The presets that it uses."""
        return {"text": TEXT, "texture": TEXTURE, "image": IMAGE}[self.command]

    def config(self, trial: Trial) -> Config:
        """The configuration of the run."""
        guidance, steps = trial.guidance(self.model), trial.steps(self.steps)
        every = max(1, min(10, steps // LOGS))
        options: dict[str, Any] = {
            "run": {"seed": trial.seed, "device": trial.device},
            "logging": {"preview_every": 0, "log_every": every},
        }
        if self.command == "image":
            options["view"] = {"elevation_degrees": trial.item().elevation_degrees}
        config, _ = configure(
            self.preset_command,
            guidance=guidance,
            model=None if guidance == "mini" else trial.weights.name(self.model),
            quality=self.quality if guidance != "mini" else None,
            clip=parse_rule(self.clip) if self.clip else None,
            refine=self.refine,
            sync=self.sync,
            files=[preset(name) for name in self.files] if guidance != "mini" else [],
            options=options,
            overrides=self._overrides(trial),
        )
        (name,) = config.stages
        return replace(config, stages={name: replace(config.last, steps=steps)})

    def _overrides(self, trial: Trial) -> list[str]:
        found = trial.weights.overrides(self.model)
        if self.control:
            place = "init" if self.sync else "objectives.color.guidance"
            found.append(f"{place}.controls.depth.model={trial.weights.name(self.control)}")
        if self.files and trial.guidance(self.model) != "mini":
            found.append(f"models.image.name={trial.weights.name(self.model)}")
        if trial.tiny:
            found += TINY_MESH if self.command == "texture" and not self.refine else TINY[:3]
            found += TINY[3:] if self.command != "texture" else ()
            found += ["init.steps=2", "init.fit_steps=2"] if self.sync else ()
        return found

    def task(self, trial: Trial) -> Task:
        """The task of the run."""
        if self.command == "image":
            return Task("", image=trial.item().image)
        return Task(self.prompt, mesh=trial.item().truth if self.command == "texture" else None)

    def __call__(self, trial: Trial, folder: Path) -> Outcome:
        """Make the run, or go on with one that was interrupted, and measure it; images go to the folder."""
        run, notes = folder / "run", Notes()
        if (run / "manifest.json").is_file():
            pipeline.resume(run, on_event=notes)
        else:
            shutil.rmtree(run, ignore_errors=True)  # what an interrupt before the first record left
            pipeline.generate(self.task(trial), out=run, config=self.config(trial), on_event=notes)
        manifest = json.loads((run / "manifest.json").read_text())
        file = run / next(name for name in manifest["files"] if name.startswith("asset."))
        numbers = run_numbers(run, manifest)
        numbers |= read_log(run / "metrics.jsonl", CLIPPED["image" if self.command == "image" else "text"])
        # A rule replaces pixels that are not finite, too, which is not what it is about.
        numbers["changed_fraction"] = numbers["clipped_fraction"] - numbers["nonfinite_fraction"]
        numbers |= measure_asset(self, trial, file, folder)
        if self.command == "image":
            numbers |= self._against_truth(trial, file)
        names = ("models", "seconds", "peak_memory_bytes", "device", "versions", "expected", "out_of_memory")
        return Outcome(numbers, {name: manifest.get(name) for name in names} | {"notes": notes.lines})

    def _against_truth(self, trial: Trial, file: Path) -> dict[str, float]:
        item = trial.item()
        protocol = TINY_PROTOCOL if trial.tiny else Protocol()
        settings = Settings(out=trial.out, device=trial.device, items=(item,), protocol=protocol)
        return measure_against_truth(Job("image", item.name, "own", trial.seed), item, file, settings)


@dataclass
class Notes:
    """The messages of a run."""

    lines: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        """Note a message."""
        self.lines += [event.message] if event.message else []


def run_numbers(run: Path, manifest: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a run's records: steps, times, memory, the export, whether all logged numbers are finite."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [value for line in lines for value in line.values() if isinstance(value, int | float)]
    steps = [sum(value for name, value in line.items() if name.startswith("seconds/")) for line in lines]
    memory, seconds = manifest["peak_memory_bytes"], manifest["seconds"]
    return {
        "steps": sum(stage["steps"] for stage in manifest["stages"].values()),
        "finite": float(bool(logged) and all(map(math.isfinite, logged))),
        "skipped_steps": max((line.get("skipped_steps", 0) for line in lines), default=0),
        "export_psnr": manifest["export"]["psnr"],
        "peak_gb": memory.get("cuda", memory["resident"]) / 1e9,
        "step_ms": 1000 * median(steps),  # which compiling in the first steps does not change
        "seconds": sum(seconds.values()),
        **{f"seconds_{name}": value for name, value in seconds.items()},
    }


def measure_asset(work: RunWork, trial: Trial, file: Path, folder: Path) -> dict[str, float]:
    """Numbers of six views of an asset, which are also written to the folder."""
    asset, side = read_mesh(file), 128 if trial.tiny else work.config(trial).last.resolution[-1]
    rendering = six_views(asset, side)
    shown = [to_bytes(image) for image in resize(rendering.color, min(side, SHEET_SIDE))]
    replace_file(folder / "views.png", encode_png(tile(shown, 3)))
    coverage = rendering.alpha.mean((1, 2, 3))
    numbers = {
        **statistics(rendering.color, rendering.alpha),
        "coverage_least": coverage.min().item(),
        "coverage_most": coverage.max().item(),
    }
    if work.command == "texture":
        truth = trial.item().truth
        assert truth is not None
        before = six_views(read_mesh(truth), side)
        numbers["silhouette_iou"] = mask_iou(rendering.alpha, before.alpha).min().item()
    if work.command != "image":
        numbers |= retrieval(rendering.color, six_views(in_gray(asset), side).color, work.prompt)
    return numbers


def six_views(asset: MeshAsset, side: int) -> Rendering:
    """The views that exports are compared in."""
    cpu = torch.device("cpu")
    cameras, background = comparison_views(cpu)
    rasterizer = build_rasterizer("cpu", cpu)
    return render_asset(asset, cameras, side, background=background, rasterizer=rasterizer)


def in_gray(asset: MeshAsset) -> MeshAsset:
    """The surface of an asset in light grey."""
    gray = torch.full(asset.vertices.shape, GRAY, dtype=torch.uint8)
    normals = vertex_normals_or_z(asset.vertices, asset.faces)
    return MeshAsset(asset.vertices, asset.faces, normals, vertex_color=gray)


def retrieval(
    images: Float[Tensor, "B H W 3"], gray: Float[Tensor, "B H W 3"], prompt: str
) -> dict[str, float]:
    """Similarity to the prompt by the bundled contrastive model, its gain over grey, and R-precision."""
    retriever = load_retriever(clip_model(), torch.device("cpu"))
    small, plain = resize(images, RETRIEVED_SIDE), resize(gray, RETRIEVED_SIDE)
    text = retriever.embed_texts([prompt.lower()])
    similarity = float((retriever.embed_images(small) @ text.T).mean())
    return {
        "similarity": similarity,
        "similarity_gain": similarity - float((retriever.embed_images(plain) @ text.T).mean()),
        "r_precision": retriever.r_precision(small, prompt, ()),
    }
