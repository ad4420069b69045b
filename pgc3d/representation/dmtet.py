"""DMTet: a mesh extracted from a signed distance field at every step (Shen et al. 2021), with a colour field.

The SDF is a fixed distance field plus a learnt residual. The split keeps it well conditioned: gradients reach
only the grid points beside the surface, so every few steps the sum becomes a distance field again and the
residual starts anew from zero. A residual stored on the grid is blurred before it is added, G theta, so that
a gradient at one point moves a patch of the surface (a Sobolev gradient), not a single vertex.
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
from pgc3d.types import Handover, Material, Mesh, Rendering, Step, Views

logger = logging.getLogger(__name__)

INVERSIONS = 8  # fixed-point steps that find where a point was before the deformation


class DMTet(nn.Module):
    """A `Representation`; the cube of its grid is [-1, 1]^3."""

    base: Tensor
    good: Tensor
    initial: Tensor
    blur: Tensor

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
    ) -> None:
        """Start from a signed distance field.

        Args:
            rasterizer: the backend; it fixes no device, the module does.
            initial: the SDF on the grid's (R + 1)^3 points, negative inside.
            color: the field that `material` asks.
            learning_rates: of "sdf", "deformation", "color.grid" and "color.mlp".
            eps_sdf: Adam's eps of the "sdf" group, relative to the group's gradients; 0 is plain Adam.
            weights: of the regularisers in `LOSSES`; those left out or 0 are not computed.
            sdf_field: the residual; when None it is stored on the grid.
            sdf_smoothing: standard deviation of the blur of a stored residual at progress 0 and 1, in cells;
                it follows the progress, geometrically, whenever the residual starts anew.
            deformation_limit: how far a grid point may move along each axis, in cells.
            redistance_every: steps between two times that the SDF is made a distance again.
            shape_until: progress from which on the shape gets no gradients and no regularisers.
            max_recoveries: how often a lost surface is brought back before `DivergedError`.
            padded: render with gradients without waiting for the device. The surface gets more room than it
                needs; where it does not fit, or is lost, `Rendering.complete` is False, and that is mended a
                step or two later.
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
        self.watch = SizeReadback()
        self.recoveries = 0
        self._prepared = -1  # the last step that was begun
        self._current: _StepSurface | None = None
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

        Now and then the SDF is made a distance field first, and the state is remembered.

        Raises:
            DivergedError: the surface was lost too often.
        """
        self._current = None  # a step that broke off leaves its surface here
        shaping = step.progress < self.shape_until or self.shape_until >= 1.0
        if shaping and step.index != self._prepared:  # a step that is done again begins where it began
            self._prepared = step.index
            self._restore_distance(step)
        with torch.set_grad_enabled(shaping):
            surface, complete = self._padded_surface() if self.padded else (self._surface(), None)
        self._current = _StepSurface(step.index, surface, complete, shaping=shaping)

    def end_step(self, step: Step) -> None:
        """Release the step's surface."""
        self._current = None

    def render(self, views: Views, resolution: int, step: Step | None) -> Rendering:
        """See `Representation.render`; colour gradients stop at the surface and do not bend the shape."""
        from pgc3d.rendering.mesh_renderer import render_mesh

        training = step is not None
        current = self._begun(step) if step is not None else None
        with torch.set_grad_enabled(training and torch.is_grad_enabled()):
            surface = current.surface if current is not None else self._last_valid_surface()
            rendering = render_mesh(
                surface.mesh,
                views.cameras,
                resolution,
                views.background,
                rasterizer=self.rasterizer,
                material=lambda points: self.material(points.detach()),
                topology=surface.topology,
            )
        return replace(rendering, complete=current.complete if current is not None else None)

    def regularizers(self, step: Step) -> dict[str, Float[Tensor, ""]]:
        """The weighted regularisers of the step's surface; none once the shape stays."""
        current = self._begun(step)
        return surface_losses(current.surface, self.weights, self.sdf, self.cell) if current.shaping else {}

    def parameter_store(self) -> ParameterStore:
        """The groups "sdf", "deformation", "color.grid" and "color.mlp"."""
        if self._store is None:
            self._store = ParameterStore(self._groups())
        return self._store

    @torch.no_grad()
    def handover(self) -> Handover:
        """The last valid surface, its field with the deformation, and the colours with their weights."""
        sdf, deformation, found = self._last_valid_field()
        surface = self._place(sdf, found, deformation).mesh
        field = sdf[..., None].clone()
        offset = (torch.tanh(deformation) * self.deformation_limit * self.cell).reshape(*sdf.shape, 3)

        def distance(points: Tensor) -> Tensor:
            # a grid point x with offset d carries its value to x + d, as do the points between them
            source = points
            for _ in range(INVERSIONS):
                source = points - sample_grid(offset, source)
            return sample_grid(field, source)[:, 0]

        material = torch.no_grad()(self.material)
        return Handover(surface=surface, sdf=distance, material=material, state=self.color.handed_over())

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
        """Make the SDF a distance field again, keeping the surface, and start the residual anew."""
        self._replace(redistance(self.sdf()))

    def get_extra_state(self) -> Tensor:
        """What a checkpoint needs beside tensors: the last step begun, recoveries and the blur."""
        return torch.tensor([self._prepared, self.recoveries, self.smoothing], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
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
        """Every `redistance_every` steps, make the SDF a distance again and remember it."""
        if not (self.redistance_every and step.index and step.index % self.redistance_every == 0):
            return
        sdf = self.sdf()
        valid = is_valid(surface_size(sdf, self.deformation), self.max_faces)
        if self.padded or valid:  # on a device the host does not wait for the answer
            sdf = torch.where(valid, redistance(sdf), sdf)
            self._replace(sdf)
            self.good.copy_(torch.where(valid, sdf, self.good))
            first, last = (max(deviation, 1e-3) for deviation in self.sdf_smoothing)
            self._set_smoothing(first * (last / first) ** step.progress)

    @torch.no_grad()
    def _last_valid_surface(self) -> Surface:
        """The surface as it is, without gradients; of an earlier field where this one has none."""
        sdf, deformation, found = self._last_valid_field()
        return self._place(sdf, found, deformation)

    @torch.no_grad()
    def _last_valid_field(self) -> tuple[Tensor, Tensor, CutEdges]:
        """The SDF, the deformation and where they cut the grid; those of an earlier state if need be."""
        still = torch.zeros_like(self.deformation)
        for sdf, deformation in (
            (self.sdf(), self.deformation),
            (self.good, still),
            (self.initial, still),
        ):
            found = find_cut_edges(sdf, deformation)
            if find_error(found.size.tolist(), self.max_faces) is None:
                return sdf, deformation, found
        raise DivergedError("the shape must be a closed surface, but the first one is none; check init")

    def _surface(self) -> Surface:
        """Extract the mesh as it is; recovers a lost surface."""
        sdf, found = self._find(None)
        while (error := find_error(size := found.size.tolist(), self.max_faces)) is not None:
            self._recover(error)
            sdf, found = self._find(None)
        self.watch.fit(size)
        return self._place(sdf, found, self.deformation)

    def _padded_surface(self) -> tuple[Surface, Bool[Tensor, ""] | None]:
        """Extract the mesh without waiting, and whether it is complete; recovers one that was lost before."""
        size = self.watch.receive()
        if size is not None and (error := find_error(size, self.max_faces)) is not None:
            self._recover(error)
        elif size is not None:
            self.watch.fit(size)
        capacity = self.watch.capacity
        if capacity is None:
            return self._surface(), None
        sdf, found = self._find(capacity)
        self.watch.send(found.size)
        complete = is_valid(found.size, self.max_faces) & capacity.holds(found.size)
        return self._place(sdf, found, self.deformation, padded=True), complete

    def _find(self, capacity: Capacity | None) -> tuple[Tensor, CutEdges]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.sdf_field is None):
            sdf = self.sdf()
        return sdf, find_cut_edges(sdf.detach(), self.deformation.detach(), capacity=capacity)

    def _place(self, sdf: Tensor, found: CutEdges, deformation: Tensor, *, padded: bool = False) -> Surface:
        # both ends in one gather: its gradient is dense, and zeroing that is what costs on a CPU
        both = torch.cat([found.first, found.second])
        first, second = self._values(sdf, both).chunk(2)
        bound = self.deformation_limit * self.cell
        start, end = (torch.tanh(deformation.index_select(0, both)) * bound).chunk(2)
        return build_surface(found, (first, second), (start, end), padded=padded)

    def _values(self, sdf: Tensor, index: Tensor) -> Tensor:
        """SDF at grid points; that of a field is evaluated once more, with gradients, only there."""
        if self.sdf_field is None or not torch.is_grad_enabled():
            return sdf.reshape(-1).index_select(0, index)
        size = self.resolution + 1
        axes = torch.stack([index // (size * size), index // size % size, index % size], dim=-1)
        residual = cast("Tensor", self.sdf_field(axes * self.cell - 1.0))
        return self.base.reshape(-1).index_select(0, index) + residual

    @torch.no_grad()
    def _recover(self, error: str) -> None:
        """Go back to the last good field, and from the second time on to the first one."""
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
        """Give the whole field new values: in the residual's place where it is stored, else around it."""
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
    shaping: bool  # whether the shape gets gradients
