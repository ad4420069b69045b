"""Binary glTF 2.0: one mesh, a primitive for each material, everything in one file.

https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.images import encode_png
from pgc3d.mesh_io.asset import AssetMaterial, MeshAsset
from pgc3d.mesh_io.gltf_document import BINARY_CHUNK, JSON_CHUNK, MAGIC, split_glb
from pgc3d.mesh_io.names import unused_name

FLOAT, UINT16, UINT32 = 5126, 5123, 5125
VERTEX_BUFFER, INDEX_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR = 9729, 9987
NAMES = {
    "baseColorTexture": "base_color",
    "metallicRoughnessTexture": "metallic_roughness",
    "normalTexture": "normal",
}
WRAPS = {"clamp": 33071, "mirror": 33648, "repeat": 10497}


def corner_vertices(
    asset: MeshAsset,
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, "F 3"]]:
    """The vertices of a glTF mesh, each with one normal and one texture coordinate.

    Returns:
        Mesh vertex, normal and texture coordinate of each, and the faces. They come in the mesh's order, and
        are the mesh's own where no vertex has to be split.
    """
    if asset.uv is None or asset.uv_faces is None:
        raise ValueError("the asset must have texture coordinates")
    normal_faces = asset.normals_of_corners
    one_to_one = len({len(asset.vertices), len(asset.uv), len(asset.normals)}) == 1  # no face uses the rest
    if one_to_one and torch.equal(asset.faces, asset.uv_faces) and torch.equal(asset.faces, normal_faces):
        own = torch.arange(len(asset.vertices))
        return own, own, own, asset.faces
    corners = [index.reshape(-1) for index in (asset.faces, normal_faces, asset.uv_faces)]
    unique, index = torch.unique(torch.stack(corners, dim=1), dim=0, return_inverse=True)
    return unique[:, 0], unique[:, 1], unique[:, 2], index.reshape(-1, 3)


def encode_glb(asset: MeshAsset, *, generator: str, name: str) -> bytes:
    """Bytes of a GLB file; metadata goes to `asset.extras`, `generator` is the writing program."""
    surfaces = asset.surfaces
    if asset.uv is None or not surfaces or any(surface.image is None for surface in surfaces):
        raise ValueError("a GLB must have texture coordinates and images of the base colour")
    vertex, normal, uv_vertex, faces = corner_vertices(asset)
    uv = asset.uv[uv_vertex]
    buffer = _Buffer()
    attributes = {
        "POSITION": buffer.add_vectors(asset.vertices[vertex], "VEC3", bounds=True),
        "NORMAL": buffer.add_vectors(asset.normals[normal], "VEC3"),
        # glTF counts v downwards from the image's first row.
        "TEXCOORD_0": buffer.add_vectors(torch.stack([uv[:, 0], 1 - uv[:, 1]], dim=1), "VEC2"),
    }
    if asset.tangents is not None:
        frames = _tangents(asset.normals[normal], asset.tangents[uv_vertex])
        attributes["TANGENT"] = buffer.add_vectors(frames, "VEC4")
    of_face, primitives = asset.face_surface, []
    for index in torch.unique(of_face).tolist():
        indices = buffer.add_indices(faces[of_face == index], len(vertex))
        primitives.append({"attributes": attributes, "indices": indices, "material": index})
    images: dict[str, int] = {}  # buffer views by the names of images
    materials = [_material(surface, images, buffer) for surface in surfaces]
    samplers = list(dict.fromkeys(surface.wrap for surface in surfaces))
    wraps = [surface.wrap for surface in surfaces for _ in _images_of(surface)]
    document = {
        "asset": {"version": "2.0", "generator": generator, "extras": dict(asset.metadata)},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [{"primitives": primitives}],
        "materials": materials,
        "textures": [{"source": image, "sampler": samplers.index(wrap)} for image, wrap in enumerate(wraps)],
        "samplers": [
            {
                "magFilter": LINEAR,
                "minFilter": LINEAR_MIPMAP_LINEAR,
                "wrapS": WRAPS[wrap[0]],
                "wrapT": WRAPS[wrap[1]],
            }
            for wrap in samplers
        ],
        "images": [
            {"bufferView": view, "mimeType": "image/png", "name": key} for key, view in images.items()
        ],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data)}],
    }
    if not asset.metadata:
        del document["asset"]["extras"]  # type: ignore[attr-defined]
    return pack_glb(document, bytes(buffer.data))


def _images_of(surface: AssetMaterial) -> dict[str, Tensor]:
    """The images of a surface, by their names in glTF."""
    named = {
        "baseColorTexture": surface.image,
        "metallicRoughnessTexture": surface.metallic_roughness,
        "normalTexture": surface.normal_map,
    }
    return {name: image for name, image in named.items() if image is not None}


def _material(surface: AssetMaterial, images: dict[str, int], buffer: "_Buffer") -> Mapping[str, Any]:
    """The material of a surface, whose images are added to the buffer, and their views to `images`."""
    textures = {}
    for name, image in _images_of(surface).items():
        textures[name] = {"index": len(images)}
        named = "_".join(filter(None, (surface.name, NAMES[name])))
        images[unused_name(named, images)] = buffer.add(encode_png(image))
    normal = textures.pop("normalTexture", None)
    plain = {} if "metallicRoughnessTexture" in textures else {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    # Optimised surfaces may be open; both sides are shown, as in the renders of the run.
    material = {"name": surface.name, "pbrMetallicRoughness": {**textures, **plain}, "doubleSided": True}
    return material if normal is None else {**material, "normalTexture": normal}


def _tangents(normal: Tensor, tangent: Tensor) -> Tensor:
    """Tangents perpendicular to the normals, and unit, as the format demands; any where there is none."""
    along = tangent[:, :3] - normal * (normal * tangent[:, :3]).sum(1, keepdim=True)
    other = torch.eye(3)[normal.abs().argmin(dim=1)]
    other = other - normal * (normal * other).sum(1, keepdim=True)
    usable = along.norm(dim=1, keepdim=True) > 1e-6
    return torch.cat([normalize(torch.where(usable, along, other), dim=1), tangent[:, 3:]], dim=1)


class _Buffer:
    """Accumulates the binary chunk with its buffer views and accessors."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, data: bytes, target: int | None = None) -> int:
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.views.append(view if target is None else view | {"target": target})
        self.data += data + b"\0" * (-len(data) % 4)  # the next view starts on a multiple of 4
        return len(self.views) - 1

    def add_vectors(self, values: Tensor, kind: str, *, bounds: bool = False) -> int:
        array: NDArray[np.float32] = values.cpu().numpy().astype("<f4")
        accessor: dict[str, Any] = {
            "bufferView": self.add(array.tobytes(), VERTEX_BUFFER),
            "componentType": FLOAT,
            "count": len(array),
            "type": kind,
        }
        if bounds:
            accessor |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def add_indices(self, faces: Tensor, count: int) -> int:
        small = count <= 65535  # the value 65535 itself restarts a primitive
        data = faces.reshape(-1).cpu().numpy().astype("<u2" if small else "<u4").tobytes()
        self.accessors.append(
            {
                "bufferView": self.add(data, INDEX_BUFFER),
                "componentType": UINT16 if small else UINT32,
                "count": faces.numel(),
                "type": "SCALAR",
            }
        )
        return len(self.accessors) - 1


def pack_glb(document: Mapping[str, Any], binary: bytes, *, as_read: bool = False) -> bytes:
    """A GLB container around a glTF document and its binary chunk.

    With `as_read` the document may have what JSON forbids and Python's reader accepts: NaN, lone surrogates.
    """
    plain = {"separators": (",", ":"), "allow_nan": as_read}
    try:
        text = json.dumps(document, ensure_ascii=False, **plain).encode()  # type: ignore[arg-type]
    except UnicodeEncodeError:
        text = json.dumps(document, **plain).encode()  # type: ignore[arg-type]
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        [
            struct.pack("<III", MAGIC, 2, length),
            struct.pack("<II", len(text), JSON_CHUNK),
            text,
            struct.pack("<II", len(binary), BINARY_CHUNK),
            binary,
        ]
    )


def unpack_glb(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The glTF document of a GLB and its binary chunk.

    Raises:
        ValueError: it is no GLB of version 2, or is cut off.
    """
    text, binary = split_glb(data)
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("its JSON chunk is no object")
    return document, binary or b""


def read_metadata(data: bytes) -> dict[str, str | int | float]:
    """The metadata of `encode_glb`, or those entries of another program's `extras` that have its types."""
    try:
        document, _ = unpack_glb(data)
        extras = document["asset"]["extras"]
        return {key: value for key, value in extras.items() if isinstance(value, str | int | float)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
