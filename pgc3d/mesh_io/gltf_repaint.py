"""A glTF document with new images on some of its primitives; everything else of it stays as it is."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.mesh_io.gltf_accessor import read_floats
from pgc3d.mesh_io.gltf_document import Document, parse_document
from pgc3d.mesh_io.gltf_edit import Editor, entries
from pgc3d.mesh_io.gltf_material import coordinate_set, read_materials
from pgc3d.mesh_io.gltf_pieces import Piece, drop_compressed, painted_pieces, set_faces
from pgc3d.mesh_io.gltf_primitive import sizes
from pgc3d.mesh_io.gltf_textures import Coordinates, paint_materials
from pgc3d.mesh_io.gltf_writer import VERTEX_BUFFER
from pgc3d.mesh_io.limits import read_limited
from pgc3d.mesh_io.repaint import Repainting, shift_between, split_vertices

TINT = "COLOR_0"  # multiplied with the base colour in all viewers


def repaint_gltf(
    path: Path,
    repainting: Repainting,
    metadata: Mapping[str, str | int | float] | None = None,
    matrix: Float[Tensor, "4 4"] | None = None,
) -> bytes:
    """The GLB of a glTF or GLB whose faces have new images.

    Where no set of texture coordinates of the file is that of the new images, one is added; vertices are
    copied where corners of faces at them have different ones. Colours of vertices that would tint the new
    base colour stay as an attribute of the name `_COLOR_0`. Meshes and materials are copied where some of
    their users stay as they are. Metadata is added to `asset.extras`.

    Args:
        path: of the document.
        repainting: for the faces of its default scene.
        metadata: for example prompt and seed.
        matrix: of a node above the default scene's, which moves the whole document; none when None.

    Raises:
        InputError: the document is damaged, or it has to be moved and its scenes share nodes.
    """
    data = read_limited(path)
    editor = Editor.of(parse_document(data, path), data)
    pieces = painted_pieces(editor, repainting)
    for piece in pieces:
        _untint(editor, piece.primitive)
    groups: dict[tuple[int, int], list[Piece]] = {}
    for piece in pieces:
        groups.setdefault((piece.primitive.get("material", -1), piece.image), []).append(piece)
    found = {key: _known(editor.document, key[0], group) for key, group in groups.items()}
    new = {key: _free_set(group) for key, group in groups.items() if found[key] is None}
    _add_coordinates(editor, [(piece, new[key]) for key in new for piece in groups[key]])
    _cut(editor, [piece for key, group in groups.items() if key not in new for piece in group])
    coordinates = {key: found[key] or Coordinates(new[key]) for key in groups}
    paint_materials(editor, groups, coordinates, repainting.images)
    _add_metadata(editor.root, metadata or {})
    if matrix is not None:
        _move(editor.root, matrix, path)
    return editor.pack()


def _move(root: dict[str, Any], matrix: Float[Tensor, "4 4"], path: Path) -> None:
    """Put a node with a matrix above the nodes of the default scene."""
    scenes, chosen = entries(root, "scenes"), root.get("scene", 0)
    roots = set(scenes[chosen]["nodes"])
    if any(roots & set(scene.get("nodes", ())) for index, scene in enumerate(scenes) if index != chosen):
        raise InputError(
            f"a file whose scenes share nodes must be exported without --height, --up and --origin, got "
            f"{path.name}; remove them, or use --format ply"
        )
    columns = matrix.T.flatten().tolist()
    root["nodes"].append({"name": "placed", "matrix": columns, "children": scenes[chosen]["nodes"]})
    scenes[chosen]["nodes"] = [len(root["nodes"]) - 1]


def _untint(editor: Editor, primitive: dict[str, Any]) -> None:
    """Keep vertex colours under a name that no viewer multiplies with the base colour; alpha stays."""
    attributes = primitive["attributes"]
    if TINT not in attributes:
        return
    stored = editor.read(attributes[TINT])
    top = 1.0 if stored.dtype.kind == "f" else np.iinfo(stored.dtype).max
    if bool((stored[:, :3] >= top).all()):
        return
    place = attributes.pop(TINT)
    attributes[f"_{TINT}"] = place
    for target in primitive.get("targets") or []:
        if TINT in target:
            target[f"_{TINT}"] = target.pop(TINT)
    clear = stored.shape[1] == 4 and bool((stored[:, 3] < top).any())
    if clear or "COLOR_1" in attributes:
        white = stored.copy()
        white[:, :3] = top
        like = {
            key: value for key, value in editor.root["accessors"][place].items() if key not in ("min", "max")
        }
        attributes[TINT] = editor.add_accessor(white, like, VERTEX_BUFFER)
    drop_compressed(primitive)


def _known(document: Document, material: int, group: Sequence[Piece]) -> Coordinates | None:
    """The file's coordinates that are those of the new images; None where it has no such set."""
    materials = document.root.entries("materials")
    used = coordinate_set(materials[material] if material >= 0 else None)
    move = read_materials(document)[material].uv_transform if material >= 0 else None
    candidates = [(used, move), (used, None), *((number, None) for number in range(_free_set(group)))]
    for number, transform in candidates:
        shifts = []
        for piece in group:
            known = _stored_uv(document, piece, number)
            if known is None:
                break
            if transform is not None:
                known = known @ transform[:, :2].double().numpy().T + transform[:, 2].double().numpy()
            shifts.append(shift_between(known[piece.faces], piece.uv))
        if len(shifts) == len(group) and None not in shifts:
            return Coordinates(number, transformed=transform is not None, repeats=any(shifts))
    return None


def _stored_uv(document: Document, piece: Piece, number: int) -> Float[np.ndarray, "V 2"] | None:
    """A set of texture coordinates of a primitive, v upwards."""
    entry = document.meshes[piece.mesh].entries("primitives")[piece.number]
    index = entry.entry("attributes").index(f"TEXCOORD_{number}", len(document.accessors))
    if index is None:
        return None
    stored: Float[np.ndarray, "V 2"] = read_floats(document, index, ("VEC2",), rows=sizes(document, entry)[0])
    return stored * (1, -1) + (0, 1)


def _free_set(group: Sequence[Piece]) -> int:
    """The first set of texture coordinates that none of the primitives has."""
    number = 0
    while any(f"TEXCOORD_{number}" in piece.primitive["attributes"] for piece in group):
        number += 1
    return number


def _add_coordinates(editor: Editor, pieces: Sequence[tuple[Piece, int]]) -> None:
    """New texture coordinates, for pieces with the same vertices together."""
    shared: dict[str, list[tuple[Piece, int]]] = {}
    for piece, number in pieces:
        vertices = [piece.primitive["attributes"], piece.primitive.get("targets"), number]
        shared.setdefault(json.dumps(vertices, sort_keys=True), []).append((piece, number))
    for group in shared.values():
        _add_set(editor, [piece for piece, _ in group], group[0][1])


def _add_set(editor: Editor, pieces: Sequence[Piece], number: int) -> None:
    first = pieces[0].primitive
    vertices = editor.root["accessors"][first["attributes"]["POSITION"]]["count"]
    faces = np.concatenate([piece.faces for piece in pieces])
    split = split_vertices(faces, np.concatenate([piece.uv for piece in pieces]), vertices)
    down = (split.uv * (1, -1) + (0, 1)).astype("<f4")
    added = editor.add_accessor(down, {"type": "VEC2"}, VERTEX_BUFFER)
    attributes, targets = dict(first["attributes"]), [dict(target) for target in first.get("targets") or []]
    if split.copies:
        moved: dict[int, int] = {}
        for holder in (attributes, *targets):
            for name, place in holder.items():
                if place not in moved:
                    values = editor.read(place)[split.source]
                    moved[place] = editor.add_accessor(values, editor.root["accessors"][place], VERTEX_BUFFER)
                holder[name] = moved[place]
    # sets must be counted without gaps
    sets = {f"TEXCOORD_{below}": added for below in range(number) if f"TEXCOORD_{below}" not in attributes}
    start = 0
    for piece in pieces:
        piece.primitive["attributes"] = attributes | sets | {f"TEXCOORD_{number}": added}
        if targets:
            piece.primitive["targets"] = [dict(target) for target in targets]
        stop = start + len(piece.faces)
        if split.copies or piece.changed:
            set_faces(editor, piece.primitive, split.faces[start:stop], len(split.source))
        drop_compressed(piece.primitive)
        start = stop


def _cut(editor: Editor, pieces: Sequence[Piece]) -> None:
    """New indices for pieces that keep their texture coordinates and have some faces of a primitive only."""
    for piece in pieces:
        if piece.changed:
            set_faces(editor, piece.primitive, piece.faces, int(piece.faces.max()) + 1)


def _add_metadata(root: dict[str, Any], metadata: Mapping[str, str | int | float]) -> None:
    """Metadata beside that of the file, which stays."""
    asset = (
        root["asset"] if isinstance(root.get("asset"), dict) else root.setdefault("asset", {"version": "2.0"})
    )
    extras = asset.get("extras") or {}
    if metadata and isinstance(extras, dict):
        asset["extras"] = {**metadata, **extras}
