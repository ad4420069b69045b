"""The configuration of a NeRF."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pgc3d.context import RepresentationContext
from pgc3d.ranges import MAX_RATE, MAX_WEIGHT, check, number, schedule
from pgc3d.representation.density import Blob, DensityField
from pgc3d.representation.fields import (
    ColorFieldConfig,
    HashGrid,
    Mlp,
    build_color_field,
    start_colors,
)
from pgc3d.representation.nerf import Nerf, NerfSettings
from pgc3d.representation.nerf_losses import LOSSES
from pgc3d.representation.occupancy import MARGIN, Occupancy
from pgc3d.requirements import Requirements
from pgc3d.schedules import PiecewiseLinear

# Kept for a sample with autograd beside features and hidden layers, in bytes; of autograd's saved tensors.
SAMPLE, COLOR, NORMAL = 72, 12, 142
RECOMPUTED = 72  # likewise in all, where fields are evaluated again in the backward pass
TAPS = 4  # evaluations of the density for a normal
FILL = 0.15  # fraction of the stations that hold samples: of the first ball 0.13, of a fog up to 0.4


@dataclass(frozen=True)
class NerfConfig:
    """The defaults suit two CPU cores; 16 levels of 2^19 rows up to 4096 cells suit a GPU."""

    kind: Literal["nerf"] = "nerf"
    levels: int = number(6, 1, 16)  # of the density's hash grid
    features: int = number(2, 1, 8)  # of a level
    log2_rows: int = number(15, 4, 24)  # of a level's table
    base: int = number(8, 2, 512, unit="cells along an axis")  # of the coarsest level
    finest: int = number(96, 2, 16384, unit="cells along an axis")  # of the finest level
    hidden: int = number(16, 1, 256)  # width of the MLP
    levels_used: tuple[float, ...] = schedule((0.0, 0.5, 0.6, 1.0), 0.01, 1.0)  # fraction of the levels
    activation: Literal["softplus", "exp"] = "softplus"  # from the network's output to a density
    blob_strength: float = number(10.0, 0.0, 1e4)  # density of the first ball's centre, before activation
    blob_radius: float = number(0.5, 0.01, 2.0)  # of the first ball, in world units
    stations: int = number(48, 8, 1024)  # samples on a diameter of the unit ball
    occupancy: int = number(32, 8, 256, unit="cells along an axis")  # of the grid of cells with a density
    occupancy_every: int = number(8, 1, 10_000, unit="steps")  # between two updates of the occupancy
    shaded: tuple[float, ...] = schedule((1.0,), 0.0, 1.0)  # probability that a step is lit
    textureless: float = number(0.0, 0.0, 1.0)  # probability that a lit step shows no colours
    mesh_resolution: int = number(64, 8, 512, unit="cells along an axis")  # of the surface that is found
    lr_grid: float = number(0.01, 0.0, MAX_RATE)  # learning rate of the hash grid
    lr_mlp: float = number(0.002, 0.0, MAX_RATE)  # learning rate of the MLP
    regularizer_rays: int = number(512, 1, 2**20)  # of a step
    orientation: float = number(0.0, 0.0, MAX_WEIGHT)  # weight: visible normals face the camera (Ref-NeRF)
    sparsity: float = number(0.0, 0.0, MAX_WEIGHT)  # weight: few rays hit something (DreamFusion)
    opaque: float = number(0.0, 0.0, MAX_WEIGHT)  # weight: rays are opaque or empty
    entropy: float = number(0.0, 0.0, MAX_WEIGHT)  # the same, without nearly empty rays
    depth_variance: float = number(0.0, 0.0, MAX_WEIGHT)  # weight: thin surfaces (HiFA)
    color_field: ColorFieldConfig = field(default_factory=ColorFieldConfig)
    color: tuple[float, float, float] = number((0.5, 0.5, 0.5), 0.001, 0.999, unit="in sRGB")  # at the start
    roughness: float = number(0.8, 0.0, 1.0)  # of the material
    metallic: float = number(0.0, 0.0, 1.0)  # of the material
    # Number of times that an empty scene is replaced before the run ends.
    max_recoveries: int = number(3, 0, 1000)

    fixed_shape: ClassVar[bool] = False
    memory_settings: ClassVar[tuple[str, ...]] = ("stations",)

    def __post_init__(self) -> None:
        check(self)
        if self.finest < self.base:
            raise ValueError(f"finest must not be less than base, got {self.finest} < {self.base}")

    def requires(self) -> Requirements:
        """Nothing."""
        return Requirements()

    def render_bytes(self, *, low_memory: bool) -> int:
        """Peak bytes for each rendered pixel on CUDA, of a lit step where there are any.

        In the backward pass the gradients of all taps of the normals exist at once. A sample of the sizes of
        the pipeline magic3d took 947 bytes unlit and 4096 lit, measured on an H200; this gives 948 and 4066.
        """
        if low_memory:
            return int(self.sample_bytes(low_memory=True) * MARGIN * FILL * self.stations)
        gradients = self._density_bytes() * (TAPS if self._is_lit() else 0.25)
        return int((self.sample_bytes(low_memory=False) + gradients) * MARGIN * FILL * self.stations)

    def again_bytes(self, *, low_memory: bool) -> int:
        """None: with low memory samples are computed again in chunks, which `render_bytes` counts."""
        return 0

    def render_work(self) -> float:
        """Look-ups of density and colours for each rendered pixel, of a lit step where there are any."""
        density = self.levels * (1 + TAPS if self._is_lit() else 1)
        return FILL * self.stations * (density + self.color_field.levels)

    def sample_bytes(self, *, low_memory: bool) -> int:
        """Bytes kept for each sample until the backward pass, of a lit step where there are any."""
        if low_memory:
            return RECOMPUTED
        field = self.color_field
        color = 4 * (field.levels * field.features + field.hidden) + COLOR
        normal = TAPS * self._density_bytes() + NORMAL if self._is_lit() else 0
        return SAMPLE + self._density_bytes() + color + normal

    def _density_bytes(self) -> int:
        return 4 * (self.levels * self.features + self.hidden)

    def _is_lit(self) -> bool:
        return max(PiecewiseLinear(self.shaded).values) > 0

    def build(self, context: RepresentationContext) -> Nerf:
        """The representation at its start; of an earlier stage it takes the colours."""
        generator = context.generator
        grid = HashGrid(
            levels=self.levels, features=self.features, log2_rows=self.log2_rows, base=self.base,
            finest=self.finest, generator=generator,
        )  # fmt: skip
        density = DensityField(
            grid,
            Mlp(grid.width, 1, hidden=self.hidden, generator=generator),
            blob=Blob(self.blob_strength, self.blob_radius),
            activation=self.activation,
        )
        color = build_color_field(
            self.color_field, generator, color=self.color, roughness=self.roughness, metallic=self.metallic
        )
        nerf = Nerf(
            rasterizer=context.rasterizer,
            density=density,
            color=color,
            occupancy=Occupancy(
                self.occupancy,
                stations=self.stations,
                every=self.occupancy_every,
                fill=context.fill,
                padded=context.device.type == "cuda",
            ),
            settings=self._settings(),
        ).to(context.device)
        nerf.recompute = context.low_memory
        if context.start is not None:
            start_colors(nerf.color, context.start, generator)
        return nerf

    def _settings(self) -> NerfSettings:
        rates = {
            "density.grid": self.lr_grid, "density.mlp": self.lr_mlp,
            "color.grid": self.color_field.lr_grid, "color.mlp": self.color_field.lr_mlp,
        }  # fmt: skip
        return NerfSettings(
            learning_rates=rates,
            weights={name: getattr(self, name) for name in LOSSES},
            rays=self.regularizer_rays,
            shaded=PiecewiseLinear(self.shaded),
            textureless=self.textureless,
            levels=PiecewiseLinear(self.levels_used),
            mesh_resolution=self.mesh_resolution,
            max_recoveries=self.max_recoveries,
        )
