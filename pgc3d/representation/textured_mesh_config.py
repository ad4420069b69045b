"""The configuration of a given mesh whose material is optimised."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from pgc3d.context import LightLoader, RepresentationContext, no_lights
from pgc3d.errors import ConfigError
from pgc3d.geometry.own_uv import uv_coverage
from pgc3d.geometry.placement import orientation
from pgc3d.interfaces import Rasterizer
from pgc3d.ranges import MAX_RATE, check, number
from pgc3d.rendering.mesh_renderer import again_bytes, stored_bytes
from pgc3d.representation.channels import Channels
from pgc3d.representation.fields import ColorField, ColorFieldConfig, build_color_field, start_colors
from pgc3d.representation.headlight import HeadlightConfig
from pgc3d.representation.image_texture import ImageTexture, ImageTextures
from pgc3d.representation.materials import MaterialConfig
from pgc3d.representation.pbr import PbrConfig
from pgc3d.representation.refinement import Refinement, Refinements, power_of_two
from pgc3d.representation.source_config import SourceConfig
from pgc3d.representation.source_start import start_from_source
from pgc3d.representation.textured_mesh import TexturedMesh
from pgc3d.requirements import Requirements
from pgc3d.types import PreparedMesh, SourceTexture


@dataclass(frozen=True)
class TexturedMeshConfig:
    """Settings of a given mesh with optimised colours; the defaults are for two CPU cores."""

    kind: Literal["textured_mesh"] = "textured_mesh"
    mesh: Literal["given", "start"] = "given"  # the task's, or the surface that the stage starts from
    up: str = "+y"  # the file's axis that points up, one of +x -x +y -y +z -z
    front: str = "auto"  # the file's axis that the object faces; auto is +z, or -y where z is up
    # texture coordinates: the file's where they are valid, always the file's, or always new ones
    uv: Literal["auto", "own", "new"] = "auto"
    # Angle between faces above which an edge is sharp, for files without normals.
    crease_degrees: float = number(40.0, 0.0, 180.0, unit="degrees")
    shading: bool = True  # shade the colours; otherwise renders show the base colour
    # A field of the surface's points, or the texture image itself.
    texture: Literal["field", "image"] = "field"
    image_size: int = number(1024, 64, 8192, unit="pixels")  # of the largest `image`, a power of two
    lr_image: float = number(0.01, 0.0, MAX_RATE)  # learning rate of an image
    color_field: ColorFieldConfig = field(default_factory=ColorFieldConfig)
    color: tuple[float, float, float] = number((0.5, 0.5, 0.5), 0.001, 0.999, unit="in sRGB")  # at the start
    roughness: float = number(0.8, 0.0, 1.0)  # of the material; at the start, where it is optimised
    metallic: float = number(0.0, 0.0, 1.0)  # of the material; at the start, where it is optimised
    material: MaterialConfig = field(default_factory=HeadlightConfig)
    # Render the file's normal, roughness, metallic, occlusion and emission maps, under the lights of a
    # material of kind pbr, unless that is what is learned.
    maps: Literal["use", "ignore"] = "use"
    source: SourceConfig = field(default_factory=SourceConfig)  # what becomes of the file's own texture

    def __post_init__(self) -> None:
        check(self)
        orientation(self.up, self.front)
        if self.image_size & (self.image_size - 1):
            raise ValueError(f"image_size must be a power of two, got {self.image_size}")
        if self.material.lit and not self.shading:
            raise ValueError(
                f"shading must be true for a material of kind {self.material.kind}, got false; remove it"
            )
        if self.source.use != "none" and self.mesh == "start":
            raise ValueError(
                f"source.use must be none for the surface of an earlier stage, got {self.source.use}; "
                "remove it"
            )

    fixed_shape: ClassVar[bool] = True
    memory_settings: ClassVar[tuple[str, ...]] = ()

    def requires(self) -> Requirements:
        """A mesh file with its texture, or a stage to start from, and the files of the material's lights."""
        given = self.mesh == "given"
        mesh = Requirements(
            inputs=frozenset({"mesh"} if given else ()),
            accepts=frozenset({"texture", "mask"} if self.source.use != "none" else ()),
            start=not given,
        )
        return mesh | self.material.requires()

    def render_bytes(self, *, low_memory: bool) -> int:
        """Bytes stored for each rendered pixel until the backward pass."""
        return stored_bytes(self.material.render_bytes(), low_memory=low_memory)

    def again_bytes(self, *, low_memory: bool) -> int:
        """Bytes for each pixel of one view that is rendered again in the backward pass."""
        return again_bytes(self.material.render_bytes(), low_memory=low_memory)

    def render_work(self) -> float:
        """Look-ups of the colours for each rendered pixel."""
        return float(self.color_field.levels)

    def build(self, context: RepresentationContext) -> "TexturedMesh":
        """The representation before the first step.

        Raises:
            ConfigError: the texture is "image" and the stage starts from another one, which needs a field.
        """
        made = build_textured_mesh(
            self,
            context.mesh(),
            rasterizer=context.rasterizer,
            generator=context.generator,
            device=context.device,
            load_light=context.light,
            sources=context.sources() if self.source.use != "none" else None,
        )
        made.recompute = context.low_memory
        if isinstance(made.texture, ColorField):
            if context.start is not None:
                start_colors(made.texture, context.start, context.generator)
        elif context.start is not None:
            raise ConfigError(
                "a stage that starts from another one must have the texture 'field', got 'image'; remove its "
                "start"
            )
        return made


def build_textured_mesh(
    config: TexturedMeshConfig,
    prepared: PreparedMesh,
    *,
    rasterizer: Rasterizer,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    load_light: LightLoader = no_lights,
    sources: Sequence[SourceTexture] | None = None,
) -> TexturedMesh:
    """The representation of a configuration.

    Args:
        config: sizes, learning rates and the material.
        prepared: the mesh.
        rasterizer: the backend.
        generator: on the CPU; draws the initial weights of a field.
        device: of the texture.
        load_light: the linear radiance of a light's file.
        sources: for each texture set what is kept or refined, whose size its image then has.

    Raises:
        InputError: a light cannot be read.
        ConfigError: a mask is used with a material that varies more than the base colour.
    """
    channels = config.material.channels(config.roughness, config.metallic)
    texture: ColorField | ImageTextures
    if config.texture == "image":
        sides = [
            part.side(config.image_size) if sources is None else power_of_two(sources[index])
            for index, part in enumerate(prepared.sets)
        ]
        texture = _image_textures(config, prepared.to(device), sides, channels, rasterizer)
    else:
        texture = build_color_field(
            config.color_field,
            generator,
            color=config.color,
            roughness=config.roughness,
            metallic=config.metallic,
            channels=channels,
        )
    texture = texture.to(device)
    refinement = None if sources is None else _refined(config, prepared, texture, sources)
    own = config.maps == "use" and prepared.maps is not None and not config.material.lit
    textured = TexturedMesh(
        rasterizer=rasterizer,
        prepared=prepared,
        texture=texture,
        refinement=refinement,
        learning_rates={
            "texture.image": config.lr_image,
            "texture.grid": config.color_field.lr_grid,
            "texture.mlp": config.color_field.lr_mlp,
        },
        shading=config.shading or own,
        lighting=(PbrConfig() if own else config.material).lighting(load_light, device),
        smoothness=config.material.smoothness,
        use_maps=own,
    )
    if config.source.use == "start" and refinement is not None:
        start_from_source(textured, generator)
    return textured


def _refined(
    config: TexturedMeshConfig,
    prepared: PreparedMesh,
    texture: ColorField | ImageTextures,
    sources: Sequence[SourceTexture],
) -> Refinements:
    """The limits of a change of the sources."""
    if any(source.mask is not None for source in sources) and len(texture.channels.bounds) > 3:
        raise ConfigError(
            f"--mask must go with a material of the base colour alone, got the kind {config.material.kind}; "
            "remove one of both"
        )
    device, settings = next(texture.parameters()).device, config.source
    parts = []
    for index, source in enumerate(sources):
        if isinstance(texture, ImageTextures):
            weight = texture[index].weight
        else:
            side = power_of_two(source)
            weight = torch.ones(side, side, device=device)
        limits = {"bound": settings.largest_change, "keep": settings.keep_weight}
        parts.append(Refinement(source, weight, cells=settings.cells, **limits))
    refinements = Refinements(parts, repeats=[part.wraps for part in prepared.sets])
    return refinements.to(device)


def _image_textures(
    config: TexturedMeshConfig,
    mesh: PreparedMesh,
    sides: Sequence[int],
    channels: Channels,
    rasterizer: Rasterizer,
) -> ImageTextures:
    """An image for each texture set, all of one colour."""
    images = [
        ImageTexture(
            uv_coverage(mesh, index, side, rasterizer),
            color=config.color,
            roughness=config.roughness,
            metallic=config.metallic,
            channels=channels,
        )
        for index, side in enumerate(sides)
    ]
    return ImageTextures(images, repeats=[part.wraps for part in mesh.sets])
