"""glTF files, built byte by byte."""

import base64
import io
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FORMATS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


@dataclass
class Gltf:
    """A document while it grows; one mesh at one node unless it says otherwise."""

    document: dict[str, Any] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)

    def view(self, content: bytes, **extra: Any) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        views = self.document.setdefault("bufferViews", [])
        views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content)} | extra)
        self.data += content
        return len(views) - 1

    def accessor(self, values: Any, kind: str = "f4", **extra: Any) -> int:
        array = np.atleast_1d(np.asarray(values, dtype="<" + kind))
        width = array.shape[1] if array.ndim == 2 else 1
        self.document.setdefault("accessors", []).append(
            {
                "bufferView": self.view(array.tobytes()),
                "componentType": FORMATS[kind],
                "count": len(array),
                "type": TYPES[width],
            }
            | extra
        )
        return len(self.document["accessors"]) - 1

    def mesh(self, *primitives: dict[str, Any], **extra: Any) -> int:
        self.document.setdefault("meshes", []).append({"primitives": list(primitives)} | extra)
        return len(self.document["meshes"]) - 1

    def nodes(self, *nodes: dict[str, Any]) -> "Gltf":
        """All of them in the scene, those that hang below another one through it."""
        below = {child for node in nodes for child in node.get("children", [])}
        self.document["nodes"] = list(nodes)
        roots = [index for index in range(len(nodes)) if index not in below]
        self.document |= {"scene": 0, "scenes": [{"nodes": roots}]}
        return self

    def image(self, pixels: Any) -> int:
        stream = io.BytesIO()
        Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(stream, "PNG")
        image = {"bufferView": self.view(stream.getvalue()), "mimeType": "image/png"}
        self.document.setdefault("images", []).append(image)
        return len(self.document["images"]) - 1

    def texture(self, pixels: Any, sampler: dict[str, int] | None = None) -> int:
        texture = {"source": self.image(pixels)}
        if sampler is not None:
            self.document.setdefault("samplers", []).append(sampler)
            texture["sampler"] = len(self.document["samplers"]) - 1
        self.document.setdefault("textures", []).append(texture)
        return len(self.document["textures"]) - 1

    def material(self, texture: dict[str, Any] | None = None, factor: Any = None, **extra: Any) -> int:
        surface: dict[str, Any] = {} if factor is None else {"baseColorFactor": factor}
        if texture is not None:
            surface["baseColorTexture"] = texture
        self.document.setdefault("materials", []).append({"pbrMetallicRoughness": surface} | extra)
        return len(self.document["materials"]) - 1

    def finished(self, **buffer: Any) -> dict[str, Any]:
        return (
            {"asset": {"version": "2.0"}}
            | self.document
            | {"buffers": [{"byteLength": len(self.data)} | buffer]}
        )

    def glb(self) -> bytes:
        text = json.dumps(self.finished()).encode()
        text += b" " * (-len(text) % 4)
        binary = bytes(self.data) + b"\0" * (-len(self.data) % 4)
        head = struct.pack("<4sIIII", b"glTF", 2, 28 + len(text) + len(binary), len(text), 0x4E4F534A)
        return head + text + struct.pack("<II", len(binary), 0x004E4942) + binary

    def write(self, path: Path, uri: str | None = None, buffer: str | None = None) -> Path:
        """A GLB, or a glTF with its buffer inside or in the file `buffer`, which it calls `uri`."""
        if path.suffix == ".glb":
            path.write_bytes(self.glb())
            return path
        if uri is None:
            uri = "data:application/octet-stream;base64," + base64.b64encode(self.data).decode()
        if buffer is not None:
            (path.parent / buffer).write_bytes(self.data)
        path.write_text(json.dumps(self.finished(uri=uri)))
        return path


def box_arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions, normals and texture coordinates (v downwards) of a unit box [24, ...], and its faces."""
    positions, normals, uv, faces = [], [], [], []
    for side in range(6):
        axis, sign = side // 2, 1 - 2 * (side % 2)
        normal = np.eye(3)[axis] * sign
        first = np.eye(3)[(axis + 1) % 3]
        second = np.cross(normal, first)
        for corner, (a, b) in enumerate([(-1, -1), (1, -1), (1, 1), (-1, 1)]):
            positions.append((normal + a * first + b * second) / 2)
            normals.append(normal)
            cell = np.array([side % 3, side // 3])
            uv.append((cell + 0.02 + 0.96 * np.array([corner in (1, 2), corner in (2, 3)])) / (3, 2))
        faces += [[4 * side + corner for corner in face] for face in ((0, 1, 2), (0, 2, 3))]
    return np.array(positions), np.array(normals), np.array(uv), np.array(faces)


def box(gltf: Gltf, *, uv: bool = True, kind: str = "u2", **attributes: int) -> dict[str, Any]:
    """A primitive: the unit box."""
    positions, normals, coordinates, faces = box_arrays()
    found = {"POSITION": gltf.accessor(positions), "NORMAL": gltf.accessor(normals)}
    if uv:
        found["TEXCOORD_0"] = gltf.accessor(coordinates)
    return {"attributes": found | attributes, "indices": gltf.accessor(faces.reshape(-1), kind)}


def square(gltf: Gltf, *, shift: float = 0.0, repeat: float = 1.0, **attributes: int) -> dict[str, Any]:
    """A primitive: a square of side 2 that faces +z; u grows to the right."""
    positions = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    positions[:, 0] += shift
    uv = np.array([[0.0, 1], [1, 1], [1, 0], [0, 0]]) * repeat
    found = {"POSITION": gltf.accessor(positions), "TEXCOORD_0": gltf.accessor(uv)}
    return {"attributes": found | attributes, "indices": gltf.accessor([0, 1, 2, 0, 2, 3], "u2")}


def red_and_blue(size: int = 64) -> np.ndarray:
    """An image, red on the left and blue on the right."""
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    pixels[:, : size // 2, 0] = 255
    pixels[:, size // 2 :, 2] = 255
    return pixels


def one_box(*nodes: dict[str, Any], **document: Any) -> Gltf:
    """A box at the nodes given."""
    gltf = Gltf()
    gltf.mesh(box(gltf))
    gltf.nodes(*(nodes or ({"mesh": 0},)))
    gltf.document |= document
    return gltf


def two_boxes(*, second_uv: bool = True, shift: tuple[float, float] = (0.0, 0.0)) -> Gltf:
    """One primitive of two boxes side by side along x; the texture coordinates of the second are moved."""
    positions, normals, uv, faces = box_arrays()
    gltf = Gltf()
    attributes = {
        "POSITION": gltf.accessor(np.concatenate([positions, positions + np.array([2, 0, 0])])),
        "NORMAL": gltf.accessor(np.concatenate([normals, normals])),
    }
    if second_uv:
        attributes["TEXCOORD_0"] = gltf.accessor(np.concatenate([uv, uv + shift]))
    indices = gltf.accessor(np.concatenate([faces, faces + 24]).reshape(-1), "u2")
    gltf.mesh({"attributes": attributes, "indices": indices})
    return gltf.nodes({"mesh": 0})
