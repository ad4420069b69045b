"""Names in mesh files and of the files beside them."""

from collections.abc import Collection
from pathlib import Path


def unused_name(name: str, taken: Collection[str]) -> str:
    """The name, with the first number from 2 that makes it another one where it is taken."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def plain_stem(path: Path) -> str:
    """The stem for the names of files beside a mesh: without blanks, at which many readers split a line."""
    return "_".join(path.stem.split()) or "mesh"
