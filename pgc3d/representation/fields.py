"""Neural fields: a multi-resolution hash grid, a small MLP, and SDF and colour fields built from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pgc3d.geometry.sampling import sample_surface
from pgc3d.kernels import kernels_for, require_triton
from pgc3d.kernels.hash_grid import HashLayout, hash_layout
from pgc3d.ranges import MAX_RATE, check, number
from pgc3d.representation.channels import Channels, ColorChannels, first_values
from pgc3d.types import Handover, Material

MAX_ENTRIES = 2**28  # of a hash grid's table, 1 GiB
CONSTANTS = ("offset", "layout", "bounds")  # of a hand-over, besides weights


@dataclass(frozen=True)
class ColorFieldConfig:
    """A hash grid and an MLP of two layers; the defaults are for two CPU cores.

    The presets for a GPU have 16 levels of 4 features in 2^16 rows, from 16 to 2048 cells along an axis.
    """

    levels: int = number(8, 1, 16)  # of the hash grid
    features: int = number(2, 1, 8)  # of a level
    log2_rows: int = number(15, 4, 24)  # of a level's table
    base: int = number(8, 2, 512, unit="cells along an axis")  # of the coarsest level
    finest: int = number(256, 2, 16384, unit="cells along an axis")  # of the finest level
    hidden: int = number(32, 1, 256)  # width of the MLP
    lr_grid: float = number(0.01, 0.0, MAX_RATE)  # learning rate of the hash grid
    lr_mlp: float = number(0.002, 0.0, MAX_RATE)  # learning rate of the MLP

    def __post_init__(self) -> None:
        check(self)
        if self.finest < self.base:
            raise ValueError(f"finest must not be less than base, got {self.finest} < {self.base}")
        entries = self.levels * self.features * 2**self.log2_rows
        if entries > MAX_ENTRIES:
            raise ValueError(f"levels x features x 2^log2_rows must be at most 2^28, got {entries}")


class _Encode(torch.autograd.Function):
    """The hash grid's kernels in autograd; only the inputs are stored for the backward pass."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, layout: HashLayout) -> Tensor:
        ctx.save_for_backward(points, table)
        ctx.layout = layout
        return cast("Tensor", _kernel(table).encode(points, table, layout))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        points, table = ctx.saved_tensors
        need = bool(ctx.needs_input_grad[0])
        table_gradient, point_gradient = _kernel(table).encode_backward(
            gradients[0], points, table, ctx.layout, need_points=need
        )
        return point_gradient, table_gradient, None


class _Color(torch.autograd.Function):
    """`ColorField` in fused kernels; only the inputs are stored for the backward pass."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, layout: HashLayout, *layers: Tensor) -> Tensor:
        from pgc3d.kernels.color_field_triton import Layers, color

        ctx.save_for_backward(points, table, *layers)
        ctx.layout = layout
        return color(points, table, layout, Layers(*layers))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from pgc3d.kernels.color_field_triton import Layers, color_backward

        points, table, *layers = ctx.saved_tensors
        need = bool(ctx.needs_input_grad[0])
        of_points, of_table, of_layers = color_backward(
            gradients[0], points, table, ctx.layout, Layers(*layers), need_points=need
        )
        return of_points, of_table, None, *of_layers


def _kernel(table: Tensor) -> Any:
    return kernels_for(table, "hash_grid", "colour fields")


def _is_fused(field: "ColorField") -> bool:
    """Whether a field is evaluated by the fused kernels, and not by its grid and its MLP in turn."""
    table, layers = field.grid.table, field.mlp.layers
    if table.dtype != torch.float32 or table.device.type != "cuda" or len(layers) != 2:
        return False
    if cast("nn.Linear", layers[-1]).out_features != 3:
        return False  # the kernels write three outputs
    require_triton("colour fields")
    from pgc3d.kernels.color_field_triton import fits

    return fits(field.grid.width, cast("nn.Linear", layers[0]).out_features)


class HashGrid(nn.Module):
    """Features of points on grids of growing resolution, hashed where a grid has more points than table rows.

    Instant-NGP (Müller et al. 2022). Differentiable in the table and in the points; outside the cube a point
    has the features of the nearest point inside. The defaults are for two CPU cores; on a GPU use levels 16,
    log2_rows 19, base 16 and finest 4096.
    """

    def __init__(
        self,
        *,
        levels: int = 8,
        features: int = 2,
        log2_rows: int = 15,
        base: int = 8,
        finest: int = 256,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if levels < 1 or features < 1 or base < 2 or finest < base or not 4 <= log2_rows <= 24:
            raise ValueError(
                "a hash grid must have levels, features >= 1, 2 <= base <= finest, log2_rows in [4, 24], got "
                f"levels {levels}, features {features}, base {base}, finest {finest}, log2_rows {log2_rows}"
            )
        self.layout = hash_layout(levels=levels, log2_rows=log2_rows, base=base, finest=finest)
        self.width = levels * features
        rows = torch.rand(self.layout.offsets[-1], features, generator=generator)
        self.table = nn.Parameter((rows * 2 - 1) * 1e-4)

    def forward(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P C"]:
        """Features of points in [-1, 1]^3."""
        return cast("Tensor", _Encode.apply(_unit(points), self.table, self.layout))  # type: ignore[no-untyped-call]


def _unit(points: Tensor) -> Tensor:
    """From [-1, 1]^3 to [0, 1]^3."""
    return (points + 1) / 2


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int = 32,
        layers: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        for layer in self.layers:
            nn.init.kaiming_uniform_(cast("Tensor", layer.weight), nonlinearity="relu", generator=generator)
            nn.init.zeros_(cast("Tensor", layer.bias))

    def forward(self, values: Float[Tensor, "P I"]) -> Float[Tensor, "P O"]:
        """The last layer's values, without an activation."""
        for layer in self.layers[:-1]:
            values = torch.relu(layer(values))
        return cast("Tensor", self.layers[-1](values))


class SdfField(nn.Module):
    """A residual SDF from a hash grid and an MLP, zero before training."""

    def __init__(self, grid: HashGrid, *, hidden: int = 32, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.mlp = Mlp(grid.width, 1, hidden=hidden, generator=generator)
        self.restart()

    def forward(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, " P"]:
        """The residual, in world units, at points in [-1, 1]^3."""
        return cast("Tensor", self.mlp(self.grid(points)))[:, 0]

    @torch.no_grad()
    def restart(self) -> None:
        """Reset the residual to zero."""
        cast("Tensor", self.mlp.layers[-1].weight).zero_()
        cast("Tensor", self.mlp.layers[-1].bias).zero_()


class ColorField(nn.Module):
    """Material at points from a hash grid and an MLP; by default the base colour alone varies."""

    def __init__(
        self,
        grid: HashGrid,
        mlp: Mlp,
        *,
        color: tuple[float, float, float] = (0.5, 0.5, 0.5),
        roughness: float = 0.8,
        metallic: float = 0.0,
        channels: Channels | None = None,
    ) -> None:
        """Initialise to the sRGB `color`, in (0, 1), with a roughness and a metallic.

        `mlp` has an output for each of the channels, by default three: roughness and metallic are constant.
        """
        super().__init__()
        if not all(0.0 < channel < 1.0 for channel in color):
            raise ValueError(f"the initial colour must lie in (0, 1), got {color}")
        if not (0.0 <= roughness <= 1.0 and 0.0 <= metallic <= 1.0):
            raise ValueError(
                f"roughness and metallic must lie in [0, 1], got roughness {roughness}, metallic {metallic}"
            )
        self.grid = grid
        self.mlp = mlp
        self.channels = channels or ColorChannels(roughness, metallic)
        # Recompute in the backward pass instead of storing activations; fused kernels always do.
        bounds = torch.tensor(self.channels.bounds)
        self.bounded = len(bounds) > 3
        first = torch.tensor(color)
        if self.bounded:
            start = first_values(self.channels, color=color, roughness=roughness, metallic=metallic)
            first = (start - bounds[:, 0]) / (bounds[:, 1] - bounds[:, 0])
        self.register_buffer("offset", first.logit(), persistent=False)
        self.register_buffer("bounds", bounds, persistent=False)

    def handover_state(self) -> dict[str, Tensor]:
        """The entries of `Handover.state`: the weights and all constants that the material depends on."""
        layout = self.grid.layout
        numbers = torch.tensor([*layout.resolutions, *layout.offsets])
        state = {**self.state_dict(), "offset": self.offset, "layout": numbers, "bounds": self.bounds}
        return {f"color.{name}": value for name, value in state.items()}

    def forward(self, points: Float[Tensor, "P 3"]) -> Material:
        """Material at points in [-1, 1]^3."""
        return self.channels.material(self.values(points))

    def values(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P C"]:
        """The channels at points in [-1, 1]^3: the sigmoid of the MLP's outputs, scaled to their bounds."""
        if _is_fused(self):
            return self._in_bounds(self._fused_color(points))
        return self._in_bounds(self._color(points))

    def _in_bounds(self, unit: Float[Tensor, "P C"]) -> Float[Tensor, "P C"]:
        if not self.bounded:
            return unit
        low, high = cast("Tensor", self.bounds).unbind(1)
        return low + (high - low) * unit

    def _color(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P C"]:
        return torch.sigmoid(self.mlp(self.grid(points)) + self.offset)

    def _fused_color(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3"]:
        first, second = (cast("nn.Linear", layer) for layer in self.mlp.layers)
        bias = second.bias + cast("Tensor", self.offset)
        layers = (first.weight, first.bias, second.weight, bias)
        color = _Color.apply(_unit(points), self.grid.table, self.grid.layout, *layers)  # type: ignore[no-untyped-call]
        return cast("Tensor", color)


def build_hash_grid(config: ColorFieldConfig, finest: int, generator: torch.Generator) -> HashGrid:
    """A hash grid up to `finest` cells along an axis; `generator`, on the CPU, draws its initial features."""
    return HashGrid(
        levels=config.levels,
        features=config.features,
        log2_rows=config.log2_rows,
        base=config.base,
        finest=finest,
        generator=generator,
    )


def build_color_field(
    config: ColorFieldConfig,
    generator: torch.Generator,
    *,
    color: tuple[float, float, float],
    roughness: float,
    metallic: float,
    channels: Channels | None = None,
) -> ColorField:
    """The colour field of a configuration.

    Args:
        config: sizes of the grid and the MLP.
        generator: on the CPU; draws the initial weights.
        color: sRGB in (0, 1), of all points before the first step.
        roughness: of all points before the first step, in [0, 1].
        metallic: of all points before the first step, in [0, 1].
        channels: what varies over the points; the base colour alone when None.
    """
    grid = build_hash_grid(config, config.finest, generator)
    outputs = 3 if channels is None else len(channels.bounds)
    mlp = Mlp(grid.width, outputs, hidden=config.hidden, generator=generator)
    return ColorField(grid, mlp, color=color, roughness=roughness, metallic=metallic, channels=channels)


def start_colors(
    field: ColorField, start: Handover, generator: torch.Generator, *, steps: int = 300, batch: int = 16384
) -> None:
    """Initialise a field with the colours of an earlier stage, and what else of the material it varies.

    Weights are copied where the field has the same parameterisation: names and shapes agree, and so do the
    sizes of the grids and the colour that the weights are relative to. Otherwise the field is fitted by Adam
    to the material at random points next to the surface; `generator`, on the CPU, draws them.
    """
    if _same_parameterization(start.state, field.handover_state()):
        field.load_state_dict({name: start.state[f"color.{name}"].clone() for name in field.state_dict()})
        return
    if start.surface is None:
        return
    vertices, faces = start.surface.vertices, start.surface.faces

    def draw() -> tuple[Tensor, Tensor]:
        points, _ = sample_surface(vertices, faces, batch, generator)
        points = points + 0.01 * torch.randn(points.shape, generator=generator).to(points.device)
        with torch.no_grad():
            return points, field.channels.values(start.material(points))

    fit_field(field, draw, steps=steps)


def fit_field(
    field: ColorField,
    draw: Callable[[], tuple[Float[Tensor, "P 3"], Float[Tensor, "P C"]]],
    *,
    steps: int = 300,
) -> None:
    """Fit a field by Adam to values at points, which `draw` returns anew for each step."""
    optimizer = torch.optim.Adam(field.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-15)
    for step in range(steps):
        points, target = draw()
        optimizer.param_groups[0]["lr"] = 0.01 * (1.0 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss = (field.values(points) - target).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
    for parameter in field.parameters():
        parameter.grad = None


def _same_parameterization(left: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether the weights of a hand-over represent the same colours in a field's own grid and MLP."""
    if any(name not in left or left[name].shape != value.shape for name, value in own.items()):
        return False
    return all(torch.equal(left[f"color.{name}"], own[f"color.{name}"]) for name in CONSTANTS)
