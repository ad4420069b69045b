"""Regularisers of a NeRF on random rays; each is a mean, so that its weight holds for any number of rays."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.rendering.rays import Rays, Samples, rays_through_ball
from pgc3d.rendering.volume_renderer import accumulate
from pgc3d.types import Step

LOSSES = ("orientation", "sparsity", "opaque", "entropy", "depth_variance")
ORIGIN = 3.0  # distance of the rays' origins from the centre, in world units
AIM = 0.8  # radius of the ball that they aim into
_EDGE = 1e-3  # of an opacity, from 0 and from 1, where its logarithm is cut off


def regularizer_rays(count: int, step: Step, *, like: Float[Tensor, "..."]) -> Rays:
    """Rays from all around through random points of the object, of the type and on the device of `like`.

    Equal steps have equal rays.
    """
    numbers = torch.randn(2, count, 3, generator=step.generator("rays"))
    origin, target = normalize(numbers, dim=-1).to(like, non_blocking=True).unbind(0)
    uniform = torch.rand(count, 1, generator=step.generator("aims")).to(like, non_blocking=True)
    radius = uniform ** (1 / 3)
    direction = normalize(AIM * radius * target - ORIGIN * origin, dim=-1)
    return rays_through_ball(ORIGIN * origin, direction, torch.ones_like(radius[:, 0]))


def ray_losses(
    rays: Rays, samples: Samples, density: Float[Tensor, " K"], normals: Float[Tensor, "K 3"] | None
) -> dict[str, Float[Tensor, ""]]:
    """All regularisers by their names in `LOSSES`, "orientation" where normals are given.

    With w the weights of samples, A = sum w and t distances:
        orientation: mean of sum w max(0, n . d)^2, w without gradient (Ref-NeRF, Verbin et al. 2022, eq. 11)
        sparsity: mean of sqrt(A^2 + 0.01) (DreamFusion, Poole et al. 2023, appendix A.2)
        opaque: mean of the binary entropy of A, in nats
        entropy: the same, weighted by A without gradient, so that nearly empty rays do not count
        depth_variance: mean over rays with A > 0.5 of the variance of t under w / A (HiFA, Zhu et al. 2024)
    """
    distance = samples.distance[:, None]
    sums, left = accumulate(density, torch.cat([distance, distance.square()], dim=1), samples)
    alpha = 1.0 - left
    safe = alpha.clamp(_EDGE, 1.0 - _EDGE)
    entropy = -(safe * safe.log() + (1.0 - safe) * (1.0 - safe).log())
    mean, square = (sums / alpha.clamp_min(0.5)[:, None]).unbind(1)
    variance = torch.where(alpha > 0.5, square - mean.square(), 0.0).clamp_min(0.0)
    losses = {
        "sparsity": (alpha.square() + 0.01).sqrt().mean(),
        "opaque": entropy.mean(),
        "entropy": (alpha.detach() * entropy).mean(),
        "depth_variance": variance.sum() / (alpha > 0.5).sum().clamp_min(1),
    }
    if normals is not None:
        away = (normals * samples.spans.spread(rays.direction)).sum(-1, keepdim=True).clamp_min(0.0).square()
        losses["orientation"] = accumulate(density.detach(), away, samples)[0].mean()
    return losses
