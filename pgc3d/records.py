"""JSON records that may be damaged or made by someone else: a digest over the content, and checked types."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

DIGEST = "digest"
LARGEST = 2**53  # of whole numbers: what every JSON reader keeps
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
    """The record as JSON holds it, with a digest over everything else in it."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(record), default=str))
    plain.pop(DIGEST, None)
    return plain | {DIGEST: _digest(plain)}


def unseal(record: Mapping[str, Any]) -> None:
    """Check a record's digest.

    Raises:
        ValueError: the record is not what `seal` made.
    """
    try:
        found = _digest({key: value for key, value in record.items() if key != DIGEST})
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if record.get(DIGEST) != found:
        raise ValueError("its digest is not that of its content, so it was damaged or edited")


def _digest(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))  # ASCII, also for lone surrogates
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def parse(content: bytes) -> dict[str, Any]:
    """The object that JSON text describes.

    Raises:
        ValueError: the content is no JSON object.
    """
    try:
        found = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError(f"it must hold an object, got {_shown(found)}")
    return found


def is_utf8(value: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def text(value: Any, place: str) -> None:
    """Check for text that can be written and printed."""
    if not isinstance(value, str):
        raise ValueError(f"{place} must be text, got {_shown(value)}")
    if not is_utf8(value):
        raise ValueError(f"{place} must be text, got half a surrogate pair")


def whole(low: int, high: int = LARGEST) -> Check:
    """A check for whole numbers in [low, high]."""

    def check(value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{place} must be a whole number, got {_shown(value)}")
        if not low <= value <= high:
            found = str(value) if abs(value) < 10**20 else "far more"
            raise ValueError(f"{place} must lie in [{low}, {high}], got {found}")

    return check


def number(value: Any, place: str) -> None:
    """Check for a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{place} must be a number, got {_shown(value)}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{place} must be a number below 2^53, got more")
    if not math.isfinite(value):
        raise ValueError(f"{place} must be finite, got {value}")


def maybe(check: Check) -> Check:
    """A check for null, or what another one passes."""
    return lambda value, place: None if value is None else check(value, place)


def list_of(check: Check) -> Check:
    """A check for lists whose entries another one passes."""

    def check_list(value: Any, place: str) -> None:
        if not isinstance(value, list):
            raise ValueError(f"{place} must be a list, got {_shown(value)}")
        for index, entry in enumerate(value):
            check(entry, f"{place}[{index}]")

    return check_list


def mapping_of(check: Check) -> Check:
    """A check for objects whose values another one passes."""

    def check_mapping(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{place} must be an object, got {_shown(value)}")
        for key, entry in value.items():
            text(key, f"a key of {place}")
            check(entry, f"{place}.{key}")

    return check_mapping


def anything(value: Any, place: str) -> None:
    """Check nothing: what is kept and never used."""


def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A check for objects with such entries; others are left alone."""
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


FORMAT = 1  # of the manifest and of checkpoint records; larger ones are of a later pgc3d
MANIFEST: Check = fields(
    {},
    {
        "format": whole(1),
        "status": text,
        "prompt": text,
        **dict.fromkeys(("image", "depth", "normal", "mesh", "background"), text),  # names inside the folder
        "seed": whole(0, 2**63 - 1),
        "config": text,  # SHA-256 of config.yaml
        "starts": mapping_of(fields({"path": text, "sha256": text})),
        "stages": mapping_of(fields({}, {"status": text, "steps": whole(0)})),
        "seconds": mapping_of(number),
        "files": mapping_of(text),  # SHA-256 by name inside the folder
        "inputs": mapping_of(fields({"name": text, "sha256": text})),
        "models": mapping_of(
            fields({"name": text}, {"commit": maybe(text), "path": maybe(text), "sha256": maybe(text)})
        ),
        "loras": list_of(fields({"path": text, "scale": number, "sha256": text})),
        "out_of_memory": list_of(fields({"step": whole(0), "micro_batch": whole(1)}, {"stage": text})),
    },
)
CHECKPOINT: Check = fields(
    {"step": whole(0), "sha256": text, "values": mapping_of(anything)}, {"format": whole(1)}
)


def read_record(content: bytes, check: Check) -> dict[str, Any]:
    """A manifest or the record of a checkpoint, with its types and its digest checked.

    The records of the first pgc3d name no format and have no digest.

    Raises:
        ValueError: what is wrong with it.
    """
    record = parse(content)
    version = record.get("format", 0)
    if isinstance(version, int) and not isinstance(version, bool) and FORMAT < version <= LARGEST:
        raise ValueError(f"it is of a later pgc3d (format {version}, this one reads {FORMAT}); update pgc3d")
    if "format" in record or DIGEST in record:
        unseal(record)
    check(record, "it")
    return record
