"""Division of a mesh's faces by the images that their own texture coordinates can use."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.geometry.normals import face_vectors
from pgc3d.geometry.own_uv import (
    chart_areas,
    fold_tiles,
    tiles_of,
    to_unit_square,
    translated,
    udim_number,
    uv_error,
    uv_unusable,
)
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.colors import transformed_by_material
from pgc3d.mesh_io.source import SourceMesh
from pgc3d.types import TextureSet

MOST_HALVINGS = 7  # of the side of a small set's images
MAX_SETS = 64  # of a mesh that keep their own coordinates: each has images of its own


@dataclass(frozen=True)
class Coordinates:
    """Texture coordinates of a mesh's faces by texture sets; see `PreparedMesh`."""

    uv: Float[Tensor, "U 2"]
    uv_faces: Int[Tensor, "F 3"]
    face_set: Int[Tensor, " F"]
    sets: tuple[TextureSet, ...]


@dataclass(frozen=True)
class Group:
    """Faces that could share an image: their coordinates in its unit square, or why they cannot."""

    rows: Int[Tensor, " R"]  # of the mesh's faces
    uv: Float[Tensor, "U 2"]
    uv_faces: Int[Tensor, "R 3"]
    reason: str | None = None  # against an image with one texel for each point
    tile: int = 0  # its UDIM number, 0 where there is one tile
    shared: bool = False
    wraps: bool = False

    @property
    def usable(self) -> bool:
        """Whether an image that repeats could use the coordinates."""
        return uv_unusable(self.uv, self.uv_faces) is None

    def folded(self, source: SourceMesh, *, rasterizer: Rasterizer, device: torch.device | str) -> "Group":
        """The group with all faces in the unit square, and what that means for its image."""
        uv, uv_faces, wraps = fold_tiles(self.uv, self.uv_faces)
        folded = replace(self, uv=uv, uv_faces=uv_faces, wraps=wraps)
        shared = wraps or folded.error(source, rasterizer=rasterizer, device=device) is not None
        return replace(folded, shared=shared, reason=None)

    def error(self, source: SourceMesh, *, rasterizer: Rasterizer, device: torch.device | str) -> str | None:
        """See `uv_error`; of all instances of a part, which share their texels, one is checked."""
        rows, uv_faces = self.rows, self.uv_faces
        if source.first_corners is not None:
            is_first = source.first_corners[rows, 0] // 3 == rows
            rows, uv_faces = rows[is_first], uv_faces[is_first]
        return uv_error(
            self.uv, uv_faces, source.vertices, source.faces[rows], rasterizer=rasterizer, device=device
        )


def scaled_sets(
    coordinates: Coordinates, vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]
) -> tuple[TextureSet, ...]:
    """The sets with the sides of their images, for as many texels in a world unit as the largest one has.

    Sides are rounded up to powers of two of the largest one. A set without area has the least image.

    Args:
        coordinates: of all faces.
        vertices: in the world.
        faces: corners of the same faces in `vertices`.
    """
    surface = face_vectors(vertices.double(), faces).norm(dim=1) / 2
    drawn = chart_areas(coordinates.uv, coordinates.uv_faces)
    sums = torch.zeros(2, len(coordinates.sets), dtype=torch.float64)
    sums.index_add_(1, coordinates.face_set, torch.stack([surface, drawn]))
    needed = (sums[0] / sums[1].clamp_min(1e-12)).sqrt()
    halvings = torch.log2(needed.amax() / needed.clamp_min(1e-12)).floor().clamp(0, MOST_HALVINGS)
    return tuple(
        replace(part, scale=0.5**number)
        for part, number in zip(coordinates.sets, halvings.tolist(), strict=True)
    )


def divide(
    source: SourceMesh, rows: Int[Tensor, " R"], *, rasterizer: Rasterizer, device: torch.device | str
) -> list[Group]:
    """Groups of faces that can each use one image, as few as possible, and those that cannot with the reason.

    All faces share an image where no two points share a texel of it; else those of a UDIM tile do, those of
    an image of the file, or those of a material.

    Args:
        source: the mesh.
        rows: its faces that have texture coordinates.
        rasterizer: on `device`, to find overlapping charts.
        device: of the rasteriser.
    """
    labels = [torch.zeros_like(source.faces[:, 0]), *_labels(source)]
    return _Division(source, labels, rasterizer, device).groups(rows)


@dataclass(frozen=True)
class _Division:
    source: SourceMesh
    labels: Sequence[Tensor]  # of the faces, from coarse to fine
    rasterizer: Rasterizer
    device: torch.device | str
    candidates: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.candidates.extend(_candidates(self.source))

    def groups(self, rows: Tensor, level: int = 0) -> list[Group]:
        """The groups of some faces with the same label at a level."""
        whole = self._whole(rows)
        if whole.reason is None:
            return [whole]
        tiles = self._tiles(rows)
        if tiles:
            return tiles
        for finer in range(level + 1, len(self.labels)):
            of_rows = self.labels[finer][rows]
            keys = torch.unique(of_rows)
            if len(keys) > 1:
                parts = (self.groups(rows[of_rows == key], finer) for key in keys)
                return [group for part in parts for group in part]
        return [whole]

    def _whole(self, rows: Tensor) -> Group:
        """All faces in one image; by the first coordinates where none are valid."""
        found = []
        for uv, uv_faces in self.candidates:
            group = Group(rows, *to_unit_square(uv, uv_faces[rows]))
            reason = group.error(self.source, rasterizer=self.rasterizer, device=self.device)
            if reason is None:
                return group
            found.append(replace(group, uv=uv, uv_faces=uv_faces[rows], reason=reason))
        return next((group for group in found if group.usable), found[0])

    def _tiles(self, rows: Tensor) -> list[Group]:
        """The faces of each UDIM tile in an image of its own; nothing where that is not possible."""
        for uv, uv_faces in self.candidates:
            if uv_unusable(uv, uv_faces[rows]) is not None:
                continue
            low = tiles_of(uv, uv_faces[rows])
            tiles = [] if low is None else torch.unique(low, dim=0)
            if low is None or len(tiles) < 2:
                continue
            groups = []
            for tile in tiles:
                inside = (low == tile).all(dim=1)
                moved = translated(uv, uv_faces[rows[inside]], low[inside])
                groups.append(Group(rows[inside], *moved, tile=udim_number(tile)))
            if all(
                group.error(self.source, rasterizer=self.rasterizer, device=self.device) is None
                for group in groups
            ):
                return groups
        return []


def _labels(source: SourceMesh) -> list[Tensor]:
    """For each face the number of its image, and of its material."""
    if source.face_material is None:
        return []
    keys: dict[str, int] = {}
    images = [
        keys.setdefault(material.image_key or f"material {index}", len(keys))
        for index, material in enumerate(source.materials)
    ]
    by_image = torch.tensor([-1, *images])[source.face_material + 1]
    return [by_image, source.face_material]


def _candidates(source: SourceMesh) -> list[tuple[Tensor, Tensor]]:
    """The coordinates after the materials' transforms (KHR_texture_transform), and as stored in the file."""
    if source.uv is None or source.uv_faces is None:
        return []
    stored = (source.uv, source.uv_faces)
    moves = any(material.uv_transform is not None for material in source.materials)
    if source.face_material is None or not moves:
        return [stored]
    return [transformed_by_material(*stored, source.face_material, source.materials), stored]
