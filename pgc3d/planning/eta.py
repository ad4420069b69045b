"""The time that is left of a run, from its own steps.

The steps of a stage at one resolution are a phase. Steps of a phase that has begun are as long as its last
ones. Those of a later phase are estimated in two parts, each longer by a ratio to a power. For the guidances
it is the ratio of operations, see `plan.estimate_stage`: for 4.2 times the operations of the bundled prior,
two CPU threads took 3.1 times as long and one took 3.7 to 4 times. Without operations, pixels count in their
place. For the renders and all else it is the ratio of pixels times `render_work`: on one thread a NeRF at 64
pixels took 0.20 s, and a DMTet at 128 and 256 pixels 0.07 s and 0.15 s. Where the guidances were not measured
apart, whole steps follow their ratio.

Previews and checkpoints that are still to come take as long as those before.
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from pgc3d.build.models import LocatedModel
from pgc3d.config import Config, StageConfig
from pgc3d.planning.model_size import read_size
from pgc3d.planning.plan import estimate_stage

WARM_UP = 2  # steps after each start that are not counted: kernels are compiled and memory is allocated
RECENT = 50  # steps that count, so that the estimate follows the load of the computer
POWER = {"cpu": 0.85, "cuda": 1.0}  # of the ratio of operations
# Of an export: seconds and those of a texel by device, since the GPU bakes, and those of a face of new
# charts. Fitted to ten on two CPU cores, 1.0 to 6.8 s, and to given meshes on an H200, 1.8 to 5.3 s.
EXPORT_FACE = 1e-4
EXPORT = {"cpu": (0.7, 8e-7), "cuda": (1.5, 5e-7)}

Operations = Callable[[StageConfig], float]  # of a step at the stage's largest resolution


@dataclass(frozen=True)
class Phase:
    """Steps of a stage at one resolution."""

    stage: str
    first: int  # number of the first step, from 1
    last: int
    work: float  # of a step's guidances, in units that all phases share
    render: float  # of a step's renders, likewise


def phases_of(config: Config, operations: Operations | None = None) -> tuple[Phase, ...]:
    """The phases of a run in their order.

    Args:
        config: of the run.
        operations: of a step of a stage; pixels count where this is None, or 0 for one of the phases.
    """
    bare = [
        (name, steps[0], steps[-1], _at(stage, side))
        for name, stage in config.stages.items()
        for side, steps in _by_resolution(stage)
    ]
    work = [operations(stage) if operations else 0.0 for *_, stage in bare]
    if not all(work):
        work = [_pixels(stage) for *_, stage in bare]
    render = [_pixels(stage) * stage.representation.render_work() for *_, stage in bare]
    return tuple(
        Phase(*item[:3], work=one, render=other) for item, one, other in zip(bare, work, render, strict=True)
    )


def _at(stage: StageConfig, side: int) -> StageConfig:
    """The stage with one of its resolutions for all steps."""
    single = len(stage.resolution) == 1
    return stage if single else replace(stage, resolution=(side,), resolution_until=())


def _by_resolution(stage: StageConfig) -> list[tuple[int, range]]:
    """The resolutions, each with the numbers of its steps; those without steps are left out."""
    numbers, last = range(1, stage.steps + 1), max(stage.steps - 1, 1)
    ends = [
        bisect_left(numbers, end, key=lambda number: (number - 1) / last) for end in stage.resolution_until
    ]
    edges = pairwise([0, *ends, stage.steps])
    parts = ((side, numbers[start:end]) for side, (start, end) in zip(stage.resolution, edges, strict=True))
    return [(side, steps) for side, steps in parts if steps]


def _pixels(stage: StageConfig) -> float:
    return float(sum(objective.batch for objective in stage.objectives.values()) * stage.resolution[0] ** 2)


def operations_of(config: Config, located: Mapping[str, LocatedModel]) -> Operations:
    """A function for the operations of a stage's step, from the sizes of its models.

    Args:
        config: of the run.
        located: its models, by their entries in `models`.
    """
    sizes = {
        name: read_size(model.folder, model.controls, model.style_size) for name, model in located.items()
    }
    return lambda stage: estimate_stage(config, stage, sizes).operations


class Eta:
    """Measures the steps of a run, and estimates the time that is left."""

    def __init__(
        self,
        config: Config,
        operations: Operations | None = None,
        *,
        device: str = "cpu",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Plan the steps of a run.

        Args:
            config: of the run.
            operations: see `phases_of`.
            device: its type, as "cuda".
            clock: in seconds.
        """
        self._config, self._clock = config, clock
        self._power, self._device = POWER.get(device, 1.0), device
        self._phases = phases_of(config, operations)
        self._steps: dict[Phase, deque[float]] = {phase: deque(maxlen=RECENT) for phase in self._phases}
        self._guidance: dict[Phase, float] = {}  # seconds of a step
        self._parts: dict[str, list[float]] = {}  # seconds of previews and checkpoints
        self._aside = 0.0  # of these, since the last step
        self._stage, self._step, self._skip, self._time = "", 0, 0, 0.0

    def begin(self, stage: str, step: int) -> None:
        """Begin, or continue, a stage after a number of steps."""
        self._stage, self._step, self._skip = stage, step, WARM_UP
        self._time, self._aside = self._clock(), 0.0

    def spent(self, part: str, seconds: float) -> None:
        """Add the time of a part between two steps, as of a preview."""
        self._parts.setdefault(part, []).append(seconds)
        self._aside += seconds

    def stepped(self, step: int, guidance: float | None = None) -> None:
        """Measure the step that has just ended.

        Args:
            step: its number in the stage.
            guidance: seconds that the guidances took of the last steps, a mean, where that was measured.
        """
        now, phase = self._clock(), self._phase_of(step)
        if self._skip:
            self._skip -= 1
        elif phase is not None:
            self._steps[phase].append(max(now - self._time - self._aside, 0.0))
            if guidance is not None:
                self._guidance[phase] = guidance
        self._step, self._time, self._aside = step, now, 0.0

    def _phase_of(self, step: int) -> Phase | None:
        own = [phase for phase in self._phases if phase.stage == self._stage and phase.first <= step]
        return own[-1] if own else None

    @property
    def progress(self) -> float:
        """The fraction of the steps of all stages that are done."""
        total = sum(stage.steps for stage in self._config.stages.values())
        return min((total - sum(self._left(phase) for phase in self._phases)) / max(total, 1), 1.0)

    def _left(self, phase: Phase) -> int:
        """Steps of a phase that are still to come."""
        names = list(self._config.stages)
        order = names.index(phase.stage) - (names.index(self._stage) if self._stage else -1)
        done = self._step if order == 0 else 0 if order > 0 else phase.last
        return max(phase.last - max(done, phase.first - 1), 0)

    def seconds_left(self) -> float | None:
        """The estimate until the asset is written, None before steps were measured."""
        measured = [phase for phase, times in self._steps.items() if times]
        if not measured:
            return None
        known = [phase for phase in measured if phase in self._guidance] or measured
        left = sum(
            self._left(phase) * (_mean(self._steps[phase]) or self._expected(phase, known[-1]))
            for phase in self._phases
        )
        return left + self._periodic_seconds() + export_seconds(self._config, self._device)

    def _expected(self, phase: Phase, known: Phase) -> float:
        """Seconds of a step of a phase, from those of one that was measured."""
        seconds = _mean(self._steps[known])
        guidance = min(self._guidance.get(known, seconds), seconds)
        work, render = (phase.work / known.work) ** self._power, (phase.render / known.render) ** self._power
        return float(guidance * work + (seconds - guidance) * render)

    def _periodic_seconds(self) -> float:
        """Of the previews and checkpoints that are still to come."""
        logging, left = self._config.logging, [(phase.last, self._left(phase)) for phase in self._phases]

        def due(every: int) -> int:
            return sum(last // every - (last - steps) // every for last, steps in left)

        ends = (
            phase.last
            for phase in self._phases
            if self._left(phase) and phase.last == self._config.stages[phase.stage].steps
        )
        early = sum(last - steps < step <= last for last, steps in left for step in logging.early_previews)
        every = logging.preview_every
        final = sum(bool(every and step % every) and step not in logging.early_previews for step in ends)
        previews = due(every) + early + final if every else 0
        seconds = {part: _mean(times) for part, times in self._parts.items()}
        checkpoints = due(logging.checkpoint_every)
        return seconds.get("preview", 0.0) * previews + seconds.get("checkpoint", 0.0) * checkpoints


def export_seconds(config: Config, device: str = "cpu") -> float:
    """The estimate for an export: unwrapping takes most of it for a mesh that is not given, else baking.

    Args:
        config: of the run.
        device: its type, as "cuda".
    """
    faces = 0 if config.last.representation.fixed_shape else config.export.faces
    least, texel = EXPORT.get(device, EXPORT["cpu"])
    return least + texel * config.export.texture_size**2 + EXPORT_FACE * faces


def _mean(times: "deque[float] | list[float] | tuple[float, ...]") -> float:
    return sum(times) / len(times) if times else 0.0
