"""Render a density and a colour along rays, differentiably, over a background."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.kernels import kernels_for
from pgc3d.kernels.composite import Spans
from pgc3d.rendering.rays import Rays, Samples
from pgc3d.types import Rendering

COVERED = 0.5  # alpha from which on a pixel has a depth


@dataclass(frozen=True)
class Radiance:
    """What a field has at K points."""

    density: Float[Tensor, " K"]  # per unit of length, not negative
    color: Float[Tensor, "K 3"]  # sRGB, shaded
    normal: Float[Tensor, "K 3"]  # unit, outward; zero where it is not known


class _Composite(torch.autograd.Function):
    """Joins the kernels to autograd; inputs and results are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, depth: Tensor, values: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
        results = cast("tuple[Tensor, Tensor]", _kernel(depth).forward(depth, values, spans))
        ctx.save_for_backward(*results, depth, values)
        ctx.spans = spans
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        *results, depth, values = ctx.saved_tensors
        of_depth, of_values = _kernel(depth).backward(*gradients, tuple(results), depth, values, ctx.spans)
        return of_depth, of_values, None


def _kernel(depth: Tensor) -> Any:
    return kernels_for(depth, "composite", "volumes")


def accumulate(
    density: Float[Tensor, " K"], values: Float[Tensor, "K C"], samples: Samples
) -> tuple[Float[Tensor, "R C"], Float[Tensor, " R"]]:
    """Weighted sums of values along rays, and the transmittance behind them; see `composite.forward`."""
    depth = density * samples.length
    return cast("tuple[Tensor, Tensor]", _Composite.apply(depth, values, samples.spans))  # type: ignore[no-untyped-call]


def render_volume(
    rays: Rays,
    samples: Samples,
    radiance: Callable[[Float[Tensor, "K 3"]], Radiance],
    background: Float[Tensor, "B 3"],
    resolution: int,
) -> Rendering:
    """Render B square images; see `Rendering` for the conventions.

    Args:
        rays: of `camera_rays`.
        samples: on them.
        radiance: of points.
        background: sRGB.
        resolution: side of the images in pixels.
    """
    found = radiance(samples.points)
    values = torch.cat([found.color, found.normal, samples.distance[:, None]], dim=1)
    sums, left = accumulate(found.density, values, samples)
    alpha = (1.0 - left).reshape(len(background), resolution, resolution, 1)
    sums = sums.reshape(*alpha.shape[:3], 7)
    distance = sums[..., 6:] * rays.cosine.reshape(alpha.shape) / alpha.clamp_min(COVERED)
    return Rendering(
        color=sums[..., :3] + (1.0 - alpha) * background[:, None, None],
        normal=0.5 + 0.5 * alpha * normalize(sums[..., 3:6], dim=-1, eps=1e-6),
        depth=torch.where(alpha > COVERED, distance, 0.0),
        alpha=alpha,
        background=background,
    )
