"""A glTF 2.0 document with its buffers, and validated access to its JSON.

https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html
"""

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from PIL import Image

from pgc3d.errors import InputError
from pgc3d.mesh_io.limits import inside, read_limited

MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
LARGEST = 2**53  # whole numbers up to which JSON is exact


@dataclass(frozen=True)
class Entry:
    """An object of the document; errors about missing or wrong values contain its path."""

    value: Mapping[str, Any]
    place: str  # as in "accessors[3]"
    file: str  # the name for messages

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def error(self, key: str, needed: str) -> InputError:
        """An error about one value, to be raised by the caller."""
        found = repr(self.value[key])[:60] if key in self.value else "nothing"
        name = f"{self.place}.{key}" if self.place else key
        return InputError(
            f"{name} of a glTF file must be {needed}, got {found} in {self.file}; export it again"
        )

    def integer(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        """A whole number of at least `least`."""
        if key not in self.value and default is not None:
            return default
        value = self.value.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # some programs write 3.0
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
            raise self.error(key, f"a whole number of at least {least}")
        return value

    def index(self, key: str, count: int) -> int | None:
        """An index in a list of `count` items, None where there is no such key."""
        if key not in self.value:
            return None
        value = self.integer(key)
        if value >= count:
            raise self.error(key, f"an index below {count}")
        return value

    def indices(self, key: str, count: int) -> list[int]:
        """Indices in a list of `count` items, empty where there is no such key."""
        values = self.value.get(key, [])
        if not isinstance(values, list) or not all(type(v) is int and 0 <= v < count for v in values):
            raise self.error(key, f"a list of indices below {count}")
        return values

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.value.get(key, default)
        if not _finite(value):
            raise self.error(key, "a finite number")
        return float(value)

    def numbers(self, key: str, count: int | None) -> list[float] | None:
        """`count` finite numbers, any number of them when None; None where there is no such key."""
        if key not in self.value:
            return None
        values = self.value[key]
        fits = isinstance(values, list) and (count is None or len(values) == count)
        if not fits or not all(_finite(value) for value in values):
            raise self.error(key, f"{'a list of' if count is None else count} finite numbers")
        return [float(value) for value in values]

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.value.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings, empty where there is no such key."""
        values = self.value.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.error(key, "a list of strings")
        return values

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.value.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def entry(self, key: str) -> "Entry":
        """An object, an empty one where there is no such key."""
        value = self.value.get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return Entry(value, f"{self.place}.{key}" if self.place else key, self.file)

    def entries(self, key: str) -> list["Entry"]:
        """A list of objects, empty where there is no such key."""
        values = self.value.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.error(key, "a list of objects")
        place = f"{self.place}.{key}" if self.place else key
        return [Entry(value, f"{place}[{index}]", self.file) for index, value in enumerate(values)]

    def name(self, kind: str) -> str:
        """Its name; `kind` and its index in the file where it has none, as "node 3"."""
        return self.text("name") or f"{kind} {self.place.rpartition('[')[2].removesuffix(']')}"

    def extension(self, name: str) -> "Entry | None":
        """An extension of this object."""
        extensions = self.entry("extensions")
        return extensions.entry(name) if name in extensions else None


def _finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < 1e300 and math.isfinite(value)


@dataclass(frozen=True)
class Document:
    """A parsed glTF file; its buffers are opened when they are read."""

    path: Path
    root: Entry
    binary: bytes | None  # of a GLB
    accessors: list[Entry]
    views: list[Entry]
    buffers: list[Entry]
    meshes: list[Entry]
    nodes: list[Entry]
    skins: list[Entry]
    opened: dict[int, bytes] = field(default_factory=dict)
    decoded: dict[str, Image.Image] = field(default_factory=dict)  # images, by their place

    def buffer(self, index: int) -> bytes:
        """The content of a buffer.

        Raises:
            InputError: it is missing, too large, damaged or outside the folder.
        """
        if index not in self.opened:
            self.opened[index] = self._open(index)
        return self.opened[index]

    def _open(self, index: int) -> bytes:
        entry = self.buffers[index]
        if "uri" not in entry:
            if index == 0 and self.binary is not None:
                return self.binary
            if any(entry.extension(name) for name in MESHOPT):
                raise compressed(self.path, "meshopt", "EXT_meshopt_compression")
            raise entry.error("uri", "the name of a file")
        return self.resource(entry, "buffer")

    def resource(self, entry: Entry, kind: str) -> bytes:
        """The content of a buffer's or an image's URI: a data URI, or a file in the folder."""
        uri = entry.text("uri")
        if uri[:5].lower() != "data:":
            return read_limited(inside(self.path.parent, uri, self.path), f"{kind} of {self.path.name}")
        head, _, body = uri.partition(",")
        try:
            data = unquote_to_bytes(body)
            return base64.b64decode(data) if head.strip().lower().endswith(";base64") else data
        except (binascii.Error, ValueError) as error:
            raise entry.error("uri", "base64 that can be decoded") from error

    def view(self, index: int) -> memoryview:
        """The bytes of a buffer view.

        Raises:
            InputError: it reaches beyond its buffer, or is compressed without a plain copy.
        """
        entry = self.views[index]
        buffer = entry.index("buffer", len(self.buffers))
        if buffer is None:
            raise entry.error("buffer", "an index")
        required = self.root.texts("extensionsRequired")
        for name in MESHOPT:
            if entry.extension(name) and (name in required or self.buffers[buffer].extension(name)):
                raise compressed(self.path, "meshopt", name)
        data = self.buffer(buffer)
        start, length = entry.integer("byteOffset", 0), entry.integer("byteLength", least=1)
        if start + length > len(data):
            raise InputError(
                f"a glTF file must hold all of its data, but {self.path.name} has {len(data)} bytes in "
                f"buffers[{buffer}] where {entry.place} reaches to {start + length}; it is cut off: copy or "
                "export it again"
            )
        return memoryview(data)[start : start + length]


MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")


def compressed(path: Path, method: str, extension: str) -> InputError:
    """An error about a compressed surface, to be raised by the caller."""
    return InputError(
        f"a glTF file must hold its surface plainly, but {path.name} compresses it with {method} "
        f"({extension}); export it without compression"
    )


def parse_document(data: bytes, path: Path) -> Document:
    """The document of a GLB or a glTF, whichever the bytes are.

    Raises:
        InputError: it is damaged, or of another version.
    """
    binary = None
    if data[:4] == b"glTF":
        if len(data) >= 8 and struct.unpack_from("<I", data, 4)[0] == 1:
            raise _version(path, "1")
        try:
            data, binary = split_glb(data)
        except ValueError as error:
            raise InputError(
                f"the mesh file must be readable, got {path}: {error}; export it again"
            ) from error
    elif path.suffix.lower() == ".glb" and data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
        raise InputError(
            f"the mesh file must be readable, got {path}: it is no GLB of version 2; export it again"
        )
    root = Entry(_parse_json(data, path), "", path.name)
    _require_version(root, path)
    return Document(
        path=path,
        root=root,
        binary=binary,
        accessors=root.entries("accessors"),
        views=root.entries("bufferViews"),
        buffers=root.entries("buffers"),
        meshes=root.entries("meshes"),
        nodes=root.entries("nodes"),
        skins=root.entries("skins"),
    )


def _parse_json(data: bytes, path: Path) -> dict[str, Any]:
    try:
        # a byte order mark stands before what some editors save, zeros behind what some programs pack
        document = json.loads(data.decode("utf-8-sig").rstrip("\0"), object_hook=_without_null)
    except UnicodeDecodeError:
        reason = "its JSON is not UTF-8"
    except json.JSONDecodeError as error:
        reason = f"its JSON is damaged at line {error.lineno}, column {error.colno}"
    except RecursionError:
        reason = "its JSON is nested too deeply"
    except ValueError:
        reason = "its JSON has a number of thousands of digits"
    else:
        if isinstance(document, dict):
            return document
        reason = "its JSON is no object"
    raise InputError(f"the mesh file must be readable, got {path}: {reason}; export it again")


def _without_null(values: dict[str, Any]) -> dict[str, Any]:
    """The object without null values, which some programs write for missing ones."""
    return {key: value for key, value in values.items() if value is not None}


def _require_version(root: Entry, path: Path) -> None:
    asset = root.entry("asset")
    version = str(asset.value.get("version", "2.0"))
    if version.split(".", maxsplit=1)[0] != "2" or isinstance(root.value.get("meshes"), dict):
        raise _version(path, "1.0" if isinstance(root.value.get("meshes"), dict) else version)
    least = asset.value.get("minVersion", "2.0")
    if least != "2.0":
        raise _version(path, str(least))


def _version(path: Path, found: str) -> InputError:
    return InputError(
        f"a glTF file must be of version 2.0, got {path.name} of version {found[:20]!r}; open it in a "
        "program that reads that version and export it as glTF 2.0"
    )


def split_glb(data: bytes) -> tuple[bytes, bytes | None]:
    """The JSON and the binary chunk of a GLB of version 2, the latter None where there is none.

    Raises:
        ValueError: it is no GLB of version 2, or is cut off.
    """
    if len(data) < 20 or struct.unpack_from("<II", data) != (MAGIC, 2):
        raise ValueError("it is no GLB of version 2")
    length, kind = struct.unpack_from("<II", data, 12)
    if kind != JSON_CHUNK or 20 + length > len(data):
        raise ValueError("its JSON chunk is damaged")
    text, start = data[20 : 20 + length], 20 + length
    while start + 8 <= len(data):
        size, kind = struct.unpack_from("<II", data, start)
        if kind == BINARY_CHUNK:
            if start + 8 + size > len(data):
                raise ValueError("its binary chunk is cut off")
            return text, data[start + 8 : start + 8 + size]
        start += 8 + size  # chunks of other kinds are skipped
    return text, None
