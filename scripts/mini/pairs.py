"""Input pictures and other views of the same objects, as latents in the memory of one device."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from framing import random_directions, view_groups
from jaxtyping import Float, UInt8
from store import Rendered, composite, posterior, render_split
from torch import Tensor
from views import Model, stretch

from pgc3d.interfaces import Rasterizer
from pgc3d.types import Cameras

STRETCH = 0.25  # largest natural logarithm of a random factor along an axis


@dataclass(frozen=True)
class PairStore:
    """N groups of K views on white; the first view of each is the input picture."""

    weight: Float[Tensor, " N"]  # how often a group is drawn, relative to others
    picture: UInt8[Tensor, "N 3 H W"]  # the input, sRGB
    mean: Float[Tensor, "N K 4 h w"]  # posterior moments of all views
    std: Float[Tensor, "N K 4 h w"]
    azimuth: Float[Tensor, "N K"]  # radians
    elevation: Float[Tensor, "N K"]


@dataclass(frozen=True)
class PairSettings:
    """What decides which pictures a process makes."""

    shapes: int  # each model as it is, then stretched and half of the time mirrored
    conditions: int  # input views of each shape
    targets: int  # other views that belong to each of them
    paints: int  # colours of each model, besides its own and wood
    resolution: int
    seed: int
    limit: int | None  # use only so many models


def random_stretch(model: Model, generator: torch.Generator) -> Model:
    """A new shape: few models must teach what many would."""
    factors = torch.empty(3).uniform_(-STRETCH, STRETCH, generator=generator).exp()
    factors[0] *= 1.0 if torch.rand((), generator=generator) < 0.5 else -1.0
    return stretch(model, factors.to(model.vertices))


def build_pairs(folder: Path, settings: PairSettings, vae: Any, rasterizer: Rasterizer) -> PairStore:
    """Render and encode the training models; every group is framed in its own input view."""
    device = next(vae.parameters()).device
    generator = torch.Generator().manual_seed(settings.seed)
    white = torch.ones(1, 3, device=device)
    views = 1 + settings.targets

    def cameras(model: Model) -> Cameras:
        azimuth, elevation = random_directions(settings.conditions, settings.targets, generator)
        return view_groups(model.vertices, azimuth.to(device), elevation.to(device))

    def render(number: int) -> Iterator[Rendered]:
        return render_split(
            folder, "train", cameras=cameras, paints=settings.paints, resolution=settings.resolution,
            rasterizer=rasterizer, device=device, generator=generator, limit=settings.limit,
            reshape=lambda model: random_stretch(model, generator) if number else model,
        )  # fmt: skip

    weights, pictures, means, deviations, azimuths, elevations = [], [], [], [], [], []
    for rendered in chain.from_iterable(map(render, range(settings.shapes))):
        for pair, images in zip(rendered.pairs, rendered.images, strict=True):
            image = composite(images, white)
            mean, deviation = posterior(vae, image)
            weights += [pair.weight] * settings.conditions
            pictures.append((image[::views] * 255).round().to(torch.uint8))
            means.append(mean.reshape(-1, views, *mean.shape[1:]))
            deviations.append(deviation.reshape(-1, views, *mean.shape[1:]))
            azimuths.append(rendered.cameras.azimuth.reshape(-1, views))
            elevations.append(rendered.cameras.elevation.reshape(-1, views))
    return PairStore(
        torch.tensor(weights, device=device), torch.cat(pictures), torch.cat(means), torch.cat(deviations),
        torch.cat(azimuths), torch.cat(elevations),
    )  # fmt: skip


def keep_pairs(
    path: Path, folder: Path, settings: PairSettings, vae: Any, rasterizer: Rasterizer
) -> PairStore:
    """The pairs in a file, or new ones that are written to it, for calls to come.

    Raises:
        ValueError: the file holds pairs of other settings.
    """
    if path.exists():
        held = torch.load(path, map_location=next(vae.parameters()).device, weights_only=True)
        if held["settings"] != asdict(settings):
            raise ValueError(f"{path} must hold pairs of {settings}, got {held['settings']}; remove it")
        return PairStore(**held["pairs"])
    pairs = build_pairs(folder, settings, vae, rasterizer)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {"settings": asdict(settings), "pairs": vars(pairs)}
    torch.save(held, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
    return pairs
