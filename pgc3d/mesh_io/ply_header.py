"""The header of a PLY file: its elements, their properties, and where the values begin."""

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from pgc3d.errors import InputError
from pgc3d.mesh_io.lines import counted, decoded, quoted

MAX_HEADER = 1 << 20  # bytes; comments may be long
MAX_PROPERTIES = 1000  # of an element
MAX_DIGITS = 18  # of a count
TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8", "int64": "i8", "uint64": "u8", "long": "i8", "ulong": "u8",
}  # fmt: skip
KEYWORDS = ("format", "element", "property", "comment", "obj_info")
SIMILAR = 0.7  # of difflib: a line whose first word is so near to a keyword is a misspelt one
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
    """What a file states about itself; `begin` is where the values start."""

    order: str  # < or >, empty for text
    elements: tuple[Element, ...]
    images: tuple[str, ...]  # of `comment TextureFile`
    begin: int
    lines: int
    notes: tuple[str, ...] = ()

    def element(self, *names: str) -> Element | None:
        """The first element with one of these names."""
        return next((item for item in self.elements if item.name in names), None)


def read_header(data: bytes, path: Path) -> Header:
    """The header of a PLY.

    Raises:
        InputError: it is damaged, or something else.
    """
    lines, begin = _lines(data, path)
    order: str | None = None
    elements: list[Element] = []
    images: list[str] = []
    unknown: list[str] = []
    for number, line in enumerate(lines, 2):
        words = line.split() or ["comment"]
        key = words[0].lower()
        if key == "format":
            order = _order(words, path, number)
        elif key == "element":
            elements.append(_element(words, path, number))
        elif key == "property":
            elements[-1:] = [_with_property(elements, words, path, number)]
        elif key == "comment":
            if len(words) > 2 and words[1].lower() == "texturefile":
                images.append(line.strip().split(None, 2)[2])
        elif key != "obj_info":
            if difflib.get_close_matches(key, KEYWORDS, 1, SIMILAR):
                rule = "have lines that begin with element, property or comment"
                _refuse(path, rule, quoted(words[0]), number)
            unknown.append(words[0])
    if order is None:
        _refuse(path, "have a line 'format'", "none")
    return Header(order, tuple(elements), tuple(images), begin, len(lines) + 2, _notes(unknown))


def _notes(unknown: list[str]) -> tuple[str, ...]:
    if not unknown:
        return ()
    return (
        f"{counted(len(unknown), 'header line')} passed over, the first begins with {quoted(unknown[0])}",
    )


def _lines(data: bytes, path: Path) -> tuple[list[str], int]:
    """The lines between the first and the last one, and where the values begin."""
    first = re.match(rb"(?:\xef\xbb\xbf)?ply[ \t]*(\r\n|\n|\r)", data[:64])
    if first is None:
        _refuse(path, "begin with the line 'ply'", quoted(data[:16]))
    # values may begin with a byte that looks like a line end, so that the first line's end counts
    last = re.compile(rb"[\r\n][ \t]*end_header[ \t]*(?:" + first[1] + rb"|\Z)")
    end = last.search(data[:MAX_HEADER], first.end() - 1)
    if end is None:
        _refuse(path, "have a line 'end_header'", "none")
    text = data[first.end() : max(end.start(), first.end())]
    return [decoded(line) for line in re.split(rb"\r\n|\n|\r", text)], end.end()


def _refuse(path: Path, rule: str, found: str, number: int | None = None) -> NoReturn:
    place = "" if number is None else f" in line {number}"
    raise InputError(f"the header of a PLY must {rule}, got {found}{place} of {path}; export it again")


def _order(words: list[str], path: Path, number: int) -> str:
    if len(words) < 2 or words[1].lower() not in FORMATS:
        _refuse(path, f"have a format of {', '.join(FORMATS)}", quoted(" ".join(words[1:])), number)
    return FORMATS[words[1].lower()]


def _element(words: list[str], path: Path, number: int) -> Element:
    if len(words) != 3 or not re.fullmatch(r"\d+", words[2], re.ASCII) or len(words[2]) > MAX_DIGITS:
        _refuse(path, "give each element a name and a count", quoted(" ".join(words[1:])), number)
    return Element(words[1].lower(), int(words[2]), ())


def _with_property(elements: list[Element], words: list[str], path: Path, number: int) -> Element:
    """The last element with one more property."""
    kinds, name = [word.lower() for word in words[1:-1]], words[-1].lower()
    as_list = len(kinds) == 3 and kinds[0] == "list"
    kinds = kinds[1:] if as_list else kinds
    if not elements or len(kinds) != (2 if as_list else 1) or any(kind not in TYPES for kind in kinds):
        rule = "give each property a type and a name, behind its element"
        _refuse(path, rule, quoted(" ".join(words[1:])), number)
    if len(elements[-1].properties) >= MAX_PROPERTIES:
        _refuse(path, f"have at most {MAX_PROPERTIES} properties in an element", "more", number)
    added = Property(name, TYPES[kinds[-1]], TYPES[kinds[0]] if as_list else None)
    return replace(elements[-1], properties=(*elements[-1].properties, added))
