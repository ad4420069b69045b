"""The configuration of a DMTet, and its initial shape: an ellipsoid, or the hand-over of another stage."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.context import LightLoader, RepresentationContext, no_lights
from pgc3d.errors import InputError
from pgc3d.geometry.marching_tetrahedra import grid_points
from pgc3d.geometry.sdf import ellipsoid_sdf, mesh_sdf, redistance
from pgc3d.interfaces import Rasterizer
from pgc3d.ranges import MAX_RATE, MAX_WEIGHT, check, number
from pgc3d.rendering.mesh_renderer import again_bytes, stored_bytes
from pgc3d.representation.dmtet import DMTet
from pgc3d.representation.dmtet_surface import LOSSES
from pgc3d.representation.fields import (
    ColorFieldConfig,
    SdfField,
    build_color_field,
    build_hash_grid,
    start_colors,
)
from pgc3d.representation.headlight import HeadlightConfig
from pgc3d.representation.materials import MaterialConfig
from pgc3d.requirements import Requirements
from pgc3d.types import Handover


@dataclass(frozen=True)
class DMTetConfig:
    """Settings of a DMTet. The defaults are for two CPU cores; lengths in cells scale with the resolution."""

    kind: Literal["dmtet"] = "dmtet"
    resolution: int = number(64, 8, 512, unit="cells along an axis")  # of the grid
    # Of the initial ellipsoid of a stage without `start`.
    radii: tuple[float, float, float] = number((0.6, 0.6, 0.6), 0.0, 0.98, above=True)
    sdf: Literal["grid", "mlp"] = "grid"  # values on the grid, or a hash grid with an MLP
    # Standard deviation of the blur at the start and at the end; 0 is off.
    sdf_smoothing: tuple[float, float] = number((1.0, 0.7), 0.0, 8.0, unit="cells")
    # Largest offset of a grid point along an axis.
    deformation_limit: float = number(0.45, 0.0, 0.5, unit="cells")
    redistance_every: int = number(50, 0, 10_000_000, unit="steps")  # 0 is off
    lr_sdf: float = number(0.01, 0.0, MAX_RATE)  # learning rate of the signed distance
    # Fraction of the SDF gradients' root mean square, below which steps are shorter than lr_sdf; 0 is off.
    eps_sdf: float = number(0.0, 0.0, 10.0)
    lr_deformation: float = number(0.01, 0.0, MAX_RATE)  # learning rate of the offsets
    normal_consistency: float = number(10.0, 0.0, MAX_WEIGHT)  # weight: smooth faces
    laplacian: float = number(0.0, 0.0, MAX_WEIGHT)  # weight: vertices in the middle of their neighbours
    sign_changes: float = number(0.0, 0.0, MAX_WEIGHT)  # weight: fewer surfaces inside
    # Weight: the field is a distance, its gradient has length 1.
    eikonal: float = number(0.0, 0.0, MAX_WEIGHT)
    area: float = number(0.0, 0.0, MAX_WEIGHT)  # weight: a small surface
    color_field: ColorFieldConfig = field(default_factory=ColorFieldConfig)
    color: tuple[float, float, float] = number((0.5, 0.5, 0.5), 0.001, 0.999, unit="in sRGB")  # at the start
    roughness: float = number(0.8, 0.0, 1.0)  # of the material; at the start, where it is optimised
    metallic: float = number(0.0, 0.0, 1.0)  # of the material; at the start, where it is optimised
    material: MaterialConfig = field(default_factory=HeadlightConfig)
    # Progress from which on the shape is fixed and only the colours are optimised.
    shape_until: float = number(1.0, 0.0, 1.0, above=True)
    # Number of times that an invalid surface is replaced before the run ends.
    max_recoveries: int = number(3, 0, 1000)

    def __post_init__(self) -> None:
        check(self)
        if min(self.radii) < 2.0 / self.resolution:
            raise ValueError(
                f"radii must be at least a cell, {2.0 / self.resolution:g} at resolution {self.resolution}, "
                f"got {list(self.radii)}"
            )
        if self.material.bump:
            raise ValueError(
                "material.bump must be false for a dmtet, which has no texture coordinates, got true; use it "
                "in a stage of kind textured_mesh"
            )

    fixed_shape: ClassVar[bool] = False
    memory_settings: ClassVar[tuple[str, ...]] = ()

    def requires(self) -> Requirements:
        """The files of the material's lights."""
        return self.material.requires()

    def render_bytes(self, *, low_memory: bool) -> int:
        """Bytes stored for each rendered pixel until the backward pass."""
        return stored_bytes(self.material.render_bytes(), low_memory=low_memory)

    def again_bytes(self, *, low_memory: bool) -> int:
        """Bytes for each pixel of one view that is rendered again in the backward pass."""
        return again_bytes(self.material.render_bytes(), low_memory=low_memory)

    def render_work(self) -> float:
        """Look-ups of the colours for each rendered pixel."""
        return float(self.color_field.levels)

    def build(self, context: RepresentationContext) -> DMTet:
        """The representation before the first step.

        Raises:
            InputError: the stage to start from has no surface.
        """
        asset = build_dmtet(
            self,
            rasterizer=context.rasterizer,
            generator=context.generator,
            device=context.device,
            start=context.start,
            load_light=context.light,
        )
        asset.recompute = context.low_memory
        return asset


def build_dmtet(
    config: DMTetConfig,
    *,
    rasterizer: Rasterizer,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    start: Handover | None = None,
    load_light: LightLoader = no_lights,
) -> DMTet:
    """The representation of a configuration.

    Args:
        config: sizes, learning rates and weights.
        rasterizer: the backend.
        generator: on the CPU; draws the fields' initial weights.
        device: of the grid and the fields.
        start: the hand-over of an earlier stage, in the cube [-1, 1]^3; an ellipsoid of one colour when None.
        load_light: the linear radiance of a light's file.

    Raises:
        InputError: a light cannot be read, or `start` has neither a distance field nor a surface.
    """
    channels = config.material.channels(config.roughness, config.metallic)
    color = build_color_field(
        config.color_field,
        generator,
        color=config.color,
        roughness=config.roughness,
        metallic=config.metallic,
        channels=channels,
    )
    sdf_field = None
    if config.sdf == "mlp":
        sdf_grid = build_hash_grid(
            config.color_field, max(config.resolution, config.color_field.base), generator
        )
        sdf_field = SdfField(sdf_grid, generator=generator)
    initial = (
        ellipsoid_sdf(config.radii, config.resolution) if start is None else _sdf_of(start, config, device)
    )
    asset = DMTet(
        rasterizer=rasterizer,
        initial=initial,
        color=color,
        learning_rates={
            "sdf": config.lr_sdf,
            "deformation": config.lr_deformation,
            "color.grid": config.color_field.lr_grid,
            "color.mlp": config.color_field.lr_mlp,
        },
        eps_sdf=config.eps_sdf,
        weights={name: getattr(config, name) for name in LOSSES},
        sdf_field=sdf_field,
        sdf_smoothing=config.sdf_smoothing,
        deformation_limit=config.deformation_limit,
        redistance_every=config.redistance_every,
        shape_until=config.shape_until,
        max_recoveries=config.max_recoveries,
        padded=torch.device(device).type == "cuda",
        lighting=config.material.lighting(load_light, device),
        smoothness=config.material.smoothness,
    ).to(device)
    if start is not None:
        start_colors(asset.color, start, generator)
    return asset


@torch.no_grad()
def _sdf_of(start: Handover, config: DMTetConfig, device: torch.device | str) -> Float[Tensor, "X Y Z"]:
    """The field of an earlier stage on this grid, reinitialised as a distance field."""
    if start.sdf is not None:
        size = config.resolution + 1
        points = grid_points(config.resolution, device)
        values = torch.cat([start.sdf(part) for part in torch.split(points, 1 << 19)])
        return redistance(values.reshape(size, size, size))
    if start.surface is None:
        raise InputError(
            "a stage of kind dmtet must start from a stage with a surface, got one without; remove its start"
        )
    return mesh_sdf(start.surface.vertices, start.surface.faces, config.resolution)
