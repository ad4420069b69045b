"""A given mesh of fixed shape whose colours are optimised.

The colours are a hash-grid field on the surface, baked on export, or the texels of an image.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from pgc3d.context import RepresentationContext
from pgc3d.errors import ConfigError
from pgc3d.geometry.normals import face_normals, vertex_normals
from pgc3d.geometry.own_uv import uv_coverage
from pgc3d.geometry.placement import orientation
from pgc3d.interfaces import Rasterizer
from pgc3d.parameters import ParameterGroup, ParameterStore
from pgc3d.ranges import MAX_RATE, check, number
from pgc3d.rendering.antialias import edge_topology
from pgc3d.rendering.mesh_renderer import SurfaceSamples, render_corners, stored_bytes
from pgc3d.rendering.mipmap import footprint_level, mip_chain, sample_chain, uv_gradients
from pgc3d.representation.fields import ColorField, ColorFieldConfig, build_color_field, start_colors
from pgc3d.requirements import Requirements
from pgc3d.types import Handover, Material, Mesh, PreparedMesh, Rendering, Step, Views

CHUNK = 1 << 17  # points per query: bounds the memory of a field's hidden layers
GUTTER_WEIGHT = 1e-4  # of texels that no face covers, in the means of the mip levels


@dataclass(frozen=True)
class TexturedMeshConfig:
    """Settings of a given mesh with optimised colours; the defaults are for two CPU cores."""

    kind: Literal["textured_mesh"] = "textured_mesh"
    up: str = "+y"  # the file's axis that points up, one of +x -x +y -y +z -z
    front: str = "auto"  # the file's axis that the object faces; auto is +z, or -y where z is up
    # texture coordinates: the file's where they are valid, always the file's, or always new ones
    uv: Literal["auto", "own", "new"] = "auto"
    # Angle between faces above which an edge is sharp, for files without normals.
    crease_degrees: float = number(40.0, 0.0, 180.0, unit="degrees")
    shading: bool = True  # shade the colours; otherwise renders show the base colour
    texture: Literal["field", "image"] = "field"
    image_size: int = number(1024, 64, 4096, unit="pixels")  # of the texture `image`, a power of two
    lr_image: float = number(0.01, 0.0, MAX_RATE)
    color_field: ColorFieldConfig = field(default_factory=ColorFieldConfig)
    color: tuple[float, float, float] = number((0.5, 0.5, 0.5), 0.001, 0.999, unit="in sRGB")  # at the start
    roughness: float = number(0.8, 0.0, 1.0)
    metallic: float = number(0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        check(self)
        orientation(self.up, self.front)
        if self.image_size & (self.image_size - 1):
            raise ValueError(f"image_size must be a power of two, got {self.image_size}")

    fixed_shape: ClassVar[bool] = True

    def requires(self) -> Requirements:
        """A mesh file."""
        return Requirements(inputs=frozenset({"mesh"}))

    def render_bytes(self, *, low_memory: bool) -> int:
        """Bytes stored for each rendered pixel until the backward pass."""
        return stored_bytes(low_memory=low_memory)

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
        )
        if isinstance(made.texture, ColorField):
            made.texture.recompute = context.low_memory
            if context.start is not None:
                start_colors(made.texture, context.start, context.generator)
        elif context.start is not None:
            raise ConfigError(
                "a stage that starts from another one must have the texture 'field', got 'image'; remove its "
                "start"
            )
        return made


class ImageTexture(nn.Module):
    """Colours as the texels of a square image, kept in [0, 1]."""

    weight: Float[Tensor, "S S"]

    def __init__(
        self, covered: Float[Tensor, "S S"], *, color: tuple[float, float, float] = (0.5, 0.5, 0.5)
    ) -> None:
        """Initialise to one sRGB colour; `covered` is 1 for texels on a face, S is a power of two."""
        super().__init__()
        # A filtered look-up at a chart's edge includes the texel next to it.
        reached = max_pool2d(covered[None, None], 3, stride=1, padding=1)[0, 0]
        self.register_buffer("weight", reached.clamp_min(GUTTER_WEIGHT), persistent=False)
        start = torch.tensor(color, device=covered.device)
        self.image = nn.Parameter(start.expand(*covered.shape, 3).clone())

    def chain(self) -> Float[Tensor, "N 3"]:
        """The texels of all mip levels."""
        return mip_chain(self.image, self.weight)

    @torch.no_grad()
    def project(self) -> None:
        """Clamp the texels to [0, 1]."""
        self.image.clamp_(0.0, 1.0)


class TexturedMesh(nn.Module):
    """A `Representation` whose geometry never changes."""

    def __init__(
        self,
        *,
        rasterizer: Rasterizer,
        prepared: PreparedMesh,
        texture: ColorField | ImageTexture,
        learning_rates: dict[str, float],
        shading: bool = True,
        roughness: float = 0.8,
        metallic: float = 0.0,
    ) -> None:
        """Store the mesh in world space on the rasteriser's device.

        Args:
            rasterizer: the backend.
            prepared: on any device; its mesh has normals and texture coordinates.
            texture: the colours.
            learning_rates: of "texture.grid" and "texture.mlp", or of "texture.image".
            shading: whether colours are shaded.
            roughness: of the whole surface.
            metallic: of the whole surface.
        """
        super().__init__()
        self.rasterizer = rasterizer
        self.prepared = prepared
        self.texture = texture
        self.learning_rates = learning_rates
        self.shading = shading
        self.roughness, self.metallic = roughness, metallic
        self._store: ParameterStore | None = None
        device = next(texture.parameters()).device
        self.mesh = mesh = prepared.in_world().to(device)
        self._topology = edge_topology(prepared.welded_faces.to(device), len(mesh.vertices))
        self._face_normals = face_normals(mesh.vertices, mesh.faces)
        self._gradients = uv_gradients(mesh)

    def begin_step(self, step: Step) -> None:
        """See `Representation.begin_step`; nothing is shared by a step's renders."""

    def end_step(self, step: Step) -> None:
        """Keep the texels of an image in [0, 1]."""
        if isinstance(self.texture, ImageTexture):
            self.texture.project()

    def regularizers(self, step: Step) -> dict[str, Float[Tensor, ""]]:
        """None: the geometry is fixed."""
        return {}

    def render(self, views: Views, resolution: int, step: Step | None) -> Rendering:
        """See `Representation.render`."""
        with torch.set_grad_enabled(step is not None and torch.is_grad_enabled()):
            return self.shaded(views, resolution, shading=self.shading)

    def shaded(self, views: Views, resolution: int, *, shading: bool) -> Rendering:
        """Render with or without shading."""
        texture, cameras = self.texture, views.cameras
        chain = texture.chain() if isinstance(texture, ImageTexture) else None

        def color(hits: SurfaceSamples) -> Tensor:
            if isinstance(texture, ColorField):
                return cast("Tensor", texture(self._field_points(hits.points, hits.uv)).base_color)
            level = footprint_level(
                self._gradients.index_select(0, hits.triangle),
                hits.points,
                self._face_normals.index_select(0, hits.triangle),
                hits.view,
                cameras,
                resolution=resolution,
                texture_size=len(texture.image),
            )
            assert chain is not None
            return sample_chain(chain, len(texture.image), hits.uv, level, repeat=self.prepared.uv_wraps)

        return render_corners(
            self.mesh,
            cameras,
            resolution,
            views.background,
            rasterizer=self.rasterizer,
            color=color,
            topology=self._topology,
            face_normals=self._face_normals,
            shading=shading,
        )

    def _field_points(self, points: Float[Tensor, "P 3"], uv: Float[Tensor, "P 2"]) -> Float[Tensor, "P 3"]:
        """The points at which the field is evaluated: surface points, or texture coordinates on a plane.

        Where surface points share a texel, the file has one colour for them, and so must the field.
        """
        if not self.prepared.uv_shared:
            return points
        flat = 2 * (uv - uv.floor() if self.prepared.uv_wraps else uv) - 1
        return torch.cat([flat, torch.zeros_like(flat[:, :1])], dim=1)

    def parameter_store(self) -> ParameterStore:
        """The texture's parameters."""
        if self._store is None:
            self._store = ParameterStore(self._groups())
        return self._store

    def handover(self) -> Handover:
        """The surface in the world, and its colours."""
        mesh = self.mesh
        surface = Mesh(mesh.vertices, mesh.faces, vertex_normals(mesh.vertices, mesh.faces))
        if isinstance(self.texture, ColorField):
            state = self.texture.handover_state()
        else:
            state = {f"color.{name}": value for name, value in self.texture.state_dict().items()}
        return Handover(surface=surface, sdf=None, material=self._nearest_material, state=state)

    @torch.no_grad()
    def _nearest_material(self, points: Float[Tensor, "P 3"]) -> Material:
        """Material of a field at the points, of an image at the nearest corner of a face."""
        texture = self.texture
        if isinstance(texture, ColorField) and not self.prepared.uv_shared:
            return cast("Material", texture(points))
        corners, uv = self.mesh.vertices[self.mesh.faces].flatten(0, 1), self.mesh.uv[self.mesh.uv_faces]
        parts = torch.split(points, max(1, (1 << 24) // len(corners)))  # 64 MB of distances
        nearest = [torch.cdist(part, corners).argmin(dim=1) for part in parts]
        nearest_uv = uv.flatten(0, 1)[torch.cat(nearest)]
        size = len(texture.image) if isinstance(texture, ImageTexture) else 1  # no filtering
        color = self.texels(points, nearest_uv, texture_size=size)
        constant = torch.ones_like(color[:, :1])
        return Material(color, self.roughness * constant, self.metallic * constant)

    def _groups(self) -> list[ParameterGroup]:
        groups: dict[str, list[Tensor]]
        if isinstance(self.texture, ImageTexture):
            groups = {"texture.image": [self.texture.image]}
        else:
            groups = {
                "texture.grid": list(self.texture.grid.parameters()),
                "texture.mlp": list(self.texture.mlp.parameters()),
            }
        return [
            ParameterGroup(name=name, params=params, lr=self.learning_rates[name])
            for name, params in groups.items()
        ]

    @torch.no_grad()
    def texels(
        self, points: Float[Tensor, "P 3"], uv: Float[Tensor, "P 2"], *, texture_size: int
    ) -> Float[Tensor, "P 3"]:
        """Base colour in sRGB at world points with their texture coordinates.

        `texture_size` is the side of the image to bake in texels; for one smaller than the texture it is
        filtered.
        """
        texture, parts = self.texture, torch.split(torch.arange(len(points), device=points.device), CHUNK)
        if isinstance(texture, ColorField):
            field_points = self._field_points(points, uv)
            return torch.cat([texture(field_points[part]).base_color for part in parts])
        chain, size = texture.chain(), len(texture.image)
        level = torch.full_like(uv[:, 0], math.log2(max(size / texture_size, 1.0)))
        repeat = self.prepared.uv_wraps
        return torch.cat([sample_chain(chain, size, uv[part], level[part], repeat=repeat) for part in parts])


def build_textured_mesh(
    config: TexturedMeshConfig,
    prepared: PreparedMesh,
    *,
    rasterizer: Rasterizer,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> TexturedMesh:
    """The representation of a configuration; `generator`, on the CPU, draws its initial weights."""
    texture: ColorField | ImageTexture
    if config.texture == "image":
        mesh = prepared.to(device)
        covered = uv_coverage(mesh, config.image_size, rasterizer)
        texture = ImageTexture(torch.ones_like(covered) if prepared.uv_wraps else covered, color=config.color)
    else:
        texture = build_color_field(
            config.color_field,
            generator,
            color=config.color,
            roughness=config.roughness,
            metallic=config.metallic,
        )
    return TexturedMesh(
        rasterizer=rasterizer,
        prepared=prepared,
        texture=texture.to(device),
        learning_rates={
            "texture.image": config.lr_image,
            "texture.grid": config.color_field.lr_grid,
            "texture.mlp": config.color_field.lr_mlp,
        },
        shading=config.shading,
        roughness=config.roughness,
        metallic=config.metallic,
    )
