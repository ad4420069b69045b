"""The source texture of a run while colours are optimised: where it stays, and how far they may leave it.

With the source s, the mask m in [0, 1], the bound b and the colours x of a texture, what is rendered is
s + m clamp(x - s, -b, b). The gradient of x is thus multiplied by m, and where m is 0 the source is shown.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from pgc3d.rendering.mipmap import mip_chain
from pgc3d.representation.image_places import ImagePlaces
from pgc3d.types import SourceTexture

PIXELS = 256**2  # of renders with whose gradients a weight of the low frequencies is comparable
SIZES = (64, 4096)  # of an image of texels


def power_of_two(source: SourceTexture) -> int:
    """Side of the smallest square of texels that holds a source, between those of `SIZES`."""
    longest = max(source.image.shape[:2])
    return min(max(1 << (longest - 1).bit_length(), SIZES[0]), SIZES[1])


class Refinement(nn.Module):
    """A source texture on a square of S texels, S a power of two, with the mask and the bound of a change."""

    image: Float[Tensor, "S S 3"]
    painted: Float[Tensor, "S S 1"]
    chain: Float[Tensor, "N 4"]
    source: SourceTexture
    bound: float
    keep: float
    cells: int

    def __init__(
        self,
        source: SourceTexture,
        weight: Float[Tensor, "S S"],
        *,
        bound: float,
        keep: float = 0.0,
        cells: int = 32,
    ) -> None:
        """Resample a source to the size of `weight`: Pillow's bicubic filter; its box filter for a mask.

        Args:
            source: of any size.
            weight: of the texels in means, positive, on the device; see `mip_chain`.
            bound: largest change of a channel, in [0, 1].
            keep: weight of the low frequencies of a change.
            cells: along a side of the texture, whose means are the low frequencies.
        """
        super().__init__()
        size = len(weight)
        mask = torch.ones(size, size) if source.mask is None else _resized(source.mask, size) / 255
        image = (_resized(source.image, size) / 255).to(weight.device)
        painted = mask[..., None].to(weight.device)
        self.source = source
        self.bound, self.keep, self.cells = bound, keep, min(cells, size)
        self.register_buffer("image", image, persistent=False)
        self.register_buffer("painted", painted, persistent=False)
        both = mip_chain(torch.cat([image, painted], dim=-1), weight)
        self.register_buffer("chain", both, persistent=False)

    def limited(
        self, values: Float[Tensor, "P C"], source: Float[Tensor, "P 3"], painted: Float[Tensor, "P 1"]
    ) -> Float[Tensor, "P C"]:
        """The channels `values` of a texture where the source and the mask are as given.

        The bound is one of the base colour, the first three channels; the others are as they are.
        """
        change = painted * (values[:, :3] - source).clamp(-self.bound, self.bound)
        return torch.cat([source + change, values[:, 3:]], dim=1)

    def texels(self, image: Float[Tensor, "S S C"]) -> Float[Tensor, "S S C"]:
        """`limited` at every texel."""
        flat = self.limited(image.flatten(0, 1), self.image.flatten(0, 1), self.painted.flatten(0, 1))
        return flat.view_as(image)

    @torch.no_grad()
    def clamp(self, image: Float[Tensor, "S S C"]) -> None:
        """Bound the change of an image of texels, in place."""
        color = image[..., :3]
        color.copy_(torch.maximum(torch.minimum(color, self.image + self.bound), self.image - self.bound))

    def low_frequencies(
        self, image: Float[Tensor, "S S C"], weight: Float[Tensor, "S S"]
    ) -> Float[Tensor, ""]:
        """The sum over the texture's cells c of keep 256^2 w_c |mean_c(m (x - s))|^2; all w_c add up to 1.

        Only texels that have changed have a gradient, so that one which no image shows stays as it is.
        """
        change = self.painted * (image[..., :3] - self.image)
        moved = (change.detach() != 0).any(dim=-1, keepdim=True)
        change = torch.where(moved, change, 0.0).permute(2, 0, 1)[None]
        side = len(image) // self.cells
        share = avg_pool2d(weight[None, None], side)
        means = avg_pool2d(change * weight, side) / share
        return self.keep * PIXELS * (share / share.sum() * means.square()).sum()


class Refinements(nn.Module):
    """The refinements of K texture sets."""

    def __init__(self, parts: Sequence[Refinement], *, repeats: Sequence[bool]) -> None:
        """Hold those of the sets in their order; `repeats` are the sets whose images repeat."""
        super().__init__()
        self.parts = tuple(parts)
        self.modules_of_parts = nn.ModuleList(parts)
        self.places = ImagePlaces([len(part.image) for part in parts], repeats=repeats)

    @property
    def keep(self) -> float:
        """Weight of the low frequencies of a change."""
        return self.parts[0].keep

    def source(
        self, sets: Int[Tensor, " P"], uv: Float[Tensor, "P 2"], level: Float[Tensor, " P"]
    ) -> Float[Tensor, "P 4"]:
        """The sources and the mask at texture coordinates of sets, filtered to mip levels."""
        return self.places.sample(torch.cat([part.chain for part in self.parts]), sets, uv, level)

    def at(
        self,
        values: Float[Tensor, "P C"],
        sets: Int[Tensor, " P"],
        uv: Float[Tensor, "P 2"],
        level: Float[Tensor, " P"],
    ) -> Float[Tensor, "P C"]:
        """`Refinement.limited` at texture coordinates of sets."""
        sampled = self.source(sets, uv, level)
        return self.parts[0].limited(values, sampled[:, :3], sampled[:, 3:])

    def low_frequencies(
        self, images: Sequence[Float[Tensor, "_ _ C"]], weights: Sequence[Float[Tensor, "_ _"]]
    ) -> Float[Tensor, ""]:
        """`Refinement.low_frequencies` over the cells of all sets."""
        sums = torch.stack([weight.sum() for weight in weights])
        losses = [
            part.low_frequencies(image, weight)
            for part, image, weight in zip(self.parts, images, weights, strict=True)
        ]
        return (sums / sums.sum() * torch.stack(losses)).sum()


def _resized(pixels: Tensor, size: int) -> Float[Tensor, "S S *C"]:
    """Pixels in a square of another size: colours with a bicubic filter, a mask by means of areas."""
    image = Image.fromarray(pixels.cpu().numpy())
    if image.size == (size, size):
        return pixels.float().cpu()
    method = Image.Resampling.BICUBIC if pixels.ndim == 3 else Image.Resampling.BOX
    return torch.from_numpy(np.array(image.resize((size, size), method))).float()
