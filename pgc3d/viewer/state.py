"""What the page receives of a run or a file at one time."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pgc3d.report.curves import Curve
from pgc3d.report.facts import StageFacts


@dataclass(frozen=True)
class Preview:
    """A preview image in a run's folder."""

    stage: str
    step: int
    path: Path
    clipping: Path | None = None  # image of what clipping does in the step


@dataclass(frozen=True)
class Displayed:
    """A mesh file; `version` is another text after each change of the file."""

    path: Path
    version: str


@dataclass(frozen=True)
class State:
    """A run or a mesh file as it is now."""

    name: str
    status: str
    stages: tuple[StageFacts, ...] = ()  # steps by the manifest or the metrics, whichever has more
    curves: tuple[Curve, ...] = ()
    previews: tuple[Preview, ...] = ()  # by stage and step
    asset: Displayed | None = None
    before: Displayed | None = None  # the mesh that the run textures
    changed: float | None = None  # seconds since the epoch
    notes: tuple[str, ...] = ()
    prompt: str = ""

    @property
    def stage(self) -> StageFacts | None:
        """The stage that began last."""
        begun = [stage for stage in self.stages if stage.steps or stage.status != "not begun"]
        return begun[-1] if begun else None


@runtime_checkable
class Source(Protocol):
    """What `pgc3d view` was given: the folder of a run, or a mesh file."""

    name: str
    is_run: bool

    def state(self) -> State:
        """The state now; what cannot be read is a note of it."""

    def preview(self, index: int) -> bytes | None:
        """A preview of the state as a PNG, None where there are fewer.

        Raises:
            Pgc3dError: it is a link.
            OSError: it cannot be read.
        """

    def clipping(self, index: int) -> bytes | None:
        """The image of clipping beside a preview as a PNG, None where there is none.

        Raises:
            Pgc3dError: it is a link.
            OSError: it cannot be read.
        """

    def before(self) -> bytes | None:
        """The mesh that a run textures as a GLB, None where there is none; raises as `asset`."""

    def asset(self) -> bytes | None:
        """The asset of the state as a GLB, None where there is none.

        Raises:
            Pgc3dError: it is damaged, or a link.
            OSError: it cannot be read.
            ValueError: it has no surface to display.
        """


def as_json(state: State, now: float) -> dict[str, Any]:
    """A state in JSON's types.

    Args:
        state: of a run or a file.
        now: seconds since the epoch.
    """
    stage = state.stage
    planned = [item.planned for item in state.stages]
    return {
        "name": state.name,
        "prompt": state.prompt,
        "status": state.status,
        "stage": stage and stage.name,
        "stages": [
            {"name": item.name, "status": item.status, "step": item.steps, "planned": item.planned}
            for item in state.stages
        ],
        "step": sum(item.steps for item in state.stages),
        "planned": sum(item or 0 for item in planned) if planned and None not in planned else None,
        "newest": {
            curve.name: curve.values[-1] if math.isfinite(curve.values[-1]) else None
            for curve in state.curves
            if stage and curve.stage == stage.name and curve.values
        },
        "previews": [[item.stage, item.step] for item in state.previews],
        "clipping": [index for index, item in enumerate(state.previews) if item.clipping],
        "asset": _displayed(state.asset),
        "before": _displayed(state.before),
        "age": None if state.changed is None else max(0.0, round(now - state.changed, 1)),
        "notes": list(state.notes),
    }


def _displayed(file: Displayed | None) -> dict[str, str] | None:
    return None if file is None else {"name": file.path.name, "version": file.version}
