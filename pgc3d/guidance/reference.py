"""The reference view: the loss of the rendering from the input image's camera against the input image."""

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
    """Weights of losses, summed over an image of `SIDE` pixels a side; those of maps need the maps.

    The sum does not depend on the rendering's resolution, so that neither does the balance with other
    guidances, whose gradients are defined at their model's resolution.
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
        """The side of the rendering in pixels."""
        return rendered

    def build(self, context: GuidanceContext) -> "ReferenceView":
        """The loss against the input image and the maps that were given."""
        return ReferenceView(
            input_image=context.image(),
            depth_map=context.map("depth") if self.depth else None,
            normal_map=context.map("normal") if self.normal else None,
            color=self.color,
            mask=self.mask,
            depth=self.depth,
            normal=self.normal,
        )


@dataclass(frozen=True)
class _Targets:
    """The input image and its maps at one resolution."""

    input_image: Float[Tensor, "1 s s 4"]
    coverage: Float[Tensor, "1 s s 1"]  # fraction of a pixel that lies on the object
    depth: Float[Tensor, "1 s s 1"] | None
    normal: Float[Tensor, "1 s s 3"] | None


class ReferenceView:
    """The loss of a view against the input image; an `interfaces.Guidance`."""

    def __init__(
        self,
        *,
        input_image: Float[Tensor, "S S 4"],
        depth_map: Float[Tensor, "S S 1"] | None = None,
        normal_map: Float[Tensor, "S S 3"] | None = None,
        color: float = 0.5,
        mask: float = 0.2,
        depth: float = 0.02,
        normal: float = 0.02,
    ) -> None:
        """Store the input image and its maps on the device.

        Args:
            input_image: the object alone, RGBA in [0, 1], premultiplied alpha.
            depth_map: its inverse depth, near is large; scale and shift are unknown.
            normal_map: its normals in camera space, x right, y up, z towards the viewer.
            color: weight of the squared difference of colours.
            mask: weight of the squared difference of alpha.
            depth: weight of `depth_disagreement`.
            normal: weight of `normal_disagreement`.
        """
        self.input_image, self.depth_map, self.normal_map = input_image, depth_map, normal_map
        self.color, self.mask, self.depth, self.normal = color, mask, depth, normal
        self._sizes: dict[int, _Targets] = {}

    def input_resolution(self, rendered: int) -> int:
        """The rendering's own: the input image is resized to it."""
        return rendered

    def __call__(
        self, image: Float[Tensor, "B H W 3"], rendering: Rendering, views: Views, step: Step
    ) -> GuidanceOutput:
        """The loss of views from the input image's camera, over the same background.

        color * sum alpha |image - input|^2 + mask * sum (coverage - alpha)^2 with the input's alpha, over all
        pixels, and the weighted disagreements with the given maps, on pixels that show the object in both;
        all of it times (`SIDE` / resolution)^2. The gradient of every term but the first is on the buffer
        that the term compares.
        """
        scale = (SIDE / image.shape[1]) ** 2
        target = self._targets(image.shape[1])
        alpha = target.input_image[..., 3:]
        background = rendering.background[:, None, None]
        difference = image - (target.input_image[..., :3] + (1.0 - alpha) * background)
        excess = rendering.alpha.detach() - alpha
        losses = {
            "loss_color": scale * self.color * (alpha * difference.square()).sum(),
            "loss_mask": scale * self.mask * excess.square().sum(),
        }
        buffers: dict[Buffer, Tensor] = {"alpha": 2.0 * scale * self.mask * excess}
        for name, disagreement in self._disagreements(target, rendering, views.cameras).items():
            loss, gradient = _differentiate(disagreement, getattr(rendering, name))
            losses[f"loss_{name}"], buffers[name] = scale * loss, scale * gradient
        gradient = 2.0 * scale * self.color * alpha * difference
        return GuidanceOutput(gradient=gradient, buffers=buffers, metrics=losses)

    def _disagreements(
        self, target: _Targets, rendering: Rendering, cameras: Cameras
    ) -> dict[Buffer, Callable[[Tensor], Float[Tensor, ""]]]:
        """The weighted terms of the maps, each a function of its buffer."""
        weight = target.coverage * rendering.alpha.detach()
        terms: dict[Buffer, Callable[[Tensor], Float[Tensor, ""]]] = {}
        if (depth := target.depth) is not None:
            terms["depth"] = lambda buffer: self.depth * depth_disagreement(buffer, depth, weight)
        if target.normal is not None:
            rotation = cameras.camera_from_world[:, None, :3, :3]
            normal = target.normal @ rotation  # rows times camera_from_world: from the camera to the world
            terms["normal"] = lambda buffer: self.normal * normal_disagreement(buffer, normal, weight)
        return terms

    def _targets(self, side: int) -> _Targets:
        if side not in self._sizes:
            inside = (self.input_image[None, ..., 3:] > 0.5).to(self.input_image.dtype)
            coverage = resize(inside, side)

            def within(values: Tensor | None) -> Tensor | None:
                """Means over the object's part of each pixel; a map has no values outside."""
                return (
                    None if values is None else resize(values[None] * inside, side) / coverage.clamp(min=1e-6)
                )

            self._sizes[side] = _Targets(
                input_image=resize(self.input_image[None], side),
                coverage=coverage,
                depth=within(self.depth_map),
                normal=within(self.normal_map),
            )
        return self._sizes[side]


def depth_disagreement(
    depth: Float[Tensor, "B H W 1"], inverse: Float[Tensor, "1 H W 1"], weight: Float[Tensor, "B H W 1"]
) -> Float[Tensor, ""]:
    """Sum over the views of n (1 - r) with Pearson's correlation r of inverse depths, n the sum of weights.

    r is invariant to the map's unknown scale and shift. A correlation of relative depths is the depth term
    of Magic123 (arXiv 2306.17843).

    Args:
        depth: of a rendering, 0 where nothing was hit.
        inverse: target inverse depth, up to scale and shift.
        weight: of the pixels; that of pixels without a hit is 0.
    """
    hit = depth.detach() > 0
    weight = weight * hit
    total = weight.sum((1, 2, 3), keepdim=True)

    def center(values: Tensor) -> Tensor:
        return values - (weight * values).sum((1, 2, 3), keepdim=True) / total.clamp(min=1e-6)

    def deviation(values: Tensor, least: float) -> Tensor:
        variance = (weight * values.square()).sum((1, 2, 3), keepdim=True) / total.clamp(min=1e-6)
        return variance.clamp(min=least**2).sqrt()

    inverse_depth, target = center(torch.where(hit, depth, 1.0).reciprocal()), center(inverse)
    product = (weight * inverse_depth * target).sum((1, 2, 3), keepdim=True)
    return (total - product / deviation(inverse_depth, LEAST_DEVIATION) / deviation(target, 1e-9)).sum()


def normal_disagreement(
    normal: Float[Tensor, "B H W 3"], target: Float[Tensor, "B H W 3"], weight: Float[Tensor, "B H W 1"]
) -> Float[Tensor, ""]:
    """Weighted sum of 1 - cosine between normals; without gradient where a map has no normal.

    Args:
        normal: of a rendering, (n + 1) / 2; of any length, since antialiasing shortens it along silhouettes.
        target: directions in the same space, of any length.
        weight: of the pixels.
    """
    cosine = cosine_similarity(2.0 * normal - 1.0, target, dim=-1, eps=LEAST_LENGTH)
    return (weight[..., 0] * (1.0 - cosine)).sum()


def _differentiate(
    function: Callable[[Tensor], Float[Tensor, ""]], buffer: Tensor
) -> tuple[Float[Tensor, ""], Tensor]:
    """The value and the gradient of a function of a buffer, without the buffer's own graph."""
    leaf = buffer.detach().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]
