"""What a checkpoint holds: a built problem turned into named tensors, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pgc3d.build import Built
from pgc3d.errors import RunDirectoryError
from pgc3d.interfaces import Representation
from pgc3d.run import Checkpoint


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
    try:
        store = built.problem.representation.parameter_store()
        store.load_state_dict(_below("optimizer", tensors))
        for name, stateful in built.states.items():
            stateful.load_state_dict(_below(f"state.{name}", tensors))
    except (KeyError, ValueError, RuntimeError) as error:
        raise _mismatch(checkpoint, error) from error


def unpack_representation(checkpoint: Checkpoint, representation: Representation) -> None:
    """Load the asset alone, as an export needs it.

    Raises:
        RunDirectoryError: the checkpoint belongs to another configuration.
    """
    try:
        representation.load_state_dict(_below("representation", checkpoint.tensors))
    except (KeyError, ValueError, RuntimeError) as error:
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
