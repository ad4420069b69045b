"""Measured times and sizes that `pgc3d plan` estimates with: the one place where such numbers are entered.

Each row names the device by torch's name for it, and the page of the documentation or the script that it
comes from. A number that is not here was not measured; nothing is derived for another device.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pgc3d.planning.model_size import ModelSize

H100, H200, TWO_CORES = "NVIDIA H100 80GB HBM3", "NVIDIA H200", "cpu with 2 cores"
PERFORMANCE = "docs/pages/results/performance.md"
QUALITY = "docs/pages/results/time-to-quality.md"
TEXTURES = "docs/pages/results/texture.md"
GPUS = "docs/pages/gpus.md"


@dataclass(frozen=True)
class Work:
    """What the time of an image depends on, beside the device."""

    model: str  # "sdxl", "sd", "zero123", "mini", "mini image"
    side: int  # of the images that the model evaluates, in pixels
    evaluations: int = 2  # of the UNet for each image
    controls: tuple[str, ...] = ()  # names of its ControlNets, sorted
    trains: bool = False  # adapters
    low_memory: bool = False
    is_fast: bool = True  # see `ModelConfig.fast`
    precision: str = "auto"  # see `ModelConfig.dtype`

    def __str__(self) -> str:
        """The work in words."""
        parts = [f"{self.model} at {self.side} px"]
        parts += [f"with {' and '.join(self.controls)}"] if self.controls else []
        parts += [f"with {self.evaluations} evaluations"] if self.evaluations != 2 else []
        parts += ["training adapters"] if self.trains else []
        parts += ["as with --low-memory"] if self.low_memory else []
        parts += ["by diffusers' own code"] if not self.is_fast else []
        parts += [f"in {self.precision}"] if self.precision != "auto" else []
        return ", ".join(parts)


@dataclass(frozen=True)
class StepTime:
    """The time of a step with images of one kind of work, with rendering and the optimiser."""

    work: Work
    device: str
    ms: float
    images: int  # in the step, which a model evaluates
    representation: str  # kind of what was optimised; "" for the guidance alone
    rendered: int  # side of the renders, in pixels
    source: str
    note: str = ""  # what the number lacks or has in addition

    @property
    def seconds_of_an_image(self) -> float:
        """The part of an image in the step."""
        return self.ms / 1000 / self.images

    def difference(self, images: int, representation: str, rendered: int) -> str:
        """What another step with the same work has in place of this one's, in words; "" where it is alike."""
        if not self.representation:
            return f"{self.work}: measured without rendering and the optimiser"
        own = (self.images, self.representation, self.rendered)
        if own == (images, representation, rendered):
            return ""
        return (
            f"{self.work}: measured with {self.images} images a step, {self.representation} at "
            f"{self.rendered} px; this has {images}, {representation} at {rendered} px"
        )


@dataclass(frozen=True)
class Parts:
    """Times of a run beside its steps, in seconds; None where it was not measured."""

    model: str  # of the last stage
    device: str
    source: str
    start: float | None = None  # Python, imports, the end of the process
    build: float | None = None  # loading the models, encoding the prompt, preparing the mesh
    export: float | None = None
    first: float | None = None  # more, at the first start on a computer, where kernels are compiled
    note: str = ""


@dataclass(frozen=True)
class InitialViews:
    """The time of initial views, which depends on their number and their steps."""

    model: str
    device: str
    views: int
    steps: int
    fit_steps: int
    seconds: float
    source: str


@dataclass(frozen=True)
class Scaling:
    """The efficiency of one run on several GPUs.

    A step takes the time of one GPU for the most views that any of them has, divided by `efficiency`.
    """

    model: str
    device: str
    gpus: int
    efficiency: float  # in (0, 1]
    source: str


@dataclass(frozen=True)
class Times:
    """Measured numbers; where several rows fit, the first one counts."""

    steps: tuple[StepTime, ...] = ()
    parts: tuple[Parts, ...] = ()
    initial_views: tuple[InitialViews, ...] = ()
    scaling: tuple[Scaling, ...] = ()
    memory: Mapping[str, float] = field(default_factory=dict)  # bytes of a device

    @property
    def devices(self) -> list[str]:
        """The devices with a measured time of a step."""
        return sorted({row.device for row in self.steps})

    def step(
        self, work: Work, device: str, images: int, representation: str, rendered: int
    ) -> StepTime | None:
        """The row of some work on a device whose step is most alike.

        Args:
            work: of each image.
            device: its name.
            images: in the step.
            representation: kind of what is optimised.
            rendered: side of the renders, in pixels.
        """

        def unlike(row: StepTime) -> tuple[bool, bool, float, int]:
            size = abs(math.log2(row.rendered / rendered)) if row.rendered else 0.0
            return (
                not row.representation,
                row.representation != representation,
                size,
                abs(row.images - images),
            )

        found = [row for row in self.steps if (row.work, row.device) == (work, device)]
        return min(found, key=unlike, default=None)

    def parts_of(self, model: str, device: str) -> Parts | None:
        """The times beside the steps of runs with a model on a device."""
        return next((row for row in self.parts if (row.model, row.device) == (model, device)), None)

    def efficiency(self, model: str, device: str, gpus: int) -> Scaling | None:
        """The row of a number of GPUs; None where it was not measured."""
        key = (model, device, gpus)
        return next((row for row in self.scaling if (row.model, row.device, row.gpus) == key), None)

    def __or__(self, other: "Times") -> "Times":
        """The rows of both; those of `other` count first."""
        return Times(
            steps=other.steps + self.steps,
            parts=other.parts + self.parts,
            initial_views=other.initial_views + self.initial_views,
            scaling=other.scaling + self.scaling,
            memory={**self.memory, **other.memory},
        )


SDXL, SD, ZERO123 = Work("sdxl", 1024), Work("sd", 512), Work("zero123", 256)
SDXL_DEPTH, SD_DEPTH = (replace(work, controls=(f"{work.model}-depth",)) for work in (SDXL, SD))
REFERENCE = "with the view of the input image"
MEAN = "the mean over both sizes of a run"
MEASURED = Times(
    steps=(
        StepTime(SDXL, H200, 232.0, 4, "textured_mesh", 1024, QUALITY),
        StepTime(SDXL, H200, 464.0, 8, "textured_mesh", 1024, GPUS),
        StepTime(SDXL_DEPTH, H200, 290.0, 4, "textured_mesh", 1024, GPUS),
        StepTime(SDXL_DEPTH, H200, 580.0, 8, "textured_mesh", 1024, GPUS),
        StepTime(Work("mini", 128), H200, 27.6, 4, "dmtet", 128, GPUS),
        StepTime(Work("mini", 128), H200, 19.7, 4, "nerf", 128, GPUS),
        StepTime(replace(SDXL, evaluations=3), H200, 330.0, 4, "textured_mesh", 1024, TEXTURES),
        StepTime(replace(SDXL, evaluations=1), H200, 175.0, 4, "textured_mesh", 1024, QUALITY),
        StepTime(replace(SDXL, low_memory=True), H200, 281.0, 4, "textured_mesh", 1024, QUALITY),
        StepTime(Work("sdxl", 512), H200, 62.0, 4, "textured_mesh", 512, QUALITY),
        StepTime(SDXL, H100, 251.3, 4, "textured_mesh", 1024, PERFORMANCE),
        StepTime(SDXL, H100, 118.1, 2, "dmtet", 1024, PERFORMANCE),
        StepTime(SDXL_DEPTH, H100, 75.3, 1, "", 0, PERFORMANCE),
        StepTime(SDXL_DEPTH, H100, 144.4, 2, "", 0, PERFORMANCE),
        StepTime(SDXL_DEPTH, H100, 288.6, 4, "", 0, PERFORMANCE),
        StepTime(SD, H200, 60.0, 4, "dmtet", 512, PERFORMANCE),
        StepTime(SD, H200, 51.0, 1, "dmtet", 512, PERFORMANCE),
        StepTime(SD, H200, 58.0, 1, "nerf", 64, PERFORMANCE),
        StepTime(SD, H200, 72.0, 4, "textured_mesh", 512, PERFORMANCE, "with a material"),
        StepTime(replace(SD, trains=True), H200, 546.0, 1, "nerf", 512, PERFORMANCE),
        StepTime(replace(SD, trains=True), H200, 372.0, 1, "textured_mesh", 512, PERFORMANCE),
        StepTime(SD, H100, 18.4, 1, "", 0, PERFORMANCE),
        StepTime(SD, H100, 24.0, 2, "", 0, PERFORMANCE),
        StepTime(SD, H100, 44.2, 4, "", 0, PERFORMANCE),
        StepTime(SD_DEPTH, H100, 18.1, 1, "", 0, PERFORMANCE),
        StepTime(SD_DEPTH, H100, 29.0, 2, "", 0, PERFORMANCE),
        StepTime(SD_DEPTH, H100, 52.9, 4, "", 0, PERFORMANCE),
        StepTime(ZERO123, H200, 63.0, 4, "dmtet", 256, PERFORMANCE, REFERENCE),
        StepTime(ZERO123, H200, 57.0, 8, "dmtet", 256, PERFORMANCE, REFERENCE),
        StepTime(ZERO123, H200, 259.0, 4, "nerf", 256, PERFORMANCE, REFERENCE),
        StepTime(Work("mini", 128), H100, 25.8, 2, "dmtet", 128, PERFORMANCE, MEAN),
        StepTime(Work("mini", 256), H100, 25.8, 2, "dmtet", 256, PERFORMANCE, MEAN),
        StepTime(Work("mini image", 256), H100, 46.0, 2, "dmtet", 256, PERFORMANCE, REFERENCE),
        # 75.1 s of 360 steps, the last 54 at 256 px, each of which took 3.1 times as long
        StepTime(Work("mini", 128), TWO_CORES, 158.0, 2, "dmtet", 128, PERFORMANCE),
        StepTime(Work("mini", 256), TWO_CORES, 492.0, 2, "dmtet", 256, PERFORMANCE),
    ),
    parts=(
        Parts("sdxl", H200, QUALITY, start=4.7, build=8.3, export=3.5, first=60.4),
        Parts("sdxl", H100, PERFORMANCE, 0.0, 24.0, 6.4, 105.0, "start is in build, previews are in export"),
        Parts("mini", H100, PERFORMANCE, start=6.0, build=9.7, export=3.7, first=24.4),
        Parts("mini image", H100, PERFORMANCE, start=5.0, build=7.8, export=2.7),
        # the export has a formula of its own, see `eta.export_seconds`
        Parts("mini", TWO_CORES, QUALITY, start=2.9, build=3.4),
    ),
    initial_views=(
        InitialViews("sdxl", H200, 10, 20, 80, 24.7, QUALITY),
        InitialViews("mini", TWO_CORES, 9, 16, 80, 36.1, QUALITY),
    ),
    scaling=(
        Scaling("sdxl", H200, 2, 0.98, GPUS),  # four views on one take 232 ms, eight on two 236 ms
        Scaling("mini", H200, 2, 0.8, GPUS),  # the slower one, a NeRF
    ),
    memory={H100: 84.9e9, H200: 150e9},
)

# Of published models, for plans where their weights are not on this disk.
_SDXL = ModelSize(
    unet_parameters=2_567_463_684,
    unet_channels=320,
    vae_channels=(128, 256, 512, 512),
    vae_layers=2,
    resolution=1024,
)
SIZES: Mapping[str, ModelSize] = {
    "sdxl": _SDXL,
    "sd": ModelSize(859_520_964, 320, (128, 256, 512, 512), 2, 512),
    "zero123": ModelSize(859_532_484, 320, (128, 256, 512, 512), 2, 256),
}
CONTROL_SIZES: Mapping[str, int] = {
    "sdxl-depth": 1_251_014_160,
    "sdxl-depth-small": 160_000_000,
    "sd-depth": 361_279_120,
    "sd-normal": 361_279_120,
}
