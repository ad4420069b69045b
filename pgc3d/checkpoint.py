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
    """The parameters, the optimiser, the adaptive clips and the states of all generators."""
    optimizer = built.problem.optimizer.state_dict()
    tensors: dict[str, Tensor] = _prefixed("representation", built.problem.representation.state_dict())
    for index, state in optimizer["state"].items():
        tensors |= _prefixed(f"optimizer.{index}", state)
    for name, stateful in built.states.items():
        tensors |= _prefixed(f"state.{name}", stateful.state_dict())
    for name, generator in built.generators.items():
        tensors[f"generator.{name}"] = generator.get_state()
    tensors["torch.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["torch.cuda"] = torch.cuda.get_rng_state()
    return Checkpoint(step=step, tensors=tensors, values={"param_groups": optimizer["param_groups"]})


def unpack(checkpoint: Checkpoint, built: Built) -> None:
    """Continue where `pack` was called.

    Raises:
        RunDirectoryError: the checkpoint belongs to another configuration.
    """
    unpack_representation(checkpoint, built.problem.representation)
    tensors = checkpoint.tensors
    try:
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("optimizer", tensors).items():
            index, _, key = name.partition(".")
            states.setdefault(int(index), {})[key] = tensor
        groups = checkpoint.values["param_groups"]
        built.problem.optimizer.load_state_dict({"state": states, "param_groups": groups})
        for name, stateful in built.states.items():
            stateful.load_state_dict(_below(f"state.{name}", tensors))
        for name, generator in built.generators.items():
            generator.set_state(tensors[f"generator.{name}"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise _mismatch(checkpoint, error) from error
    torch.set_rng_state(tensors["torch.cpu"])
    if torch.cuda.is_available() and "torch.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["torch.cuda"])


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
