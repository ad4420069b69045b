"""Read Wavefront .obj and .mtl files whole: n-gons, smoothing flags, materials as they are meant to look."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

UNDEFINED = 0.8  # grey of a material that no library defines


class Polygons(NamedTuple):
    """A Wavefront file: P positions, T texture coordinates, N polygons with C corners in all."""

    positions: Floats  # [P, 3]
    uv: Floats  # [T, 2], v up
    sizes: Ints  # [N] corners of each polygon
    corner_position: Ints  # [C] into positions
    corner_uv: Ints  # [C] into uv, -1 where there is none
    material: Ints  # [N] into material_names
    smooth: NDArray[np.bool_]  # [N]
    material_names: list[str]


@dataclass(frozen=True)
class Material:
    """How a surface looks; a texture replaces the colour."""

    color: tuple[float, float, float] = (UNDEFINED, UNDEFINED, UNDEFINED)  # sRGB
    alpha: float = 1.0
    texture: str = ""  # file name as the library gives it


def parse_obj(text: str) -> Polygons:
    """Read polygons; lines and free curves are ignored, given normals too.

    Raises:
        ValueError: a face names a vertex that does not exist.
    """
    positions: list[float] = []
    uv: list[float] = []
    corners: list[str] = []
    faces: list[tuple[int, int, bool]] = []
    names: dict[str, int] = {}
    # Files without any `s` line were shown smooth where they came from.
    material, smooth = names.setdefault("", 0), True
    for line in text.replace("\\\n", " ").splitlines():
        key, *words = line.split() or [""]
        if key == "f" and len(words) > 2:
            if "-" in line:
                words = [_absolute(word, len(positions) // 3, len(uv) // 2) for word in words]
            corners += words
            faces.append((len(words), material, smooth))
        elif key == "v":
            positions += map(float, words[:3])
        elif key == "vt":
            uv += map(float, (*words, "0")[:2])
        elif key == "s":
            smooth = words[0] not in ("off", "0")
        elif key == "usemtl":
            material = names.setdefault(line.split(None, 1)[1].strip(), len(names))
    table = np.array(faces, np.int64).reshape(-1, 3)
    indices = [(*word.split("/"), "")[:2] for word in corners]
    polygons = Polygons(
        positions=np.array(positions).reshape(-1, 3),
        uv=np.array(uv).reshape(-1, 2),
        sizes=table[:, 0],
        corner_position=np.array([int(position) for position, _ in indices], np.int64) - 1,
        corner_uv=np.array([int(uv or 0) for _, uv in indices], np.int64) - 1,
        material=table[:, 1],
        smooth=table[:, 2].astype(bool),
        material_names=list(names),
    )
    _check_indices(polygons)
    return polygons


def _absolute(word: str, position_count: int, uv_count: int) -> str:
    """Turn indices that count from the end into ones that count from 1."""
    counts = (position_count, uv_count, 0)
    parts = zip(word.split("/"), counts, strict=False)
    return "/".join(str(count + 1 + int(part)) if part.startswith("-") else part for part, count in parts)


def _check_indices(polygons: Polygons) -> None:
    for name, index, limit, least in (
        ("vertex", polygons.corner_position, len(polygons.positions), 0),
        ("texture coordinate", polygons.corner_uv, len(polygons.uv), -1),
    ):
        wrong = index[(index < least) | (index >= limit)]
        if len(wrong):
            raise ValueError(f"a face names {name} {wrong[0] + 1}, but there are {limit}")


def parse_mtl(text: str) -> dict[str, Material]:
    """Read a material library.

    Blender from 2.7 on writes Ka = 1 and a linear Kd; others write Kd as it is to be shown and Ka up to 0.9.
    """
    fields: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.strip().replace("\t", " ").partition(" ")
        if key == "newmtl":
            current = fields.setdefault(value.strip(), {})
        elif key:
            current[key] = value.strip()
    return {name: _material(values) for name, values in fields.items()}


def _material(values: Mapping[str, str]) -> Material:
    color = np.array([float(word) for word in values.get("Kd", "").split()[:3]] or [UNDEFINED] * 3).clip(0, 1)
    if min([float(word) for word in values.get("Ka", "0").split()[:3]]) > 0.95:
        color = np.where(color <= 0.0031308, 12.92 * color, 1.055 * color ** (1 / 2.4) - 0.055)
    alpha = float(values.get("d", "1").split()[-1])
    red, green, blue = (float(channel) for channel in color)
    return Material((red, green, blue), alpha, values.get("map_Kd", ""))


def triangulate(points: Floats, sizes: Ints) -> tuple[Ints, Ints]:
    """Cut polygons into triangles.

    Args:
        points: [C, 3], the corners of all polygons in a row.
        sizes: [N].

    Returns:
        Corners of the triangles [F, 3], an index into `points`, and the polygon of each [F].
    """
    starts = np.cumsum(sizes) - sizes
    corners: list[Ints] = [np.zeros((0, 3), np.int64)]
    owners: list[Ints] = [np.zeros(0, np.int64)]
    for size in np.unique(sizes[sizes >= 3]):
        owner = np.flatnonzero(sizes == size)
        index = starts[owner][:, None] + np.arange(size)
        normal, turn = _turns(points[index])
        concave = (turn < -1e-6 * np.linalg.norm(normal, axis=-1, keepdims=True)).any(1)
        # A fan from the corner that turns in most is right for convex polygons and for every quad.
        fan = np.ones(len(owner), bool) if size <= 4 else ~concave
        index[fan] = np.take_along_axis(index, (turn.argmin(1)[:, None] + np.arange(size)) % size, 1)[fan]
        i = np.arange(1, size - 1)
        local = np.stack([np.zeros_like(i), i, i + 1], -1)
        corners.append(index[fan][:, local].reshape(-1, 3))
        owners.append(np.repeat(owner[fan], size - 2))
        for k in np.flatnonzero(~fan):
            ears = _clip_ears(points[index[k]], normal[k])
            corners.append(index[k][ears])
            owners.append(np.full(len(ears), owner[k]))
    return np.concatenate(corners), np.concatenate(owners)


def _turns(polygons: Floats) -> tuple[Floats, Floats]:
    """Newell normals (twice the area) [K, 3], and how far each corner turns about them [K, n]."""
    ahead = np.roll(polygons, -1, 1)
    origin = polygons[:, :1]
    normal = np.cross(polygons - origin, ahead - origin).sum(1)
    turn = np.cross(polygons - np.roll(polygons, 1, 1), ahead - polygons)
    return normal, (turn * unit_vectors(normal)[:, None]).sum(-1)


def _clip_ears(polygon: Floats, normal: Floats) -> Ints:
    """Triangles of a simple polygon [n, 3] as indices of its corners."""
    z = unit_vectors(normal)
    x = unit_vectors(np.cross(np.eye(3)[np.abs(z).argmin()], z))
    flat = np.stack([polygon @ x, polygon @ np.cross(z, x)], -1)
    left, ears = list(range(len(polygon))), []
    while len(left) > 3:
        k = _find_ear(flat[left])
        ears.append([left[k - 1], left[k], left[(k + 1) % len(left)]])
        del left[k]
    return np.array([*ears, left])


def _find_ear(polygon: Floats) -> int:
    """The corner [n, 2] that can be cut off first; the most convex one where none can."""
    before, after = np.roll(polygon, 1, 0), np.roll(polygon, -1, 0)
    turn = _cross(polygon - before, after - polygon)
    small = 1e-9 * max(float(np.abs(turn).max()), 1e-30)
    for k in np.flatnonzero(turn > small):
        a, b, c = before[k], polygon[k], after[k]
        sides = [_cross(v - u, polygon - u) >= 0 for u, v in ((a, b), (b, c), (c, a))]
        corner = [(polygon == p).all(-1) for p in (a, b, c)]
        if not (np.logical_and.reduce(sides) & ~np.logical_or.reduce(corner)).any():
            return int(k)
    return int(turn.argmax())


def _cross(a: Floats, b: Floats) -> Floats:
    return np.asarray(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0])


def unit_vectors(vectors: Floats, otherwise: Floats | None = None) -> Floats:
    """Scale vectors to length 1; those without a direction become `otherwise`, or up."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    spare = np.array([0, 1, 0], vectors.dtype) if otherwise is None else otherwise
    return np.asarray(np.where(length > 1e-20, vectors / np.maximum(length, 1e-20), spare))
