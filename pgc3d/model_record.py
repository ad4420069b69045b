"""The record of a run's weights: paths that are valid from any folder, and hashes that detect changes."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from pgc3d.build.models import LocatedModel
from pgc3d.config import Config
from pgc3d.diffusion.aliases import BUNDLED
from pgc3d.diffusion.files import ModelFolder
from pgc3d.diffusion.lora import parse_lora
from pgc3d.diffusion.style import StyleAdapter
from pgc3d.errors import RunDirectoryError, WeightsNotFoundError

SUFFIXES = frozenset({".json", ".txt", ".model", ".safetensors"})  # of the files of a model that are loaded
WHOLE = 2**26  # files up to this size in bytes are hashed completely
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # of lights
SAMPLES, SAMPLE = 256, 2**16  # blocks of a larger file, and bytes in each


def with_absolute_paths(config: Config) -> Config:
    """The configuration with absolute paths for all models and lights on this disk; the rest is unchanged.

    Fields that may be a path are marked by `ranges.PATH`.
    """
    return cast("Config", _map_paths(config))


def _map_paths(value: Any) -> Any:
    """A copy of nested configurations with every text that may be a path made absolute."""
    if isinstance(value, dict):
        return {key: _map_paths(entry) for key, entry in value.items()}
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed = {}
    for item in fields(value):
        entry = getattr(value, item.name)
        if not item.metadata.get("path"):
            changed[item.name] = _map_paths(entry)
        elif isinstance(entry, tuple):
            names = item.metadata.get("names", ())
            changed[item.name] = tuple(name if name in names else _absolute_lora(name) for name in entry)
        else:
            changed[item.name] = entry and _absolute(entry)
    return replace(value, **changed)


def _local(name: str) -> Path | None:
    """The folder or file of a model or a light on this disk, None where there is none of that name."""
    path = Path(name).expanduser()
    exists = path.is_dir() or (path.is_file() and path.suffix in (*SUFFIXES, *IMAGES))
    return path.absolute() if name != BUNDLED and exists else None


def _absolute(name: str) -> str:
    return str(_local(name) or name)


def _absolute_lora(text: str) -> str:
    path, _ = parse_lora(text)
    head, colon, scale = text.rpartition(":")
    has_scale = bool(colon) and Path(head).expanduser() == path
    return f"{path.absolute()}{colon}{scale}" if has_scale and path.is_file() else _absolute(text)


def fingerprint(path: Path) -> str:
    """A SHA-256 of a model's folder or file, in hexadecimal, that is fast for many gigabytes.

    Files of up to 64 MB are hashed completely, of larger ones the size and 256 blocks of 64 kB, evenly spaced
    from start to end: 16 MB each. Of a folder, the files that a model is loaded from are hashed with their
    names, in it and one level below.

    Raises:
        WeightsNotFoundError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for file in _files(path):
            name = file.relative_to(path).as_posix() if file != path else ""
            digest.update(f"{len(name)} {name} {file.stat().st_size} ".encode())
            for block in _blocks(file):
                digest.update(block)
    except OSError as error:
        raise WeightsNotFoundError(f"{path} must be readable, got: {error.strerror or error}") from error
    return digest.hexdigest()


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
    """The record of the weights for a manifest: the hub's commit, or the path and a hash of local files.

    Args:
        config: of the run.
        located: its models, by their entries in `models`.

    Raises:
        WeightsNotFoundError: a file cannot be read.
    """
    described, loras = {}, []
    for entry, model in located.items():
        described[entry] = _describe(model.folder)
        for name, folder in model.controls.items():
            described[f"control {name}"] = _describe(folder)
        for part, file in {"vae": model.config.vae, "base": model.config.base}.items():
            if file is not None and (path := _local(file)) is not None:
                described[f"{entry} {part}"] = _describe_file(file, path)
        if model.style is not None:
            described[f"{entry} style"] = _describe_style(model.style)
        loras += [
            {"path": str(item.path), "scale": item.scale, "sha256": item.sha256} for item in model.loras
        ]
    for key, name in _named_files(config).items():
        if (path := _local(name)) is not None:
            described[key] = _describe_file(name, path)
    return {"models": described, "loras": loras}


def _describe_style(style: StyleAdapter) -> dict[str, Any]:
    digest = hashlib.sha256("".join(map(fingerprint, (style.path, style.encoder))).encode())
    place = {} if style.commit else {"path": str(style.path.absolute())}
    return {"name": style.name, "commit": style.commit, **place, "sha256": digest.hexdigest()}


def _describe_file(name: str, path: Path) -> dict[str, Any]:
    return {"name": name, "commit": None, "path": str(path), "sha256": fingerprint(path)}


def _named_files(config: Config) -> dict[str, str]:
    """The files that settings of guidances and representations name, by STAGE.OBJECTIVE.SETTING."""
    files: dict[str, str] = {}
    for stage, settings in config.stages.items():
        parts = {name: objective.guidance for name, objective in settings.objectives.items()}
        for name, part in (*parts.items(), ("representation", settings.representation)):
            files |= _paths_of(part, f"{stage}.{name}")
    return files


def _paths_of(part: Any, place: str) -> dict[str, str]:
    """The paths in a configuration and those in it, by the names of their settings."""
    found: dict[str, str] = {}
    for item in fields(part):
        value, name = getattr(part, item.name), f"{place}.{item.name}"
        if is_dataclass(value) and not isinstance(value, type):
            found |= _paths_of(value, name)
        elif item.metadata.get("path") and isinstance(value, str):
            found[name] = value
        elif item.metadata.get("path") and isinstance(value, tuple):
            own = item.metadata.get("names", ())
            found |= {f"{name}.{index}": entry for index, entry in enumerate(value) if entry not in own}
    return found


def _describe(folder: ModelFolder) -> dict[str, Any]:
    entry = {"name": folder.name, "commit": folder.commit}
    if folder.commit is not None:
        return entry
    bundled = Path(__file__).parent in folder.path.parents  # its path moves with the installation
    place = {} if bundled else {"path": str(folder.path.absolute())}
    parts = [fingerprint(path) for path in (folder.path, folder.vae) if path is not None]
    return {**entry, **place, "sha256": hashlib.sha256("".join(parts).encode()).hexdigest()}


def require_same_models(
    record: Mapping[str, Any], config: Config, located: Mapping[str, LocatedModel]
) -> None:
    """Check that the weights are those that a manifest describes.

    Args:
        record: the manifest.
        config: of the run.
        located: its models, by their entries in `models`.

    Raises:
        RunDirectoryError: a file has changed, or its name refers to another model on this computer.
    """
    now = describe_models(config, located)
    for use, current in now["models"].items():
        known = record.get("models", {}).get(use)
        if known and _differs(known, current):
            raise RunDirectoryError(_changed(use, known, current))
    known_loras = {lora["path"]: lora["sha256"] for lora in record.get("loras", ())}
    for lora in (lora for model in located.values() for lora in model.loras):
        if known_loras.get(str(lora.path), lora.sha256) != lora.sha256:
            raise RunDirectoryError(
                f"the LoRA {lora.path} must be as when the run began, but it has changed; put it back, or "
                "start a new run"
            )


def _differs(known: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    if known.get("commit") != current.get("commit"):
        return True
    return "sha256" in known and known["sha256"] != current.get("sha256")


def _changed(use: str, known: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """The error message for a model that is not the one of the manifest."""
    name = known.get("name")
    if known.get("commit") and not current.get("commit"):
        return (
            f"the {use} model must be {name} of the hub, commit {known['commit'][:12]}, as when the run "
            f"began, got {current.get('path', current.get('name'))}; resume from another folder"
        )
    if known.get("commit"):
        return (
            f"the {use} model {name} must be of commit {known['commit'][:12]}, as when the run began, got "
            f"{str(current['commit'])[:12]}; start a new run"
        )
    return (
        f"the {use} model {known.get('path', name)} must be as when the run began, but its files have "
        "changed; put them back, or start a new run"
    )
