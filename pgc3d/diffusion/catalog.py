"""The models that can be named: what is on this disk of each, and whether its files are what was fetched."""

import base64
import hashlib
import importlib.metadata
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pgc3d.diffusion.aliases import ALIASES, BUNDLED, BUNDLED_CONTROL, CONTROL_ALIASES, VAE_ALIASES
from pgc3d.diffusion.files import read_json, tensor_names
from pgc3d.diffusion.hub import (
    cached_snapshot,
    held_commit,
    is_hub_id,
    record_file,
    recorded,
)
from pgc3d.diffusion.models import find_part, resolve_model
from pgc3d.disk import sha256
from pgc3d.errors import WeightsNotFoundError
from pgc3d.mini import clip_model, control_model, image_model, text_model

UNKNOWN = "see its page on the hub"  # a licence that was not recorded at a download
BLOCK = 1 << 22  # bytes that are read at once


@dataclass(frozen=True)
class Entry:
    """A model by its name, and what is on this disk of it."""

    name: str  # alias, hub id, or `BUNDLED`
    repository: str  # on the hub; empty for the bundled models
    commit: str  # pinned or recorded; empty where the first download decides
    licence: str
    folders: tuple[Path, ...]  # none where nothing is on this disk
    size: int  # bytes on this disk


@dataclass(frozen=True)
class Verification:
    """What reading all files of a model found."""

    files: int
    size: int  # bytes
    hashed: int  # files whose content was compared with a hash
    problems: tuple[str, ...]  # one line each


def entries(cache: Path | None = None) -> list[Entry]:
    """The bundled models, all aliases, and every other repository that was fetched before; no network.

    Args:
        cache: the hub cache, None for the default folder.
    """
    names = [BUNDLED, *ALIASES]
    path = record_file()
    known = set(ALIASES.values())
    names += sorted(name for name in (read_json(path) if path.is_file() else ()) if name not in known)
    return [entry(name, cache) for name in names]


def entry(name: str, cache: Path | None = None) -> Entry:
    """One model by its alias, hub id, or `BUNDLED`; no network.

    Raises:
        WeightsNotFoundError: the name is none of these.
    """
    if name == BUNDLED:
        own = (text_model(), image_model()[0], clip_model(), control_model())
        return Entry(name, "", "", "Apache-2.0, data see ATTRIBUTIONS.md", own, _size(own))
    repository = ALIASES.get(name, name)
    if not is_hub_id(repository):
        raise WeightsNotFoundError(
            f"a model must be {BUNDLED}, an alias or a hub id, got {name!r}; `pgc3d models list` prints the "
            "aliases"
        )
    commit = held_commit(repository)
    snapshot = cached_snapshot(repository, commit, cache)
    folders = () if snapshot is None else (snapshot,)
    licence = recorded(repository).get("licence", UNKNOWN)
    return Entry(name, repository, commit or "", licence, folders, _size(folders))


def fetch(name: str, *, half: bool) -> Path:
    """The folder of a model, or of a single VAE or ControlNet by its alias, fetched where it is not here.

    Args:
        name: alias or hub id, or a folder.
        half: the fp16 files where the hub has them.

    Raises:
        WeightsNotFoundError: it cannot be fetched.
        ConfigError: it is another kind of model.
    """
    if name == BUNDLED:
        return text_model()
    if name in (*CONTROL_ALIASES, BUNDLED_CONTROL):
        return find_part(name, "controlnet", half=half)
    if name in VAE_ALIASES:
        return find_part(name, "vae", half=half)
    return resolve_model(name, half=half).path


def verify(found: Entry) -> Verification:
    """Read every file of a model, compare it with its hash, and read the header of safetensors.

    The hub's cache names a file by its SHA-256, or a small one by git's SHA-1 of it, and a wheel records the
    hashes of the bundled models. A file without either, as in a checkout, is read, but not
    compared.
    """
    files = [file for folder in found.folders for file in _files(folder)]
    installed: dict[Path, str] = {}
    for own in () if found.repository else importlib.metadata.distributions(name="pgc3d"):
        installed |= installed_hashes(own)
    problems, hashed = [], 0
    for file in files:
        expected = installed.get(file) or _stated_hash(file)
        hashed += expected is not None
        problems += [f"{file}: {reason}" for reason in _faults(file, expected)]
    return Verification(len(files), _size(found.folders), hashed, tuple(problems))


def installed_hashes(distribution: importlib.metadata.Distribution) -> Mapping[Path, str]:
    """SHA-256 in hexadecimal of a wheel's files; few of an editable installation's."""
    recorded = {}
    for file in distribution.files or ():
        if file.hash is not None and file.hash.mode == "sha256":
            digest = base64.urlsafe_b64decode(file.hash.value + "=" * (-len(file.hash.value) % 4))
            recorded[Path(os.path.normpath(str(distribution.locate_file(file))))] = digest.hex()
    return recorded


def _faults(file: Path, expected: str | None) -> Iterator[str]:
    try:
        if expected is not None and _hash(file, expected) != expected:
            yield "its content is not what its hash states; fetch it again (mini: reinstall pgc3d)"
        elif file.suffix == ".safetensors":
            tensor_names(file)
        elif expected is None:
            sha256(file)
    except (OSError, WeightsNotFoundError) as error:
        yield str(error)


def _stated_hash(file: Path) -> str | None:
    """The hash that the name of a file in the hub's cache is, None of another file."""
    name = Path(os.path.realpath(file)).name
    return name if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) else None


def _hash(file: Path, stated: str) -> str:
    """SHA-256 of a file, or SHA-1 of git's blob with its content, as the length of the stated one is."""
    if len(stated) == 64:
        return sha256(file)
    with file.open("rb") as stream:
        digest = hashlib.sha1(usedforsecurity=False)
        digest.update(f"blob {file.stat().st_size}\0".encode())
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def _size(folders: tuple[Path, ...]) -> int:
    return sum(file.stat().st_size for folder in folders for file in _files(folder) if file.is_file())
