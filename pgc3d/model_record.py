"""Which weights a run uses: named so that it can go on from any folder, and recognised when they change."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from pgc3d.build.models import LocatedModel
from pgc3d.config import Config
from pgc3d.diffusion.files import ModelFolder
from pgc3d.diffusion.lora import parse_lora
from pgc3d.errors import RunDirectoryError, WeightsNotFoundError

BUNDLED = "mini"
SUFFIXES = frozenset({".json", ".txt", ".model", ".safetensors"})  # of what is loaded from a checkpoint
WHOLE = 2**26  # bytes of a file up to which all of it is hashed
SAMPLES, SAMPLE = 256, 2**16  # blocks of a larger file, and bytes in each


def with_absolute_paths(config: Config) -> Config:
    """The configuration with every model that is on this disk by its whole path; hub ids and aliases stay.

    What may be a path is marked so in the fields of the configuration classes.
    """
    return cast("Config", _map_paths(config))


def _map_paths(value: Any) -> Any:
    """A copy of nested configurations with `_whole` of every text that may be a path."""
    if isinstance(value, dict):
        return {key: _map_paths(entry) for key, entry in value.items()}
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed = {}
    for item in fields(value):
        found = getattr(value, item.name)
        if not item.metadata.get("path"):
            changed[item.name] = _map_paths(found)
        elif isinstance(found, tuple):
            changed[item.name] = tuple(map(_absolute_lora, found))
        else:
            changed[item.name] = found and _absolute(found)
    return replace(value, **changed)


def _local(name: str) -> Path | None:
    """The folder or file of a model, None where its name is that of the bundled one or one on the hub."""
    path = Path(name).expanduser()
    there = path.is_dir() or (path.is_file() and path.suffix in SUFFIXES)
    return path.absolute() if name != BUNDLED and there else None


def _absolute(name: str) -> str:
    return str(_local(name) or name)


def _absolute_lora(text: str) -> str:
    path, _ = parse_lora(text)
    head, colon, scale = text.rpartition(":")
    has_scale = bool(colon) and Path(head).expanduser() == path
    return f"{path.absolute()}{colon}{scale}" if has_scale and path.is_file() else _absolute(text)


def fingerprint(path: Path) -> str:
    """A hash of a model's folder or file that is quick for many gigabytes.

    Files of up to 64 MB count whole, larger ones with their size and 256 blocks of 64 kB from their start
    to their end: 16 MB are read of each. Of a folder count the files that a checkpoint is loaded from, by
    their names, in it and one level below.

    Raises:
        WeightsNotFoundError: a file cannot be read.
    """
    found = hashlib.sha256()
    try:
        for file in _files(path):
            name = file.relative_to(path).as_posix() if file != path else ""
            found.update(f"{len(name)} {name} {file.stat().st_size} ".encode())
            for block in _blocks(file):
                found.update(block)
    except OSError as error:
        raise WeightsNotFoundError(f"{path} must be readable, got: {error.strerror or error}") from error
    return found.hexdigest()


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    inner = [folder for folder in path.iterdir() if folder.is_dir()]
    files = (file for folder in (path, *inner) for file in folder.iterdir())
    return sorted(file for file in files if file.suffix in SUFFIXES and file.is_file())


def _blocks(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= WHOLE:
            while block := stream.read(2**20):
                yield block
            return
        for index in range(SAMPLES):
            stream.seek((size - SAMPLE) * index // (SAMPLES - 1))
            yield stream.read(SAMPLE)


def describe_models(config: Config, located: Mapping[str, LocatedModel]) -> dict[str, Any]:
    """What a manifest keeps of the weights: the hub's commit, or the place and a hash of local ones."""
    described, loras = {}, []
    for entry, model in located.items():
        described[entry] = _describe(model.folder)
        for name, folder in model.controls.items():
            described[f"control {name}"] = _describe(folder)
        for part, file in {"vae": model.config.vae, "base": model.config.base}.items():
            if file is not None and (path := _local(file)) is not None:
                described[f"{entry} {part}"] = _describe_file(file, path)
        loras += [
            {"path": str(item.path), "scale": item.scale, "sha256": item.sha256} for item in model.loras
        ]
    for key, name in _guidance_files(config).items():
        if (path := _local(name)) is not None:
            described[key] = _describe_file(name, path)
    return {"models": described, "loras": loras}


def _describe_file(name: str, path: Path) -> dict[str, Any]:
    return {"name": name, "commit": None, "path": str(path), "sha256": fingerprint(path)}


def _guidance_files(config: Config) -> dict[str, str]:
    """The files that guidances name themselves, by where the configuration has them."""
    found = {}
    for stage, settings in config.stages.items():
        for objective, part in settings.objectives.items():
            for item in fields(part.guidance):
                value = getattr(part.guidance, item.name)
                if item.metadata.get("path") and isinstance(value, str):
                    found[f"{stage}.{objective}.{item.name}"] = value
    return found


def _describe(folder: ModelFolder) -> dict[str, Any]:
    entry = {"name": folder.name, "commit": folder.commit}
    if folder.commit is not None:
        return entry
    inside = Path(__file__).parent in folder.path.parents  # moves with the installation
    place = {} if inside else {"path": str(folder.path.absolute())}
    parts = [fingerprint(path) for path in (folder.path, folder.vae) if path is not None]
    return {**entry, **place, "sha256": hashlib.sha256("".join(parts).encode()).hexdigest()}


def require_same_models(
    record: Mapping[str, Any], config: Config, located: Mapping[str, LocatedModel]
) -> None:
    """See that the weights are those that a manifest describes.

    Raises:
        RunDirectoryError: one has changed, or its name means another one here.
    """
    now = describe_models(config, located)
    for use, found in now["models"].items():
        known = record.get("models", {}).get(use)
        if known and _differs(known, found):
            raise RunDirectoryError(_changed(use, known, found))
    known_loras = {lora["path"]: lora["sha256"] for lora in record.get("loras", ())}
    for lora in (lora for model in located.values() for lora in model.loras):
        if known_loras.get(str(lora.path), lora.sha256) != lora.sha256:
            raise RunDirectoryError(f"the LoRA {lora.path} must be as when the run began, but it has changed")


def _differs(known: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    if known.get("commit") != found.get("commit"):
        return True
    return "sha256" in known and known["sha256"] != found.get("sha256")


def _changed(use: str, known: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    name = known.get("name")
    if known.get("commit") and not found.get("commit"):
        return (
            f"the {use} model must be {name} of the hub, commit {known['commit'][:12]}, as at its beginning, "
            f"but {found.get('path', found.get('name'))} was found here; resume from another folder"
        )
    if known.get("commit"):
        return (
            f"the {use} model {name} must be of commit {known['commit'][:12]}, as when the run began, found "
            f"{str(found['commit'])[:12]}; start a new run"
        )
    return (
        f"the {use} model {known.get('path', name)} must be as when the run began, but its files have "
        "changed; put them back, or start a new run"
    )
