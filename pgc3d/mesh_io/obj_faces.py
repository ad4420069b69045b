"""The faces of a Wavefront OBJ: `f` lines of v, v/vt, v//vn and v/vt/vn, many at once."""

import re
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from pgc3d.errors import InputError
from pgc3d.mesh_io.lines import BLANK, Lines, counts_per_line, parse_numbers

Ints = NDArray[np.int64]
Marks = NDArray[np.bool_]

WORD = re.compile(rb"[+-]?\d+(/([+-]?\d+)?){0,2}")
KINDS = ("vertex", "texture coordinate", "normal")
SLASH = ord("/")

_ALLOWED = np.zeros(256, dtype=bool)
_ALLOWED[[*range(BLANK + 1), *b"0123456789+-/"]] = True


@dataclass(frozen=True)
class Faces:
    """Polygons with at least three corners."""

    rows: Int[np.ndarray, " P"]  # lines of the file
    counts: Int[np.ndarray, " P"]
    index: Int[np.ndarray, "C 3"]  # of v, vt and vn as the file has them, 0 where there is none
    short: int = 0  # faces with fewer corners, which are left out

    def places(self, slot: int, lines: Lines, listed: Int[np.ndarray, " L"]) -> Int[np.ndarray, " C"]:
        """Places from 0 in the list of v, vt or vn, -1 where there is none; `listed` are its lines.

        Raises:
            InputError: an index is out of range.
        """
        index = self.index[:, slot]
        places = index - 1
        if (index < 0).any():  # they count back from what was listed before the face
            before = np.repeat(np.searchsorted(listed, self.rows), self.counts)
            places = np.where(index < 0, np.maximum(index, -(1 << 60)) + before, places)
        wrong = (places < 0) | (places >= len(listed))
        missing = np.flatnonzero(wrong if slot == 0 else wrong & (index != 0))
        if len(missing):
            corner = int(missing[0])
            row = int(np.repeat(self.rows, self.counts)[corner])
            reference = f"{KINDS[slot]} {index[corner]} of {len(listed)} in line {lines.number(row)}"
            rule = "a face must use what the file lists, counted from 1"
            raise InputError(f"{rule}, got {reference} of {lines.path}; export it again")
        return places


def read_faces(lines: Lines, rows: Int[np.ndarray, " R"]) -> Faces:
    """The polygons in the lines `rows`, which begin with `f`.

    Raises:
        InputError: a word of a line is no corner.
    """
    counts, index = [np.zeros(0, dtype=np.int64)], [np.zeros((0, 3), dtype=np.int64)]
    for part, block in lines.blocks(rows, 1):
        count, corners = _corners(lines, part, block)
        counts.append(count)
        index.append(corners)
    count, corners = np.concatenate(counts), np.concatenate(index)
    whole = count >= 3
    if not whole.all():
        corners = corners[np.repeat(whole, count)]
    return Faces(rows[whole], count[whole], corners, int((~whole).sum()))


def _corners(lines: Lines, rows: Ints, block: bytes) -> tuple[Ints, Ints]:
    """The number of corners of each line, and their indices [C, 3]."""
    array = np.frombuffer(block, dtype=np.uint8)
    word, slash = array > BLANK, array == SLASH
    number = word & ~slash
    first_word, first_number = _starts(word), _starts(number)
    values = None
    if _ALLOWED[array].all():
        text = block.replace(b"/", b" ")
        values = parse_numbers(text, int(first_number.sum()), np.int64)
    if values is None:
        _refuse_word(lines, rows)
    count = counts_per_line(first_word, array)
    place, first = _slots(first_word, first_number, slash)
    if len(place) and place.max() > 2:
        _refuse_word(lines, rows)
    index = np.zeros((int(first_word.sum()), 3), dtype=np.int64)
    index[first, place] = values
    return count, index


def _slots(first_word: Marks, first_number: Marks, slash: Marks) -> tuple[NDArray[Any], NDArray[Any]]:
    """The list (v, vt, vn) of each number, by the slashes before it, and its corner."""
    words, numbers = np.flatnonzero(first_word), np.flatnonzero(first_number)
    each = len(numbers) // max(len(words), 1)
    if each and len(numbers) == each * len(words) and slash.sum() == (each - 1) * len(words):
        bounds = np.append(words, len(slash))
        if (numbers[::each] >= words).all() and (numbers[each - 1 :: each] < bounds[1:]).all():
            return np.tile(np.arange(each), len(words)), np.repeat(np.arange(len(words)), each)
    owner = np.cumsum(first_word, dtype=np.int32)[numbers] - 1
    slashes = np.cumsum(slash, dtype=np.int32)
    return slashes[numbers] - (slashes - slash)[words][owner], owner


def _starts(inside: Marks) -> Marks:
    starts = inside.copy()
    starts[1:] &= ~inside[:-1]
    return starts


def _refuse_word(lines: Lines, rows: Ints) -> NoReturn:
    for row in rows.tolist():
        for word in lines.words(row):
            if not WORD.fullmatch(word):
                lines.fault(row, "must hold the corners of a face as v, v/vt, v//vn or v/vt/vn", word)
    lines.fault(int(rows[0]), "must hold the corners of a face", lines.text(int(rows[0])))
