"""Groups of views of the same objects, as images and latents in the memory of one device.

Every view of a group is the input image for all others, as far as it could be one. So eight views give up
to 64 pairs, which are harder to learn by heart: with one input image a group, an early training came to a
loss of 0.06 on its pairs and 0.12 on new views of the same objects.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from framing import is_input, random_directions, view_groups
from jaxtyping import Bool, Float, UInt8
from store import Rendered, composite, posterior, render_split
from torch import Tensor
from views import Model, stretch

from pgc3d.interfaces import Rasterizer
from pgc3d.types import Cameras

STRETCH = 0.25  # largest natural logarithm of a random factor along an axis


@dataclass(frozen=True)
class PairStore:
    """N groups of K views on white; all cameras of a group fit to its first view, which is framed."""

    weight: Float[Tensor, " N"]  # how often a group is drawn, relative to others
    image: UInt8[Tensor, "N K 3 H W"]  # sRGB
    is_input: Bool[Tensor, "N K"]  # at least the first
    mean: Float[Tensor, "N K 4 h w"]  # posterior moments
    std: Float[Tensor, "N K 4 h w"]
    azimuth: Float[Tensor, "N K"]  # radians
    elevation: Float[Tensor, "N K"]


@dataclass(frozen=True)
class PairSettings:
    """What decides which images a process makes."""

    shapes: int  # each model as it is, then stretched and half of the time mirrored, in turn
    views: int  # of each shape, one group
    recolors: int  # colours of each model, besides its own and wood
    resolution: int
    seed: int
    limit: int | None  # use only so many models


def random_stretch(model: Model, generator: torch.Generator) -> Model:
    """A new shape: few models must teach what many would."""
    factors = torch.empty(3).uniform_(-STRETCH, STRETCH, generator=generator).exp()
    factors[0] *= 1.0 if torch.rand((), generator=generator) < 0.5 else -1.0
    return stretch(model, factors.to(model.vertices))


def build_pairs(folder: Path, settings: PairSettings, vae: Any, rasterizer: Rasterizer) -> PairStore:
    """Render and encode the training models; the same settings give the same images."""
    device = next(vae.parameters()).device
    generator = torch.Generator().manual_seed(settings.seed)

    def cameras(model: Model) -> Cameras:
        azimuth, elevation = random_directions(settings.views, generator)
        return view_groups(model.vertices, azimuth.to(device), elevation.to(device))

    def render(number: int) -> Iterator[Rendered]:
        return render_split(
            folder, "train", cameras=cameras, recolors=settings.recolors, resolution=settings.resolution,
            rasterizer=rasterizer, device=device, generator=generator, limit=settings.limit,
            reshape=lambda model: random_stretch(model, generator) if number % 2 else model,
        )  # fmt: skip

    shapes = chain.from_iterable(map(render, range(settings.shapes)))
    stores = [encode(rendered, vae) for rendered in shapes]
    return PairStore(**{name: torch.cat([vars(store)[name] for store in stores]) for name in vars(stores[0])})


def encode(rendered: Rendered, vae: Any) -> PairStore:
    """The views of a shape, a group for each of its colours."""
    images, cameras = rendered.images, rendered.cameras
    image = composite(images.flatten(0, 1), torch.ones(1, 3, device=images.device))
    mean, deviation = posterior(vae, image)
    elevation = cameras.elevation.repeat(len(images))
    usable = is_input(image, elevation).reshape(len(images), -1)
    usable[:, 0] = True

    def groups(values: Tensor) -> Tensor:
        return values.reshape(len(images), -1, *values.shape[1:])

    return PairStore(
        weight=torch.tensor([pair.weight for pair in rendered.pairs], device=images.device),
        image=groups((image * 255).round().to(torch.uint8)),
        is_input=usable,
        mean=groups(mean),
        std=groups(deviation),
        azimuth=groups(cameras.azimuth.repeat(len(images))),
        elevation=groups(elevation),
    )
