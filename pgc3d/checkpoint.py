"""What a checkpoint holds: a built problem turned into named tensors, and back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pgc3d.build.run import Built
from pgc3d.checkpoint_files import Checkpoint
from pgc3d.errors import RunDirectoryError
from pgc3d.interfaces import Representation


def pack(built: Built, step: int) -> Checkpoint:
    """The representation, the optimiser, and the guidances and clips that have a state."""
    representation = built.problem.representation
    tensors: dict[str, Tensor] = _prefixed("representation", representation.state_dict())
    tensors |= _prefixed("optimizer", representation.parameter_store().state_dict())
    for name, stateful in built.states.items():
        tensors |= _prefixed(f"state.{name}", stateful.state_dict())
    return Checkpoint(step=step, tensors=tensors)


def unpack(checkpoint: Checkpoint, built: Built) -> None:
    """Continue where `pack` was called.

    Raises:
        RunDirectoryError: the checkpoint belongs to another configuration.
    """
    unpack_representation(checkpoint, built.problem.representation)
    tensors = checkpoint.tensors
    with _fitting(checkpoint):
        built.problem.representation.parameter_store().load_state_dict(_below("optimizer", tensors))
        for name, stateful in built.states.items():
            found = _below(f"state.{name}", tensors)
            _require_alike(found, stateful.state_dict())
            stateful.load_state_dict(found)


def unpack_representation(checkpoint: Checkpoint, representation: Representation) -> None:
    """Load the asset alone, as an export needs it.

    Raises:
        RunDirectoryError: the checkpoint belongs to another configuration.
    """
    found = _below("representation", checkpoint.tensors)
    with _fitting(checkpoint):
        _require_alike(found, representation.state_dict())
        representation.load_state_dict(found)


def _require_alike(found: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
    """See that tensors have the names, shapes and types of those that they replace, and are finite."""
    if found.keys() != own.keys():
        raise ValueError(f"it must hold {', '.join(own)}, got {', '.join(found) or 'nothing'}")
    for name, tensor in found.items():
        wanted = torch.as_tensor(own[name])
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise ValueError(
                f"{name} must be {wanted.dtype} of shape {list(wanted.shape)}, got {tensor.dtype} of "
                f"{list(tensor.shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must be finite")


@contextmanager
def _fitting(checkpoint: Checkpoint) -> Iterator[None]:
    try:
        yield
    except (LookupError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise _mismatch(checkpoint, error) from error


def _mismatch(checkpoint: Checkpoint, error: Exception) -> RunDirectoryError:
    return RunDirectoryError(
        f"the checkpoint of step {checkpoint.step} must fit the run's config.yaml, but: "
        f"{' '.join(str(error).split())[:200]}; undo the changes in config.yaml"
    )


def _prefixed(prefix: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": torch.as_tensor(value) for name, value in state.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}
