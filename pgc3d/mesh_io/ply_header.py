"""The header of a PLY file: its elements, their properties, and where the values begin."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pgc3d.errors import InputError
from pgc3d.mesh_io.lines import decoded, quoted

MAX_HEADER = 1 << 20  # bytes; comments may be long
MAX_PROPERTIES = 1000  # of all elements together
MAX_DIGITS = 18  # of a count
TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8", "int64": "i8", "uint64": "u8", "long": "i8", "ulong": "u8",
}  # fmt: skip
FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True)
class Property:
    """A number of each row, or a list of them behind their count."""

    name: str
    kind: str  # as numpy names it, without byte order
    count_kind: str | None = None  # of a list


@dataclass(frozen=True)
class Element:
    """A table of the file."""

    name: str
    count: int
    properties: tuple[Property, ...]

    def has(self, *names: str) -> bool:
        """Whether there are properties of all these names."""
        return set(names) <= {item.name for item in self.properties}


@dataclass(frozen=True)
class Header:
    """What a file says of itself; `begin` is where the values start."""

    order: str  # < or >, empty for text
    elements: tuple[Element, ...]
    images: tuple[str, ...]  # of `comment TextureFile`
    begin: int
    lines: int

    def element(self, *names: str) -> Element | None:
        """The first element with one of these names."""
        return next((item for item in self.elements if item.name in names), None)


def read_header(data: bytes, path: Path) -> Header:
    """The header of a PLY.

    Raises:
        InputError: it is damaged, or something else.
    """
    start = re.match(rb"(?:\xef\xbb\xbf)?ply[ \t]*(\r\n|\n|\r)", data[:64])
    if start is None:
        _refuse(path, "begin with the line 'ply'", quoted(data[:16]))
    newline = start[1]
    found = re.compile(rb"(?:^|[\r\n])[ \t]*end_header[ \t]*" + newline).search(data, start.end() - 1, MAX_HEADER)
    if found is None and (end := re.search(rb"[\r\n]end_header[ \t]*\Z", data[:MAX_HEADER])):
        found = end  # a file of no values
    if found is None:
        _refuse(path, "have a line 'end_header'", "none")
    text = re.split(rb"\r\n|\n|\r", data[start.end() : found.start()])
    order: str | None = None
    elements: list[tuple[str, int, list[Property]]] = []
    images: list[str] = []
    for number, line in enumerate(text, 2):
        words = decoded(line).split()
        key = words[0].lower() if words else ""
        if key == "format":
            order = _order(words, path, number)
        elif key == "element":
            elements.append((*_element(words, path, number), []))
        elif key == "property":
            if not elements or sum(len(item[2]) for item in elements) >= MAX_PROPERTIES:
                _refuse(path, f"have at most {MAX_PROPERTIES} properties, each behind its element", "others", number)
            elements[-1][2].append(_property(words, path, number))
        elif key == "comment" and len(words) > 2 and words[1].lower() == "texturefile":
            images.append(decoded(line).strip().split(None, 2)[2])
        elif key not in ("", "comment", "obj_info"):
            _refuse(path, "have lines that begin with element, property or comment", quoted(words[0]), number)
    if order is None:
        _refuse(path, "have a line 'format'", "none")
    tables = tuple(Element(name, count, tuple(properties)) for name, count, properties in elements)
    return Header(order, tables, tuple(images), found.end(), len(text) + 2)


def _refuse(path: Path, rule: str, found: str, number: int | None = None) -> NoReturn:
    place = "" if number is None else f" in line {number}"
    raise InputError(f"the header of a PLY must {rule}, got {found}{place} of {path}; export it again")


def _order(words: list[str], path: Path, number: int) -> str:
    if len(words) < 2 or words[1].lower() not in FORMATS:
        _refuse(path, f"have a format of {', '.join(FORMATS)}", quoted(" ".join(words[1:])), number)
    return FORMATS[words[1].lower()]


def _element(words: list[str], path: Path, number: int) -> tuple[str, int]:
    if len(words) != 3 or not re.fullmatch(r"\d+", words[2], re.ASCII) or len(words[2]) > MAX_DIGITS:
        _refuse(path, "give each element a name and a count", quoted(" ".join(words[1:])), number)
    return words[1].lower(), int(words[2])


def _property(words: list[str], path: Path, number: int) -> Property:
    kinds, name = [word.lower() for word in words[1:-1]], words[-1].lower()
    as_list = len(kinds) == 3 and kinds[0] == "list"
    kinds = kinds[1:] if as_list else kinds
    if len(kinds) != (2 if as_list else 1) or any(kind not in TYPES for kind in kinds):
        _refuse(path, "give each property a type and a name", quoted(" ".join(words[1:])), number)
    return Property(name, TYPES[kinds[-1]], TYPES[kinds[0]] if as_list else None)
