"""A given mesh of fixed shape whose colours are optimised.

The colours are a hash-grid field on the surface, baked on export, or the texels of images.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from pgc3d.geometry.normals import face_normals, vertex_normals
from pgc3d.geometry.sampling import sample_surface
from pgc3d.geometry.tangents import corner_tangents
from pgc3d.interfaces import Rasterizer
from pgc3d.parameters import ParameterGroup, ParameterStore
from pgc3d.rendering.antialias import edge_topology
from pgc3d.rendering.lighting import Lighting, bumped
from pgc3d.rendering.mesh_renderer import Look, SurfaceSamples, render_corners, to_camera
from pgc3d.rendering.mipmap import footprint_level, uv_gradients
from pgc3d.rendering.recompute import render_step
from pgc3d.rendering.shading import linear_to_srgb
from pgc3d.representation.cutout_surface import ShownSurface, cut_surface
from pgc3d.representation.field_cells import FieldCells, atlas_points
from pgc3d.representation.fields import ColorField
from pgc3d.representation.fixed_maps import FixedMaps
from pgc3d.representation.image_texture import ImageTextures
from pgc3d.representation.material_losses import field_smoothness, image_smoothness, some_points
from pgc3d.representation.refinement import Refinements
from pgc3d.representation.uv_planes import UvPlanes
from pgc3d.types import (
    Cameras,
    Handover,
    Material,
    Mesh,
    PreparedMesh,
    Rendering,
    Step,
    Views,
    seeded,
)

CHUNK = 1 << 17  # points per query: bounds the memory of a field's hidden layers
BUMP = 5  # channels of a material before those of a bump
POOL = 1 << 16  # points from which a regulariser chooses some in every step


def base_color(material: Material) -> Float[Tensor, "P 3"]:
    """What a render without shading shows."""
    return material.base_color


class TexturedMesh(nn.Module):
    """A `Representation` whose geometry never changes."""

    def __init__(  # noqa: PLR0913 - flat arguments instead of a config
        self,
        *,
        rasterizer: Rasterizer,
        prepared: PreparedMesh,
        texture: ColorField | ImageTextures,
        learning_rates: dict[str, float],
        shading: bool = True,
        lighting: Lighting | None = None,
        smoothness: float = 0.0,
        use_maps: bool = False,
        refinement: Refinements | None = None,
    ) -> None:
        """Store the mesh in world space on the rasteriser's device.

        Args:
            rasterizer: the backend.
            prepared: on any device; its mesh has normals and texture coordinates.
            texture: the material.
            learning_rates: of "texture.grid" and "texture.mlp", or of "texture.image".
            shading: whether colours are shaded.
            lighting: of the material; the light that is fixed to the camera when None.
            smoothness: weight of differences of near base colours.
            use_maps: whether the file's own maps are those of the material, where there is `lighting`.
            refinement: limits the change of source textures; None without them.
        """
        super().__init__()
        self.rasterizer = rasterizer
        self.prepared = prepared
        self.texture = texture
        self.learning_rates = learning_rates
        self.shading, self.lighting, self.smoothness = shading, lighting, smoothness
        self.refinement = refinement
        self.recompute = False  # renders in the backward pass again, for less memory
        self._store: ParameterStore | None = None
        self._pool: Tensor | None = None
        self._cells: FieldCells | None = None
        device = next(texture.parameters()).device
        self.mesh = mesh = prepared.in_world().to(device)
        self._topology = edge_topology(prepared.welded_faces.to(device), len(mesh.vertices))
        self.canonical = mesh.canonical
        self._face_normals = face_normals(mesh.vertices, mesh.faces)
        self._gradients = uv_gradients(mesh)
        self._tangents = corner_tangents(mesh) if self.has_bump else None
        self._maps = FixedMaps.of(mesh) if use_maps else None
        shared = any(part.shared for part in prepared.sets)
        self._planes = UvPlanes.of(prepared.sets, device) if shared else None
        others = None if self._maps is None else (self._maps.corners, self._maps.maps.uv_faces)
        self._others = others
        self._shown = (
            None if mesh.cutout is None else cut_surface(mesh, self.canonical, self._tangents, others)
        )

    @property
    def has_bump(self) -> bool:
        """Whether normals vary with the texture."""
        return len(self.texture.channels.bounds) > BUMP

    @property
    def varies(self) -> bool:
        """Whether roughness and metallic vary with the texture."""
        return len(self.texture.channels.bounds) > 3

    def begin_step(self, step: Step) -> None:
        """See `Representation.begin_step`; nothing is shared by a step's renders."""

    def end_step(self, step: Step) -> None:
        """Keep the texels of an image in their bounds."""
        if isinstance(self.texture, ImageTextures):
            self.texture.project(self.refinement)

    def regularizers(self, step: Step) -> dict[str, Float[Tensor, ""]]:
        """Those of the material and of a refinement: the geometry is fixed."""
        texture, refinement, losses = self.texture, self.refinement, {}
        if isinstance(texture, ImageTextures):
            images = [texture[index] for index in range(len(texture))]
            pairs = [(image.image, image.weight) for image in images]
            if self.smoothness > 0:
                losses["smoothness"] = self.smoothness * image_smoothness(pairs)
            if refinement is not None and refinement.keep > 0:
                losses["keep"] = refinement.low_frequencies(*zip(*pairs, strict=True))
            return losses
        if self.smoothness > 0:
            points = some_points(self._points(), step)
            losses["smoothness"] = self.smoothness * field_smoothness(texture, points, step)
        if refinement is not None and refinement.keep > 0:
            losses["keep"] = self.field_cells().loss(texture.values, step)
        return losses

    def field_cells(self) -> FieldCells:
        """The points at which a field is compared with its source, the same in every run."""
        if self._cells is None:
            if self.refinement is None:
                raise ValueError("a field that is compared with a source must have one, got none")
            parts = [
                atlas_points(self.mesh, index, self.canonical, self.rasterizer)
                for index in range(len(self.mesh.sets))
            ]
            points, uv = (torch.cat(values) for values in zip(*parts, strict=True))
            counts = torch.tensor([len(part) for part, _ in parts], device=points.device)
            sets = torch.arange(len(parts), device=points.device).repeat_interleave(counts)
            self._cells = FieldCells(self._field_points(points, uv, sets), uv, sets, self.refinement)
        return self._cells

    def _points(self) -> Float[Tensor, "P 3"]:
        """Points of the surface at which a field is compared with itself, the same in every run."""
        if self._pool is None:
            mesh = self.mesh
            corners = self.canonical[mesh.faces].flatten(0, 1), mesh.uv[mesh.uv_faces].flatten(0, 1)
            generator = seeded("points of a surface")
            sampled, _ = sample_surface(self.canonical, mesh.faces, POOL, generator)
            sets = self.mesh.face_set.repeat_interleave(3)
            self._pool = self._field_points(*corners, sets) if self._planes is not None else sampled
        return self._pool

    def render(self, views: Views, resolution: int, step: Step | None) -> Rendering:
        """See `Representation.render`."""

        def render(views: Views, step: Step | None) -> Rendering:
            return self.shaded(views, resolution, shading=self.shading, step=step)

        return render_step(render, views, step, again=self.recompute)

    def shaded(
        self,
        views: Views,
        resolution: int,
        *,
        shading: bool,
        step: Step | None = None,
        holes: bool = True,
        shown: Callable[[Material], Float[Tensor, "P 3"]] = base_color,
    ) -> Rendering:
        """Render with shading, or without it what `shown` returns of the material.

        `step` draws the lights of a material that has some, see `Lighting`. With `holes`, what a material's
        alpha channel cuts away is not shown.
        """
        cameras = views.cameras
        chain = self.texture.chains(self.refinement) if isinstance(self.texture, ImageTextures) else None
        light = None
        if shading and self.lighting is not None:
            light = self.lighting.for_views(len(views), step)

        cut = self._shown if holes else None

        def look(hits: SurfaceSamples) -> Look:
            if cut is not None:
                hits = replace(hits, triangle=cut.parents.index_select(0, hits.triangle))
            material = self.texture.channels.material(self._values(hits, chain, cameras, resolution))
            normals, tangents, fixed = hits.normals, hits.tangents, None
            if light is not None and self._maps is not None and hits.others is not None:
                flat = self._face_normals.index_select(0, hits.triangle)
                fixed = self._maps.at(hits, hits.others, flat, cameras, resolution)
                material, tangents = fixed.on(material), hits.others[:, 2:]
            if material.slope is not None and tangents is not None:
                unit = normalize(normals, dim=-1)
                normals = bumped(unit, tangents, material.slope, hits.side)
            if light is None:
                return Look(shown(material), normals)
            towards = to_camera(hits.points, hits.view, cameras)
            radiance = light.linear(material, normalize(normals, dim=-1), towards, hits.view)
            if fixed is not None:
                radiance = radiance * fixed.occlusion + fixed.emission
            return Look(linear_to_srgb(radiance), normals)

        return render_corners(
            self.mesh if cut is None else cut.mesh,
            cameras,
            resolution,
            views.background,
            rasterizer=self.rasterizer,
            look=look,
            topology=self._topology if cut is None else cut.topology,
            face_normals=self._face_normals if cut is None else cut.face_normals,
            tangents=self._tangents if cut is None else cut.tangents,
            others=self._others if cut is None else cut.others,
            canonical=self._canonical_of(cut),
            shading=shading and light is None,
        )

    def _canonical_of(self, cut: ShownSurface | None) -> Float[Tensor, "V 3"] | None:
        if self.prepared.first_corners is None:
            return None
        return self.canonical if cut is None else cut.canonical

    def _values(
        self, hits: SurfaceSamples, chain: Tensor | None, cameras: Cameras, resolution: int
    ) -> Float[Tensor, "P C"]:
        """The channels of the texture at pixels; those of an image filtered over the pixels' footprints."""
        sets = self.mesh.face_set.index_select(0, hits.triangle)
        if isinstance(self.texture, ColorField):
            values = self.texture.values(self._field_points(hits.canonical, hits.uv, sets))
            if self.refinement is None:
                return values
            level = self._levels(hits, cameras, resolution, self.refinement.places.side(sets))
            return self.refinement.at(values, sets, hits.uv, level)
        assert chain is not None
        level = self._levels(hits, cameras, resolution, self.texture.places.side(sets))
        return self.texture.places.sample(chain, sets, hits.uv, level)

    def _levels(
        self, hits: SurfaceSamples, cameras: Cameras, resolution: int, side: int | Int[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        """Mip levels of pixels in images of `side` texels a side."""
        return footprint_level(
            self._gradients.index_select(0, hits.triangle),
            hits.points,
            self._face_normals.index_select(0, hits.triangle),
            hits.view,
            cameras,
            resolution=resolution,
            texture_size=side,
        )

    def _field_points(
        self, points: Float[Tensor, "P 3"], uv: Float[Tensor, "P 2"], sets: Int[Tensor, " P"]
    ) -> Float[Tensor, "P 3"]:
        """The points at which the field is evaluated: surface points, or texture coordinates on a plane.

        Where surface points share a texel, the file has one colour for them, and so must the field.
        """
        return points if self._planes is None else self._planes(points, uv, sets)

    @torch.no_grad()
    def field_colors(
        self, points: Float[Tensor, "P 3"], uv: Float[Tensor, "P 2"], sets: Int[Tensor, " P"]
    ) -> Float[Tensor, "P 3"]:
        """The base colours of a field itself at canonical points, which a refinement does not limit."""
        assert isinstance(self.texture, ColorField)
        parts = torch.split(self._field_points(points, uv, sets), CHUNK)
        return torch.cat([points[:0], *(self.texture.values(part)[:, :3] for part in parts)])

    def parameter_store(self) -> ParameterStore:
        """The texture's parameters."""
        if self._store is None:
            self._store = ParameterStore(self._groups())
        return self._store

    def handover(self) -> Handover:
        """The surface in the world, and its material without a bump, which belongs to its own tangents."""
        mesh = self.mesh
        surface = Mesh(mesh.vertices, mesh.faces, vertex_normals(mesh.vertices, mesh.faces))
        if isinstance(self.texture, ColorField):
            state = self.texture.handover_state()
        else:
            state = {f"color.{name}": value for name, value in self.texture.state_dict().items()}
        notes = ("the bump of the surface is not handed over",) if self.has_bump else ()
        return Handover(surface=surface, sdf=None, material=self._nearest_material, state=state, notes=notes)

    @torch.no_grad()
    def _nearest_material(self, points: Float[Tensor, "P 3"]) -> Material:
        """Material of a field at the points, of an image at the nearest corner of a face."""
        texture = self.texture
        instanced = self.prepared.first_corners is not None
        if isinstance(texture, ColorField) and self._planes is None and not instanced:
            return replace(cast("Material", texture(points)), slope=None)
        mesh = self.mesh
        corners = mesh.vertices[mesh.faces].flatten(0, 1)
        parts = torch.split(points, max(1, (1 << 24) // len(corners)))  # 64 MB of distances
        nearest = torch.cat([torch.cdist(part, corners).argmin(dim=1) for part in parts])
        uv, canonical = (
            mesh.uv[mesh.uv_faces.flatten()[nearest]],
            self.canonical[mesh.faces.flatten()[nearest]],
        )
        values = self.texels(canonical, uv, mesh.face_set[nearest // 3])
        return replace(texture.channels.material(values), slope=None)

    def _groups(self) -> list[ParameterGroup]:
        groups: dict[str, list[Tensor]]
        if isinstance(self.texture, ImageTextures):
            groups = {"texture.image": list(self.texture.parameters())}
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
        self,
        points: Float[Tensor, "P 3"],
        uv: Float[Tensor, "P 2"],
        sets: Int[Tensor, " P"],
        *,
        texture_size: int | None = None,
    ) -> Float[Tensor, "P C"]:
        """The channels of the texture at canonical points with their texture coordinates and texture sets.

        `texture_size` is the side of the image to bake in texels; for one smaller than the texture it is
        filtered. Without it, nothing is.
        """
        texture, parts = self.texture, torch.split(torch.arange(len(points), device=points.device), CHUNK)
        if isinstance(texture, ColorField):
            field_points = self._field_points(points, uv, sets)
            values = torch.cat([texture.values(field_points[part]) for part in parts])
            if self.refinement is None:
                return values
            return self.refinement.at(values, sets, uv, torch.zeros_like(uv[:, 0]))
        chains, level = texture.chains(self.refinement), torch.zeros_like(uv[:, 0])
        if texture_size is not None:
            level = level + torch.log2(texture.places.sides[sets] / texture_size).clamp_min(0.0)
        return torch.cat([texture.places.sample(chains, sets[part], uv[part], level[part]) for part in parts])
