"""The typed configuration of a run and how it is put together.

Layers, later ones win: defaults, the presets of guidance and quality in `configs/`, the cameras that a
novel-view model's folder names, `--config` files, command-line options, `--set key=value`. A layer that
names another `kind` replaces that entry by the defaults of the new kind. A file that names objectives
replaces the default set of objectives.
"""

import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pgc3d.cameras import CamerasConfig, OrbitConfig, ViewConfig
from pgc3d.closeups import CloseUpConfig
from pgc3d.errors import ConfigError
from pgc3d.guidance.reference import ReferenceConfig
from pgc3d.guidance.sds import SdsConfig
from pgc3d.guidance.zero123 import Zero123Config
from pgc3d.pgc import ClipConfig, PixelClip
from pgc3d.photo import PhotoConfig
from pgc3d.prompts import ViewPromptConfig
from pgc3d.render import Backend
from pgc3d.representation.dmtet import DMTetConfig
from pgc3d.representation.textured_mesh import TexturedMeshConfig
from pgc3d.schedules import PiecewiseLinear

PRESETS = Path(__file__).parent / "configs"
COLORS: Mapping[str, tuple[float, float, float]] = {
    "white": (1.0, 1.0, 1.0),
    "gray": (0.5, 0.5, 0.5),
    "black": (0.0, 0.0, 0.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 0.5, 0.0),
    "blue": (0.0, 0.0, 1.0),
}
BACKGROUNDS = (*COLORS, "random", "image")

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


@dataclass(frozen=True)
class ImageModelConfig:
    """The novel-view model behind the guidance; all objectives of kind `zero123` share it."""

    name: str = "mini"  # "mini", an alias as "zero123", a hub id, or a folder in diffusers' layout
    dtype: Precision = "auto"  # of the UNet and the image encoder
    vae: str | None = None  # another VAE's folder or hub id
    vae_dtype: Precision = "auto"
    pose: Literal["auto", "radius", "polar"] = "auto"  # the 4th entry of its pose; auto asks the checkpoint


@dataclass(frozen=True)
class ObjectiveConfig:
    """One guidance, the cameras it looks through, and what is done to its gradient."""

    guidance: GuidanceConfig = field(default_factory=SdsConfig)
    clip: ClipConfig = field(default_factory=PixelClip)
    cameras: CameraConfig = field(default_factory=OrbitConfig)
    backgrounds: tuple[str, ...] = ("white",)  # of BACKGROUNDS, "image" is the task's; every view draws one
    batch: int = 4  # views per step
    weight: float = 1.0
    target: Literal["color", "normal"] = "color"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if not self.weight > 0:
            raise ValueError(f"weight must be positive, got {self.weight}")
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
            if name not in BACKGROUNDS:
                raise ValueError(
                    f"backgrounds must be of {', '.join(BACKGROUNDS)}, got {name!r}"
                    f"{_nearest(name, BACKGROUNDS)}"
                )


@dataclass(frozen=True)
class RunConfig:
    """How long, where, and at which resolutions."""

    steps: int = 500
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rasterizer: Backend = "auto"  # auto: triton on CUDA, cpu on a CPU
    resolution: tuple[int, ...] = (128, 256)  # pixels, one per stage
    resolution_until: tuple[float, ...] = (0.6,)  # progress at which each stage but the last one ends
    micro_batch: int = 0  # views that a guidance looks at at once, 0 for all; the same result in less memory
    low_memory: bool = False  # one view at once, and recompute what would have to be kept

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in [0, 2^63), got {self.seed}")
        if not self.resolution or any(not 16 <= side <= 4096 for side in self.resolution):
            raise ValueError(f"resolution must lie in [16, 4096], got {list(self.resolution)}")
        if self.micro_batch < 0:
            raise ValueError(f"micro_batch must not be negative, got {self.micro_batch}")
        ends = (0.0, *self.resolution_until, 1.0)
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

    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-15
    lr_scale: tuple[float, ...] = (1.0,)  # schedule (see PiecewiseLinear) that all learning rates follow
    max_skipped: int = 20  # non-finite steps in a row that end the run

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        if not self.eps > 0:
            raise ValueError(f"eps must be positive, got {self.eps}")
        if min(PiecewiseLinear(self.lr_scale).values) < 0:
            raise ValueError(f"lr_scale must not be negative, got {list(self.lr_scale)}")
        if self.max_skipped < 1:
            raise ValueError(f"max_skipped must be at least 1, got {self.max_skipped}")


@dataclass(frozen=True)
class ExportConfig:
    """What is written at the end."""

    format: Literal["glb", "obj", "ply", "stl"] = "glb"
    texture_size: int = 1024
    faces: int = 20_000  # decimate to this many, 0 keeps all

    def __post_init__(self) -> None:
        if not 64 <= self.texture_size <= 8192:
            raise ValueError(f"texture_size must lie in [64, 8192], got {self.texture_size}")
        if self.faces < 0 or 0 < self.faces < 4:
            raise ValueError(f"faces must be 0 (keep all) or at least 4, got {self.faces}")


@dataclass(frozen=True)
class LoggingConfig:
    """Steps between the things a run writes while it goes on; 0 previews means none."""

    log_every: int = 10
    preview_every: int = 100
    checkpoint_every: int = 200
    preview_resolution: int = 256

    def __post_init__(self) -> None:
        if self.log_every < 1 or self.checkpoint_every < 1 or self.preview_every < 0:
            raise ValueError("log_every and checkpoint_every must be at least 1, preview_every at least 0")
        if not 16 <= self.preview_resolution <= 2048:
            raise ValueError(f"preview_resolution must lie in [16, 2048], got {self.preview_resolution}")


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
        blind = [name for name, objective in self.objectives.items() if objective.target == "normal"]
        if blind and isinstance(self.representation, TexturedMeshConfig):
            raise ValueError(
                "objectives of a given mesh must have the target color, since its shape is fixed, got normal "
                f"for {', '.join(blind)}"
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
        tree = _merge(tree, layer, str(file) if isinstance(file, Path) else "")
    if options:
        tree = _merge(tree, _without_none(options), "")
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set must be key=value, got {override!r}")
        layer = _one_line(partial(OmegaConf.from_dotlist, [override]), "--set")
        tree = _merge(tree, OmegaConf.to_container(layer), "--set")
    _one_line(lambda: _check(tree, ""), "")
    return typing.cast(Config, OmegaConf.to_object(tree))


def dump_config(config: Config) -> str:
    """The configuration as YAML; `load_config` gives it back unchanged."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def preset(name: str) -> Path:
    """The file of a preset that ships with the package.

    Raises:
        ConfigError: there is none of that name.
    """
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        raise ConfigError(f"a preset must be one of {', '.join(known)}, got {name!r}{_nearest(name, known)}")
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, unchecked.

    Raises:
        ConfigError: there is no such file, or it is not a YAML mapping.
    """
    if not path.is_file():
        raise ConfigError(f"the configuration file must exist, but {path} does not; give a YAML file")
    tree = _one_line(lambda: OmegaConf.load(path), str(path))
    layer = OmegaConf.to_container(tree)
    if not isinstance(layer, dict):
        raise ConfigError(f"{path} must hold keys and values, got a {type(layer).__name__}")
    return typing.cast(dict[str, Any], layer)


def _merge(tree: DictConfig, layer: Any, source: str) -> DictConfig:
    _one_line(lambda: _switch_kinds(tree, layer, Config, ""), source)
    merged = _one_line(lambda: OmegaConf.merge(tree, layer), source)
    return typing.cast(DictConfig, merged)


def _switch_kinds(node: Any, layer: Mapping[str, Any], schema: Any, path: str) -> None:
    """Put defaults where a layer names a new kind of a family or a new entry of a mapping."""
    for key, value in layer.items():
        expected = _field_type(schema, key)
        where = f"{path}{key}"
        if expected is None or not (
            is_dataclass(_members(expected)[0]) or typing.get_origin(expected) is dict
        ):
            continue
        if value is None and types.NoneType in typing.get_args(expected):
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must hold keys and values, got {value!r}")
        if "kind" in value:
            members = {_kind(member): member for member in _members(expected)}
            if value["kind"] not in members:
                nearest = _nearest(str(value["kind"]), members)
                raise ConfigError(
                    f"{where}.kind must be one of {', '.join(members)}, got {value['kind']!r}{nearest}"
                )
            expected = members[value["kind"]]
            if key not in node or node[key].kind != value["kind"]:
                _assign(node, key, expected)
        elif key not in node or node[key] is None:
            expected = _members(expected)[0]
            _assign(node, key, expected)
        elif is_dataclass(OmegaConf.get_type(node[key])):
            expected = OmegaConf.get_type(node[key])
        _switch_kinds(node[key], value, expected, f"{where}.")


def _assign(node: Any, key: str, member: Any) -> None:
    with read_write(node):
        node[key] = OmegaConf.structured(member)


def _check(node: Any, path: str) -> None:
    """Build every part by itself, the inner ones first, so that a bad value is reported with its place."""
    for key in node:
        child = node[key]
        if isinstance(child, DictConfig):
            _check(child, f"{path}.{key}" if path else str(key))
    if is_dataclass(OmegaConf.get_type(node)):
        _one_line(lambda: OmegaConf.to_object(node), path)


def _field_type(schema: Any, key: str) -> Any:
    """The type of an entry: of a dataclass field, or of a mapping's values; None where there is none."""
    if is_dataclass(schema):
        return typing.get_type_hints(schema).get(key)
    if typing.get_origin(schema) is dict:
        return typing.get_args(schema)[1]
    return None


def _members(family: Any) -> tuple[Any, ...]:
    if typing.get_origin(family) in (types.UnionType, typing.Union):
        return tuple(member for member in typing.get_args(family) if member is not types.NoneType)
    return (family,)


def _kind(member: Any) -> str:
    return next(str(item.default) for item in fields(member) if item.name == "kind")


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    cleaned = {
        key: _without_none(value) if isinstance(value, Mapping) else value for key, value in options.items()
    }
    return {key: value for key, value in cleaned.items() if value is not None and value != {}}


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _one_line(action: Callable[[], Any], source: str) -> Any:
    """Run `action` and turn what OmegaConf, YAML and `__post_init__` say into one line."""
    try:
        return action()
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from error
    except OmegaConfBaseException as error:
        text = str(error).splitlines()[0]
        where = [part for part in (source, error.full_key) if part]
        raise ConfigError(": ".join([*where, text])) from error
    except YAMLError as error:
        raise ConfigError(f"{source} must be YAML, got: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from error
