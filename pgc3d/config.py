"""The typed configuration of a run and how it is put together.

Layers, later ones win: defaults, the presets of guidance and quality in `configs/`, the cameras that a
novel-view model's folder names, `--config` files, command-line options, `--set key=value`. A layer that
names another `kind` replaces that entry by the defaults of the new kind. A file that names objectives
replaces the default set of objectives.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import yaml
from omegaconf import OmegaConf, read_write

from pgc3d.cameras import CamerasConfig, OrbitConfig, ViewConfig
from pgc3d.closeups import CloseUpConfig
from pgc3d.errors import ConfigError
from pgc3d.guidance.reference import ReferenceConfig
from pgc3d.guidance.sds import SdsConfig
from pgc3d.guidance.zero123 import Zero123Config
from pgc3d.inputs.colors import COLORS, named_color
from pgc3d.inputs.image import PhotoConfig
from pgc3d.layers import check_parts, merge, nearest
from pgc3d.pgc import ClipConfig, ParameterClip, PixelClip
from pgc3d.prompts import ViewPromptConfig
from pgc3d.ranges import LEAST_EPS, check, number, schedule, shown
from pgc3d.render import Backend
from pgc3d.representation.dmtet import DMTetConfig
from pgc3d.representation.textured_mesh import TexturedMeshConfig
from pgc3d.yaml_text import one_line, parse_override, read_yaml

PRESETS = Path(__file__).parent / "configs"
BACKGROUNDS = (*COLORS, "random", "image")
MAX_STEPS = 10_000_000
MAX_PIXELS = 2**28  # of a step's views: 300 GB of what the renderer keeps

Precision = Literal["auto", "float32", "float16", "bfloat16"]
GuidanceConfig: TypeAlias = SdsConfig | Zero123Config | ReferenceConfig
RepresentationConfig: TypeAlias = DMTetConfig | TexturedMeshConfig
CameraConfig: TypeAlias = CamerasConfig | CloseUpConfig


@dataclass(frozen=True)
class ModelConfig:
    """The text-to-image model behind the guidance; all objectives of kind `sds` share it."""

    name: str = "mini"  # "mini", an alias as "sdxl", a hub id, a folder in diffusers' layout, or one file
    # Of a single file: whose configurations and tokenizers it takes, None for what such files are made from.
    base: str | None = None
    prediction: Literal["auto", "epsilon", "v_prediction"] = "auto"  # of the UNet; auto asks the checkpoint
    empty_prompt: Literal["text", "zeros"] = "text"  # what an empty negative prompt becomes
    loras: tuple[str, ...] = ()  # FILE or OWNER/NAME[:FILE], each with or without :SCALE; safetensors
    dtype: Precision = "auto"  # of the UNet and the text encoders
    vae: str | None = None  # another VAE's folder, hub id or alias, as "sdxl-vae-fp16-fix"
    vae_dtype: Precision = "auto"
    fast: Literal["auto", "never"] = "auto"  # auto: own encoder and compiled UNet on CUDA; else diffusers'
    view_prompts: ViewPromptConfig | None = None  # None: the model's own, else the usual four sectors

    def __post_init__(self) -> None:
        check(self)
        if not self.name.strip():
            raise ValueError("name must be a model, got an empty text")


@dataclass(frozen=True)
class ImageModelConfig:
    """The novel-view model behind the guidance; all objectives of kind `zero123` share it."""

    name: str = "mini"  # "mini", an alias as "zero123", a hub id, or a folder in diffusers' layout
    dtype: Precision = "auto"  # of the UNet and the image encoder
    vae: str | None = None  # another VAE's folder or hub id
    vae_dtype: Precision = "auto"
    pose: Literal["auto", "radius", "polar"] = "auto"  # the 4th entry of its pose; auto asks the checkpoint

    def __post_init__(self) -> None:
        check(self)
        if not self.name.strip():
            raise ValueError("name must be a model, got an empty text")


@dataclass(frozen=True)
class ObjectiveConfig:
    """One guidance, the cameras it looks through, and what is done to its gradient."""

    guidance: GuidanceConfig = field(default_factory=SdsConfig)
    clip: ClipConfig = field(default_factory=PixelClip)
    cameras: CameraConfig = field(default_factory=OrbitConfig)
    backgrounds: tuple[str, ...] = ("white",)  # names or #rrggbb; every view draws one
    batch: int = number(4, 1, 1024, unit="views")  # of a step
    weight: float = number(1.0, 1e-6, 1e6)
    target: Literal["color", "normal"] = "color"

    def __post_init__(self) -> None:
        check(self)
        check(self.clip)  # whose module stands alone
        if isinstance(self.guidance, ReferenceConfig) and (self.cameras.kind, self.target) != (
            "reference",
            "color",
        ):
            raise ValueError(
                "the guidance 'reference' must have cameras of kind 'reference' and the target 'color', got "
                f"{self.cameras.kind!r} and {self.target!r}"
            )
        if isinstance(self.guidance, ReferenceConfig) and "image" in self.backgrounds:
            raise ValueError("the guidance 'reference' must have backgrounds of one colour, got 'image'")
        if not self.backgrounds:
            raise ValueError(f"backgrounds must name at least one of {', '.join(BACKGROUNDS)}")
        for name in self.backgrounds:
            if name not in BACKGROUNDS and named_color(name) is None:
                raise ValueError(
                    f"backgrounds must be of {', '.join(BACKGROUNDS)} or #rrggbb, got {name!r}"
                    f"{nearest(name, BACKGROUNDS)}"
                )


@dataclass(frozen=True)
class RunConfig:
    """How long, where, and at which resolutions."""

    steps: int = number(500, 1, MAX_STEPS)
    seed: int = number(0, 0, 2**63 - 1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rasterizer: Backend = "auto"  # auto: triton on CUDA, cpu on a CPU
    resolution: tuple[int, ...] = number((128, 256), 16, 4096, unit="pixels")  # one per stage
    # Progress at which each stage but the last one ends.
    resolution_until: tuple[float, ...] = number((0.6,), 0.0, 1.0)
    # Views that a guidance looks at at once, 0 for all; the same result in less memory.
    micro_batch: int = number(0, 0, 1024, unit="views")
    low_memory: bool = False  # one view at once, and recompute what would have to be kept

    def __post_init__(self) -> None:
        check(self)
        ends = (0.0, *self.resolution_until, 1.0)
        if not self.resolution:
            raise ValueError("resolution must have at least one entry, got []")
        if len(self.resolution_until) != len(self.resolution) - 1 or sorted(ends) != list(ends):
            raise ValueError(
                "resolution_until must grow within [0, 1] and have one entry less than resolution, got "
                f"{list(self.resolution_until)} for {list(self.resolution)}"
            )

    def resolution_at(self, progress: float) -> int:
        """The resolution of the stage that `progress` lies in."""
        return self.resolution[sum(progress >= end for end in self.resolution_until)]

    def scaled_to(self, resolution: int) -> tuple[int, ...]:
        """The stages with their proportions kept and `resolution` as the last one, in multiples of 8."""
        earlier = (round(side * resolution / self.resolution[-1] / 8) * 8 for side in self.resolution[:-1])
        return (*(max(16, side) for side in earlier), resolution)


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam; the learning rates belong to the representation."""

    betas: tuple[float, float] = number((0.9, 0.99), 0.0, 1.0, below=True)
    eps: float = number(1e-15, LEAST_EPS, 1.0)
    # A schedule (see PiecewiseLinear) that all learning rates follow.
    lr_scale: tuple[float, ...] = schedule((1.0,), 0.0, 1000.0)
    max_skipped: int = number(20, 1, MAX_STEPS)  # non-finite steps in a row that end the run

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ExportConfig:
    """What is written at the end."""

    format: Literal["glb", "obj", "ply", "stl"] = "glb"
    texture_size: int = number(1024, 64, 8192, unit="pixels")
    faces: int = number(20_000, 4, 10**9, also={0: "all of them"})  # decimate to this many

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class LoggingConfig:
    """Steps between the things a run writes while it goes on; 0 previews means none."""

    log_every: int = number(10, 1, MAX_STEPS, unit="steps")
    preview_every: int = number(100, 0, MAX_STEPS, unit="steps")
    checkpoint_every: int = number(200, 1, MAX_STEPS, unit="steps")
    preview_resolution: int = number(256, 16, 2048, unit="pixels")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on, except its task."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    image_model: ImageModelConfig = field(default_factory=ImageModelConfig)
    photo: PhotoConfig = field(default_factory=PhotoConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    representation: RepresentationConfig = field(default_factory=DMTetConfig)
    objectives: dict[str, ObjectiveConfig] = field(default_factory=lambda: {"color": ObjectiveConfig()})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ValueError("objectives must hold at least one entry")
        for name, objective in self.objectives.items():
            _check_objective(name, objective, self)
        clips = [objective.clip for objective in self.objectives.values()]
        norms = {clip.max_norm for clip in clips if isinstance(clip, ParameterClip)}
        if len(norms) > 1:
            raise ValueError(
                f"max_norm must be the same in all objectives that clip parameters, got {sorted(norms)}"
            )
        blind = [name for name, objective in self.objectives.items() if objective.target == "normal"]
        if blind and isinstance(self.representation, TexturedMeshConfig):
            raise ValueError(
                "objectives of a given mesh must have the target color, since its shape is fixed, got normal "
                f"for {', '.join(blind)}"
            )


def _check_objective(name: str, objective: ObjectiveConfig, config: Config) -> None:
    """What an objective must have in common with the rest, and its name with the files that it stands in."""
    if not re.fullmatch(r"[\w-]{1,64}", name) or name == "seconds":
        raise ValueError(
            "the names of objectives must be up to 64 letters, digits, - and _, and not 'seconds', got "
            f"{shown(name)}"
        )
    pixels = objective.batch * max(config.run.resolution) ** 2
    if pixels > MAX_PIXELS:
        raise ValueError(
            f"the views of a step must have at most {MAX_PIXELS} pixels, objectives.{name} has {pixels}; "
            "lower its batch or run.resolution"
        )
    if isinstance(objective.cameras, CloseUpConfig) and not isinstance(
        config.representation, TexturedMeshConfig
    ):
        raise ValueError(
            f"objectives.{name}.cameras.kind close_up must go with representation.kind textured_mesh, got "
            f"{config.representation.kind}"
        )


def load_config(
    files: Sequence[Path | Mapping[str, Any]] = (),
    *,
    options: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """Put a configuration together.

    Args:
        files: YAML files, or what one could hold; later ones win.
        options: a nested mapping, wins over the files; entries that are None are left out.
        overrides: `key=value` with dots between the keys, win over everything.

    Raises:
        ConfigError: one line with the key, what is wrong with it, and the nearest valid key.
    """
    tree = OmegaConf.structured(Config)
    for file in files:
        layer = read_yaml(file) if isinstance(file, Path) else file
        if isinstance(layer.get("objectives"), dict) and layer["objectives"]:
            for name in set(tree.objectives) - set(layer["objectives"]):
                with read_write(tree.objectives):
                    del tree.objectives[name]
        tree = merge(tree, layer, Config, str(file) if isinstance(file, Path) else "")
    if options:
        tree = merge(tree, _without_none(options), Config, "")
    for override in overrides:
        tree = merge(tree, parse_override(override), Config, "--set")
    one_line(lambda: check_parts(tree), "")
    return cast("Config", OmegaConf.to_object(tree))


def dump_config(config: Config, *, ascii_only: bool = False) -> str:
    """The configuration as YAML, on demand with escapes; `load_config` gives it back unchanged."""
    tree = OmegaConf.structured(config)
    if ascii_only:
        return str(yaml.safe_dump(OmegaConf.to_container(tree), sort_keys=False))
    return OmegaConf.to_yaml(tree)


def preset(name: str) -> Path:
    """The file of a preset that ships with the package.

    Raises:
        ConfigError: there is none of that name.
    """
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        raise ConfigError(f"a preset must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    return path


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    cleaned = {
        key: _without_none(value) if isinstance(value, Mapping) else value for key, value in options.items()
    }
    return {key: value for key, value in cleaned.items() if value is not None and value != {}}
