"""Close-up cameras where the texels of a mesh are dense, and where an orbit leaves some unseen."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.cameras import (
    CameraContext,
    CameraSampler,
    CloseUpConfig,
    OrbitConfig,
    choose,
    fill_distance,
    orbit,
    sample_close_ups,
    sample_orbit,
)
from pgc3d.ranges import check, number
from pgc3d.requirements import Requirements
from pgc3d.schedules import PiecewiseLinear
from pgc3d.types import Cameras, Step, seeded
from pgc3d.view_config import ViewConfig

PROBES = 48  # cameras of the orbit that measure which points it sees
TILTS = ((0.0, 0.0), (45.0, 25.0), (-45.0, -25.0))  # degrees from a normal
NEAR = (0.4,)  # distances of candidates from their points, where the orbit's own sees nothing
HALF_WIDTH = 0.45  # of the surface in the middle of a candidate's image, in world units
WIDEST = math.radians(80.0)  # field of view
SATURATION = 8.0  # a point that is seen by this fraction of the probes, inverted, counts half
STEEPEST = math.radians(80.0)  # elevation of a candidate


@dataclass(frozen=True)
class CoverConfig:
    """Close-ups whose points are drawn by texels, some of them from cameras for what an orbit does not see.

    Those cameras are chosen once, greedily: each adds the most to the points that are seen least. (Text2Tex,
    Chen et al. 2023, chooses next views in this way, by what is not generated yet.)
    """

    kind: Literal["cover"] = "cover"
    close_up: CloseUpConfig = field(default_factory=CloseUpConfig)
    hidden: float = number(0.4, 0.0, 1.0)  # of the close-ups that are of what the orbit sees least
    views: int = number(32, 1, 512)  # that are chosen for it
    points: int = number(1024, 64, 65536)  # of the surface for which they are chosen

    def __post_init__(self) -> None:
        check(self)

    def requires(self) -> Requirements:
        """See `CloseUpConfig.requires`."""
        return self.close_up.requires()

    def largest_fill(self, view: ViewConfig) -> float:
        """That of the closest close-up."""
        return self.close_up.largest_fill(view)

    def build(self, context: CameraContext) -> CameraSampler:
        """A sampler of new random cameras for each step.

        Raises:
            ValueError: the context has no surface.
        """
        texels, seen = context.texels, context.visibility
        if texels is None or seen is None:
            raise ValueError("close-ups must have the surface of a mesh, got none; use other cameras")
        batch, device, config = context.batch, context.device, self.close_up
        chosen = chosen_views(self, context)

        def sample(step: Step) -> Cameras:
            generator = step.generator("cameras")
            near = sample_close_ups(batch, config, texels, step.progress, generator)
            share = PiecewiseLinear(config.share)(step.progress) * self.hidden
            take = torch.rand(batch, generator=generator) < share
            index = torch.randint(max(len(chosen), 1), (batch,), generator=generator)
            if not len(chosen):
                return near.to(device)
            return choose(take, chosen[index], near).to(device)

        return sample


def chosen_views(config: CoverConfig, context: CameraContext) -> Cameras:
    """The cameras for what an orbit sees least, on the CPU, the best first; none where it sees everything."""
    texels, seen = context.texels, context.visibility
    assert texels is not None
    assert seen is not None
    generator = seeded("cover cameras")
    points, normals = texels(config.points, generator)
    probes = sample_orbit(PROBES, config.close_up.orbit, generator)
    often = seen(points, normals, probes).float().mean(dim=0).cpu()
    least = often.argsort()[: max(config.points // 32, 16)]
    candidates = _candidates(points[least].cpu(), normals[least].cpu(), config.close_up.orbit)
    outside = seen.reachable(candidates.position)
    candidates = candidates[outside.cpu().nonzero()[:, 0]]
    return candidates[_greedy(seen(points, normals, candidates).cpu(), often, config.views)]


def _candidates(points: Float[Tensor, "P 3"], normals: Float[Tensor, "P 3"], config: OrbitConfig) -> Cameras:
    """Cameras on both sides of points, near them and as far as the orbit, which are in their middles."""
    middle = torch.tensor([sum(config.fovy_degrees) / 2]).deg2rad()
    far = float(fill_distance(middle, torch.tensor([sum(config.fill) / 2])))
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for side in (1.0, -1.0):
        direction = side * normalize(normals, dim=1)
        azimuth = torch.atan2(direction[:, 0], direction[:, 2])
        elevation = torch.asin(direction[:, 1].clamp(-1, 1))
        for turn, rise in TILTS:
            place = azimuth + math.radians(turn), (elevation + math.radians(rise)).clamp(-STEEPEST, STEEPEST)
            rows += [(*place, torch.full_like(azimuth, distance), points) for distance in (*NEAR, far)]
    azimuth, elevation, distance = (torch.cat([row[index] for row in rows]) for index in range(3))
    fovy = 2 * torch.atan(HALF_WIDTH / distance).clamp(max=WIDEST / 2)
    return orbit(azimuth, elevation, distance, fovy, torch.cat([row[3] for row in rows]))


def _greedy(seen: Bool[Tensor, "C P"], often: Float[Tensor, " P"], count: int) -> Tensor:
    """Indices of cameras, each of which adds most to points that are seen seldom by those before it."""
    total, chosen = often.clone(), list[int]()
    weights = seen.float()
    for _ in range(min(count, len(seen))):
        gain = weights @ (1.0 / (1.0 + SATURATION * total))
        gain[chosen] = -1.0
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        chosen.append(best)
        total += weights[best] / 4
    return torch.tensor(chosen, dtype=torch.int64)
