"""Primitives of a glTF document that get new images, and meshes copied where only some nodes do."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pgc3d.mesh_io.gltf_edit import Editor, entries
from pgc3d.mesh_io.gltf_primitive import DRACO, TRIANGLES, Part, read_faces
from pgc3d.mesh_io.gltf_reader import read_parts
from pgc3d.mesh_io.gltf_writer import INDEX_BUFFER
from pgc3d.mesh_io.repaint import Repainting

Faces = Int[np.ndarray, "F 3"]


@dataclass(frozen=True)
class Piece:
    """Faces of a primitive with the same images."""

    primitive: dict[str, Any]  # of the document that is changed
    mesh: int  # of the document as it was read
    number: int  # of the primitive in that mesh
    faces: Int[np.ndarray, "F 3"]  # vertices of the primitive, in its winding
    uv: Float[np.ndarray, "F 3 2"]  # (0, 0) is the lower left of the image
    image: int
    changed: bool  # whether the primitive has other faces, so that it needs new indices


@dataclass(frozen=True)
class _Faces:
    """The images and texture coordinates of a part's faces."""

    part: Part
    images: Int[np.ndarray, " F"]
    uv: Float[np.ndarray, "F 3 2"]


def painted_pieces(editor: Editor, repainting: Repainting) -> list[Piece]:
    """The pieces that get new images; meshes are copied where not all their nodes get the same ones."""
    pieces: list[Piece] = []
    for mesh, found in _by_mesh(editor, repainting).items():
        users = [node for node in entries(editor.root, "nodes") if node.get("mesh") == mesh]
        keys = {node: _signature(faces) for node, faces in found.items()}
        wanted = list(dict.fromkeys(key for key in keys.values() if key))
        seen = [editor.root["nodes"][node] for node, key in keys.items() if key and node >= 0]
        free = len(seen) == len(users)  # no node keeps the mesh as it is
        original = copy.deepcopy(editor.root["meshes"][mesh])
        for number, key in enumerate(wanted):
            nodes = [node for node in keys if keys[node] == key]
            target = mesh if free and number == 0 else editor.append("meshes", copy.deepcopy(original))
            for node in nodes:
                if node >= 0:
                    editor.root["nodes"][node]["mesh"] = target
            for faces in found[nodes[0]].values():
                pieces += _pieces(editor, editor.root["meshes"][target], mesh, faces)
    return pieces


def _by_mesh(editor: Editor, repainting: Repainting) -> dict[int, dict[int, dict[int, _Faces]]]:
    """The faces of each mesh, node and primitive; instances of one node have the same."""
    found: dict[int, dict[int, dict[int, _Faces]]] = {}
    images, start = repainting.face_images.numpy(), 0
    uv = repainting.uv.double().numpy()
    for part in read_parts(editor.document):
        rows = slice(start, start + len(part.faces))
        start += len(part.faces)
        of_node = found.setdefault(part.mesh, {}).setdefault(part.node, {})
        if part.primitive not in of_node:
            corners = uv[repainting.uv_faces[rows].numpy()]
            of_node[part.primitive] = _Faces(part, images[rows], corners)
    return found


def _signature(primitives: dict[int, _Faces]) -> bytes:
    """Equal for nodes whose faces get the same images; empty where all stay as they are."""
    if all(bool((faces.images < 0).all()) for faces in primitives.values()):
        return b""
    return b"".join(
        faces.images.tobytes() for _, faces in sorted(primitives.items(), key=lambda item: item[0])
    )


def _pieces(editor: Editor, target: dict[str, Any], mesh: int, found: _Faces) -> Iterator[Piece]:
    """The pieces of a primitive, which gets further ones behind the mesh's last where images differ."""
    number = found.part.primitive
    primitive = target["primitives"][number]
    own = read_faces(editor.document, editor.document.meshes[mesh].entries("primitives")[number])
    turned = (own != found.part.faces).any(axis=1)[:, None, None]
    uv = np.where(turned, found.uv[:, ::-1], found.uv)  # a mirrored node reverses the corners
    values = np.unique(found.images).tolist()
    for place, image in enumerate(values):
        rows = found.images == image
        piece = primitive if place == 0 else copy.deepcopy(primitive)
        if place > 0:
            target["primitives"].append(piece)
        if image >= 0:
            yield Piece(piece, mesh, number, own[rows], uv[rows], image, len(values) > 1)
        elif len(values) > 1:
            set_faces(editor, piece, own[rows], int(own.max()) + 1)


def set_faces(editor: Editor, primitive: dict[str, Any], faces: Faces, vertices: int) -> None:
    """Replace the faces of a primitive by a list of triangles."""
    small = vertices <= 65535  # the value 65535 itself restarts a primitive
    values = faces.reshape(-1, 1).astype("<u2" if small else "<u4")
    primitive["indices"] = editor.add_accessor(values, {"type": "SCALAR"}, INDEX_BUFFER)
    if "mode" in primitive:
        primitive["mode"] = TRIANGLES
    drop_compressed(primitive)


def drop_compressed(primitive: dict[str, Any]) -> None:
    """Remove a compressed copy of a primitive, which has other vertices than the plain one from now on."""
    extensions = primitive.get("extensions") or {}
    extensions.pop(DRACO, None)
    if not extensions:
        primitive.pop("extensions", None)
