"""The occupancy grid of a NeRF: where samples are needed, how many that are, and whether anything is left."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import max_pool3d

from pgc3d.cameras import turntable
from pgc3d.geometry.marching_tetrahedra import grid_points
from pgc3d.rendering.rays import Rays, camera_rays, march
from pgc3d.representation.nerf_losses import regularizer_rays
from pgc3d.types import Step

DECAY = 0.96  # of the opacity in a step
THRESHOLDS = (1e-4, 0.01)  # least and largest opacity of a station in an occupied cell
EMPTY = 1e-3  # opacity of the strongest station of a scene that has no gradients left
VIEWS, SIDE = 8, 24  # of the probes that samples are counted on
RAYS = 512  # likewise, of the regularisers
MARGIN = 1.5  # of the capacity over the samples of the fullest probe
SPARE = 4096  # rows of a capacity beside that

Density = Callable[[Float[Tensor, "P 3"]], Float[Tensor, " P"]]


class Occupancy(nn.Module):
    """Opacities of cells, with a summary of them for the host.

    The summary of an update is in use from the next step on: by then the device has made it, so that waiting
    for it leaves the device with the work of a whole step. It is part of the state, so that a resumed run has
    the capacities of an uninterrupted one.
    """

    opacity: Float[Tensor, "N N N"]
    summary: Float[Tensor, " 3"]

    def __init__(
        self, cells: int, *, stations: int, every: int, fill: float = 1.0, padded: bool = False
    ) -> None:
        """Full before the first update.

        Args:
            cells: along an axis of [-1, 1]^3.
            stations: samples on a diameter of the unit ball.
            every: steps between two updates.
            fill: largest fraction of the image's half height that the unit ball covers in a view.
            padded: samples have a fixed capacity, so that the host never waits for their number.
        """
        super().__init__()
        self.stations, self.every, self.fill, self.padded = stations, every, fill, padded
        self.register_buffer("opacity", torch.ones(cells, cells, cells))
        self.register_buffer("summary", torch.ones(3))  # fills of views and regularisers; strongest opacity
        self._known: tuple[float, float, float] | None = None
        self._pending: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was left at the last update whose summary is in use."""
        return self._read()[2] < EMPTY

    def capacity(self, rays: int, *, regularizers: bool = False) -> int | None:
        """Rows of buffers for the samples on rays, with a margin over those of the probes; None: all."""
        if not self.padded:
            return None
        most = rays * self.stations
        return min(most, int(MARGIN * self._read()[int(regularizers)] * most) + SPARE)

    def begin_step(self) -> None:
        """Use the summary of the last update from here on."""
        if self._pending is not None:
            if self._arrived is not None:
                self._arrived.synchronize()
            self._known = _numbers(self._pending)
            self._pending = self._arrived = None

    @torch.no_grad()
    def update(self, density: Density, step: Step, *, restart: bool = False) -> None:
        """Evaluate one random point of every cell; opacities decay where they fall.

        Args:
            density: per unit of length.
            step: source of the random points.
            restart: forget what was there before, and use the summary at once.
        """
        cells = self.opacity.shape[0]
        corner = grid_points(cells - 1, self.opacity.device).to(self.opacity)
        corner = corner * ((cells - 1) / cells) - 1.0 / cells
        drawn = torch.rand(cells**3, 3, generator=step.generator("occupancy"))
        jitter = drawn.to(self.opacity, non_blocking=True)
        length = 2.0 / self.stations
        fresh = density(corner + jitter * (2.0 / cells)).reshape(self.opacity.shape) * length
        fresh = step.shard.of_first(fresh)  # all processes have the same samples and capacities
        decay = 0.0 if restart else DECAY**self.every
        self.opacity = torch.maximum(decay * self.opacity, fresh)
        self._summarize(fresh.max(), step)
        if restart:
            self.begin_step()

    def occupied(self) -> Bool[Tensor, "N N N"]:
        """Cells that may hold something, with their neighbours."""
        full = (self.opacity > self.opacity.mean().clamp(*THRESHOLDS)).float()
        return max_pool3d(full[None, None], 3, 1, 1)[0, 0] > 0

    def reload(self) -> None:
        """Use the summary in the buffer, after a checkpoint was loaded."""
        self._known = self._pending = self._arrived = None

    def _summarize(self, strongest: Float[Tensor, ""], step: Step) -> None:
        """Start the copy of the summary to the host."""
        fills = self._probe(step) if self.padded else (torch.ones_like(strongest),) * 2
        self.summary = step.shard.of_first(torch.stack([*fills, strongest]).to(self.summary))
        if not self.summary.is_cuda:
            self._pending = self.summary.clone()
            return
        self._pending = torch.empty(3, dtype=self.summary.dtype, pin_memory=True)
        self._pending.copy_(self.summary, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record()

    def _probe(self, step: Step) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Filled fractions of the fullest one of some views, and of rays of the regularisers."""
        cameras = turntable(VIEWS, fill=self.fill).to(self.opacity.device)
        views = self._fills(camera_rays(cameras, SIDE)).reshape(VIEWS, -1).mean(1).max()
        rays = regularizer_rays(RAYS, step.within("occupancy"), like=self.opacity)
        return views, self._fills(rays).mean()

    def _fills(self, rays: Rays) -> Float[Tensor, " R"]:
        """For each ray the fraction of the stations that hold a sample."""
        most = len(rays) * self.stations
        middle = torch.full_like(rays.near, 0.5)
        samples = march(rays, self.occupied(), stations=self.stations, offset=middle, capacity=most)
        return samples.spans.count / self.stations

    def _read(self) -> tuple[float, float, float]:
        if self._known is None:
            self._known = _numbers(self.summary)
        return self._known


def _numbers(summary: Float[Tensor, "3"]) -> tuple[float, float, float]:
    views, regularizers, strongest = summary.tolist()
    return views, regularizers, strongest
