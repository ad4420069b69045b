"""The devices of a run's models: the run's own one, or another one of the computer, and copies to them.

Copies between CUDA devices are queued; the host does not wait for them.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pgc3d.errors import BackendUnavailableError
from pgc3d.types import GuidanceOutput, Rendering, Views

AUTO = "auto"  # name of the run's own device


def device_of(name: str, own: torch.device) -> torch.device:
    """The device that a setting names; the run's own one where it names that, in whatever form.

    Args:
        name: "auto" for the run's own, "cpu", or "cuda:N".
        own: the device of the run, without an index for the current CUDA device.
    """
    if name == AUTO:
        return own
    device = torch.device(name)
    return own if _is_same(device, own) else device


def _is_same(device: torch.device, own: torch.device) -> bool:
    if device.type != own.type or device.type != "cuda":
        return device.type == own.type
    return _index(device) == _index(own)


def _index(device: torch.device) -> int:
    """The number of a CUDA device; that of the current one where it has none."""
    found: int | None = device.index
    if found is None:
        return torch.cuda.current_device() if torch.cuda.is_available() else 0
    return found


def reading_device(device: torch.device) -> str:
    """The device as safetensors takes it, for which "cuda" is the first GPU and not the process's own one."""
    return f"cuda:{_index(device)}" if device.type == "cuda" else str(device)


def require_device(key: str, name: str) -> None:
    """Check that a device exists.

    Args:
        key: of the setting.
        name: its value.

    Raises:
        BackendUnavailableError: this computer does not have it.
    """
    if not name.startswith("cuda"):
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if _index(torch.device(name)) >= found:
        raise BackendUnavailableError(
            f"{key} must be a device of this computer, got {name}, but {found} CUDA devices were found; use "
            f"{AUTO} for the run's own{f', or cuda:0 to cuda:{found - 1}' if found > 1 else ''}"
        )


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one for a block, as kernels of Triton and CUDA graphs need it.

    One without an index is the current one already.
    """
    index: int | None = device.index
    return torch.cuda.device(device) if device.type == "cuda" and index is not None else nullcontext()


def constant_on(device: torch.device, rendering: Rendering) -> Rendering:
    """The images of a rendering on a device, without a gradient."""
    moved: dict[str, Any] = {
        name: None if value is None else value.detach().to(device) for name, value in vars(rendering).items()
    }
    return Rendering(**moved)


def views_on(device: torch.device, views: Views) -> Views:
    """The views on a device."""
    return Views(views.cameras.to(device), views.background.to(device))


def output_on(device: torch.device, output: GuidanceOutput) -> GuidanceOutput:
    """The gradients and the metrics of a guidance on a device."""
    buffers = {name: value.to(device) for name, value in output.buffers.items()}
    metrics = {name: value.to(device) for name, value in output.metrics.items()}
    return GuidanceOutput(output.gradient.to(device), buffers, metrics)
