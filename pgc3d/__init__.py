"""Textured 3D assets by score distillation with pixel-wise gradient clipping.

    from pgc3d import Task, generate, load_config

    result = generate(Task("a hamburger"), out="runs/burger", config=load_config(overrides=["run.steps=200"]))
    print(result.files)

The names below are the public interface; they are imported when they are first used, so that `import pgc3d`
stays cheap, and `pgc3d.pgc` needs torch and jaxtyping alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Config",
    "Event",
    "Pgc3dError",
    "RunResult",
    "StopFlag",
    "Task",
    "export",
    "generate",
    "load_config",
    "pgc",
    "render",
    "resume",
]

_MODULES = {
    "Config": "pgc3d.config",
    "Event": "pgc3d.events",
    "Pgc3dError": "pgc3d.errors",
    "RunResult": "pgc3d.execution",
    "StopFlag": "pgc3d.signals",
    "Task": "pgc3d.task",
    "export": "pgc3d.pipeline",
    "generate": "pgc3d.pipeline",
    "load_config": "pgc3d.config",
    "render": "pgc3d.pipeline",
    "resume": "pgc3d.pipeline",
}

if TYPE_CHECKING:
    from pgc3d import pgc
    from pgc3d.config import Config, load_config
    from pgc3d.errors import Pgc3dError
    from pgc3d.events import Event
    from pgc3d.execution import RunResult
    from pgc3d.pipeline import export, generate, render, resume
    from pgc3d.signals import StopFlag
    from pgc3d.task import Task


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name == "pgc":
        return importlib.import_module("pgc3d.pgc")
    raise AttributeError(f"module 'pgc3d' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
