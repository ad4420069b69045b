"""Read the surface of a Wavefront OBJ with its own indices and in its own order."""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.errors import InputError
from pgc3d.mesh_io.gltf_material import decode_image
from pgc3d.mesh_io.limits import MAX_BYTES, inside, read_limited, require_counts
from pgc3d.mesh_io.single import in_single
from pgc3d.mesh_io.source import SourceMaterial, SourceMesh

Corner = tuple[int, ...]  # place in the lists of v, vt and vn, -1 where there is none


def read_obj(data: bytes, path: Path) -> SourceMesh:
    """The surface and the materials.

    Raises:
        InputError: a line cannot be understood, or an index points at nothing.
    """
    require_counts(path, vertices=data.count(b"\nv "), faces=data.count(b"\nf ") or -1)
    text = data.decode("utf-8-sig", errors="replace")
    rows: dict[str, list[list[str]]] = {"v": [], "vt": [], "vn": []}
    corners: list[Corner] = []
    groups: list[str] = []
    current = ""
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        key, *words = line.split("#")[0].split() or [""]
        if key in rows:
            rows[key].append(words)
        elif key == "usemtl":
            current = " ".join(words)
        elif key == "f":
            counts = [len(rows["v"]), len(rows["vt"]), len(rows["vn"])]
            polygon = [_corner(word, counts, path) for word in words]
            for second, third in pairwise(polygon[1:]):
                corners += [polygon[0], second, third]
                groups.append(current)
    index = torch.tensor(corners, dtype=torch.int64).reshape(-1, 3, 3)  # face, corner, list
    uv = _floats([[*row, "0"] if len(row) == 1 else row for row in rows["vt"]], 2, path)
    normals = _floats(rows["vn"], 3, path)
    materials = _materials(text, path)
    places = {material.name: place for place, material in enumerate(materials)}
    return SourceMesh(
        vertices=in_single(_numbers(rows["v"], 3, path), path),
        faces=index[..., 0].contiguous(),
        normals=normalize(normals, dim=1) if len(normals) else None,
        normal_faces=index[..., 2].contiguous() if len(normals) else None,
        uv=uv if len(uv) else None,
        uv_faces=index[..., 1].contiguous() if len(uv) else None,
        face_material=torch.tensor([places.get(name, -1) for name in groups], dtype=torch.int64),
        materials=materials,
    )


def _corner(word: str, counts: list[int], path: Path) -> Corner:
    found = []
    try:
        for part, count in zip([*word.split("/"), "", ""][:3], counts, strict=True):
            number = int(part) if part else 0
            place = count + number if number < 0 else number - 1
            if number and not 0 <= place < count:
                raise ValueError
            found.append(place if number else -1)
        if found[0] < 0:
            raise ValueError
    except ValueError as error:
        raise InputError(f"a face must use what was listed before it, got {word[:40]!r} in {path}") from error
    return tuple(found)


def _floats(rows: list[list[str]], width: int, path: Path) -> Tensor:
    return torch.from_numpy(_numbers(rows, width, path)).float()


def _numbers(rows: list[list[str]], width: int, path: Path) -> NDArray[np.float64]:
    try:
        if any(len(row) < width for row in rows):
            raise ValueError
        return np.array([row[:width] for row in rows], dtype=np.float64).reshape(-1, width)
    except ValueError as error:
        raise InputError(f"lines must hold {width} numbers, got others in {path}; export it again") from error


def _materials(text: str, path: Path) -> tuple[SourceMaterial, ...]:
    found = []
    for library in _libraries(text, path):
        name, color, image = "", torch.ones(4), None
        for line in [*library.read_text(encoding="utf-8", errors="replace").splitlines(), "newmtl"]:
            key, *words = line.split() or [""]
            if key == "newmtl":
                if name:
                    material = SourceMaterial(name=name, color=color)
                    if image is not None:
                        material = replace(material, load_image=partial(_open, image, library))
                    found.append(material)
                name, color, image = " ".join(words), torch.ones(4), None
            elif key == "Kd" and len(words) >= 3:
                color = torch.tensor([*(float(word) for word in words[:3]), 1.0])
            elif key == "map_Kd" and words:
                image = words[-1]
    return tuple(found)


def _open(name: str, library: Path) -> Image.Image:
    return decode_image(read_limited(inside(library.parent, name, library), "image"), name)


def _libraries(text: str, path: Path) -> Iterator[Path]:
    for name in re.findall(r"^\s*mtllib\s+(.+?)\s*$", text, re.MULTILINE):
        try:
            library = inside(path.parent, name, path)
        except InputError:
            continue
        if library.is_file() and library.stat().st_size <= MAX_BYTES:
            yield library


def references(text: str, path: Path) -> Iterator[Path]:
    """The material libraries that an OBJ names, and the images that these name, where they exist."""
    for library in _libraries(text, path):
        yield library
        material = library.read_text(encoding="utf-8", errors="replace")
        for image in re.findall(r"^\s*(?:map_\w+|bump|disp|norm)\s+(?:.*\s)?(\S+)\s*$", material, re.M):
            try:
                target = inside(path.parent, image, library)
            except InputError:
                continue
            if target.is_file():
                yield target
