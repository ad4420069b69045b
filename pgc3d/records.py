"""JSON records from an untrusted source: a digest over the content, and checks of all types."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

DIGEST = "digest"
LARGEST = 2**53  # of whole numbers: beyond, JSON readers may lose digits
TYPES = {
    bool: "true or false",
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a number",
    float: "a number",
}

Check = Callable[[Any, str], None]  # (value, place) -> nothing; raises ValueError


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record in JSON's types, with a digest over its other entries."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(record), default=str))
    plain.pop(DIGEST, None)
    return plain | {DIGEST: _digest(plain)}


def unseal(record: Mapping[str, Any]) -> None:
    """Check a record's digest.

    Raises:
        ValueError: the digest is not the one that `seal` makes of the other entries.
    """
    try:
        digest = _digest({key: value for key, value in record.items() if key != DIGEST})
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if record.get(DIGEST) != digest:
        raise ValueError("its digest is not that of its content, so it was damaged or edited")


def _digest(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))  # ASCII, also for lone surrogates
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def parse(content: bytes) -> dict[str, Any]:
    """The object in a JSON text.

    Raises:
        ValueError: the content is not a JSON object in UTF-8.
    """
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it must hold an object, got {_shown(value)}")
    return value


def is_utf8(value: str) -> bool:
    """Whether a string can be encoded as UTF-8: it has no lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def text(value: Any, place: str) -> None:
    """Raise ValueError unless a value is text that can be encoded as UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"{place} must be text, got {_shown(value)}")
    if not is_utf8(value):
        raise ValueError(f"{place} must be text, got half a surrogate pair")


def whole(low: int, high: int = LARGEST) -> Check:
    """A check that a value is a whole number in [low, high]."""

    def check(value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{place} must be a whole number, got {_shown(value)}")
        if not low <= value <= high:
            size = str(value) if abs(value) < 10**20 else "far more"
            raise ValueError(f"{place} must lie in [{low}, {high}], got {size}")

    return check


def number(value: Any, place: str) -> None:
    """Raise ValueError unless a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{place} must be a number, got {_shown(value)}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{place} must be a number below 2^53, got more")
    if not math.isfinite(value):
        raise ValueError(f"{place} must be finite, got {value}")


def maybe(check: Check) -> Check:
    """A check that a value is null, or passes another check."""
    return lambda value, place: None if value is None else check(value, place)


def list_of(check: Check) -> Check:
    """A check that a value is a list whose entries pass another check."""

    def check_list(value: Any, place: str) -> None:
        if not isinstance(value, list):
            raise ValueError(f"{place} must be a list, got {_shown(value)}")
        for index, entry in enumerate(value):
            check(entry, f"{place}[{index}]")

    return check_list


def mapping_of(check: Check) -> Check:
    """A check that a value is an object whose values pass another check."""

    def check_mapping(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{place} must be an object, got {_shown(value)}")
        for key, entry in value.items():
            text(key, f"a key of {place}")
            check(entry, f"{place}.{key}")

    return check_mapping


def anything(value: Any, place: str) -> None:
    """Accept every value: for entries that are stored and never used."""


def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A check that a value is an object with such entries; it may have others.

    Args:
        required: checks of entries that must be there, by their names.
        optional: checks of entries that may be there.
    """
    known = {**required, **(optional or {})}

    def check(value: Any, place: str) -> None:
        mapping_of(anything)(value, place)
        for key in required:
            if key not in value:
                raise ValueError(f"{place} must hold {key}, which is missing")
        for key in known.keys() & value.keys():
            known[key](value[key], f"{place}.{key}")

    return check


def _shown(value: Any) -> str:
    return "null" if value is None else TYPES.get(type(value), type(value).__name__)


FORMAT = 1  # of the manifest and of checkpoint records; later versions of pgc3d have larger ones
MANIFEST: Check = fields(
    {},
    {
        "format": whole(1),
        "status": text,
        "prompt": text,
        **dict.fromkeys(
            ("image", "depth", "normal", "mesh", "document", "background", "style", "texture", "mask"), text
        ),  # names inside the folder
        "seed": whole(0, 2**63 - 1),
        "config": text,  # SHA-256 of config.yaml
        "starts": mapping_of(fields({"path": text, "sha256": text})),
        "stages": mapping_of(fields({}, {"status": text, "steps": whole(0)})),
        "seconds": mapping_of(number),
        "start_parts": mapping_of(number),
        "files": mapping_of(text),  # SHA-256 by name inside the folder
        "inputs": mapping_of(fields({"name": text, "sha256": text})),
        "models": mapping_of(
            fields({"name": text}, {"commit": maybe(text), "path": maybe(text), "sha256": maybe(text)})
        ),
        "loras": list_of(fields({"path": text, "scale": number, "sha256": text})),
        "continued": list_of(
            fields({"stage": text, "done": whole(0), "steps": whole(1), "to": whole(1)})
        ),  # to another number of steps
        "out_of_memory": list_of(fields({"step": whole(0), "micro_batch": whole(1)}, {"stage": text})),
    },
)
CHECKPOINT: Check = fields(
    {"step": whole(0), "sha256": text, "values": mapping_of(anything)}, {"format": whole(1)}
)


def read_record(content: bytes, check: Check) -> dict[str, Any]:
    """A manifest or the record of a checkpoint, after a check of its types and its digest.

    The records of the first version of pgc3d have no format and no digest.

    Args:
        content: of the file.
        check: `MANIFEST` or `CHECKPOINT`.

    Raises:
        ValueError: the record is damaged, edited, or of a later version of pgc3d.
    """
    record = parse(content)
    version = record.get("format", 0)
    if isinstance(version, int) and not isinstance(version, bool) and FORMAT < version <= LARGEST:
        raise ValueError(f"it is of a later pgc3d (format {version}, this one reads {FORMAT}); update pgc3d")
    if "format" in record or DIGEST in record:
        unseal(record)
    check(record, "it")
    return record
