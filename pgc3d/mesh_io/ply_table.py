"""The values of a PLY's elements: rows of numbers and lists, in text or either byte order."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Int, Num
from numpy.typing import NDArray

from pgc3d.errors import InputError
from pgc3d.mesh_io.lines import (
    BLANK,
    counted,
    decoded,
    line_fault,
    number,
    parse_numbers,
    plain_text,
    quoted,
)
from pgc3d.mesh_io.ply_header import Element, Header

Array = NDArray[Any]
Ints = NDArray[np.int64]

CODES = {
    "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q", "f4": "f",
    "f8": "d",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """The values of a property, row after row; of a list, `counts` is the number of each row."""

    values: Num[np.ndarray, " N"]
    counts: Int[np.ndarray, " R"] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    is_list: bool = False


@dataclass(frozen=True)
class _Table:
    """An element's rows in the bytes of the body, from `place` on."""

    body: bytes
    place: int
    element: Element
    order: str  # < or >; empty where a text was parsed: all numbers are doubles
    path: Path

    def kind(self, name: str) -> np.dtype[Any]:
        return np.dtype(self.order + name if self.order else "<f8")

    def code(self, name: str) -> struct.Struct:
        return struct.Struct(self.order + CODES[name] if self.order else "<d")

    def size(self, lengths: Sequence[int]) -> int:
        """Bytes of a row whose lists have these lengths."""
        items, total = iter(lengths), 0
        for item in self.element.properties:
            if item.count_kind:
                total += self.kind(item.count_kind).itemsize + next(items) * self.kind(item.kind).itemsize
            else:
                total += self.kind(item.kind).itemsize
        return total

    def refuse(self, reason: str) -> NoReturn:
        rows = f"{counted(self.element.count, 'row')} of {quoted(self.element.name)}"
        raise InputError(
            f"a PLY must hold what its header states, got {self.path}, whose {rows} {reason}; export it again"
        )


def read_tables(data: bytes, header: Header, path: Path, last: str) -> dict[str, dict[str, Column]]:
    """The columns of all elements up to the one named `last`, by the names of both.

    Raises:
        InputError: the values end too early, or a list has a length that cannot be.
    """
    body = data[header.begin :] if header.order else _parse_text(data[header.begin :], header, path)
    place = 0
    tables: dict[str, dict[str, Column]] = {}
    for element in header.elements:
        columns, place = _read(_Table(body, place, element, header.order, path))
        tables.setdefault(element.name, columns)
        if element.name == last:
            break
    return tables


def _parse_text(data: bytes, header: Header, path: Path) -> bytes:
    """The numbers of a text as doubles."""
    text = plain_text(data)
    word = np.frombuffer(text, dtype=np.uint8) > BLANK
    starts = word.copy()
    starts[1:] &= ~word[:-1]
    values = parse_numbers(text, int(starts.sum()))
    if values is None:
        values = np.array(_slow_numbers(text, header.lines, path))
    return values.astype("<f8").tobytes()


def _slow_numbers(text: bytes, before: int, path: Path) -> list[float]:
    """The numbers parsed word by word, for the error message."""
    values = []
    for row, line in enumerate(text.split(b"\n"), before + 1):
        for word in line.split():
            value = number(decoded(word))
            if value is None:
                raise InputError(line_fault(path, row, "must hold numbers", word))
            values.append(value)
    return values


def _read(table: _Table) -> tuple[dict[str, Column], int]:
    """The columns of an element, and where it ends."""
    element, left = table.element, len(table.body) - table.place
    lists = [item for item in element.properties if item.count_kind]
    least = table.size([0] * len(lists))
    if element.count * least > left:
        table.refuse(f"end after {left // least} at most")
    if not element.count or not element.properties:
        empty = np.zeros(0, dtype=np.int64)
        columns = {
            item.name: Column(empty, is_list=item.count_kind is not None) for item in element.properties
        }
        return columns, table.place
    lengths = _walk(table, 1).counts[0].tolist() if lists else []
    if element.count * table.size(lengths) <= left:
        rows = np.frombuffer(table.body, _record(table, lengths), element.count, table.place)
        if all((rows[f"count {k}"] == length).all() for k, length in enumerate(lengths)):
            return _columns(element, rows, lengths), table.place + rows.nbytes
    walk = _walk(table, element.count)
    return _mixed_columns(table, walk), int(walk.ends[-1])


def _record(table: _Table, lengths: Sequence[int]) -> np.dtype[Any]:
    """The type of a row whose lists have the given lengths."""
    fields: list[Any] = []
    items = iter(enumerate(lengths))
    for k, item in enumerate(table.element.properties):
        if item.count_kind:
            index, length = next(items)
            fields.append((f"count {index}", table.kind(item.count_kind)))
            fields.append((str(k), table.kind(item.kind), (length,)))
        else:
            fields.append((str(k), table.kind(item.kind)))
    return np.dtype(fields)


def _columns(element: Element, rows: Array, lengths: Sequence[int]) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    items = iter(lengths)
    for k, item in enumerate(element.properties):
        values = rows[str(k)].reshape(-1)
        if item.count_kind:
            column = Column(values, np.full(len(rows), next(items), dtype=np.int64), is_list=True)
        else:
            column = Column(values)
        columns.setdefault(item.name, column)
    return columns


@dataclass(frozen=True)
class _Walk:
    """Offsets and lengths of each row's lists [R, L], and offsets of the rows [R + 1]."""

    begins: Ints
    counts: Ints
    ends: Ints


def _walk(table: _Table, rows: int) -> _Walk:
    """Offsets found row by row, since the position of a list depends on the counts before it."""
    steps, gap = [], 0  # numbers in front of a list, how its count is read, sizes of count and items
    for item in table.element.properties:
        size = table.kind(item.kind).itemsize
        if item.count_kind:
            code = table.code(item.count_kind)
            steps.append((gap, code.unpack_from, code.size, size))
            gap = 0
        else:
            gap += size
    begins, counts, body, place = [], [], table.body, table.place
    ends, limit = [place], len(body)
    for row in range(rows):
        for before, unpack, width, size in steps:
            place += before + width
            if place > limit:
                table.refuse(f"end after {row}")
            (count,) = unpack(body, place - width)
            if not 0 <= count <= limit or count % 1:
                table.refuse(f"have a list of {count:g} values in row {row}")
            begins.append(place)
            counts.append(count)
            place += int(count) * size
        place += gap
        if place > limit:
            table.refuse(f"end after {row}")
        ends.append(place)
    return _Walk(
        np.array(begins, dtype=np.int64).reshape(rows, -1),
        np.array(counts, dtype=np.int64).reshape(rows, -1),
        np.array(ends, dtype=np.int64),
    )


def _mixed_columns(table: _Table, walk: _Walk) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    place, index = walk.ends[:-1], 0
    for item in table.element.properties:
        kind = table.kind(item.kind)
        if item.count_kind:
            begins, counts = walk.begins[:, index], walk.counts[:, index]
            within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
            items = _gather(table.body, np.repeat(begins, counts) + within * kind.itemsize, kind)
            column = Column(items, counts, is_list=True)
            place, index = begins + counts * kind.itemsize, index + 1
        else:
            column = Column(_gather(table.body, place, kind))
            place = place + kind.itemsize
        columns.setdefault(item.name, column)
    return columns


def _gather(body: bytes, places: Ints, kind: np.dtype[Any]) -> Array:
    """The numbers that begin at the given bytes."""
    source = np.frombuffer(body, dtype=np.uint8)
    values = np.empty((len(places), kind.itemsize), dtype=np.uint8)
    for byte in range(kind.itemsize):
        values[:, byte] = source[places + byte]
    return values.reshape(-1).view(kind)
