"""The choice between a mesh's own texture coordinates and new ones, for each texture set, with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from pgc3d.choices import UvChoice
from pgc3d.errors import InputError
from pgc3d.inputs.texture_sets import MAX_SETS, Coordinates, Group, divide
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.names import unused_name
from pgc3d.mesh_io.source import SourceMesh
from pgc3d.types import TextureSet

LISTED = 5  # names of texture sets in a line
TOO_MANY = f"would need more than {MAX_SETS} images"
MADE = "; new ones were made ({method})"
WAY_OUT = "; --uv own keeps them, and points with the same coordinates have the same colour"


@dataclass(frozen=True)
class Choice:
    """The file's coordinates that are kept, and the faces that need new ones.

    `message` is a line about the choice, a format string with the field {method} where there are such faces;
    it is empty where all coordinates are those of the file, in one image.
    """

    kept: Coordinates  # `face_set` is -1 where a face needs new ones, and `uv_faces` is
    message: str = ""

    @property
    def fresh(self) -> Bool[Tensor, " F"]:
        """The faces that need new coordinates."""
        return self.kept.face_set < 0


def choose_coordinates(
    source: SourceMesh,
    path: Path,
    *,
    choice: UvChoice,
    rasterizer: Rasterizer,
    device: torch.device | str = "cpu",
) -> Choice:
    """The file's coordinates by texture sets, and where they are not kept the reason.

    Args:
        source: the mesh.
        path: of its file, for messages.
        choice: "auto" keeps the file's coordinates where no two points of the surface share a texel of an
            image, "own" also where they do or where an image repeats, "new" never.
        rasterizer: on `device`, to find overlapping charts.
        device: of the rasteriser.

    Raises:
        InputError: `choice` is "own" and a face has no coordinates that can be used.
    """
    if choice == "new":
        return Choice(_nothing(source), "new texture coordinates were made, as --uv new demands ({method})")
    missing = _missing(source)
    if missing is not None and choice == "own":
        raise InputError(
            "--uv own must have texture coordinates of every face, but "
            f"{missing.format(name=path.name)}; use --uv auto"
        )
    without = torch.ones_like(source.faces[:, 0], dtype=torch.bool)
    if source.uv_faces is not None:
        without = (source.uv_faces < 0).any(dim=1)
    if bool(without.all()):
        return Choice(_nothing(source), _escaped(_missing_text(source, path)) + MADE)
    groups = divide(source, (~without).nonzero()[:, 0], rasterizer=rasterizer, device=device)
    own = [group for group in groups if group.reason is None]
    failed = [group for group in groups if group.reason is not None]
    if choice == "own":
        own, failed = own + _folded(source, failed, path, rasterizer, device), []
    failed += [replace(group, reason=TOO_MANY) for group in own[MAX_SETS:]]
    kept = _joined(source, own[:MAX_SETS])
    if not failed and missing is None:
        return Choice(kept, _escaped(_kept(kept, path)) if len(own) > 1 else "")
    reasons = [_missing_text(source, path)] if missing is not None else []
    reasons += _reasons(source, path, failed, own)
    others = f"; {_kept(kept, path)}" if own else ""
    usable = missing is None and all(group.usable for group in failed)
    return Choice(
        kept, _escaped(" and ".join(reasons)) + MADE + _escaped(others) + (WAY_OUT if usable else "")
    )


def why_unusable(
    source: SourceMesh,
    faces: Bool[Tensor, " F"],
    *,
    rasterizer: Rasterizer,
    device: torch.device | str = "cpu",
) -> str | None:
    """The reason why textures cannot have one texel for each point of some faces, None where they can.

    Args:
        source: the mesh.
        faces: a mask of some of its faces.
        rasterizer: on `device`, to find overlapping charts.
        device: of the rasteriser.
    """
    if source.uv_faces is None:
        return "are missing"
    without = faces & (source.uv_faces < 0).any(dim=1)
    if bool(without.any()):
        count, every = int(without.sum()), int(faces.sum())
        return "are missing" if count == every else f"are incomplete: {count} of {every} faces have none"
    groups = divide(source, faces.nonzero()[:, 0], rasterizer=rasterizer, device=device)
    return next((group.reason for group in groups if group.reason is not None), None)


def with_new(
    choice: Choice, uv: Float[Tensor, "U 2"], uv_faces: Int[Tensor, "R 3"], new: TextureSet
) -> Coordinates:
    """All coordinates: those of the file that are kept, and new ones of the other faces, as the last set."""
    kept, fresh = choice.kept, choice.fresh
    if not kept.sets:
        return Coordinates(uv, uv_faces, torch.zeros_like(kept.face_set), (replace(new, name="surface"),))
    faces, sets = kept.uv_faces.clone(), kept.face_set.clone()
    faces[fresh], sets[fresh] = uv_faces + len(kept.uv), len(kept.sets)
    named = replace(new, name=unused_name(new.name, {part.name for part in kept.sets}))
    return Coordinates(torch.cat([kept.uv, uv]), faces, sets, (*kept.sets, named))


def materials_of(source: SourceMesh, rows: Shaped[Tensor, "_"]) -> tuple[int, ...]:
    """The materials of some faces, -1 for faces without one; nothing where the file has none.

    `rows` are their indices, or a mask of all faces.
    """
    if source.face_material is None:
        return ()
    return tuple(torch.unique(source.face_material[rows]).tolist())


def _nothing(source: SourceMesh) -> Coordinates:
    nowhere = torch.full_like(source.faces, -1)
    return Coordinates(torch.zeros(0, 2), nowhere, nowhere[:, 0].clone(), ())


def _joined(source: SourceMesh, groups: Sequence[Group]) -> Coordinates:
    """The coordinates of groups as texture sets, in the file's order where nothing has to be moved."""
    found = _nothing(source)
    if not groups:
        return found
    together = all(group.uv is groups[0].uv for group in groups)
    start, names, sets = 0, set[str](), []
    for index, group in enumerate(groups):
        found.uv_faces[group.rows], found.face_set[group.rows] = group.uv_faces + start, index
        start += 0 if together else len(group.uv)
        whole = len(group.rows) == len(source.faces)
        name = "surface" if whole else unused_name(_name(source, group), names)
        names.add(name)
        materials = materials_of(source, group.rows)
        sets.append(TextureSet(name, "own", group.shared, group.wraps, materials))
    uv = groups[0].uv if together else torch.cat([group.uv for group in groups])
    # vertices that no face uses may be NaN
    return Coordinates(uv.nan_to_num(), found.uv_faces, found.face_set, tuple(sets))


def _name(source: SourceMesh, group: Group) -> str:
    """The name of a group's first material, with the number of its tile."""
    materials = [number for number in materials_of(source, group.rows) if number >= 0]
    name = "surface"
    if materials:
        name = source.materials[materials[0]].name or f"material_{materials[0]}"
    return f"{name}.{group.tile}" if group.tile else name


def _kept(kept: Coordinates, path: Path) -> str:
    """A line about the sets with the file's own coordinates."""
    images = "one image" if len(kept.sets) == 1 else f"{len(kept.sets)} images"
    listed = _listed([part.name for part in kept.sets])
    return f"the texture coordinates of {path.name} are kept in {images}: {listed}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _reasons(source: SourceMesh, path: Path, failed: Sequence[Group], own: Sequence[Group]) -> list[str]:
    """Why the coordinates of groups are not kept: those of the whole file, or of materials by their names."""
    if not failed:
        return []
    if not own:
        return [f"the texture coordinates of {path.name} {failed[0].reason}"]
    names = _listed(list(dict.fromkeys(_name(source, group) for group in failed)))
    return [f"the texture coordinates of {names} in {path.name} {failed[0].reason}"]


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _folded(
    source: SourceMesh,
    failed: Sequence[Group],
    path: Path,
    rasterizer: Rasterizer,
    device: torch.device | str,
) -> list[Group]:
    """The groups with their coordinates translated into the unit square, for images that repeat.

    Raises:
        InputError: those of a group cannot be used.
    """
    for group in failed:
        if not group.usable:
            raise InputError(
                f"--uv own must have usable texture coordinates, but those of {path.name} {group.reason}; "
                "use --uv auto"
            )
    return [group.folded(source, rasterizer=rasterizer, device=device) for group in failed]


def _missing_text(source: SourceMesh, path: Path) -> str:
    return (_missing(source) or "").format(name=path.name)


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
