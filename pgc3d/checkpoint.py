"""What a checkpoint holds: a built problem turned into named tensors, and back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pgc3d.build import Built
from pgc3d.checkpoint_files import Checkpoint
from pgc3d.errors import RunDirectoryError
from pgc3d.interfaces import Representation, parameters


def pack(built: Built, step: int) -> Checkpoint:
    """The parameters, the optimiser, the adaptive clips and the states of all generators."""
    optimizer = built.problem.optimizer.state_dict()
    groups = [group["name"] for group in built.problem.representation.parameter_groups()]
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
    return Checkpoint(step=step, tensors=tensors, values={"groups": groups})


def unpack(checkpoint: Checkpoint, built: Built) -> None:
    """Continue where `pack` was called.

    Raises:
        RunDirectoryError: the checkpoint belongs to another configuration.
    """
    unpack_representation(checkpoint, built.problem.representation)
    tensors = checkpoint.tensors
    groups = [group["name"] for group in built.problem.representation.parameter_groups()]
    with _fitting(checkpoint):
        if checkpoint.values.get("groups", groups) != groups:
            raise ValueError(f"its groups of parameters must be {', '.join(groups)}")
        _load_optimizer(built, _below("optimizer", tensors))
        for name, stateful in built.states.items():
            found = _below(f"state.{name}", tensors)
            _require_alike(found, stateful.state_dict())
            stateful.load_state_dict(found)
        for name, generator in built.generators.items():
            generator.set_state(tensors[f"generator.{name}"])
        torch.set_rng_state(tensors["torch.cpu"])
        if torch.cuda.is_available() and "torch.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["torch.cuda"])


def _load_optimizer(built: Built, tensors: Mapping[str, Tensor]) -> None:
    """The moments of Adam; the learning rates and the rest are the configuration's."""
    optimizer = built.problem.optimizer
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        states.setdefault(int(index), {})[key] = tensor
    weights = parameters(built.problem.representation.parameter_groups())
    for number, state in states.items():
        like = weights[number].detach()
        _require_alike(state, {"step": torch.zeros(()), "exp_avg": like, "exp_avg_sq": like})
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


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
