"""Maps of a file's materials that a run keeps: what they add to the look of its texture."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.geometry.tangents import corner_tangents
from pgc3d.rendering.mesh_renderer import SurfaceSamples
from pgc3d.rendering.mipmap import ChainPlace, footprint_level, mip_chain, sample_chains, uv_gradients
from pgc3d.rendering.shading import srgb_to_linear
from pgc3d.types import Cameras, Material, PreparedMesh, SurfaceMaps

STEEPEST = 0.1  # least z of a normal in tangent space


@dataclass(frozen=True)
class FixedSurface:
    """Properties of P surface samples besides the base colour."""

    roughness: Float[Tensor, "P 1"]
    metallic: Float[Tensor, "P 1"]
    occlusion: Float[Tensor, "P 1"]
    emission: Float[Tensor, "P 3"]  # linear
    slope: Float[Tensor, "P 2"]

    def on(self, material: Material) -> Material:
        """A material with the base colour of another."""
        return Material(material.base_color, self.roughness, self.metallic, self.slope)


@dataclass(frozen=True)
class FixedMaps:
    """The maps on a device, with the tangents and the gradients of their texture coordinates."""

    maps: SurfaceMaps
    chains: Float[Tensor, "N 8"]
    starts: Int[Tensor, " M"]
    corners: Float[Tensor, "U 6"]  # texture coordinates and tangents
    gradients: Float[Tensor, "F 2 3"]

    @classmethod
    def of(cls, mesh: PreparedMesh) -> "FixedMaps | None":
        """The maps of a mesh in the world, on its device; None where it has none."""
        given, device = mesh.maps, mesh.vertices.device
        if given is None:
            return None
        maps = SurfaceMaps(**{name: value.to(device) for name, value in vars(given).items()})
        images = torch.split(maps.texels.float() / 255, (maps.sides * maps.sides).tolist())
        sides = maps.sides.tolist()
        chains = [mip_chain(image.view(side, side, 8)) for image, side in zip(images, sides, strict=True)]
        lengths = torch.tensor([0, *(len(chain) for chain in chains[:-1])], device=device)
        own = replace(mesh, uv=maps.uv, uv_faces=maps.uv_faces)
        corners = torch.cat([maps.uv, corner_tangents(own)], dim=1)
        return cls(maps, torch.cat(chains), lengths.cumsum(0), corners, uv_gradients(own))

    def at(
        self,
        hits: SurfaceSamples,
        corners: Float[Tensor, "P 6"],
        face_normal: Float[Tensor, "P 3"],
        cameras: Cameras,
        resolution: int,
    ) -> FixedSurface:
        """The properties at pixels, filtered over their footprints.

        Args:
            hits: the surface at the pixels.
            corners: of `corners`, interpolated at them.
            face_normal: of their faces, of any length.
            cameras: of the render.
            resolution: of the render.
        """
        index = self.maps.face_map.index_select(0, hits.triangle)
        sides, starts, repeats = (
            values.index_select(0, index) for values in (self.maps.sides, self.starts, self.maps.repeats)
        )
        level = footprint_level(
            self.gradients.index_select(0, hits.triangle),
            hits.points,
            face_normal,
            hits.view,
            cameras,
            resolution=resolution,
            texture_size=sides,
        )
        found = sample_chains(self.chains, ChainPlace(sides, starts, repeats), corners[:, :2], level)
        flat = 2 * found[:, 6:8] - 1
        up = (1 - flat.square().sum(1, keepdim=True)).clamp_min(0).sqrt().clamp_min(STEEPEST)
        return FixedSurface(
            found[:, :1], found[:, 1:2], found[:, 2:3], srgb_to_linear(found[:, 3:6]), flat / up
        )
