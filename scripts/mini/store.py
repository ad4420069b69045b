"""All training views in the memory of one device."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from captions import VIEWS, Variant, variants
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm
from views import Model, Recolor, load_index, load_model, random_cameras, render_model

from pgc3d.interfaces import Rasterizer
from pgc3d.types import Cameras


@dataclass(frozen=True)
class Pair:
    """A model in one of its colours."""

    record: dict[str, Any]
    variant: Variant
    weight: float  # how often one of its views is drawn, relative to others


@dataclass(frozen=True)
class ViewStore:
    """N views of P pairs."""

    pairs: list[Pair]
    images: UInt8[Tensor, "N H W 4"]  # sRGB, premultiplied by alpha
    pair: Int[Tensor, " N"]  # into pairs
    azimuth: Float[Tensor, " N"]  # radians
    elevation: Float[Tensor, " N"]

    def weights(self) -> Float[Tensor, " N"]:
        """How often each view is drawn: rarer classes more, own colours about as often as all others."""
        table = torch.tensor([pair.weight for pair in self.pairs], device=self.pair.device)
        return table[self.pair]


@dataclass(frozen=True)
class Rendered:
    """One model in P colours from B cameras."""

    pairs: list[Pair]
    images: UInt8[Tensor, "P B H W 4"]  # sRGB, premultiplied by alpha
    cameras: Cameras
    model: Model


def render_split(  # noqa: PLR0913 - flat on purpose
    folder: Path,
    split: str,
    *,
    cameras: Callable[[Model], Cameras],
    recolors: int,
    resolution: int,
    rasterizer: Rasterizer,
    device: torch.device,
    generator: torch.Generator,
    limit: int | None = None,
    reshape: Callable[[Model], Model] = lambda model: model,
) -> Iterator[Rendered]:
    """Render the models of a split one by one, in their own and other colours, each from the same cameras.

    Args:
        folder: what `build_dataset.py` wrote.
        split: `train` or `test`.
        cameras: of the views of a model.
        recolors: number of colours for each model, besides its own and wood; always the same, so that all
            processes have the same pairs.
        resolution: side of the images in pixels.
        rasterizer: used at twice the resolution.
        device: where models and images are.
        generator: of the CPU, splits the transparent parts of a model.
        limit: use only so many models.
        reshape: makes what is rendered of a model that was read.
    """
    records = [record for record in load_index(folder) if record["split"] == split][:limit]
    counts: dict[str, int] = {}
    for record in records:
        counts[record["cls"]] = counts.get(record["cls"], 0) + 1
    words = random.Random(0)
    for record in tqdm(records, desc=f"rendering {split}", mininterval=5):
        model = reshape(load_model(folder, record, device))
        paintings = variants(record, recolors, words)
        major = _major_materials(model)
        views = cameras(model)
        images = render_model(
            model, views, resolution, rasterizer,
            [None if v.rgb is None else Recolor(major, v.rgb, v.grain) for v in paintings], generator,
        )  # fmt: skip
        rarity = counts[record["cls"]] ** -0.5 if record["cls"] != "other" else 0.35
        rest = 0.55 / max(1, len(paintings) - 1)
        portions = [1.0] if len(paintings) == 1 else [0.45] + [rest] * (len(paintings) - 1)
        pairs = [Pair(record, v, rarity * part) for v, part in zip(paintings, portions, strict=True)]
        yield Rendered(pairs, images, views, model)


def build_store(  # noqa: PLR0913 - flat on purpose
    folder: Path,
    split: str,
    *,
    views: int,
    recolors: int,
    resolution: int,
    seed: int,
    rasterizer: Rasterizer,
    device: torch.device,
    limit: int | None = None,
) -> ViewStore:
    """Render every model of a split from random cameras and keep all images; see `render_split`.

    Args:
        folder: what `build_dataset.py` wrote.
        split: `train` or `test`.
        views: cameras for each model.
        recolors: number of colours for each model, besides its own and wood.
        resolution: side of the images in pixels.
        seed: of the cameras.
        rasterizer: used at twice the resolution.
        device: where everything stays: views * variants * 4 * resolution^2 bytes for each model.
        limit: use only so many models.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs: list[Pair] = []
    images, numbers, azimuths, elevations = [], [], [], []
    for rendered in render_split(
        folder, split, cameras=lambda _: random_cameras(views, generator, device), recolors=recolors,
        resolution=resolution, rasterizer=rasterizer, device=device, generator=generator, limit=limit,
    ):  # fmt: skip
        for pair, picture in zip(rendered.pairs, rendered.images, strict=True):
            numbers.append(torch.full((views,), len(pairs), device=device))
            pairs.append(pair)
            images.append(picture)
            azimuths.append(rendered.cameras.azimuth)
            elevations.append(rendered.cameras.elevation)
    return ViewStore(pairs, torch.cat(images), torch.cat(numbers), torch.cat(azimuths), torch.cat(elevations))


def _major_materials(model: Model) -> Int[Tensor, " K"]:
    """The largest materials, as many as it takes to cover 60 % of the surface."""
    corners = model.vertices[model.faces.long()]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1)
    share = area.new_zeros(len(model.material_color)).index_add_(0, model.face_material, area)
    order: Tensor = share.argsort(descending=True)
    return order[: int((share[order].cumsum(0) < 0.6 * share.sum()).sum()) + 1]


def composite(images: UInt8[Tensor, "B H W 4"], background: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 H W"]:
    """Put premultiplied images on plain backgrounds; sRGB in [0, 1]."""
    rgba = images.permute(0, 3, 1, 2).float() / 255
    return rgba[:, :3] + (1 - rgba[:, 3:]) * background[:, :, None, None]


def named_backgrounds(device: torch.device) -> Float[Tensor, "K 3"]:
    """The backgrounds that have a name in the captions."""
    return torch.tensor(list(VIEWS.backgrounds.values()), device=device)


@torch.no_grad()
def posterior(vae: Any, image: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the autoencoder's posterior, float16 [B, 4, h, w]; `image` is sRGB in [0, 1]."""
    device = image.device
    pixels = (image * 2 - 1).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        moments = vae.quant_conv(vae.encoder(pixels))
    mean, logvar = moments.float().chunk(2, 1)
    return mean.half(), (0.5 * logvar).exp().half()
