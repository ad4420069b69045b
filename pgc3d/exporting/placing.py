"""Size, axes and origin of an exported mesh, for printing and for engines."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.export_config import KEEP, PlacingConfig
from pgc3d.geometry.placement import axis_vector
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.formats import FORMATS
from pgc3d.types import Placement

METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048}


@dataclass(frozen=True)
class Placing:
    """A similarity: point -> scale rotation point + shift."""

    rotation: Float[Tensor, "3 3"]  # det +1, float64
    scale: float
    shift: Float[Tensor, " 3"]  # float64

    @property
    def matrix(self) -> Float[Tensor, "4 4"]:
        """The same for columns of homogeneous coordinates."""
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3], matrix[:3, 3] = self.scale * self.rotation, self.shift
        return matrix

    def apply(self, asset: MeshAsset) -> MeshAsset:
        """The asset, moved; its normals and tangents are turned."""
        vertices = self.scale * asset.vertices.double() @ self.rotation.T + self.shift
        turned = self.rotation.to(asset.normals)
        tangents = asset.tangents
        if tangents is not None:
            tangents = torch.cat([tangents[:, :3] @ turned.T, tangents[:, 3:]], dim=1)
        return replace(
            asset, vertices=vertices.to(asset.vertices), normals=asset.normals @ turned.T, tangents=tangents
        )

    def before(self, placement: Placement) -> Placement:
        """The transform to the world of points that `apply` has moved, for `placement` before it."""
        centre = self.scale * self.rotation @ placement.centre.cpu().double() + self.shift
        rotation = placement.rotation.cpu().double() @ self.rotation.T
        return Placement(rotation=rotation, centre=centre, scale=placement.scale / self.scale)


def place_asset(
    asset: MeshAsset, config: PlacingConfig, placement: Placement, format: str
) -> tuple[MeshAsset, Placement]:
    """The asset as it stands in the file, and the transform from the file to the world; see `placing_of`."""
    return placed_by(placing_of(asset, config, placement, format), asset, placement)


def placed_by(placing: Placing | None, asset: MeshAsset, placement: Placement) -> tuple[MeshAsset, Placement]:
    """The asset after a similarity, and the transform from there to the world; as they are when None."""
    return (asset, placement) if placing is None else (placing.apply(asset), placing.before(placement))


def placing_of(asset: MeshAsset, config: PlacingConfig, placement: Placement, format: str) -> Placing | None:
    """The similarity from an asset's coordinates to those of its file; None where nothing changes.

    Args:
        asset: to be written.
        config: see `PlacingConfig`.
        placement: from the asset's coordinates to the world.
        format: of the file.

    Raises:
        InputError: the axis that points up, or the height, is one that the format or the mesh cannot have.
    """
    if not config.changes:
        return None
    framed = FORMATS[format].framed
    if framed and config.up not in (KEEP, "+y"):
        raise InputError(f"--up must be +y for {format}, in which y is up, got {config.up}; remove it")
    return _placing(asset, config, placement.rotation.cpu().double()[1], framed=framed)


def height_of(asset: MeshAsset, placement: Placement) -> float:
    """The extent of an asset's faces along the axis that points up, in its own coordinates."""
    along = asset.vertices[torch.unique(asset.faces)].double() @ placement.rotation.cpu().double()[1]
    return float(along.max() - along.min())


def _placing(
    asset: MeshAsset, config: PlacingConfig, own_up: Float[Tensor, " 3"], *, framed: bool
) -> Placing:
    up = own_up if config.up == KEEP else axis_vector(config.up)
    rotation = _turn(own_up, up)
    points = asset.vertices[torch.unique(asset.faces)].double() @ rotation.T
    along = points @ up
    extent = float(along.max() - along.min())
    scale = 1.0
    if config.height:
        if not extent > 0:
            raise InputError(
                f"a mesh must not be flat for --height, got {config.height:g} for one that is; remove it"
            )
        scale = config.height * (METRES[config.unit] if framed else 1.0) / extent
    low, high = scale * points.amin(dim=0), scale * points.amax(dim=0)
    shift = torch.zeros(3, dtype=torch.float64)
    if config.origin != KEEP:
        shift = -(low + high) / 2
    if config.origin == "bottom":
        shift = shift + up * (scale * extent / 2)
    return Placing(rotation=rotation, scale=scale, shift=shift)


def _turn(source: Float[Tensor, " 3"], target: Float[Tensor, " 3"]) -> Float[Tensor, "3 3"]:
    """The rotation by the least angle from one unit vector to another (Rodrigues' formula)."""
    axis, cosine = torch.linalg.cross(source, target), float(source @ target)
    if cosine < -1 + 1e-9:  # half a turn, about any axis at a right angle
        other = torch.eye(3, dtype=torch.float64)[source.abs().argmin()]
        axis = torch.nn.functional.normalize(other - source * (source @ other), dim=0)
        return 2 * torch.outer(axis, axis) - torch.eye(3, dtype=torch.float64)
    x, y, z = axis.tolist()
    skew = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + skew + skew @ skew / (1 + cosine)
