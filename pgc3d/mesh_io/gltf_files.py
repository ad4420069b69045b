"""A glTF of several files: the document as text, and beside it its numbers and its images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pgc3d.mesh_io.gltf_writer import unpack_glb
from pgc3d.mesh_io.names import plain_stem

VIEW = "bufferView"  # the key by which accessors, images and extensions refer to a part of a buffer
SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/ktx2": "ktx2"}


def separate(glb: bytes, path: Path) -> dict[Path, bytes]:
    """The files of a GLB that is written as a glTF of text, the mesh last.

    Everything in the document stays, in its order. Images become files; what is left of the buffer keeps its
    order, too.

    Args:
        glb: with one buffer.
        path: of the document; other files go beside it.
    """
    document, binary = unpack_glb(glb)
    stem, files = plain_stem(path), dict[Path, bytes]()
    views, images = document.get("bufferViews", []), document.get("images", [])
    taken = {image[VIEW] for image in images if VIEW in image}
    for number, image in enumerate(images):
        if VIEW in image:
            name = f"{stem}_{image.get('name') or number}.{SUFFIXES.get(image.get('mimeType'), 'png')}"
            name = "".join(letter if letter not in '/\\:*?"<>|' else "_" for letter in "_".join(name.split()))
            if path.with_name(name) in files:
                name = f"{number}_{name}"
            files[path.with_name(name)] = _part(binary, views[image.pop(VIEW)])
            image["uri"] = quote(name)
    kept = [number for number in range(len(views)) if number not in taken]
    numbers, rest = bytearray(), []
    for number in kept:
        rest.append({**views[number], "byteOffset": len(numbers)})
        numbers += _part(binary, views[number])
        numbers += b"\0" * (-len(numbers) % 4)  # the next view starts on a multiple of 4
    document = _with_views(document, {old: new for new, old in enumerate(kept)})
    document |= {"bufferViews": rest, "buffers": [{"byteLength": len(numbers), "uri": quote(f"{stem}.bin")}]}
    if not rest:
        del document["bufferViews"], document["buffers"]
    else:
        files[path.with_name(f"{stem}.bin")] = bytes(numbers)
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
    return {**files, path: text.encode()}


def _part(binary: bytes, view: Mapping[str, Any]) -> bytes:
    start = view.get("byteOffset", 0)
    return binary[start : start + view["byteLength"]]


def _with_views(value: Any, new: Mapping[int, int]) -> Any:
    """A part of a document with new numbers of the buffer's parts, in extensions, too."""
    if isinstance(value, list):
        return [_with_views(entry, new) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        key: new[entry] if key == VIEW and entry in new else _with_views(entry, new)
        for key, entry in value.items()
    }
