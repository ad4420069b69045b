"""Changes of a glTF document, of its JSON and its buffers, that leave everything else as it is."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote

import numpy as np
from jaxtyping import Shaped

from pgc3d.errors import InputError
from pgc3d.mesh_io.gltf_accessor import read_stored
from pgc3d.mesh_io.gltf_document import Document, split_glb
from pgc3d.mesh_io.gltf_scene import INSTANCING
from pgc3d.mesh_io.gltf_writer import pack_glb
from pgc3d.mesh_io.limits import inside, read_limited

# extensions that refer to no accessor, buffer view, texture or image but in the places of `references`
TRANSPARENT = (
    "KHR_materials_", "EXT_materials_", "KHR_texture_", "EXT_texture_", "KHR_lights_",
    "KHR_mesh_quantization", "KHR_node_", "KHR_animation_pointer", "KHR_xmp", "MSFT_texture_dds",
    "MSFT_lod", INSTANCING,
)  # fmt: skip
REUSED = (
    "textures",
    "images",
    "samplers",
    "accessors",
    "bufferViews",
)  # an entry refers to those of a later list
SIZES = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
ALIGNMENT = 16  # of the start of each buffer in the joined one
Reference = tuple[Any, Any]  # an object or list of the JSON, and the key or place of an index in it


def raw_root(data: bytes) -> dict[str, Any]:
    """The JSON of a glTF or GLB that can be parsed, with all its values, also null."""
    text = split_glb(data)[0] if data[:4] == b"glTF" else data
    root = json.loads(text.decode("utf-8-sig").rstrip("\0"))
    assert isinstance(root, dict)
    return root


def entries(value: Any, key: str) -> list[Any]:
    """The objects in a list of an object; an empty list where there is none, or something else."""
    found = value.get(key) if isinstance(value, dict) else None
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def extension(value: dict[str, Any], name: str) -> dict[str, Any]:
    """An extension of an object, an empty one where there is none."""
    found = (value.get("extensions") or {}).get(name)
    return found if isinstance(found, dict) else {}


def references(root: dict[str, Any], kind: str) -> list[Reference]:
    """All places of the JSON that hold an index in the list `kind`: `accessors`, `bufferViews` ..."""
    finders: dict[str, Callable[[dict[str, Any]], Iterator[Reference]]] = {
        "accessors": _of_accessors,
        "bufferViews": _of_views,
        "textures": _of_textures,
        "images": partial(_of_images, key="source"),
        "samplers": partial(_of_images, key="sampler"),
    }
    return [(holder, key) for holder, key in finders[kind](root) if type(holder[key]) is int]


def _of_accessors(root: dict[str, Any]) -> Iterator[Reference]:
    holders: list[dict[str, Any]] = []
    for primitive in (item for mesh in entries(root, "meshes") for item in entries(mesh, "primitives")):
        holders += [primitive.get("attributes") or {}, *entries(primitive, "targets")]
        if "indices" in primitive:
            yield primitive, "indices"
    yield from (
        (skin, "inverseBindMatrices") for skin in entries(root, "skins") if "inverseBindMatrices" in skin
    )
    for sampler in (item for one in entries(root, "animations") for item in entries(one, "samplers")):
        yield from ((sampler, key) for key in ("input", "output") if key in sampler)
    holders += [extension(node, INSTANCING).get("attributes") or {} for node in entries(root, "nodes")]
    yield from ((holder, key) for holder in holders for key in holder)


def _of_views(root: dict[str, Any]) -> Iterator[Reference]:
    holders = [*entries(root, "accessors"), *entries(root, "images")]
    sparse = [item.get("sparse") or {} for item in entries(root, "accessors")]
    holders += [
        item[key] for item in sparse for key in ("indices", "values") if isinstance(item.get(key), dict)
    ]
    yield from ((holder, "bufferView") for holder in holders if "bufferView" in holder)


def _of_textures(root: dict[str, Any]) -> Iterator[Reference]:
    waiting: list[Any] = list(entries(root, "materials"))
    while waiting:
        value = waiting.pop()
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in children:
            if isinstance(child, dict) and str(key).endswith("Texture") and "index" in child:
                yield child, "index"
            if isinstance(child, (dict, list)) and key != "extras":
                waiting.append(child)


def _of_images(root: dict[str, Any], key: str) -> Iterator[Reference]:
    for texture in entries(root, "textures"):
        holders = [texture, *(texture.get("extensions") or {}).values()]
        yield from ((item, key) for item in holders if isinstance(item, dict) and key in item)


@dataclass
class Editor:
    """A document while it is changed: new entries are appended, and `pack` moves them to unused places."""

    document: Document
    root: dict[str, Any]
    added: bytearray = field(default_factory=bytearray)  # the content of new buffer views
    before: dict[str, set[int]] = field(default_factory=dict)  # indices that were referred to, by list
    counts: dict[str, int] = field(default_factory=dict)  # of the lists before any change
    values: dict[int, Shaped[np.ndarray, "N C"]] = field(default_factory=dict)  # of new accessors

    @classmethod
    def of(cls, document: Document, data: bytes) -> "Editor":
        """The editor of a document that was parsed from `data`."""
        root = raw_root(data)
        used = {kind: {holder[key] for holder, key in references(root, kind)} for kind in REUSED}
        return cls(document, root, before=used, counts={kind: len(root.get(kind) or []) for kind in REUSED})

    def append(self, kind: str, entry: dict[str, Any]) -> int:
        """The index of a new entry of a list, which is made where it is missing."""
        if not isinstance(self.root.get(kind), list):
            self.root[kind] = []
        self.root[kind].append(entry)
        return len(self.root[kind]) - 1

    def copied(self, kind: str, index: int) -> int:
        """The index of a copy of an entry."""
        return self.append(kind, copy.deepcopy(self.root[kind][index]))

    def add_view(self, content: bytes, **extra: int) -> int:
        """The index of a buffer view with this content; its buffer is that of `added`, -1 until `pack`."""
        self.added += b"\0" * (-len(self.added) % 4)
        view = {"buffer": -1, "byteOffset": len(self.added), "byteLength": len(content)} | extra
        self.added += content
        return self.append("bufferViews", view)

    def add_accessor(self, values: Shaped[np.ndarray, "N C"], like: dict[str, Any], target: int) -> int:
        """The index of an accessor with these values, its other properties as those of `like`."""
        size = values.dtype.itemsize * values.shape[1]
        stride = size + (-size % 4 if values.shape[1] > 1 else 0)
        rows = np.zeros((len(values), stride), dtype=np.uint8)
        rows[:, :size] = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), size)
        packed = {} if stride == size else {"byteStride": stride}
        view = self.add_view(rows.tobytes(), target=target, **packed)
        kept = {key: value for key, value in like.items() if key not in ("byteOffset", "sparse")}
        kept |= {"bufferView": view, "componentType": SIZES[values.dtype.str[1:]], "count": len(values)}
        index = self.append("accessors", kept)
        self.values[index] = values
        return index

    def read(self, index: int) -> Shaped[np.ndarray, "N C"]:
        """The elements of an accessor of the document or a new one, in its component type."""
        return self.values[index] if index in self.values else read_stored(self.document, index)

    def pack(self) -> bytes:
        """The GLB; places and bytes that nothing refers to any more are used for what was added, or cut."""
        names = self.root.get("extensionsUsed") or []
        known = all(str(name).startswith(TRANSPARENT) for name in names)
        freed = [view for kind in REUSED[:-1] for view in self._reuse(kind)] if known else []
        self._embed_images()
        freed += self._reuse(REUSED[-1]) if known else []
        live = [view for item in entries(self.root, "bufferViews") for view in _addresses(item)]
        data = self._joined([*live, *freed])
        for view in freed:
            start, stop = _span(view)
            if not any(first < stop and start < last for first, last in map(_span, live)):
                _cut(data, start, stop, [*live, *freed])
        first: list[dict[str, Any]] = entries(self.root, "buffers")[:1] or [{}]
        kept = {key: value for key, value in first[0].items() if key not in ("uri", "extensions")}
        self.root["buffers"] = [kept | {"byteLength": len(data)}]
        return pack_glb(self.root, bytes(data) + b"\0" * (-len(data) % 4), as_read=True)

    def _embed_images(self) -> None:
        """Put images in files of their own into the document; those that are missing stay as names."""
        for image in entries(self.root, "images"):
            uri = image.get("uri")
            if isinstance(uri, str) and uri[:5].lower() != "data:":
                content = self._file(uri)
                if content is not None:
                    del image["uri"]
                    image |= {"bufferView": self.add_view(content), "mimeType": _image_type(content)}
                    image.setdefault("name", unquote(uri))

    def _file(self, uri: str) -> bytes | None:
        """The content of a file beside the document, None where it cannot be read."""
        path = self.document.path
        try:
            return read_limited(inside(path.parent, uri, path), f"image of {path.name}")
        except InputError:
            return None

    def _reuse(self, kind: str) -> list[dict[str, Any]]:
        """Move new entries to places that nothing refers to any more, and remove the rest of such entries.

        Returns:
            The buffer views that were replaced or removed.
        """
        items, refers = self.root.get(kind) or [], references(self.root, kind)
        free = sorted(self.before[kind] - {holder[key] for holder, key in refers})
        old, order = [items[place] for place in free], list(range(len(items)))
        while free and order[-1] >= self.counts[kind]:
            order[free.pop(0)] = order.pop()
        order = [index for place, index in enumerate(order) if place not in free]
        places = {index: place for place, index in enumerate(order)}
        for holder, key in refers:
            holder[key] = places[holder[key]]
        if items:
            self.root[kind] = [items[index] for index in order]
        return old if kind == "bufferViews" else []

    def _joined(self, views: list[dict[str, Any]]) -> bytearray:
        """All buffers one after another, and the offsets of buffer views changed to those in it."""
        data, starts = bytearray(), []
        for index, buffer in enumerate(self.document.buffers):
            data += b"\0" * (-len(data) % ALIGNMENT)
            starts.append(len(data))
            data += self.document.buffer(index)[: buffer.integer("byteLength")]
        data += b"\0" * (-len(data) % ALIGNMENT)
        starts.append(len(data))  # of what was added, whose buffer is -1
        for view in views:
            offset = (view.get("byteOffset") or 0) + starts[view["buffer"]]
            view |= {"buffer": 0, "byteOffset": offset}
        return data + self.added


def _image_type(content: bytes) -> str:
    if content.startswith(b"\x89PNG"):
        return "image/png"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    if content[4:12] == b"ftypavif":
        return "image/avif"
    return "image/ktx2" if content[1:7] == b"KTX 20" else "image/jpeg"


def _addresses(view: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A buffer view, and the extensions of it that have a buffer of their own."""
    yield view
    for item in (view.get("extensions") or {}).values():
        if isinstance(item, dict) and type(item.get("buffer")) is int:
            yield item


def _span(view: dict[str, Any]) -> tuple[int, int]:
    """The first byte of a buffer view, and the one after the last."""
    return view["byteOffset"], view["byteOffset"] + view["byteLength"]


def _cut(data: bytearray, start: int, stop: int, views: list[dict[str, Any]]) -> None:
    """Remove bytes, so that all others keep their alignment."""
    start, stop = start + -start % 4, stop - stop % 4
    if stop > start:
        del data[start:stop]
        for view in views:
            view["byteOffset"] -= stop - start if view["byteOffset"] >= stop else 0
