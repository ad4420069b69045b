"""A checkpoint's content: the state of a built problem as named tensors, written and restored."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pgc3d.build.run import Built
from pgc3d.checkpoint_files import Checkpoint
from pgc3d.errors import RunDirectoryError
from pgc3d.interfaces import Representation, Stateful


def pack(built: Built, step: int) -> Checkpoint:
    """A checkpoint of the representation, the optimiser, and the guidances and clips that have a state.

    Args:
        built: the problem.
        step: number of steps that are done.
    """
    representation = built.problem.representation
    tensors: dict[str, Tensor] = _prefixed("representation", representation.state_dict())
    tensors |= _prefixed("optimizer", representation.parameter_store().state_dict())
    for name, stateful in built.states.items():
        tensors |= _prefixed(f"state.{name}", stateful.state_dict())
    return Checkpoint(step=step, tensors=tensors)


def unpack(checkpoint: Checkpoint, built: Built) -> None:
    """Load the state that `pack` stored into a problem.

    Raises:
        RunDirectoryError: the checkpoint belongs to another configuration.
    """
    unpack_representation(checkpoint, built.problem.representation)
    tensors = checkpoint.tensors
    with _fitting(checkpoint):
        built.problem.representation.parameter_store().load_state_dict(_below("optimizer", tensors))
        for name, stateful in built.states.items():
            _restore(stateful, _below(f"state.{name}", tensors))


def unpack_representation(checkpoint: Checkpoint, representation: Representation) -> None:
    """Load the representation alone, without the optimiser and the guidances, as for an export.

    Raises:
        RunDirectoryError: the checkpoint belongs to another configuration.
    """
    state = _below("representation", checkpoint.tensors)
    with _fitting(checkpoint):
        _require_alike(state, representation.state_dict())
        representation.load_state_dict(state)


def _restore(stateful: Stateful, state: Mapping[str, Tensor]) -> None:
    """Load the state of a guidance or clip into a new one, which may have less of it before its first step.

    Raises:
        ValueError: it is not what the object has afterwards.
    """
    own = stateful.state_dict()
    _require_alike({name: tensor for name, tensor in state.items() if name in own}, own)
    stateful.load_state_dict(state)
    _require_alike(state, stateful.state_dict())


def _require_alike(stored: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
    """Raise ValueError unless stored tensors are finite and have their targets' names, shapes and types."""
    if stored.keys() != own.keys():
        raise ValueError(f"it must hold {', '.join(own)}, got {', '.join(stored) or 'nothing'}")
    for name, tensor in stored.items():
        target = torch.as_tensor(own[name])
        if tensor.shape != target.shape or tensor.dtype != target.dtype:
            raise ValueError(
                f"{name} must be {target.dtype} of shape {list(target.shape)}, got {tensor.dtype} of "
                f"{list(tensor.shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")


@contextmanager
def _fitting(checkpoint: Checkpoint) -> Iterator[None]:
    """Raise RunDirectoryError for what goes wrong while a checkpoint is loaded."""
    try:
        yield
    except (LookupError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise _mismatch(checkpoint, error) from error


def _mismatch(checkpoint: Checkpoint, error: Exception) -> RunDirectoryError:
    return RunDirectoryError(
        f"the checkpoint of step {checkpoint.step} must fit the run's config.yaml, but "
        f"{' '.join(str(error).split())[:200]}; undo the changes in config.yaml"
    )


def _prefixed(prefix: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": torch.as_tensor(value) for name, value in state.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}
