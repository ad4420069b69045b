"""Structural check of a GLB file, for a place without the Khronos validator."""

import json
import struct
from typing import Any

import numpy as np

from pgc3d.mesh_io.gltf_document import BINARY_CHUNK, JSON_CHUNK, MAGIC
from pgc3d.mesh_io.gltf_writer import FLOAT, UINT16, UINT32

COMPONENT = {FLOAT: "<f4", UINT16: "<u2", UINT32: "<u4"}
WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def check_glb(data: bytes) -> list[str]:
    """What is wrong with a one-buffer GLB, empty when nothing is: sizes, alignment, ranges, unit normals."""
    problems, chunks = _split(data)
    if problems:
        return problems
    document = json.loads(chunks[0])
    binary = chunks[1]
    if document["buffers"][0]["byteLength"] > len(binary):
        problems.append("the buffer is longer than the binary chunk")
    problems += _check_views(document["bufferViews"], len(binary))
    problems += [
        f"image {i} is no PNG"
        for i, image in enumerate(document.get("images", []))
        if not _view(document, binary, image["bufferView"]).startswith(b"\x89PNG\r\n\x1a\n")
    ]
    for mesh in document["meshes"]:
        for primitive in mesh["primitives"]:
            problems += _check_primitive(document, binary, primitive)
    return problems


def _split(data: bytes) -> tuple[list[str], list[bytes]]:
    if len(data) < 20 or struct.unpack_from("<II", data) != (MAGIC, 2):
        return ["no glTF 2.0 binary header"], []
    if struct.unpack_from("<I", data, 8)[0] != len(data):
        return ["the header's length is not the file's"], []
    chunks, offset = [], 12
    for kind in (JSON_CHUNK, BINARY_CHUNK):
        if offset + 8 > len(data):
            return ["a chunk is missing"], []
        length, found = struct.unpack_from("<II", data, offset)
        if found != kind or length % 4 or offset + 8 + length > len(data):
            return [f"the chunk at byte {offset} has a wrong type or length"], []
        chunks.append(data[offset + 8 : offset + 8 + length])
        offset += 8 + length
    return ([] if offset == len(data) else ["bytes follow the last chunk"]), chunks


def _check_views(views: list[dict[str, int]], size: int) -> list[str]:
    problems = []
    for index, view in enumerate(views):
        if view["byteOffset"] % 4:
            problems.append(f"buffer view {index} is not aligned to 4 bytes")
        if view["byteOffset"] + view["byteLength"] > size:
            problems.append(f"buffer view {index} ends behind the buffer")
    return problems


def _view(document: dict[str, Any], binary: bytes, index: int) -> bytes:
    view = document["bufferViews"][index]
    return binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]


def _accessor(document: dict[str, Any], binary: bytes, index: int) -> Any:
    accessor = document["accessors"][index]
    values = np.frombuffer(
        _view(document, binary, accessor["bufferView"]), COMPONENT[accessor["componentType"]]
    )
    return values.reshape(-1, WIDTH[accessor["type"]])


def _check_primitive(document: dict[str, Any], binary: bytes, primitive: dict[str, Any]) -> list[str]:
    problems = []
    named = {**primitive["attributes"], "indices": primitive["indices"]}
    values = {name: _accessor(document, binary, index) for name, index in named.items()}
    counts = {len(values[name]) for name in primitive["attributes"]}
    for name, index in named.items():
        if len(values[name]) != document["accessors"][index]["count"]:
            problems.append(f"{name} does not hold as many elements as it says")
        if name != "indices" and not np.isfinite(values[name]).all():
            problems.append(f"{name} is not finite")
    if len(counts) != 1:
        problems.append("the attributes differ in length")
    if len(values["indices"]) % 3 or values["indices"].max(initial=0) >= min(counts):
        problems.append("the indices are no triangles of the vertices")
    position = document["accessors"][named["POSITION"]]
    extremes = values["POSITION"].min(axis=0), values["POSITION"].max(axis=0)
    if not all(
        np.array_equal(a, np.float32(b))
        for a, b in zip(extremes, (position["min"], position["max"]), strict=True)
    ):
        problems.append("POSITION has wrong bounds")
    if np.abs(np.linalg.norm(values["NORMAL"], axis=1) - 1).max() > 1e-3:
        problems.append("NORMAL is not of unit length")
    return problems
