"""Vectorised parsing of lines in text mesh files; messages contain the line's number."""

import codecs
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt8
from numpy.typing import NDArray

from pgc3d.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CHUNK = 1 << 24  # bytes that are processed together
BLANK = 32  # blanks and control characters have codes up to this one
QUOTED = 40  # characters of a quoted word
INDENT = 32  # blanks in front of many lines
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
NOT_FINITE = re.compile(r"[+-]?(nan|inf(inity)?|1\.#(inf|ind|q?nan|snan)0*)(\(.*\))?", re.IGNORECASE)

_CONTINUED = re.compile(rb"\\[ \t]*\n")
_COMMENT = re.compile(rb"(?<![0-9]\.)#[^\n]*")  # 1.#IND is how Microsoft's compiler prints NaN
_BLANKS = bytes(range(BLANK + 1))
_IS_BLANK = np.zeros(256, dtype=bool)
_IS_BLANK[list(b" \t\n\v\f")] = True


def quoted(word: str | bytes, limit: int = QUOTED) -> str:
    """A word of a file for a message: quoted, shortened, without control characters."""
    text = word.decode("utf-8", errors="replace") if isinstance(word, bytes) else word
    text = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return repr(text)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 group`, `2 groups`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def plain_text(data: bytes) -> bytes:
    """Text as UTF-8 (or in an 8-bit code), without a byte order mark, lines ended by LF."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16", errors="replace").encode("utf-8")
    elif len(data) >= 8 and data[0] and not any(data[1:64:2]):
        data = data.decode("utf-16-le", errors="replace").encode("utf-8")
    elif len(data) >= 8 and data[1] and not any(data[:64:2]):
        data = data.decode("utf-16-be", errors="replace").encode("utf-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def decoded(word: bytes) -> str:
    """A name of a file: UTF-8 where it is valid, else Latin-1."""
    try:
        return word.decode("utf-8")
    except UnicodeDecodeError:
        return word.decode("latin-1")


class Lines:
    """The lines of a text; lines that end in a backslash go on in the next one, unless they are comments."""

    def __init__(self, data: bytes, path: Path, splits: re.Pattern[bytes] | None = None) -> None:
        """Split a text into lines; `splits` matches blanks that also begin a line."""
        self.path = path
        self.original = plain_text(data)  # with as many bytes before each word as in `data`
        data = _CONTINUED.sub(_joined, self.original)
        if splits is not None:
            data = splits.sub(lambda match: b"\n" * len(match[0]), data)
        self.data = data + b"\n\n"
        self.bytes = np.frombuffer(self.data, dtype=np.uint8)
        self.ends = np.flatnonzero(self.bytes == 10)[:-1]
        self.first = np.concatenate([[0], self.ends[:-1] + 1]).astype(np.int64)
        self._skip_blanks()

    def _skip_blanks(self) -> None:
        """Advance `first` to the first non-blank character of each line."""
        rows = np.arange(len(self.first))
        for _ in range(INDENT):
            rows = rows[(self.bytes[self.first[rows]] <= BLANK) & (self.first[rows] < self.ends[rows])]
            self.first[rows] += 1
        for row in rows.tolist():
            start, end = int(self.first[row]), int(self.ends[row])
            self.first[row] = end - len(self.data[start:end].lstrip(_BLANKS))

    def number(self, row: int) -> int:
        """The number of a line in the file, from 1."""
        return self.original.count(b"\n", 0, int(self.first[row])) + 1

    def text(self, row: int) -> bytes:
        return self.data[self.first[row] : self.ends[row]]

    def starting_with(self, word: bytes) -> Int[np.ndarray, " R"]:
        """The lines whose first word is `word`, in their order."""
        candidates = np.flatnonzero(self.ends - self.first >= len(word))
        for place, letter in enumerate(word):
            candidates = candidates[self.bytes[self.first[candidates] + place] == letter]
        return candidates[_IS_BLANK[self.bytes[self.first[candidates] + len(word)]]]

    def words(self, row: int) -> list[bytes]:
        """The words of a line after its first one, without a comment."""
        return _COMMENT.sub(b"", self.text(row)).split()[1:]

    def blocks(self, rows: Int[np.ndarray, " R"], skip: int) -> Iterator[tuple[Int[np.ndarray, " r"], bytes]]:
        """Lines without their first `skip` bytes and comments, each ended by LF, in blocks of some MB."""
        size = np.cumsum(self.ends[rows] - self.first[rows])
        bounds = np.arange(CHUNK, int(size[-1]) if len(rows) else 0, CHUNK)
        for part in np.split(rows, np.unique(np.searchsorted(size, bounds) + 1)):
            if len(part):
                yield part, self._block(part, skip)

    def _block(self, rows: Ints, skip: int) -> bytes:
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1  # between runs of neighbours
        begins, stops = self.first[rows[np.r_[0, cuts]]], self.ends[rows[np.r_[cuts, len(rows)] - 1]]
        block = bytearray(
            b"\n".join(self.data[a:b] for a, b in zip(begins.tolist(), stops.tolist(), strict=True)) + b"\n"
        )
        place = np.cumsum(stops - begins + 1) - (stops - begins + 1) - begins  # from the file to the block
        run = np.searchsorted(cuts, np.arange(len(rows)), side="right")
        array = np.frombuffer(block, dtype=np.uint8)
        for letter in range(skip):
            array[place[run] + self.first[rows] + letter] = BLANK
        return _COMMENT.sub(b"", block) if b"#" in block else bytes(block)

    def numbers(
        self, word: bytes, *, least: int
    ) -> tuple[Int[np.ndarray, " R"], Float[np.ndarray, " N"], Int[np.ndarray, " R"]]:
        """The lines that start with `word`, the numbers in all of them in a row, and how many each has.

        Raises:
            InputError: a line has fewer than `least` numbers or something else.
        """
        rows = self.starting_with(word)
        values, counts = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
        for part, block in self.blocks(rows, len(word)):
            array = np.frombuffer(block, dtype=np.uint8)
            in_word = array > BLANK
            starts = in_word.copy()
            starts[1:] &= ~in_word[:-1]
            count = counts_per_line(starts, array)
            short = np.flatnonzero(count < least)
            numbers = parse_numbers(block, int(count.sum()))
            if numbers is None:
                numbers = self._slow_numbers(part)
            if len(short):
                rule = f"must hold {least} numbers behind {word.decode()!r}"
                self.fault(int(part[short[0]]), rule, int(count[short[0]]))
            values.append(numbers)
            counts.append(count)
        return rows, np.concatenate(values), np.concatenate(counts)

    def _slow_numbers(self, rows: Ints) -> Floats:
        """The numbers parsed word by word, for the error message."""
        values = []
        for row in rows.tolist():
            for text in self.words(row):
                value = number(decoded(text))
                if value is None:
                    self.fault(row, "must hold numbers", text)
                values.append(value)
        return np.array(values)

    def fault(self, row: int, rule: str, text: bytes | int) -> NoReturn:
        """Raise the error about one line of the file.

        Raises:
            InputError: always.
        """
        raise InputError(line_fault(self.path, self.number(row), rule, text))


def line_fault(path: Path, number: int, rule: str, text: bytes | int) -> str:
    """The message about one line of a file."""
    what, advice = str(text), "export it again"
    if isinstance(text, bytes):
        what = quoted(decoded(text))
        if re.fullmatch(rb"[+-]?\d+,\d+", text):
            advice = "write decimals with a point in place of the comma"
    return f"a line {rule}, got {what} in line {number} of {path}; {advice}"


def number(word: str) -> float | None:
    """The value of a decimal number, also NaN and infinity as C prints them; None for another word."""
    if NUMBER.fullmatch(word):
        return float(word)
    if NOT_FINITE.fullmatch(word):
        return float("inf") if "inf" in word.lower() else float("nan")
    return None


def parse_numbers(block: bytes, count: int, kind: type = np.float64) -> Num[np.ndarray, " count"] | None:
    """The `count` decimal numbers between blanks; None where there is something else."""
    if not count:
        return np.zeros(0, dtype=kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            values: NDArray[Any] = np.fromstring(block, dtype=kind, sep=" ")
    except (ValueError, DeprecationWarning):
        return None
    return values if len(values) == count else None


def counts_per_line(
    marks: Bool[np.ndarray, " N"], block: UInt8[np.ndarray, " N"]
) -> Int[np.ndarray, " lines"]:
    """The number of marks in each line of a block."""
    total = np.searchsorted(np.flatnonzero(marks), np.flatnonzero(block == 10))
    return np.diff(total, prepend=0)


def _joined(match: re.Match[bytes]) -> bytes:
    """Blanks instead of a line end after a backslash, unless the line is a comment."""
    start = match.string.rfind(b"\n", 0, match.start()) + 1
    is_comment = match.string[start : match.start()].lstrip().startswith(b"#")
    return match[0] if is_comment else b" " * len(match[0])
