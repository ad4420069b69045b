"""The list of a batch: a YAML list, CSV with a header, JSON lines, or text; an entry for each job.

    - prompt: a red chair
      quality: draft
      seeds: 4
    - image: photos/car.png
    - {mesh: crate.glb, prompt: a rusty crate, pbr: true, set: [run.steps=200]}

Keys are `prompt`, `image`, `mesh`, the options of the command by their names on the command line, and:

    command  text, image or texture; else by the inputs: a mesh is textured, then an image, then a prompt
    name     of the job's folder; else from the prompt or the file's name, with a number where one is repeated
    seeds    a number of seeds, from `seed` on, or a list of them; the best of several is continued

Paths are relative to the list. In CSV an empty cell is no value, and `;` separates several. In a text file
each line is a prompt, but for empty lines and those that begin with #.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from pgc3d.disk import folder_name
from pgc3d.errors import InputError
from pgc3d.ranges import shown
from pgc3d.yaml_text import read_yaml_list

TEXT = ".txt"
FORMATS = (".yaml", ".yml", ".csv", ".jsonl", TEXT)
MAX_BYTES = 1 << 24
MAX_SEEDS = 64
SWEEPS, STATUS = "sweeps", "status.json"  # beside the folders of the jobs
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Row:
    """An entry of a list."""

    place: str  # in the file, for messages
    values: Mapping[str, Any]
    is_text: bool = False  # all values are text, as in CSV
    error: str = ""  # why the entry cannot be used


def require_list(path: Path) -> None:
    """Check that a path is a file with the suffix of a list.

    Raises:
        InputError: it is not.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"the list must be one of {', '.join(FORMATS)}, got {path}; rename or convert it")
    if not path.is_file():
        raise InputError(f"the list must be a file, got none at {path}")


def read_rows(path: Path) -> list[Row]:
    """The entries of a list; one that has no keys and values has an error.

    Raises:
        InputError: the file cannot be read, is of another format, or is empty.
        ConfigError: the file is not YAML, or exceeds a limit.
    """
    require_list(path)
    rows = _read(path)
    if not rows:
        raise InputError(f"the list must hold at least one job, got none in {path}")
    return rows


def _read(path: Path) -> list[Row]:
    if path.suffix.lower() in {".yaml", ".yml"}:
        return [_row(f"entry {number}", entry) for number, entry in enumerate(read_yaml_list(path), 1)]
    text = _read_text(path)
    if path.suffix.lower() == TEXT:
        return _read_prompts(text)
    return _read_csv(path, text) if path.suffix.lower() == ".csv" else _read_json_lines(text)


def _read_prompts(text: str) -> list[Row]:
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [Row(f"line {number}", {"prompt": line}) for number, line in lines if line and line[0] != "#"]


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"a list must have at most {MAX_BYTES >> 20} MiB, got more in {path}; split it")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"a list must be UTF-8 text, got {path}, which is not at byte {error.start}; save it as UTF-8"
        ) from error


def _read_json_lines(text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(f"line {number}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            rows.append(Row(f"line {number}", {}, error=f"it must be a JSON object, got: {error}"))
    return rows


def _read_csv(path: Path, text: str) -> list[Row]:
    reader = csv.DictReader(StringIO(text), strict=True)
    rows = []
    try:
        for record in reader:
            place = f"line {reader.line_num}"
            if None in record:
                error = f"it must have at most {len(reader.fieldnames or ())} cells, as the header, got more"
                rows.append(Row(place, {}, error=f"{error}; put text with commas in quotes"))
            else:
                cells = {(key or "").strip(): value for key, value in record.items()}
                rows.append(Row(place, {key: value for key, value in cells.items() if value}, is_text=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}, must be CSV, got: {error}") from error
    return rows


def _row(place: str, entry: Any) -> Row:
    if not isinstance(entry, dict):
        return Row(place, {}, error=f"it must hold keys and values, got {shown(entry)}")
    return Row(place, {key: value for key, value in entry.items() if value is not None})


def names_of(rows: Iterable[Row]) -> list[str]:
    """The names of the jobs: those of the entries, else made from their inputs; not checked."""
    given = [row.values.get("name") for row in rows]
    taken: Counter[str] = Counter(str(name) for name in given if name is not None)
    names = []
    for row, name in zip(rows, given, strict=True):
        chosen = str(name) if name is not None else _free(folder_name(_title(row)), taken)
        taken[chosen] += name is None
        names.append(chosen)
    return names


def _free(base: str, taken: Mapping[str, int]) -> str:
    """The base, with the first number from 2 that makes it a name that is not taken."""
    number, name = 1, base
    while taken.get(name):
        number += 1
        name = f"{base}-{number}"
    return name


def _title(row: Row) -> str:
    """The text that a job is named after."""
    files = [Path(str(row.values[key])).stem for key in ("mesh", "image") if key in row.values]
    prompt = [] if "image" in row.values else [str(row.values.get("prompt", ""))]
    return " ".join([*files, *prompt]) or row.place


def check_names(names: Iterable[str]) -> list[str]:
    """What is wrong with each name, "" where nothing is."""
    found: Counter[str] = Counter()
    errors = []
    for name in names:
        folded = name.lower()  # some disks do not distinguish capital letters
        found[folded] += 1
        if not NAME.fullmatch(name) or folded in {SWEEPS, STATUS}:
            errors.append(
                f"name must be up to 64 letters, digits, '.', '_' and '-', and not {SWEEPS} or {STATUS}, got "
                f"{shown(name)}"
            )
        else:
            errors.append(f"name must be there once, got {name!r} again" if found[folded] > 1 else "")
    return errors


def parse_seeds(value: Any, first: int) -> tuple[int, ...]:
    """The seeds of a job.

    Args:
        value: a number of seeds, a list of them, or either as the text of a CSV cell; None for one.
        first: of a number of seeds.

    Raises:
        InputError: it is none of these, a seed is there twice, or there are more than 64.
    """
    if value is None:
        return (first,)
    if isinstance(value, str):
        parts = [int(part) if part.strip().isdecimal() else -1 for part in value.split(";")]
        value = parts if ";" in value else parts[0]
    seeds = value if isinstance(value, list) else None
    if seeds is None and isinstance(value, int) and 1 <= value <= MAX_SEEDS:
        return tuple(range(first, first + int(value)))
    valid = seeds and all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    if not seeds or not valid or len(set(seeds)) < len(seeds) or len(seeds) > MAX_SEEDS:
        raise InputError(
            f"seeds must be a number from 1 to {MAX_SEEDS} or a list of different seeds, got {shown(value)}"
        )
    return tuple(seeds)
