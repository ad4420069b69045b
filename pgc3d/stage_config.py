"""The configuration of one stage of a run: a representation, its objectives, and the optimiser."""

import re
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Literal, TypeAlias

from pgc3d.cameras import CloseUpConfig, OrbitConfig, ReferenceCameraConfig
from pgc3d.clip_rules import ClipConfig
from pgc3d.colors import COLORS, named_color
from pgc3d.cover_cameras import CoverConfig
from pgc3d.guidance.bgt import BgtConfig
from pgc3d.guidance.reference import ReferenceConfig
from pgc3d.guidance.sds_config import SdsConfig
from pgc3d.guidance.synchronized import SyncConfig
from pgc3d.guidance.vsd import VsdConfig
from pgc3d.guidance.zero123 import Zero123Config
from pgc3d.layers import nearest
from pgc3d.pgc import PixelClip
from pgc3d.ranges import LEAST_EPS, check, number, schedule, shown
from pgc3d.representation.dmtet_config import DMTetConfig
from pgc3d.representation.nerf_config import NerfConfig
from pgc3d.representation.textured_mesh_config import TexturedMeshConfig
from pgc3d.requirements import Requirements
from pgc3d.run_config import MAX_STEPS

BACKGROUNDS = (*COLORS, "random", "image")
MAX_PIXELS = 2**28  # of a step's views: the renderer would keep 300 GB for them
NAME = re.compile(r"[\w-]{1,64}")
RESERVED = ("seconds", "regularizers")  # other prefixes in the metrics of a step

GuidanceConfig: TypeAlias = SdsConfig | Zero123Config | ReferenceConfig | VsdConfig | BgtConfig
RepresentationConfig: TypeAlias = DMTetConfig | NerfConfig | TexturedMeshConfig
CameraConfig: TypeAlias = OrbitConfig | ReferenceCameraConfig | CloseUpConfig | CoverConfig


@dataclass(frozen=True)
class ObjectiveConfig:
    """One guidance, its cameras, and the clipping and weight of its gradient."""

    guidance: GuidanceConfig = field(default_factory=SdsConfig)
    clip: ClipConfig = field(default_factory=PixelClip)
    cameras: CameraConfig = field(default_factory=OrbitConfig)
    backgrounds: tuple[str, ...] = ("white",)  # names or #rrggbb; one is drawn per view
    batch: int = number(4, 1, 1024, unit="views")  # per step
    weight: tuple[float, ...] = schedule((1.0,), 1e-6, 1e6)  # of the gradient, after clipping
    threshold_scale: tuple[float, ...] = schedule((1.0,), 1e-6, 1e6)  # factor of the clip's threshold
    target: Literal["color", "normal"] = "color"  # the buffer that the guidance evaluates

    def __post_init__(self) -> None:
        check(self)
        check(self.clip)  # `pgc.py` imports no other module, and so no check
        if self.guidance.requires().reference_view:
            if (self.cameras.kind, self.target) != ("reference", "color"):
                raise ValueError(
                    f"the guidance {self.guidance.kind!r} must have cameras of kind 'reference' and the "
                    f"target 'color', got {self.cameras.kind!r} and {self.target!r}"
                )
            if "image" in self.backgrounds:
                raise ValueError(
                    f"the guidance {self.guidance.kind!r} must have backgrounds of one colour, got 'image'"
                )
        if not self.backgrounds:
            raise ValueError(f"backgrounds must name at least one of {', '.join(BACKGROUNDS)}, got none")
        for name in self.backgrounds:
            if name not in BACKGROUNDS and named_color(name) is None:
                raise ValueError(
                    f"backgrounds must be of {', '.join(BACKGROUNDS)} or #rrggbb, got {name!r}"
                    f"{nearest(name, BACKGROUNDS)}"
                )

    def requires(self) -> Requirements:
        """The requirements of the guidance, the cameras and the backgrounds together."""
        inputs = {"background"} if "image" in self.backgrounds else set()
        own = Requirements(inputs=frozenset(inputs))
        return own | self.guidance.requires() | self.cameras.requires()


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam; the learning rates belong to the representation."""

    # Decay rates of the running means of the gradient and of its square.
    betas: tuple[float, float] = number((0.9, 0.99), 0.0, 1.0, below=True)
    eps: float = number(1e-15, LEAST_EPS, 1.0)  # added to the root of the mean square
    # Factor of all learning rates, a schedule (see `PiecewiseLinear`).
    lr_scale: tuple[float, ...] = schedule((1.0,), 0.0, 1000.0)
    max_skipped: int = number(20, 1, MAX_STEPS)  # non-finite steps in a row that end the run

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class StageConfig:
    """One stage of a run: a representation, its objectives, and the number of steps."""

    steps: int = number(500, 1, MAX_STEPS)  # optimisation steps
    # An earlier stage of the run, or a run's folder (RUN, or RUN:STAGE), from whose result this one starts.
    start: str = ""
    # Of the renders, one for each phase of the stage.
    resolution: tuple[int, ...] = number((128, 256), 16, 4096, unit="pixels")
    # Progress at which each phase but the last one ends.
    resolution_until: tuple[float, ...] = number((0.6,), 0.0, 1.0)
    representation: RepresentationConfig = field(default_factory=DMTetConfig)
    objectives: dict[str, ObjectiveConfig] = field(default_factory=lambda: {"color": ObjectiveConfig()})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # Views that are sampled together before the first step, and that the representation is fitted to.
    init: SyncConfig | None = None

    def __post_init__(self) -> None:
        check(self)
        self._check_resolution()
        if not self.objectives:
            raise ValueError("objectives must hold at least one entry, got none")
        for name, objective in self.objectives.items():
            self._check_objective(name, objective)
        if len(self.parameter_norms()) > 1:
            raise ValueError(
                "max_norm must be the same in all objectives that clip parameters, got "
                f"{sorted(self.parameter_norms())}"
            )
        if self.representation.requires().start and not self.start:
            raise ValueError(
                "representation.mesh 'start' must go with a stage to start from, got none; set start to an "
                "earlier stage or the folder of a run"
            )
        of_normals = [name for name, objective in self.objectives.items() if objective.target == "normal"]
        if of_normals and self.representation.fixed_shape:
            raise ValueError(
                "objectives of a given mesh must have the target color, since its shape is fixed, got normal "
                f"for {', '.join(of_normals)}"
            )

    def _check_resolution(self) -> None:
        ends = (0.0, *self.resolution_until, 1.0)
        if not self.resolution:
            raise ValueError("resolution must have at least one entry, got []")
        if len(self.resolution_until) != len(self.resolution) - 1 or sorted(ends) != list(ends):
            raise ValueError(
                "resolution_until must grow within [0, 1] and have one entry less than resolution, got "
                f"{list(self.resolution_until)} for {list(self.resolution)}"
            )

    def _check_objective(self, name: str, objective: ObjectiveConfig) -> None:
        """Raise ValueError where an objective does not fit the other settings of the stage."""
        if not NAME.fullmatch(name) or name in RESERVED:
            raise ValueError(
                f"the names of objectives must be up to 64 letters, digits, - and _, and not one of "
                f"{', '.join(RESERVED)}, got {shown(name)}"
            )
        pixels = objective.batch * max(self.resolution) ** 2
        if pixels > MAX_PIXELS:
            raise ValueError(
                f"the views of a step must have at most {MAX_PIXELS} pixels, got {pixels} in "
                f"objectives.{name}; lower its batch or the resolution"
            )
        missing = objective.cameras.requires().inputs - self.representation.requires().inputs
        if missing:
            raise ValueError(
                f"objectives.{name}.cameras.kind {objective.cameras.kind} must go with a representation of a "
                f"given {' and '.join(sorted(missing))}, got representation.kind {self.representation.kind}"
            )

    def parameter_norms(self) -> set[float]:
        """The values of `max_norm` of the objectives that clip parameter gradients."""
        norms = {getattr(objective.clip, "max_norm", None) for objective in self.objectives.values()}
        return {norm for norm in norms if norm is not None}

    def requires(self) -> Requirements:
        """The requirements of the representation, all objectives and the initial views together."""
        parts = [objective.requires() for objective in self.objectives.values()]
        if self.init is not None:
            parts.append(self.init.requires())
        return reduce(or_, parts, self.representation.requires())

    def resolution_at(self, progress: float) -> int:
        """Side of the renders in pixels, at a progress in [0, 1]."""
        return self.resolution[sum(progress >= end for end in self.resolution_until)]

    def scaled_to(self, resolution: int) -> tuple[int, ...]:
        """The resolutions of all phases scaled so that the last one is `resolution`, in multiples of 8."""
        earlier = (round(side * resolution / self.resolution[-1] / 8) * 8 for side in self.resolution[:-1])
        return (*(max(16, side) for side in earlier), resolution)
