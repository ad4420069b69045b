"""NeRF: a density and a colour in hash grids, rendered along rays where an occupancy grid is not empty."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pgc3d.errors import DivergedError
from pgc3d.interfaces import Rasterizer
from pgc3d.parameters import ParameterGroup, ParameterStore
from pgc3d.rendering.rays import Rays, Samples, camera_rays, march
from pgc3d.rendering.shading import key_direction, shade
from pgc3d.rendering.volume_renderer import Radiance, render_volume
from pgc3d.representation.density import DensityField
from pgc3d.representation.fields import ColorField
from pgc3d.representation.nerf_losses import ray_losses, regularizer_rays
from pgc3d.representation.nerf_surface import extract_surface
from pgc3d.representation.occupancy import Occupancy
from pgc3d.schedules import PiecewiseLinear
from pgc3d.types import Handover, Material, Mesh, Rendering, Step, Views

logger = logging.getLogger(__name__)

CHUNK = 1 << 18  # points that are evaluated at once without gradients, and where fields are recomputed
ALWAYS = PiecewiseLinear((1.0,))


@dataclass(frozen=True)
class NerfSettings:
    """What a NeRF needs beside its fields; schedules are functions of progress."""

    learning_rates: Mapping[str, float]  # of density.grid, density.mlp, color.grid and color.mlp
    weights: Mapping[str, float]  # of the regularisers in `nerf_losses`
    rays: int = 1024  # of a step, for the regularisers
    shaded: PiecewiseLinear = ALWAYS  # probability that a step is lit
    textureless: float = 0.0  # probability that a lit step shows the surface without its colours
    levels: PiecewiseLinear = ALWAYS  # fraction of the density's levels that are used
    mesh_resolution: int = 64  # cells along an axis of the grid in which the surface is found
    max_recoveries: int = 3


class Nerf(nn.Module):
    """A `Meshable` without a surface of its own: that is extracted when it is needed."""

    def __init__(
        self,
        *,
        rasterizer: Rasterizer,
        density: DensityField,
        color: ColorField,
        occupancy: Occupancy,
        settings: NerfSettings,
    ) -> None:
        """Start as the density field does.

        Args:
            rasterizer: compares an extracted surface with the volume.
            density: the shape.
            color: the field that `material` evaluates.
            occupancy: where samples are taken. Where they exceed its capacity, `Rendering.complete` is False,
                and the capacity is corrected at the next update.
            settings: everything else.
        """
        super().__init__()
        self.rasterizer, self.density, self.color, self.settings = rasterizer, density, color, settings
        self.occupancy = occupancy
        # Evaluate the fields again in the backward pass, chunk by chunk, instead of storing activations.
        self.recompute = False
        self.recoveries = 0
        self._prepared = -1  # the last step that was begun
        self._levels = density.levels
        self._store: ParameterStore | None = None

    @property
    def device(self) -> torch.device:
        """Of the fields."""
        return self.occupancy.opacity.device

    def begin_step(self, step: Step) -> None:
        """Update the occupancy grid when that is due; restart a scene that became empty.

        Raises:
            DivergedError: the scene was empty too often.
        """
        if step.index == self._prepared:
            return  # a repeated step starts from the same state
        self._levels = self._levels_at(step.progress)
        fresh = self._prepared < 0
        self.occupancy.begin_step()
        if not fresh and self.occupancy.is_empty:
            self._recover()
            fresh = True
        if fresh or step.index % self.occupancy.every == 0:
            self.occupancy.update(self.density_at, step, restart=fresh)
        self._prepared = step.index

    def end_step(self, step: Step) -> None:
        """Nothing is left to do."""

    def render(self, views: Views, resolution: int, step: Step | None) -> Rendering:
        """See `Representation.render`.

        Steps that are not lit compute no normals: their normal buffer is empty, 0.5.
        """
        if step is None:
            return self._evaluate(views, resolution)
        rays = camera_rays(views.cameras, resolution)
        samples = self._samples(rays, step, self.occupancy.capacity(len(rays)))
        lit, textureless = self._lighting(step)
        rendering = self._render(rays, samples, views, resolution, lit=lit, textureless=textureless)
        complete = samples.total <= len(samples.distance) if self.occupancy.padded else None
        return replace(rendering, complete=complete)

    def regularizers(self, step: Step) -> dict[str, Float[Tensor, ""]]:
        """The weighted regularisers on random rays, see `nerf_losses`."""
        weights = {name: weight for name, weight in self.settings.weights.items() if weight > 0}
        if not weights:
            return {}
        rays = regularizer_rays(self.settings.rays, step, like=self.occupancy.opacity)
        samples = self._samples(rays, step, self.occupancy.capacity(len(rays), regularizers=True))
        density = self.density(samples.points, self._levels)
        normals = self.density.normals(samples.points, self._levels) if "orientation" in weights else None
        losses = ray_losses(rays, samples, density, normals)
        return {name: weight * losses[name] for name, weight in weights.items()}

    def parameter_store(self) -> ParameterStore:
        """The groups "density.grid", "density.mlp", "color.grid" and "color.mlp"."""
        if self._store is None:
            fields = {"density": self.density, "color": self.color}
            parts = {f"{name}.{part}": getattr(owner, part) for name, owner in fields.items()
                     for part in ("grid", "mlp")}  # fmt: skip
            self._store = ParameterStore(
                [
                    ParameterGroup(
                        name=name, params=list(part.parameters()), lr=self.settings.learning_rates[name]
                    )
                    for name, part in parts.items()
                ]
            )
        return self._store

    @torch.no_grad()
    def handover(self) -> Handover:
        """The surface where silhouettes agree best, see `extract_surface`, and the colours' weights."""
        extracted = extract_surface(self, self.settings.mesh_resolution, self.rasterizer)
        material = torch.no_grad()(self.material)
        return Handover(
            surface=extracted.mesh,
            sdf=extracted.sdf,
            material=material,
            state=self.color.handover_state(),
            notes=extracted.notes,
        )

    @torch.no_grad()
    def to_mesh(self) -> Mesh:
        """See `Meshable.to_mesh`."""
        return extract_surface(self, self.settings.mesh_resolution, self.rasterizer).mesh

    def material(self, points: Float[Tensor, "P 3"]) -> Material:
        """See `Meshable.material`."""
        return cast("Material", self.color(points))

    @torch.no_grad()
    def density_at(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, " P"]:
        """The density of any number of points, without gradients."""
        parts = [self.density(part, self._levels) for part in torch.split(points, CHUNK)]
        return torch.cat(parts)

    def get_extra_state(self) -> Float[Tensor, "3"]:
        """What a checkpoint needs beside tensors: the last step begun, recoveries and levels in use."""
        return torch.tensor([self._prepared, self.recoveries, self._levels], dtype=torch.float64)

    def set_extra_state(self, state: Float[Tensor, "3"]) -> None:
        """Restore what `get_extra_state` returned."""
        self._prepared, self.recoveries, self._levels = (int(value) for value in state.tolist())
        self.occupancy.reload()

    def _levels_at(self, progress: float) -> int:
        return max(1, round(self.settings.levels(progress) * self.density.levels))

    def _lighting(self, step: Step) -> tuple[bool, bool]:
        """Whether a step is lit, and whether it shows no colours then."""
        first, second = torch.rand(2, generator=step.generator("shading")).tolist()
        lit = first < self.settings.shaded(step.progress)
        return lit, lit and second < self.settings.textureless

    def _samples(self, rays: Rays, step: Step, capacity: int | None) -> Samples:
        """Jittered samples on rays."""
        total, own = step.rows(len(rays))
        drawn = torch.rand(total, generator=step.generator("jitter"))[own]
        return self._march(rays, drawn.to(rays.near, non_blocking=True), capacity)

    def _march(self, rays: Rays, offset: Float[Tensor, " R"], capacity: int | None = None) -> Samples:
        grid = self.occupancy
        return march(rays, grid.occupied(), stations=grid.stations, offset=offset, capacity=capacity)

    def _render(
        self, rays: Rays, samples: Samples, views: Views, resolution: int, *, lit: bool, textureless: bool
    ) -> Rendering:
        key = key_direction(views.cameras).repeat_interleave(resolution**2, dim=0)
        key = samples.spans.spread(key)
        shown = partial(self._shown, lit=lit, textureless=textureless)

        def radiance(points: Tensor) -> Radiance:
            if not self.recompute or not torch.is_grad_enabled():
                return Radiance(*shown(points, key))
            parts = [
                checkpoint(shown, *part, use_reentrant=False, preserve_rng_state=False)
                for part in zip(torch.split(points, CHUNK), torch.split(key, CHUNK), strict=True)
            ]
            return Radiance(*(torch.cat(values) for values in zip(*parts, strict=True)))

        return render_volume(rays, samples, radiance, views.background, resolution)

    def _shown(
        self, points: Float[Tensor, "K 3"], key: Float[Tensor, "K 3"], *, lit: bool, textureless: bool
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, "K 3"], Float[Tensor, "K 3"]]:
        """Density, shaded colour and normal at points, which are lit from the directions `key`."""
        density = self.density(points, self._levels)
        color = self.color(points).base_color
        if not lit:
            return density, color, torch.zeros_like(points)
        normal = self.density.normals(points, self._levels)
        base = torch.full_like(color, 0.75) if textureless else color
        return density, shade(base, normal, key), normal

    @torch.no_grad()
    def _evaluate(self, views: Views, resolution: int) -> Rendering:
        """Exact and lit, one view after the other: a volume needs far more memory than a surface."""
        parts = []
        for index in range(len(views)):
            one = slice(index, index + 1)
            view = Views(views.cameras[one], views.background[one])
            rays = camera_rays(view.cameras, resolution)
            samples = self._march(rays, torch.full_like(rays.near, 0.5))
            parts.append(self._render(rays, samples, view, resolution, lit=True, textureless=False))
        names = ("color", "normal", "depth", "alpha", "background")
        joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return Rendering(**joined)

    @torch.no_grad()
    def _recover(self) -> None:
        """Start the density anew after a scene became empty."""
        self.recoveries += 1
        if self.recoveries > self.settings.max_recoveries:
            raise DivergedError(
                f"the scene must not be empty, but it was after {self.settings.max_recoveries} recoveries; "
                "lower the weights of sparsity and entropy, or the learning rates"
            )
        logger.warning("the scene is empty: going back to the first density")
        self.density.restart()
