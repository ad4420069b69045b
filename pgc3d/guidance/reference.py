"""The reference view: the difference between the input image and the rendering from its camera."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from pgc3d.context import GuidanceContext
from pgc3d.images import resize
from pgc3d.ranges import MAX_WEIGHT, check, number
from pgc3d.requirements import Requirements
from pgc3d.types import Buffer, Cameras, GuidanceOutput, Rendering, Step, Views

LEAST_DEVIATION = 1e-3  # of inverse depths, in inverse world units: a plane that faces the camera has none
LEAST_LENGTH = 1e-2  # of an antialiased normal
SIDE = 256  # pixels a side of the image over which the weights' sums are stated


@dataclass(frozen=True)
class ReferenceConfig:
    """Weights of differences, summed over an image of `SIDE` pixels a side; maps count where they are given.

    The sum does not depend on the rendering's resolution, so that the balance with other guidances, whose
    gradients are stated at their model's resolution, does not either.
    """

    kind: Literal["reference"] = "reference"
    color: float = number(0.5, 0.0, MAX_WEIGHT)  # squared, sRGB, on the object's pixels
    mask: float = number(0.2, 0.0, MAX_WEIGHT)  # squared, coverage
    # 1 - correlation of inverse depths, times the object's pixels
    depth: float = number(0.02, 0.0, MAX_WEIGHT)
    normal: float = number(0.02, 0.0, MAX_WEIGHT)  # 1 - cosine, on the object's pixels

    def __post_init__(self) -> None:
        check(self)

    def requires(self) -> Requirements:
        """An input image and its camera; its maps where they have a weight."""
        maps = {"depth": self.depth, "normal": self.normal}
        return Requirements(
            inputs=frozenset({"image"}),
            accepts=frozenset(name for name, weight in maps.items() if weight > 0),
            reference_view=True,
        )

    def input_resolution(self, rendered: int, model: int) -> int:
        """The rendering's own side in pixels."""
        return rendered

    def build(self, context: GuidanceContext) -> "ReferenceView":
        """The loss against the input image and the maps that were given."""
        return ReferenceView(
            photo=context.image(),
            depth_map=context.map("depth") if self.depth else None,
            normal_map=context.map("normal") if self.normal else None,
            color=self.color,
            mask=self.mask,
            depth=self.depth,
            normal=self.normal,
        )


@dataclass(frozen=True)
class _Wanted:
    """The picture and its maps at one resolution."""

    photo: Float[Tensor, "1 s s 4"]
    share: Float[Tensor, "1 s s 1"]  # of a pixel that lies on the object
    depth: Float[Tensor, "1 s s 1"] | None
    normal: Float[Tensor, "1 s s 3"] | None


class ReferenceView:
    """The loss of a view against the input image; an `interfaces.Guidance`."""

    def __init__(
        self,
        *,
        photo: Float[Tensor, "S S 4"],
        depth_map: Float[Tensor, "S S 1"] | None = None,
        normal_map: Float[Tensor, "S S 3"] | None = None,
        color: float = 0.5,
        mask: float = 0.2,
        depth: float = 0.02,
        normal: float = 0.02,
    ) -> None:
        """Hold the picture on the device.

        Args:
            photo: the object alone, RGBA in [0, 1], colours premultiplied.
            depth_map: its inverse depth, near is large; scale and shift are unknown.
            normal_map: its normals in camera space, x right, y up, z to the viewer.
            color: weight of the squared difference of colours.
            mask: weight of the squared difference of alpha.
            depth: weight of `depth_disagreement`.
            normal: weight of `normal_disagreement`.
        """
        self.photo, self.depth_map, self.normal_map = photo, depth_map, normal_map
        self.color, self.mask, self.depth, self.normal = color, mask, depth, normal
        self._sizes: dict[int, _Wanted] = {}

    def input_resolution(self, rendered: int) -> int:
        """The rendering's own: the input image is resized to it."""
        return rendered

    def __call__(
        self, image: Float[Tensor, "B H W 3"], rendering: Rendering, views: Views, step: Step
    ) -> GuidanceOutput:
        """Compare views from the input image's camera with it, over the same background.

        color * sum alpha |image - input|^2 + mask * sum (coverage - alpha)^2 with the input's alpha, over all
        pixels, and the weighted disagreements with the maps that there are, on pixels that both show the
        object; all of it times (`SIDE` / resolution)^2. The gradients of all terms but the first are those of
        the buffer that the term compares.
        """
        scale = (SIDE / image.shape[1]) ** 2
        wanted = self._at(image.shape[1])
        alpha = wanted.photo[..., 3:]
        background = rendering.background[:, None, None]
        difference = image - (wanted.photo[..., :3] + (1.0 - alpha) * background)
        excess = rendering.alpha.detach() - alpha
        losses = {
            "loss_color": scale * self.color * (alpha * difference.square()).sum(),
            "loss_mask": scale * self.mask * excess.square().sum(),
        }
        buffers: dict[Buffer, Tensor] = {"alpha": 2.0 * scale * self.mask * excess}
        for name, disagreement in self._disagreements(wanted, rendering, views.cameras).items():
            loss, gradient = _differentiate(disagreement, getattr(rendering, name))
            losses[f"loss_{name}"], buffers[name] = scale * loss, scale * gradient
        gradient = 2.0 * scale * self.color * alpha * difference
        return GuidanceOutput(gradient=gradient, buffers=buffers, metrics=losses)

    def _disagreements(
        self, wanted: _Wanted, rendering: Rendering, cameras: Cameras
    ) -> dict[Buffer, Callable[[Tensor], Float[Tensor, ""]]]:
        """The weighted terms of the maps, each a function of its layer."""
        weight = wanted.share * rendering.alpha.detach()
        terms: dict[Buffer, Callable[[Tensor], Float[Tensor, ""]]] = {}
        if (depth := wanted.depth) is not None:
            terms["depth"] = lambda layer: self.depth * depth_disagreement(layer, depth, weight)
        if wanted.normal is not None:
            rotation = cameras.camera_from_world[:, None, :3, :3]
            normal = wanted.normal @ rotation  # rows times camera_from_world: from the camera to the world
            terms["normal"] = lambda layer: self.normal * normal_disagreement(layer, normal, weight)
        return terms

    def _at(self, side: int) -> _Wanted:
        if side not in self._sizes:
            inside = (self.photo[None, ..., 3:] > 0.5).to(self.photo.dtype)
            share = resize(inside, side)

            def within(values: Tensor | None) -> Tensor | None:
                """Means over the object's part of each pixel; a map says nothing outside."""
                return None if values is None else resize(values[None] * inside, side) / share.clamp(min=1e-6)

            self._sizes[side] = _Wanted(
                photo=resize(self.photo[None], side),
                share=share,
                depth=within(self.depth_map),
                normal=within(self.normal_map),
            )
        return self._sizes[side]


def depth_disagreement(
    depth: Float[Tensor, "B H W 1"], inverse: Float[Tensor, "1 H W 1"], weight: Float[Tensor, "B H W 1"]
) -> Float[Tensor, ""]:
    """Sum over the views of n (1 - r) with Pearson's correlation r of inverse depths, n the sum of weights.

    A map of unknown scale and shift fixes no more than r. A correlation of relative depths is the depth term
    of Magic123 (arXiv 2306.17843).

    Args:
        depth: of a rendering, 0 where nothing was hit.
        inverse: wanted inverse depth, up to scale and shift.
        weight: of the pixels; those that were not hit count nothing.
    """
    hit = depth.detach() > 0
    weight = weight * hit
    total = weight.sum((1, 2, 3), keepdim=True)

    def center(values: Tensor) -> Tensor:
        return values - (weight * values).sum((1, 2, 3), keepdim=True) / total.clamp(min=1e-6)

    def deviation(values: Tensor, least: float) -> Tensor:
        variance = (weight * values.square()).sum((1, 2, 3), keepdim=True) / total.clamp(min=1e-6)
        return variance.clamp(min=least**2).sqrt()

    found, wanted = center(torch.where(hit, depth, 1.0).reciprocal()), center(inverse)
    product = (weight * found * wanted).sum((1, 2, 3), keepdim=True)
    return (total - product / deviation(found, LEAST_DEVIATION) / deviation(wanted, 1e-9)).sum()


def normal_disagreement(
    normal: Float[Tensor, "B H W 3"], wanted: Float[Tensor, "B H W 3"], weight: Float[Tensor, "B H W 1"]
) -> Float[Tensor, ""]:
    """Weighted sum of 1 - cosine between normals; where a map has none there is no pull.

    Args:
        normal: of a rendering, (n + 1) / 2; shorter along silhouettes, where its length says nothing.
        wanted: directions in the same space, of any length.
        weight: of the pixels.
    """
    cosine = cosine_similarity(2.0 * normal - 1.0, wanted, dim=-1, eps=LEAST_LENGTH)
    return (weight[..., 0] * (1.0 - cosine)).sum()


def _differentiate(
    function: Callable[[Tensor], Float[Tensor, ""]], layer: Tensor
) -> tuple[Float[Tensor, ""], Tensor]:
    """The value and the gradient of a function at a layer, without the graph behind that."""
    leaf = layer.detach().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]
