"""DMTet: a mesh extracted from a signed distance field at every step (Shen et al. 2021), with a colour field.

The SDF is a fixed distance field plus a learnt residual. The split keeps it well conditioned: gradients reach
only the grid points next to the surface, so that every few steps the sum is reinitialised as a distance field
and the residual restarts from zero. A residual stored on the grid is blurred before it is added, G theta, so
that a gradient at one point moves a patch of the surface (a Sobolev gradient), not a single vertex.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pgc3d.errors import DivergedError
from pgc3d.geometry.marching_tetrahedra import Capacity, CutEdges, find_cut_edges, grid_points, surface_size
from pgc3d.geometry.sdf import blur_matrix, redistance, sample_grid
from pgc3d.interfaces import Rasterizer
from pgc3d.parameters import ParameterGroup, ParameterStore
from pgc3d.rendering.lighting import Lighting
from pgc3d.rendering.recompute import render_step
from pgc3d.representation.dmtet_surface import (
    LOSSES,
    SizeReadback,
    Surface,
    build_surface,
    find_error,
    is_valid,
    surface_losses,
)
from pgc3d.representation.fields import ColorField, SdfField
from pgc3d.representation.material_losses import field_smoothness, some_points
from pgc3d.types import Handover, Material, Mesh, Rendering, Step, Views

logger = logging.getLogger(__name__)

INVERSIONS = 8  # fixed-point iterations of the inverse of the deformation


class DMTet(nn.Module):
    """A `Representation`; the cube of its grid is [-1, 1]^3."""

    base: Float[Tensor, "X Y Z"]
    good: Float[Tensor, "X Y Z"]
    initial: Float[Tensor, "X Y Z"]
    blur: Float[Tensor, "X X"]

    def __init__(  # noqa: PLR0913 - flat arguments instead of a config
        self,
        *,
        rasterizer: Rasterizer,
        initial: Float[Tensor, "X Y Z"],
        color: ColorField,
        learning_rates: Mapping[str, float],
        eps_sdf: float = 0.0,
        weights: Mapping[str, float] | None = None,
        sdf_field: SdfField | None = None,
        sdf_smoothing: tuple[float, float] = (1.0, 0.7),
        deformation_limit: float = 0.45,
        redistance_every: int = 50,
        shape_until: float = 1.0,
        max_recoveries: int = 3,
        padded: bool = False,
        lighting: Lighting | None = None,
        smoothness: float = 0.0,
    ) -> None:
        """Start from a signed distance field.

        Args:
            rasterizer: the backend, on the module's device.
            initial: the SDF on the grid's (R + 1)^3 points, negative inside.
            color: the field that `material` evaluates.
            learning_rates: of "sdf", "deformation", "color.grid" and "color.mlp".
            eps_sdf: Adam's eps of the "sdf" group, relative to the group's gradients; 0 is plain Adam.
            weights: of the regularisers in `LOSSES`; omitted ones and those of weight 0 are not computed.
            sdf_field: the residual; when None it is stored on the grid.
            sdf_smoothing: standard deviation of the blur of a stored residual at progress 0 and 1, in cells;
                it follows the progress, geometrically, at every reinitialisation.
            deformation_limit: largest offset of a grid point along each axis, in cells.
            redistance_every: steps between reinitialisations of the SDF as a distance field.
            shape_until: progress from which on the shape has no gradients and no regularisers.
            max_recoveries: number of times that an invalid surface is replaced before `DivergedError`.
            padded: extract with a fixed capacity, so that the host never waits for the device. Where the
                surface exceeds the capacity or is invalid, `Rendering.complete` is False, and that is
                corrected in the next step.
            lighting: of the material; the light that is fixed to the camera when None.
            smoothness: weight of differences of near base colours.
        """
        super().__init__()
        size = initial.shape[0]
        self.resolution = size - 1
        self.cell = 2.0 / self.resolution
        self.rasterizer = rasterizer
        self.color = color
        self.sdf_field = sdf_field
        self.learning_rates = dict(learning_rates)
        self.eps_sdf = eps_sdf
        self.weights = {name: weight for name, weight in (weights or {}).items() if weight > 0}
        if unknown := set(self.weights) - set(LOSSES):
            raise ValueError(f"weights must be among {LOSSES}, got {sorted(unknown)}")
        self.deformation_limit = deformation_limit
        self.redistance_every = redistance_every
        self.shape_until = shape_until
        self.max_recoveries = max_recoveries
        self.max_faces = 50 * self.resolution**2  # a sphere as large as the cube has about 28
        self.padded = padded
        self.lighting, self.smoothness = lighting, smoothness
        self.watch = SizeReadback()
        self.recoveries = 0
        self._prepared = -1  # the last step that was begun
        self._current: _StepSurface | None = None
        self.recompute = False  # renders in the backward pass again, for less memory
        self._store: ParameterStore | None = None
        self.register_buffer("base", initial.clone())
        self.register_buffer("good", initial.clone())
        self.register_buffer("initial", initial.clone(), persistent=False)
        self.sdf_smoothing = sdf_smoothing
        self.register_buffer("blur", torch.eye(size, device=initial.device), persistent=False)
        self._set_smoothing(sdf_smoothing[0] if redistance_every else sdf_smoothing[1])
        self.residual = nn.Parameter(torch.zeros_like(initial)) if sdf_field is None else None
        self.deformation = nn.Parameter(torch.zeros(size**3, 3, device=initial.device))

    def begin_step(self, step: Step) -> None:
        """Extract the step's surface once, for all of its renders and its regularisers.

        Every `redistance_every` steps the SDF is reinitialised first, and stored as the last valid one.

        Raises:
            DivergedError: the surface was invalid too often.
        """
        self._current = None  # the surface of an interrupted step may be left here
        shaping = step.progress < self.shape_until or self.shape_until >= 1.0
        if shaping and step.index != self._prepared:  # a repeated step starts from the same state
            self._prepared = step.index
            self._restore_distance(step)
        with torch.set_grad_enabled(shaping):
            surface, complete = self._padded_surface() if self.padded else (self._surface(), None)
        self._current = _StepSurface(step.index, surface, complete, shaping=shaping)

    def end_step(self, step: Step) -> None:
        """Release the step's surface."""
        self._current = None

    def render(self, views: Views, resolution: int, step: Step | None) -> Rendering:
        """See `Representation.render`; colour gradients do not reach the shape through surface points."""
        from pgc3d.rendering.mesh_renderer import render_mesh

        current = self._begun(step) if step is not None else None

        def render(views: Views, step: Step | None) -> Rendering:
            surface = current.surface if current is not None else self._last_valid_surface()
            rendering = render_mesh(
                surface.mesh,
                views.cameras,
                resolution,
                views.background,
                rasterizer=self.rasterizer,
                material=lambda points: self.material(points.detach()),
                topology=surface.topology,
                light=None if self.lighting is None else self.lighting.for_views(len(views), step),
            )
            return replace(rendering, complete=current.complete if current is not None else None)

        return render_step(render, views, step, again=self.recompute)

    def regularizers(self, step: Step) -> dict[str, Float[Tensor, ""]]:
        """The weighted regularisers of the material, and before `shape_until` of the step's surface."""
        current, losses = self._begun(step), {}
        if current.shaping:
            losses = surface_losses(current.surface, self.weights, self.sdf, self.cell)
        if self.smoothness > 0:
            points = some_points(current.surface.mesh.vertices, step)
            losses["smoothness"] = self.smoothness * field_smoothness(self.color, points, step)
        return losses

    def parameter_store(self) -> ParameterStore:
        """The groups "sdf", "deformation", "color.grid" and "color.mlp"."""
        if self._store is None:
            self._store = ParameterStore(self._groups())
        return self._store

    @torch.no_grad()
    def handover(self) -> Handover:
        """The last valid surface, its field with the deformation, and the colours with their weights."""
        sdf, deformation, cut_edges = self._last_valid_field()
        surface = self._build_surface(sdf, cut_edges, deformation).mesh
        field = sdf[..., None].clone()
        offset = (torch.tanh(deformation) * self.deformation_limit * self.cell).reshape(*sdf.shape, 3)

        def distance(points: Tensor) -> Tensor:
            # a grid point x with offset d has its value at x + d, and the field is interpolated in between
            source = points
            for _ in range(INVERSIONS):
                source = points - sample_grid(offset, source)
            return sample_grid(field, source)[:, 0]

        material = torch.no_grad()(self.material)
        return Handover(surface=surface, sdf=distance, material=material, state=self.color.handover_state())

    def _begun(self, step: Step) -> "_StepSurface":
        if self._current is None or self._current.index != step.index:
            raise RuntimeError(f"begin_step must be called before step {step.index} is rendered")
        return self._current

    def _groups(self) -> list[ParameterGroup]:
        sdf = [self.residual] if self.sdf_field is None else list(self.sdf_field.parameters())
        groups: dict[str, list[Tensor]] = {
            "sdf": cast("list[Tensor]", sdf),
            "deformation": [self.deformation],
            "color.grid": list(self.color.grid.parameters()),
            "color.mlp": list(self.color.mlp.parameters()),
        }
        result = [
            ParameterGroup(name=name, params=params, lr=self.learning_rates[name])
            for name, params in groups.items()
        ]
        if self.eps_sdf > 0:
            result[0]["relative_eps"] = self.eps_sdf
        return result

    @torch.no_grad()
    def to_mesh(self) -> Mesh:
        """See `Meshable.to_mesh`."""
        return self._last_valid_surface().mesh

    def material(self, points: Float[Tensor, "P 3"]) -> Material:
        """See `Meshable.material`."""
        return cast("Material", self.color(points))

    def sdf(self) -> Float[Tensor, "X Y Z"]:
        """The field on the whole grid."""
        return self.base + self._residual()

    @torch.no_grad()
    def redistance(self) -> None:
        """Reinitialise the SDF as a distance field with the same surface, and reset the residual to zero."""
        self._replace(redistance(self.sdf()))

    def get_extra_state(self) -> Float[Tensor, "3"]:
        """State beside tensors for a checkpoint: the last begun step, recoveries and the blur."""
        return torch.tensor([self._prepared, self.recoveries, self.smoothing], dtype=torch.float64)

    def set_extra_state(self, state: Float[Tensor, "3"]) -> None:
        """Restore what `get_extra_state` returned."""
        prepared, recoveries, smoothing = state.tolist()
        self._prepared, self.recoveries = int(prepared), int(recoveries)
        self._current = None
        self.watch.reset()
        self._set_smoothing(smoothing)

    def _residual(self) -> Tensor:
        if self.sdf_field is not None:
            points = grid_points(self.resolution, self.base.device)
            parts = [self.sdf_field(part) for part in torch.split(points, 2**19)]
            return torch.cat(parts).reshape(self.base.shape)
        residual = cast("Tensor", self.residual)
        if self.smoothing < 0.1:  # cells: the neighbours' weight is below 1e-21
            return residual
        residual = (self.blur @ residual.flatten(1)).reshape(residual.shape)
        return self.blur @ residual @ self.blur.T

    def _set_smoothing(self, deviation: float) -> None:
        self.smoothing = deviation
        self.blur = blur_matrix(self.resolution + 1, deviation, self.base.device)

    @torch.no_grad()
    def _restore_distance(self, step: Step) -> None:
        """Every `redistance_every` steps, reinitialise the SDF and store it as the last valid one."""
        if not (self.redistance_every and step.index and step.index % self.redistance_every == 0):
            return
        sdf = self.sdf()
        valid = is_valid(surface_size(sdf, self.deformation), self.max_faces)
        if self.padded or valid:  # on a device the host does not wait for the result
            sdf = torch.where(valid, redistance(sdf), sdf)
            self._replace(sdf)
            self.good.copy_(torch.where(valid, sdf, self.good))
            first, last = (max(deviation, 1e-3) for deviation in self.sdf_smoothing)
            self._set_smoothing(first * (last / first) ** step.progress)

    @torch.no_grad()
    def _last_valid_surface(self) -> Surface:
        """The current surface without gradients, or that of an earlier field where this one has none."""
        sdf, deformation, cut_edges = self._last_valid_field()
        return self._build_surface(sdf, cut_edges, deformation)

    @torch.no_grad()
    def _last_valid_field(self) -> tuple[Tensor, Tensor, CutEdges]:
        """The SDF, the deformation and their cut edges; of an earlier state if the current one is invalid."""
        still = torch.zeros_like(self.deformation)
        for sdf, deformation in (
            (self.sdf(), self.deformation),
            (self.good, still),
            (self.initial, still),
        ):
            cut_edges = find_cut_edges(sdf, deformation)
            if find_error(cut_edges.size.tolist(), self.max_faces) is None:
                return sdf, deformation, cut_edges
        raise DivergedError("the shape must be a closed surface, but the initial one is not; check init")

    def _surface(self) -> Surface:
        """The extracted mesh; an invalid surface is replaced first."""
        sdf, cut_edges = self._find_cut_edges(None)
        while (error := find_error(size := cut_edges.size.tolist(), self.max_faces)) is not None:
            self._recover(error)
            sdf, cut_edges = self._find_cut_edges(None)
        self.watch.fit(size)
        return self._build_surface(sdf, cut_edges, self.deformation)

    def _padded_surface(self) -> tuple[Surface, Bool[Tensor, ""] | None]:
        """The mesh extracted at a fixed capacity and whether it is complete; replaces an invalid one late."""
        size = self.watch.receive()
        if size is not None and (error := find_error(size, self.max_faces)) is not None:
            self._recover(error)
        elif size is not None:
            self.watch.fit(size)
        capacity = self.watch.capacity
        if capacity is None:
            return self._surface(), None
        sdf, cut_edges = self._find_cut_edges(capacity)
        self.watch.send(cut_edges.size)
        complete = is_valid(cut_edges.size, self.max_faces) & capacity.holds(cut_edges.size)
        return self._build_surface(sdf, cut_edges, self.deformation, padded=True), complete

    def _find_cut_edges(self, capacity: Capacity | None) -> tuple[Tensor, CutEdges]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.sdf_field is None):
            sdf = self.sdf()
        return sdf, find_cut_edges(sdf.detach(), self.deformation.detach(), capacity=capacity)

    def _build_surface(
        self, sdf: Tensor, cut_edges: CutEdges, deformation: Tensor, *, padded: bool = False
    ) -> Surface:
        # both ends in one gather: its gradient is dense, and zeroing that is the cost on a CPU
        both = torch.cat([cut_edges.first, cut_edges.second])
        first, second = self._values(sdf, both).chunk(2)
        bound = self.deformation_limit * self.cell
        start, end = (torch.tanh(deformation.index_select(0, both)) * bound).chunk(2)
        return build_surface(cut_edges, (first, second), (start, end), padded=padded)

    def _values(self, sdf: Tensor, index: Tensor) -> Tensor:
        """SDF at grid points; that of a field is evaluated again, with gradients, at these points only."""
        if self.sdf_field is None or not torch.is_grad_enabled():
            return sdf.reshape(-1).index_select(0, index)
        size = self.resolution + 1
        axes = torch.stack([index // (size * size), index // size % size, index % size], dim=-1)
        residual = cast("Tensor", self.sdf_field(axes * self.cell - 1.0))
        return self.base.reshape(-1).index_select(0, index) + residual

    @torch.no_grad()
    def _recover(self, error: str) -> None:
        """Restore the last valid field, or from the second time on the initial one."""
        self.recoveries += 1
        if self.recoveries > self.max_recoveries:
            raise DivergedError(
                f"the shape must stay a closed surface, but {error} after {self.max_recoveries} recoveries; "
                "lower lr_sdf or raise normal_consistency"
            )
        source = self.good if self.recoveries == 1 else self.initial
        logger.warning(
            "%s: going back to %s", error, "an earlier" if source is self.good else "the first shape"
        )
        if self.sdf_field is not None:
            self.sdf_field.restart()
            for parameter in self.sdf_field.parameters():
                parameter.nan_to_num_(0.0, 0.0, 0.0)
        else:
            cast("Tensor", self.residual).zero_()
        self.deformation.zero_()
        self._replace(source)
        self.watch.reset()

    @torch.no_grad()
    def _replace(self, sdf: Tensor) -> None:
        """Set the whole field: the residual becomes zero where it is stored, else the base compensates it."""
        if self.residual is not None:
            self.residual.zero_()
            self.base.copy_(sdf)
        else:
            self.base.copy_(sdf - self._residual())


@dataclass(frozen=True)
class _StepSurface:
    """The surface of one step."""

    index: int  # of the step
    surface: Surface
    complete: Bool[Tensor, ""] | None
    shaping: bool  # whether the shape has gradients
