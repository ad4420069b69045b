"""The checkpoint files in a run's folder: each a safetensors file and a JSON record that describes it."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pgc3d.disk import replace_file, writing
from pgc3d.errors import RunDirectoryError
from pgc3d.plain_files import read_file
from pgc3d.records import CHECKPOINT, FORMAT, read_record, seal

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
NAME = re.compile(r"step-(\d{6,})\.(json|safetensors)")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a stage between two steps."""

    step: int  # number of steps that are done
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)  # anything that JSON can hold


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and delete all but the newest two; the JSON is written last and makes it valid.

    Args:
        folder: of the stage; must exist.
        checkpoint: what to write; checkpoints of later steps are deleted.

    Raises:
        RunDirectoryError: the folder cannot be written or the disk is full.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    content = save({name: tensor.clone() for name, tensor in tensors.items()})
    target = folder / f"step-{checkpoint.step:06d}.safetensors"
    replace_file(target, content)
    record = {
        "format": FORMAT,
        "step": checkpoint.step,
        "sha256": hashlib.sha256(content).hexdigest(),
        "values": dict(checkpoint.values),
    }
    replace_file(target.with_suffix(".json"), (json.dumps(seal(record)) + "\n").encode())
    # A checkpoint of a later step is damaged: otherwise the run would have continued from it.
    steps = [step for step in map(_step, checkpoint_files(folder)) if step <= checkpoint.step]
    with writing(folder):
        for path in folder.iterdir():
            if _is_checkpoint(path) and _step(path) not in steps[:KEPT_CHECKPOINTS]:
                path.unlink()


def checkpoint_files(folder: Path, suffix: str = ".json") -> list[Path]:
    """The files of the checkpoints with one suffix, newest first."""
    with writing(folder):
        files = [path for path in folder.iterdir() if path.suffix == suffix and _is_checkpoint(path)]
    return sorted(files, key=_step, reverse=True)


def read_newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, None where none was ever written.

    A damaged one is skipped with a warning.

    Raises:
        RunDirectoryError: there are checkpoints and all of them are damaged.
    """
    records = checkpoint_files(folder)
    tensors = checkpoint_files(folder, ".safetensors")
    if tensors and (not records or _step(tensors[0]) > _step(records[0])):
        logger.warning("checkpoint %s has no record; trying the one before it", tensors[0].stem)
    for path in records:
        try:
            return _read(path)
        except (OSError, ValueError, RunDirectoryError) as error:
            logger.warning("checkpoint %s is damaged (%s); trying the one before it", path.stem, error)
    if records:
        raise RunDirectoryError(
            f"{folder.parent} must have a complete checkpoint, but all {len(records)} are damaged; "
            "start a new run"
        )
    return None


def _read(path: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load

    record = read_record(read_file(path), CHECKPOINT)
    if record["step"] != _step(path):
        raise ValueError(f"its step must be that of its name, got {record['step']}")
    content = read_file(path.with_suffix(".safetensors"))
    digest = hashlib.sha256(content).hexdigest()
    if digest != record["sha256"]:
        raise ValueError(f"sha256 must be {record['sha256'][:12]}, got {digest[:12]}")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return Checkpoint(step=record["step"], tensors=tensors, values=record["values"])


def _is_checkpoint(path: Path) -> bool:
    """Whether a path has a name that `write_checkpoint` gives, and is not a folder."""
    match = NAME.fullmatch(path.name)
    return (
        match is not None
        and path.stem == f"step-{int(match[1]):06d}"
        and (path.is_symlink() or not path.is_dir())
    )


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
