"""Measured times and sizes that `pgc3d plan` estimates with: the one place where such numbers are entered.

Each row names the device by torch's name for it, and the page of the documentation or the script that it
comes from. A number that is not here was not measured; nothing is derived for another device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pgc3d.model_size import ModelSize

H100, H200, TWO_CORES = "NVIDIA H100 80GB HBM3", "NVIDIA H200", "cpu with 2 cores"
PERFORMANCE = "docs/pages/results/performance.md"
QUALITY = "docs/pages/results/time-to-quality.md"
TEXTURES = "docs/pages/results/texture.md"


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
class ImageTime:
    """The time of a step for each image that a model evaluates, with rendering and the optimiser."""

    work: Work
    device: str
    ms: float
    representation: str  # kind of what was optimised
    source: str
    note: str = ""  # what the number lacks or has in addition


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

    images: tuple[ImageTime, ...] = ()
    parts: tuple[Parts, ...] = ()
    initial_views: tuple[InitialViews, ...] = ()
    scaling: tuple[Scaling, ...] = ()
    memory: Mapping[str, float] = field(default_factory=dict)  # bytes of a device

    @property
    def devices(self) -> list[str]:
        """The devices with a measured time of an image."""
        return sorted({row.device for row in self.images})

    def image(self, work: Work, device: str, representation: str) -> ImageTime | None:
        """The row of some work on a device, that of the same representation where there is one."""
        found = [row for row in self.images if (row.work, row.device) == (work, device)]
        return min(found, key=lambda row: row.representation != representation, default=None)

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
            images=other.images + self.images,
            parts=other.parts + self.parts,
            initial_views=other.initial_views + self.initial_views,
            scaling=other.scaling + self.scaling,
            memory={**self.memory, **other.memory},
        )


SDXL, SD, ZERO123 = Work("sdxl", 1024), Work("sd", 512), Work("zero123", 256)
ALONE = "the guidance alone, without rendering"
MEASURED = Times(
    images=(
        ImageTime(SDXL, H200, 237 / 4, "textured_mesh", QUALITY),
        ImageTime(Work("sdxl", 1024, evaluations=3), H200, 330 / 4, "textured_mesh", TEXTURES),
        ImageTime(SDXL, H100, 251.3 / 4, "textured_mesh", PERFORMANCE),
        ImageTime(SDXL, H100, 118.1 / 2, "dmtet", PERFORMANCE),
        ImageTime(Work("sdxl", 1024, low_memory=True), H100, 410 / 4, "textured_mesh", PERFORMANCE),
        ImageTime(
            Work("sdxl", 1024, controls=("sdxl-depth",)), H100, 288.6 / 4, "none", PERFORMANCE, note=ALONE
        ),
        ImageTime(SD, H200, 60 / 4, "dmtet", PERFORMANCE),
        ImageTime(SD, H100, 44.2 / 4, "none", PERFORMANCE, note=ALONE),
        ImageTime(
            Work("sd", 512, controls=("sd-depth",)), H100, 52.9 / 4, "none", PERFORMANCE, note=ALONE
        ),
        ImageTime(ZERO123, H200, 63 / 4, "dmtet", PERFORMANCE, note="with the view of the input image"),
        ImageTime(ZERO123, H200, 259 / 4, "nerf", PERFORMANCE, note="with the view of the input image"),
        ImageTime(Work("mini", 128), H100, 25.8 / 2, "dmtet", PERFORMANCE, note="the mean over both sizes"),
        ImageTime(Work("mini", 256), H100, 25.8 / 2, "dmtet", PERFORMANCE, note="the mean over both sizes"),
        ImageTime(
            Work("mini image", 256), H100, 46 / 2, "dmtet", PERFORMANCE,
            note="with the view of the input image",
        ),
        # 75.1 s of 360 steps of two views, the last 54 at 256 px, each of which took 3.1 times as long
        ImageTime(Work("mini", 128), TWO_CORES, 79.0, "dmtet", PERFORMANCE),
        ImageTime(Work("mini", 256), TWO_CORES, 246.0, "dmtet", PERFORMANCE),
    ),
    parts=(
        Parts("sdxl", H200, QUALITY, start=11.4, build=21.4, export=2.3, first=60.4),
        Parts(
            "sdxl", H100, PERFORMANCE, start=0.0, build=24.0, export=6.4, first=105.0,
            note="start is part of build, and previews are part of export",
        ),
        Parts("mini", H100, PERFORMANCE, start=6.0, build=9.7, export=3.7, first=24.4),
        Parts("mini image", H100, PERFORMANCE, start=5.0, build=7.8, export=2.7),
        # the export has a formula of its own, see `eta.export_seconds`
        Parts("mini", TWO_CORES, PERFORMANCE, start=7.5, build=4.0),
    ),
    initial_views=(InitialViews("sdxl", H200, 10, 20, 80, 24.7, QUALITY),),
    scaling=(),  # not measured yet
    memory={H100: 84.9e9, H200: 150e9},
)  # fmt: skip

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
