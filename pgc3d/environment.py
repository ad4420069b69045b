"""The versions, the device and the memory of a process, for records of its work."""

import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from pgc3d import __version__

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "numpy",
    "numba",
    "xatlas",
    "trimesh",
    "safetensors",
)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions of the libraries and the device, for the manifest."""
    versions = {"python": platform.python_version(), "pgc3d": __version__}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "missing"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {"versions": versions, "device": {"type": device.type, "name": name}}


def processor_name() -> str:
    """The model of the processor, or its architecture where the system has no name of a model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # on macOS
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, models), "") or platform.processor() or platform.machine() or "unknown"


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak memory of this process in bytes: resident, on a CUDA device, and on others that models are on."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_reserved(device)  # with what recorded graphs keep
        for index in set(range(torch.cuda.device_count())) - {torch.cuda.current_device()}:
            if reserved := torch.cuda.max_memory_reserved(index):
                peak[f"cuda:{index}"] = reserved
    return peak


def used_memory(device: torch.device) -> int:
    """Memory of this process on the device in bytes."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    import psutil

    return int(psutil.Process().memory_info().rss)
