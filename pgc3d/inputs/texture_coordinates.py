"""The choice between a mesh's own texture coordinates and new ones, with the reason."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgc3d.choices import UvChoice
from pgc3d.errors import InputError
from pgc3d.geometry.own_uv import fold_tiles, unit_square, uv_error, uv_unusable
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.source import SourceMesh


@dataclass(frozen=True)
class Coordinates:
    """Texture coordinates of a prepared mesh; see `PreparedMesh`."""

    uv: Float[Tensor, "U 2"]
    uv_faces: Int[Tensor, "F 3"]
    shared: bool = False
    wraps: bool = False


def choose_coordinates(
    source: SourceMesh,
    path: Path,
    *,
    choice: UvChoice,
    rasterizer: Rasterizer,
    device: torch.device | str = "cpu",
) -> Coordinates | str:
    """The file's coordinates, or the reason for new ones as a format string with the field {method}.

    Args:
        source: the mesh.
        path: of its file, for messages.
        choice: "auto" keeps the file's coordinates where no two points of the surface share a texel, "own"
            also where they do or where the image repeats, "new" never.
        rasterizer: on `device`, to find overlapping charts.
        device: of the rasteriser.

    Raises:
        InputError: `choice` is "own" and the file has no coordinates that can be used.
    """
    if choice == "new":
        return "new texture coordinates were made, as --uv new demands ({method})"
    missing = _missing(source)
    if missing is not None:
        if choice == "own":
            raise InputError(
                "--uv own must have texture coordinates of every face, but "
                f"{missing.format(name=path.name)}; use --uv auto"
            )
        return _escaped(missing.format(name=path.name)) + "; new ones were made ({method})"
    reasons = []
    candidates = _candidates(source)
    for uv, uv_faces in candidates:
        whole = unit_square(uv)
        reason = _uv_error(source, whole, uv_faces, rasterizer, device)
        if reason is None:
            return Coordinates(whole.nan_to_num(), uv_faces)  # vertices that no face uses may be NaN
        reasons.append(reason)
    usable = [pair for pair in candidates if uv_unusable(*pair) is None]
    if choice == "own":
        if not usable:
            raise InputError(
                f"--uv own must have usable texture coordinates, but those of {path.name} {reasons[0]}; "
                "use --uv auto"
            )
        return _folded(usable[0], source, rasterizer, device)
    way_out = "; --uv own keeps them, and points with the same coordinates have the same colour"
    return _escaped(f"the texture coordinates of {path.name} {reasons[0]}") + (
        "; new ones were made ({method})" + (way_out if usable else "")
    )


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _folded(
    pair: tuple[Tensor, Tensor], source: SourceMesh, rasterizer: Rasterizer, device: torch.device | str
) -> Coordinates:
    uv, uv_faces, wraps = fold_tiles(*pair)
    shared = wraps or _uv_error(source, uv, uv_faces, rasterizer, device) is not None
    return Coordinates(uv.nan_to_num(), uv_faces, shared, wraps)


def _uv_error(
    source: SourceMesh, uv: Tensor, uv_faces: Tensor, rasterizer: Rasterizer, device: torch.device | str
) -> str | None:
    """The reason of `uv_error`; of all instances of a part, which share their texels, one is checked."""
    faces = source.faces
    if source.first_corners is not None:
        once = torch.unique(source.first_corners // 3)
        faces, uv_faces = faces[once], uv_faces[once]
    return uv_error(uv, uv_faces, source.vertices, faces, rasterizer=rasterizer, device=device)


def why_unusable(
    source: SourceMesh,
    faces: Bool[Tensor, " F"],
    *,
    rasterizer: Rasterizer,
    device: torch.device | str = "cpu",
) -> str | None:
    """The reason why a texture cannot have one texel for each point of some faces, None where it can.

    Args:
        source: the mesh.
        faces: those that share the texture.
        rasterizer: on `device`, to find overlapping charts.
        device: of the rasteriser.
    """
    if source.first_corners is not None:
        once = torch.zeros_like(faces)
        once[torch.unique(source.first_corners // 3)] = True
        faces = faces & once
    some = replace(
        source,
        faces=source.faces[faces],
        uv_faces=None if source.uv_faces is None else source.uv_faces[faces],
        normal_faces=None,
        labels=None,
        face_part=None,
        face_material=None if source.face_material is None else source.face_material[faces],
        first_corners=None,
    )
    missing = _missing(some)
    if missing is not None:
        whole = missing.startswith("the texture")
        return "are missing" if whole else f"are incomplete: {missing.format(name='it')}"
    reasons = [_uv_error(some, unit_square(uv), index, rasterizer, device) for uv, index in _candidates(some)]
    return None if None in reasons else reasons[0]


def _missing(source: SourceMesh) -> str | None:
    """The faces or parts without texture coordinates, with the field {name}; None where all have them."""
    if source.uv is None or source.uv_faces is None:
        return "the texture coordinates of {name} are missing"
    without = (source.uv_faces < 0).any(dim=1)
    if not bool(without.any()):
        return None
    if source.face_part is not None:
        parts = torch.unique(source.face_part)
        lacking = torch.unique(source.face_part[without])
        if int(torch.isin(source.face_part, lacking).sum()) == int(without.sum()):
            return _count(len(lacking), len(parts), "part")
    return _count(int(without.sum()), len(without), "face")


def _count(some: int, every: int, noun: str) -> str:
    if some == every:
        return "the texture coordinates of {name} are missing"
    number, verb = ("one", "has") if some == 1 else (str(some), "have")
    return f"{number} of {every} {noun}s of {{name}} {verb} no texture coordinates"


def _candidates(source: SourceMesh) -> list[tuple[Tensor, Tensor]]:
    """The coordinates after the materials' transforms (KHR_texture_transform), and as stored in the file."""
    if source.uv is None or source.uv_faces is None:
        return []
    stored = (source.uv, source.uv_faces)
    moves = [material.uv_transform for material in source.materials]
    if source.face_material is None or not any(move is not None for move in moves):
        return [stored]
    keys = torch.stack([source.uv_faces, source.face_material[:, None].expand(-1, 3)], dim=-1).reshape(-1, 2)
    unique, index = torch.unique(keys, dim=0, return_inverse=True)
    uv = source.uv[unique[:, 0]].double()
    for number, move in enumerate(moves):
        if move is not None:
            rows = unique[:, 1] == number
            uv[rows] = uv[rows] @ move[:, :2].double().T + move[:, 2].double()
    return [(uv.float(), index.reshape(-1, 3)), stored]
