"""Degrade the textures of held-out models, refine them with the bundled prior, compare with the originals.

    python scripts/mini/make_benchmark.py DATASET BENCHMARK
    python scripts/study_refine.py BENCHMARK/items.jsonl OUT [options of pgc3d texture]
    python scripts/study_refine.py BENCHMARK/items.jsonl OUT --summary [--sheet SHEET.jpg]

The models get an atlas and a clean texture in it; one of four degradations each: blur, JPEG, noise, low
resolution. OUT/results.jsonl has a line for each run that is done; runs that are there are not repeated, so
that the study can be stopped at any time. `--part tune` takes other models than `--part report`: settings are
chosen on the first and reported on the second.
"""

import argparse
import io
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from make_gallery import run_once
from PIL import Image, ImageFilter
from study_summary import read_results
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pgc3d.evaluation.image_metrics import speckle
from pgc3d.evaluation.items import Item, read_items
from pgc3d.evaluation.protocol import Protocol
from pgc3d.evaluation.render import render_views
from pgc3d.evaluation.results import bootstrap, interval
from pgc3d.evaluation.retrieval import Retriever, load_retriever
from pgc3d.exporting.roundtrip import comparison_views, render_asset
from pgc3d.exporting.turntable import tile
from pgc3d.geometry.own_uv import uv_coverage
from pgc3d.images import psnr, to_bytes
from pgc3d.inputs.mesh import prepare_mesh_file
from pgc3d.inputs.source_texture import SourceRequest, prepare_sources
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.mesh_file import read_mesh, write_mesh
from pgc3d.mini import clip_model
from pgc3d.rendering import build_rasterizer

CPU = torch.device("cpu")
RASTERIZER = build_rasterizer("cpu", CPU)
COUNT = 20  # models of each part
MAX_FACES = 20_000  # of a model, so that its atlas takes seconds
RESOLUTION = 256  # of compared images
METRICS = ("psnr", "texel_psnr", "r_precision", "similarity")


def blur(image: Image.Image) -> Image.Image:
    """A Gaussian of 1/128 of the side."""
    return image.filter(ImageFilter.GaussianBlur(image.width / 128))


def jpeg(image: Image.Image) -> Image.Image:
    """JPEG of quality 5."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=5)
    return Image.open(stream).convert("RGB")


def noise(image: Image.Image) -> Image.Image:
    """Gaussian noise with a standard deviation of 0.1, independent for each channel of each texel."""
    values = np.asarray(image) + 25.5 * np.random.default_rng(0).standard_normal(np.asarray(image).shape)
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def low_resolution(image: Image.Image) -> Image.Image:
    """A tenth of the texels along each side, enlarged again."""
    small = image.resize((image.width // 10, image.height // 10), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


DEGRADATIONS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "blur": blur,
    "jpeg": jpeg,
    "noise": noise,
    "low_resolution": low_resolution,
}


@dataclass(frozen=True)
class Job:
    """A model and what is done to its texture."""

    item: Item
    degradation: str
    folder: Path

    @property
    def clean(self) -> Path:
        """The model with its clean texture."""
        return self.folder / "clean.glb"

    @property
    def degraded(self) -> Path:
        """The model with the degraded one."""
        return self.folder / f"{self.degradation}.glb"


def jobs(items: Sequence[Item], out: Path, part: str) -> Iterator[Job]:
    """The jobs of a part, the degradations in turn.

    Models of one colour have nothing to degrade: both parts are drawn from those with most detail.
    """
    listed = out / "detail.json"
    if not listed.exists():
        out.mkdir(parents=True, exist_ok=True)
        listed.write_text(json.dumps({item.name: detail(item) for item in items}))
    found = json.loads(listed.read_text())
    fitting = sorted(items, key=lambda item: found[item.name])[-2 * COUNT :]
    random.Random(0).shuffle(fitting)
    chosen = fitting[:COUNT] if part == "report" else fitting[COUNT:]
    names = list(DEGRADATIONS)
    for index, item in enumerate(chosen):
        yield Job(item, names[index % len(names)], out / "items" / item.name)


def detail(item: Item) -> float:
    """Mean absolute Laplacian of a model's unlit renders; 0 for one without or with too many faces."""
    asset = None if item.truth is None else read_mesh(item.truth)
    if asset is None or len(asset.faces) > MAX_FACES:
        return 0.0
    images, alpha = unlit(asset)
    return float(speckle(images, alpha > 0.99).mean())


def write_models(job: Job, size: int) -> None:
    """Write the clean and the degraded model of a job, where they are missing."""
    if not job.clean.exists():
        assert job.item.truth is not None
        prepared = prepare_mesh_file(
            job.item.truth, up="+y", front="auto", crease_degrees=40.0, texture_size=size,
            rasterizer=RASTERIZER, uv="new",
        )  # fmt: skip
        (source,) = prepare_sources(
            job.item.truth, prepared, SourceRequest(sampled=size), rasterizer=RASTERIZER
        )
        job.folder.mkdir(parents=True, exist_ok=True)
        asset = MeshAsset(
            prepared.vertices, prepared.faces, prepared.normals, normal_faces=prepared.normal_faces,
            uv=prepared.uv, uv_faces=prepared.uv_faces, base_color=source.image,
        )  # fmt: skip
        write_mesh(job.clean, asset, "glb")
    if not job.degraded.exists():
        asset = read_mesh(job.clean)
        assert asset.base_color is not None
        image = DEGRADATIONS[job.degradation](Image.fromarray(asset.base_color.numpy()))
        write_mesh(job.degraded, with_image(asset, torch.from_numpy(np.array(image))), "glb")


def with_image(asset: MeshAsset, image: UInt8[Tensor, "H W 3"]) -> MeshAsset:
    """The same mesh with another texture."""
    values = {name: value for name, value in vars(asset).items() if name != "base_color"}
    return MeshAsset(**values, base_color=image)


@cache
def retriever() -> Retriever:
    """The bundled one."""
    return load_retriever(clip_model(), CPU)


def unlit(asset: MeshAsset) -> tuple[Float[Tensor, "B H W 3"], Float[Tensor, "B H W 1"]]:
    """Renders of the base colours with four samples a pixel, and the coverage."""
    cameras, background = comparison_views(CPU)
    rendered = render_asset(
        asset, cameras, 2 * RESOLUTION, background=background, rasterizer=RASTERIZER, shading=False
    )
    both = torch.cat([rendered.color, rendered.alpha], dim=-1).permute(0, 3, 1, 2)
    pooled = avg_pool2d(both, 2).permute(0, 2, 3, 1)
    return pooled[..., :3], pooled[..., 3:]


def measure(result: Path, job: Job) -> dict[str, float]:
    """Comparison with the clean model and with the caption.

    PSNR of renders without shading and of texels, over the surface; R-precision and the mean cosine between
    renders and the caption, of the bundled CLIP.
    """
    found, truth, text = read_mesh(result), read_mesh(job.clean), job.item.description.lower()
    (shown, _), (expected, alpha) = unlit(found), unlit(truth)
    image, reference, inside = (values.flatten(0, 1)[None] for values in (shown, expected, alpha > 0))
    prepared = prepare_mesh_file(
        job.clean,
        up="+y",
        front="auto",
        crease_degrees=40.0,
        texture_size=64,
        rasterizer=RASTERIZER,
        uv="own",
    )
    assert found.base_color is not None
    assert truth.base_color is not None
    covered = uv_coverage(prepared, 0, len(truth.base_color), RASTERIZER) > 0
    own, clean = (asset.base_color[None].float() / 255 for asset in (found, truth))  # type: ignore[index]
    images = render_views(found, Protocol().novel_cameras(), RESOLUTION, rasterizer=RASTERIZER).color
    return {
        "psnr": float(psnr(image, reference, inside)),
        "texel_psnr": float(psnr(own, clean, covered[None, ..., None])),
        "r_precision": retriever().r_precision(images, text, ()),
        "similarity": float((retriever().embed_images(images) @ retriever().embed_texts([text]).T).mean()),
    }


def run(job: Job, out: Path, options: Sequence[str], size: int) -> dict[str, Any]:
    """The result line of a job."""
    write_models(job, size)
    folder = out / "runs" / f"{job.item.name}-{job.degradation}"
    begin = time.monotonic()
    arguments = ["texture", str(job.degraded), job.item.description, "--refine", "--uv", "own"]
    run_once(folder, [*arguments, "--guidance", "mini", *options])
    seconds = time.monotonic() - begin
    return {
        "item": job.item.name,
        "degradation": job.degradation,
        "seconds": seconds,
        "before": measure(job.degraded, job),
        "after": measure(folder / "asset.glb", job),
    }


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """Means before and after, and the paired difference, each with a 95 % bootstrap interval over models."""
    rows = [
        "| degradation | metric | models | before | after | after - before |",
        "|---|---|---|---|---|---|",
    ]
    kinds = ["all", *dict.fromkeys(line["degradation"] for line in lines)]
    for kind in kinds:
        own = [line for line in lines if kind in {"all", line["degradation"]}]
        for metric in METRICS:
            before, after = ([np.array([line[when][metric]]) for line in own] for when in ("before", "after"))
            change = [late - early for early, late in zip(before, after, strict=True)]
            cells = []
            for table in (before, after, change):
                low, high = interval(bootstrap([table])[:, 0])
                cells.append(f"{np.mean(table):.2f} [{low:.2f}, {high:.2f}]")
            rows.append(f"| {kind} | {metric} | {len(own)} | {' | '.join(cells)} |")
    seconds = [line["seconds"] for line in lines]
    return "\n".join(
        [*rows, "", f"seconds of a run: median {np.median(seconds):.0f}, most {max(seconds):.0f}"]
    )


def sheet(lines: Sequence[Mapping[str, Any]], out: Path, path: Path) -> None:
    """One row of images for each model: clean, degraded and refined, in two views."""
    cells, labels = [], []
    for line in lines:
        folder, kind = out / "items" / line["item"], line["degradation"]
        made = out / "runs" / f"{line['item']}-{kind}"
        files = (folder / "clean.glb", folder / f"{kind}.glb", made / "asset.glb")
        cameras, background = comparison_views(CPU)
        for file, label in zip(files, (line["item"], kind, "refined"), strict=True):
            rendered = render_asset(
                read_mesh(file), cameras[:2], RESOLUTION, background=background[:2], rasterizer=RASTERIZER,
                shading=False,
            )  # fmt: skip
            cells.append(to_bytes(torch.cat(list(rendered.color), dim=1)))
            labels.append(label)
    Image.fromarray(tile(cells, 3, labels).numpy()).save(path, quality=88)


def main() -> None:
    """Command line; unknown options go to `pgc3d texture`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", choices=("report", "tune"), default="report")
    parser.add_argument("--size", type=int, default=512, help="side of the textures in pixels")
    parser.add_argument("--limit", type=int, default=None, help="run only so many models")
    parser.add_argument("--shard", default="0/1", help="I/N: every Nth job from I on, for N processes")
    parser.add_argument("--summary", action="store_true", help="only print the table of what is done")
    parser.add_argument("--sheet", type=Path, help="write images before and after")
    arguments, options = parser.parse_known_args()
    results = arguments.out / "results.jsonl"
    if not arguments.summary:
        done = {(line["item"], line["degradation"]) for line in read_results(results)}
        chosen = list(jobs(read_items(arguments.items), arguments.out, arguments.part))
        first, count = map(int, arguments.shard.split("/"))
        for job in chosen[: arguments.limit][first::count]:
            if (job.item.name, job.degradation) not in done:
                line = run(job, arguments.out, options, arguments.size)
                with results.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
    lines = read_results(results)
    print(summary(lines))
    if arguments.sheet is not None:
        sheet(lines, arguments.out, arguments.sheet)


if __name__ == "__main__":
    main()
