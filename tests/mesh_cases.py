"""Small glTF files, each with one thing in it that readers get wrong, built byte by byte."""

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


def instancing() -> Gltf:
    gltf = one_box()
    places = gltf.accessor([[0.0, 0, 0], [3, 0, 0], [6, 0, 0]])
    extension = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": places}}}
    gltf.document["nodes"][0]["extensions"] = extension
    gltf.document["extensionsUsed"] = list(extension)
    return gltf


def turned_instances() -> Gltf:
    """A quarter turn about z of a long box, and one that is mirrored and twice as large."""
    gltf = one_box({"mesh": 0, "scale": [2, 1, 1]})
    half = 0.5**0.5
    attributes = {
        "TRANSLATION": gltf.accessor([[0.0, 0, 0], [5, 0, 0]]),
        "ROTATION": gltf.accessor([[0.0, 0, half, half], [0, 0, 0, 1]]),
        "SCALE": gltf.accessor([[1.0, 1, 1], [-2, 2, 2]]),
    }
    extension = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    gltf.document["nodes"][0]["extensions"] = extension
    gltf.document |= {"extensionsUsed": list(extension), "extensionsRequired": list(extension)}
    return gltf


def skinned(*nodes: dict[str, Any], joints: list[int], inverse: Any = None, weights: Any = None) -> Gltf:
    """A box whose vertices hang on the first joint below 0 and on the last above it."""
    gltf, positions = Gltf(), box_arrays()[0]
    upper = (positions[:, 1] > 0).astype(int) * (len(joints) - 1)
    sets = np.zeros((24, 4))
    sets[:, 0] = upper
    share = np.zeros((24, 4))
    share[:, 0] = 1 if weights is None else weights
    extra = {"JOINTS_0": gltf.accessor(sets, "u1"), "WEIGHTS_0": gltf.accessor(share)}
    gltf.mesh(box(gltf, **extra))
    gltf.nodes(*nodes)
    skin: dict[str, Any] = {"joints": joints}
    if inverse is not None:
        skin["inverseBindMatrices"] = gltf.accessor(inverse)
    gltf.document["skins"] = [skin]
    return gltf


def shift_matrix(x: float, y: float, z: float) -> list[float]:
    """A translation as glTF stores it."""
    return [1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, x, y, z, 1]


def lifted() -> Gltf:
    """The upper joint stands 2 higher than when it was bound; the node's own transform does not count."""
    return skinned(
        {"mesh": 0, "skin": 0, "translation": [10, 0, 0], "scale": [0.01, 0.01, 0.01]},
        {"children": [2]},
        {"translation": [0, 3, 0]},
        joints=[1, 2],
        inverse=[shift_matrix(0, 0, 0), shift_matrix(0, -1, 0)],
    )


def two_skinned() -> Gltf:
    return skinned(
        {"name": "body", "mesh": 0, "skin": 0},
        {"name": "hat", "mesh": 0, "skin": 0, "translation": [4, 0, 0], "scale": [3, 3, 3]},
        {"name": "root"},
        joints=[2],
    )


def eight_influences() -> Gltf:
    """A fifth of the weight lies in a second set: its joint is 4 to the right, so the box moves by 0.8."""
    gltf = skinned({"mesh": 0, "skin": 0}, {}, {"translation": [4, 0, 0]}, joints=[1, 2], weights=0.8)
    ones, fifth = np.zeros((24, 4)), np.zeros((24, 4))
    ones[:, 0], fifth[:, 0] = 1, 51
    attributes = gltf.document["meshes"][0]["primitives"][0]["attributes"]
    attributes["JOINTS_0"] = gltf.accessor(np.zeros((24, 4)), "u1")
    attributes["JOINTS_1"] = gltf.accessor(ones, "u2")
    attributes["WEIGHTS_1"] = gltf.accessor(fifth, "u1", normalized=True)
    return gltf


def morphed(node: dict[str, Any], **mesh: Any) -> Gltf:
    """A box with a target that moves it by 1 along x, and one by 1 along y that only a few vertices have."""
    gltf = Gltf()
    primitive = box(gltf)
    every = gltf.accessor(np.tile([1.0, 0, 0], (24, 1)))
    few = np.array([index for index, point in enumerate(box_arrays()[0]) if point[1] > 0])
    sparse = {
        "count": len(few),
        "indices": {"bufferView": gltf.view(few.astype("<u2").tobytes()), "componentType": 5123},
        "values": {"bufferView": gltf.view(np.tile([0.0, 1, 0], (len(few), 1)).astype("<f4").tobytes())},
    }
    gltf.document["accessors"].append({"componentType": 5126, "count": 24, "type": "VEC3", "sparse": sparse})
    number = len(gltf.document["accessors"]) - 1
    primitive["targets"] = [{"POSITION": every}, {"POSITION": number}]
    gltf.mesh(primitive, **mesh)
    return gltf.nodes(node)


def sparse_corner(gltf: Gltf, index: int, place: tuple[float, float, float]) -> Gltf:
    """One vertex of the first accessor put elsewhere."""
    gltf.document["accessors"][0]["sparse"] = {
        "count": 1,
        "indices": {"bufferView": gltf.view(struct.pack("<H", index)), "componentType": 5123},
        "values": {"bufferView": gltf.view(struct.pack("<3f", *place))},
    }
    return gltf


def row_of_points(mode: int, points: Any) -> Gltf:
    gltf = Gltf()
    gltf.mesh({"attributes": {"POSITION": gltf.accessor(np.array(points, dtype=float))}, "mode": mode})
    return gltf.nodes({"mesh": 0})


def strip() -> Gltf:
    return row_of_points(5, [[index // 2, index % 2, 0] for index in range(10)])


def fan() -> Gltf:
    return row_of_points(6, [[-1, -1, 0], [1, -1, 0], [1, 0, 0], [1, 1, 0], [-1, 1, 0]])


def joined_strip() -> Gltf:
    """Two strips in one, joined by triangles without area, by indices."""
    gltf = strip()
    indices = [0, 1, 2, 3, 3, 4, 4, 5, 6, 7]
    gltf.document["meshes"][0]["primitives"][0]["indices"] = gltf.accessor(indices, "u4")
    return gltf


def quantised(*, stride: int = 8) -> Gltf:
    """Normalised shorts for positions, each in 8 bytes, and unsigned bytes that are not normalised for uv."""
    positions, _, uv, faces = box_arrays()
    gltf = Gltf()
    rows = np.zeros((24, stride // 2), dtype="<i2")
    rows[:, :3] = np.round(2 * positions * 32767)
    gltf.document["accessors"] = [
        {"bufferView": gltf.view(rows.tobytes(), byteStride=stride), "componentType": 5122,
         "normalized": True, "count": 24, "type": "VEC3"}
    ]  # fmt: skip
    padded = np.zeros((24, 4), dtype="u1")
    padded[:, :2] = np.round(uv * 100)
    gltf.document["accessors"].append(
        {"bufferView": gltf.view(padded.tobytes(), byteStride=4), "componentType": 5121, "count": 24,
         "type": "VEC2"}
    )  # fmt: skip
    transform = {"KHR_texture_transform": {"scale": [0.01, 0.01]}}
    material = gltf.material({"index": gltf.texture(red_and_blue()), "extensions": transform})
    gltf.mesh(
        {
            "attributes": {"POSITION": 0, "TEXCOORD_0": 1},
            "indices": gltf.accessor(faces.reshape(-1), "u2"),
            "material": material,
        }
    )
    required = ["KHR_mesh_quantization", "KHR_texture_transform"]
    gltf.document |= {"extensionsUsed": required, "extensionsRequired": required}
    return gltf.nodes({"mesh": 0, "scale": [0.5, 0.5, 0.5]})


def short_uv() -> Gltf:
    gltf = one_box()
    uv = gltf.accessor(np.round(box_arrays()[2] * 65535), "u2", normalized=True)
    gltf.document["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"] = uv
    return gltf


def draco_used() -> Gltf:
    gltf = one_box(extensionsUsed=["KHR_draco_mesh_compression"])
    for accessor in gltf.document["accessors"]:
        del accessor["bufferView"]
    primitive = gltf.document["meshes"][0]["primitives"][0]
    primitive["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    return gltf


def draco_with_a_plain_copy() -> Gltf:
    gltf = one_box(extensionsUsed=["KHR_draco_mesh_compression"])
    primitive = gltf.document["meshes"][0]["primitives"][0]
    primitive["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    return gltf


def meshopt(*, plain: bool) -> Gltf:
    """A buffer view that is compressed beside a plain copy, or in place of it."""
    gltf = one_box(extensionsUsed=["EXT_meshopt_compression"])
    gltf.document["bufferViews"][0]["extensions"] = {"EXT_meshopt_compression": {"buffer": 0}}
    if not plain:
        gltf.document["extensionsRequired"] = ["EXT_meshopt_compression"]
    return gltf


def points_too() -> Gltf:
    gltf = Gltf()
    cloud = {"attributes": {"POSITION": gltf.accessor(9 * box_arrays()[0])}, "mode": 0}
    gltf.mesh(box(gltf), cloud)
    return gltf.nodes({"mesh": 0})


def one_part_without() -> Gltf:
    gltf = Gltf()
    gltf.mesh(box(gltf))
    gltf.mesh(box(gltf, uv=False))
    return gltf.nodes({"mesh": 0}, {"mesh": 1, "translation": [0, 2, 0]})


def two_materials() -> Gltf:
    gltf = Gltf()
    gltf.mesh(box(gltf) | {"material": gltf.material(factor=[0.6, 0.3, 0.1, 1], name="wood")})
    glass = gltf.material(factor=[0.8, 0.9, 1, 0.2], name="glass", alphaMode="BLEND")
    gltf.mesh(box(gltf) | {"material": glass})
    return gltf.nodes(
        {"name": "seat", "mesh": 0},
        {"name": "window", "translation": [0, 2, 0], "mesh": 1},
        {"name": "chair", "children": [0, 1]},
    )


def with_maps() -> Gltf:
    gltf = Gltf()
    info = {"index": gltf.texture(red_and_blue(4))}
    material = gltf.material(name="skin", normalTexture=info, occlusionTexture=info, emissiveFactor=[1, 0, 0])
    surface = gltf.document["materials"][material]["pbrMetallicRoughness"]
    surface |= {"metallicRoughnessTexture": info, "roughnessFactor": 0.2}
    gltf.mesh(box(gltf) | {"material": material})
    return gltf.nodes({"name": "statue", "mesh": 0})


def leaf() -> Gltf:
    gltf = Gltf()
    colors = gltf.accessor(np.tile([0.0, 1, 0, 1], (24, 1)))
    material = gltf.material(name="leaf", alphaMode="MASK", alphaCutoff=0.5, doubleSided=False)
    gltf.mesh(box(gltf, COLOR_0=colors) | {"material": material})
    return gltf.nodes({"mesh": 0})


def lid() -> Gltf:
    gltf = one_box({"name": "lid", "mesh": 0, "translation": [0, 1, 0]}, {"name": "chest", "mesh": 0})
    times, turns = gltf.accessor([0.0, 1.0]), gltf.accessor([[0.0, 0, 0, 1], [1, 0, 0, 0]])
    channel = {"sampler": 0, "target": {"node": 0, "path": "rotation"}}
    gltf.document["animations"] = [{"channels": [channel], "samplers": [{"input": times, "output": turns}]}]
    return gltf


def inward_normals() -> Gltf:
    gltf = one_box()
    normals = gltf.accessor(-box_arrays()[1])
    gltf.document["meshes"][0]["primitives"][0]["attributes"]["NORMAL"] = normals
    return gltf


def with_image(uri: str) -> Gltf:
    gltf = Gltf()
    gltf.document |= {"images": [{"uri": uri}], "textures": [{"source": 0}]}
    gltf.mesh(box(gltf) | {"material": gltf.material({"index": 0})})
    return gltf.nodes({"mesh": 0})


def scaled_texture() -> Gltf:
    """A texture that is repeated four times by its transform; the coordinates themselves are sane."""
    gltf = Gltf()
    gltf.document["textures"] = [{}]
    transform = {"KHR_texture_transform": {"scale": [4, 4]}}
    gltf.mesh(box(gltf) | {"material": gltf.material({"index": 0, "extensions": transform})})
    gltf.document |= {"extensionsUsed": list(transform), "extensionsRequired": list(transform)}
    return gltf.nodes({"mesh": 0})


def mirrored_halves() -> Gltf:
    """A box and its mirror image, which share their texture coordinates."""
    positions, normals, uv, faces = box_arrays()
    gltf = Gltf()
    mirror = np.array([-1.0, 1, 1])
    attributes = {
        "POSITION": gltf.accessor(np.concatenate([positions, positions * mirror - [2, 0, 0]])),
        "NORMAL": gltf.accessor(np.concatenate([normals, normals * mirror])),
        "TEXCOORD_0": gltf.accessor(np.concatenate([uv, uv])),
    }
    indices = gltf.accessor(np.concatenate([faces, faces[:, ::-1] + 24]).reshape(-1), "u2")
    gltf.mesh({"attributes": attributes, "indices": indices})
    return gltf.nodes({"mesh": 0})
