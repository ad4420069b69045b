"""The parts of an acceptance test, in the order in which they run, with their minutes on an H100.

The minutes follow `docs/pages/results/performance.md`: the steps times the milliseconds of a step, and half a
minute for the start, loading and the export. The first part of a network also compiles it, in up to 100 s.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from acceptance_models import GradientWork, MachineWork, StepWork
from acceptance_runs import Outcome, RunWork, Trial


class Work(Protocol):
    """What a part does."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """The models that it needs."""

    def __call__(self, trial: Trial, folder: Path) -> Outcome:
        """Do it; images go to the folder."""


@dataclass(frozen=True)
class Part:
    """One part of the test; its name is that of its folder."""

    name: str
    work: Work
    minutes: float  # on an H100
    needed: bool = True  # whether its failure is one of the whole test


WOOD = "a wooden chair"
CLIP_STEPS = 250
RULES = {
    "none": "none", "pixel": "pixel=0.1", "channel": "channel=0.1", "pngd": "pngd=0.1",
    "adaptive": "adaptive", "relative": "relative", "parameter": "parameter",
}  # fmt: skip

PARTS: tuple[Part, ...] = (
    Part("machine", MachineWork(), 2.0),
    Part("gradients-sdxl", GradientWork("sdxl"), 2.0),
    Part("texture-sdxl", RunWork("texture", "sdxl", 800), 5.5),
    Part("text-sdxl", RunWork("text", "sdxl", 1500), 4.0),
    Part("texture-sdxl-depth", RunWork("texture", "sdxl", 800, control="sdxl-depth-small"), 5.5),
    Part("image-zero123", RunWork("image", "zero123", 600), 3.0),
    Part(
        "image-stable-zero123",
        RunWork("image", "stable-zero123", 600, files=("image-zero123-stable",)),
        2.0,
    ),
    Part("refine-sdxl", RunWork("texture", "sdxl", 200, prompt=WOOD, refine=True), 2.0),
    Part(
        "sync-sdxl",
        RunWork("texture", "sdxl", 90, control="sdxl-depth-small", sync=True, quality="fast"),
        2.0,
    ),
    *(
        Part(f"clip-{name}", RunWork("texture", "sdxl", CLIP_STEPS, clip=rule), 1.7)
        for name, rule in RULES.items()
    ),
    Part("step-sdxl", StepWork("sdxl", (1, 2)), 3.0),
    Part("text-sd", RunWork("text", "sd", 1500), 2.5),
    Part("texture-sd", RunWork("texture", "sd", 800), 1.5),
    Part("texture-sd-depth", RunWork("texture", "sd", 800, control="sd-depth"), 2.0),
    Part("step-sd", StepWork("sd", (1, 4)), 1.5),
    Part("gradients-sd", GradientWork("sd"), 1.0),
    Part("gradients-zero123", GradientWork("zero123"), 0.5),
)
MINUTES = 60.0


def choose(names: Sequence[str], parts: Iterable[Part] = PARTS) -> list[Part]:
    """The parts of these names or beginnings of names; all parts when there are none.

    Raises:
        ValueError: no part has one of the names.
    """
    parts = list(parts)
    for name in names:
        if not any(part.name.startswith(name) for part in parts):
            known = ", ".join(part.name for part in parts)
            raise ValueError(f"--only must name parts or beginnings of their names ({known}), got {name}")
    exact = {part.name for part in parts} & set(names)
    beginnings = tuple(name for name in names if name not in exact)
    return [part for part in parts if not names or part.name in exact or part.name.startswith(beginnings)]


def aliases_of(parts: Iterable[Part]) -> list[str]:
    """The models that parts need, each once."""
    return list(dict.fromkeys(alias for part in parts for alias in part.work.aliases))
