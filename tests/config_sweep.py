"""Every setting of every configuration class, and two steps of a run with it."""

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path

import torch
import yaml
from fakes import PullTowardColor
from meshes import write_cube
from PIL import Image

from pgc3d.build.inputs import prepare_mesh
from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import RunContext, build_representation, build_stage, camera_context
from pgc3d.config import Config, load_config
from pgc3d.inputs.image import frame_image
from pgc3d.inputs.mesh import save_prepared
from pgc3d.optimize import Objective, Problem, optimize
from pgc3d.pgc import clip_parameters
from pgc3d.rendering import build_rasterizer
from pgc3d.schedules import PiecewiseLinear
from pgc3d.task import Task

CPU = torch.device("cpu")
STAGE = "stages.main"
SMALL = [f"{STAGE}.{item}" for item in ("resolution=[16]", "resolution_until=[]", "steps=2")]
SMALL += [f"{STAGE}.objectives.color.batch=1"]
ENTRIES = {  # a name for an entry of each mapping
    "stages": "main", "models": "text", "objectives": "color", "controls": "depth", "backgrounds": "white",
}  # fmt: skip
SMALL_FIELD = [f"color_field.{item}" for item in ("levels=2", "log2_rows=8", "finest=16", "hidden=4")]
PAINTED = f"{STAGE}.representation.kind=textured_mesh"
SETTINGS = {
    "dmtet": [f"{STAGE}.representation.{item}" for item in ("resolution=8", *SMALL_FIELD)],
    "nerf": [
        f"{STAGE}.representation.{item}"
        for item in (
            "kind=nerf", "levels=2", "log2_rows=8", "finest=16", "stations=8", "occupancy=8", *SMALL_FIELD,
        )
    ],
    "textured_mesh": [
        PAINTED, *(f"{STAGE}.representation.{item}" for item in ("image_size=64", *SMALL_FIELD)),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A place in a configuration that holds numbers."""

    path: str
    type: object
    base: tuple[str, ...]  # what must be set for it to be there
    owner: type  # the configuration class that declares it
    name: str  # there

    @property
    def whole(self) -> bool:
        return self.type is int or int in typing.get_args(self.type)

    @property
    def length(self) -> int:
        """Entries of a tuple, 0 for a plain number."""
        if typing.get_origin(self.type) is not tuple:
            return 0
        arguments = typing.get_args(self.type)
        return 1 if arguments[-1] is ... else len(arguments)

    def written(self, value: str) -> str:
        """The value as the setting's type would hold it: in each entry of a tuple."""
        return value if self.length == 0 else f"[{', '.join([value] * self.length)}]"


def settings() -> list[Setting]:
    """All numbers that a configuration can hold, over all members of all families."""
    return list(_walk(Config, "", ()))


def _walk(kind: type, path: str, base: tuple[str, ...]) -> Iterator[Setting]:
    hints = typing.get_type_hints(kind)
    for item in fields(kind):
        where = f"{path}{item.name}"
        yield from _walk_hint(hints[item.name], where, base, (kind, item.name))


def _members(hint: object) -> tuple[object, ...]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return tuple(part for part in typing.get_args(hint) if part is not types.NoneType)
    return (hint,)


def _walk_hint(hint: object, where: str, base: tuple[str, ...], place: tuple[type, str]) -> Iterator[Setting]:
    members = _members(hint)
    for member in members:
        if is_dataclass(member):
            kind = next((item.default for item in fields(member) if item.name == "kind"), None)
            chosen = (*base, f"{where}.kind={kind}") if len(members) > 1 else base
            if kind == "reference" and where.endswith("guidance"):
                chosen = (*chosen, f"{STAGE}.objectives.color.cameras.kind=reference")
            if kind in ("close_up", "cover"):
                chosen = (PAINTED, *chosen)
            yield from _walk(member, f"{where}.", chosen)
        elif typing.get_origin(member) is dict:
            name = ENTRIES[where.rsplit(".", maxsplit=1)[-1]]
            extra = (f"{where}.{name}.model=none",) if name == "depth" else ()
            yield from _walk_hint(typing.get_args(member)[1], f"{where}.{name}", (*base, *extra), place)
        elif member in (int, float) or (
            typing.get_origin(member) is tuple and set(typing.get_args(member)) & {int, float}
        ):
            yield Setting(where, member, base, *place)


@dataclass
class Bench:
    """What is made once for many configurations: a mesh, an image, and the bundled models."""

    folder: Path

    def __post_init__(self) -> None:
        self.rasterizer = build_rasterizer("cpu", CPU)
        picture = Image.new("RGBA", (96, 96))
        picture.paste((200, 40, 40, 255), (24, 24, 72, 72))
        picture.save(self.folder / "picture.png")
        write_cube(self.folder / "mesh.glb")
        self._canvases: dict[object, Path] = {}
        self._models: dict[object, LoadedModels] = {}

    def run(self, config: Config, *, model: bool = False) -> None:
        """Build what the configuration describes and take two steps; with the real guidance if `model`."""
        stage, context = config.last, self._context(config, model=model)
        problem = build_stage(context, "main").problem if model else self._plain(config, context)
        reports = optimize(
            problem,
            steps=stage.steps,
            resolution_at=stage.resolution_at,
            seed=config.run.seed,
            log_every=config.logging.log_every,
            max_skipped=stage.optimizer.max_skipped,
        )
        list(islice(reports, 2))
        for group in problem.representation.parameter_store().groups:
            for tensor in group["params"]:
                assert torch.isfinite(tensor).all(), group["name"]

    def _plain(self, config: Config, context: RunContext) -> Problem:
        """The stage with a guidance that takes no time."""
        stage, objective = config.last, config.last.objectives["color"]
        representation = build_representation(context, "main")
        mesh = context.mesh().in_world() if "mesh" in stage.requires().inputs else None
        cameras = replace(camera_context(config.view, CPU, mesh, self.rasterizer), batch=objective.batch)
        representation.parameter_store().use_adam(betas=stage.optimizer.betas, eps=stage.optimizer.eps)
        norms = stage.parameter_norms()
        return Problem(
            representation=representation,
            objectives={
                "color": Objective(
                    sample_cameras=objective.cameras.build(cameras),
                    guidance=PullTowardColor(),
                    clip=objective.clip.build(),
                    backgrounds=((1.0, 1.0, 1.0), None),
                    weight=PiecewiseLinear(objective.weight),
                    threshold_scale=PiecewiseLinear(objective.threshold_scale),
                    target=objective.target,
                )
            },
            clip_parameters=partial(clip_parameters, max_norm=norms.pop()) if norms else None,
            lr_scale=PiecewiseLinear(stage.optimizer.lr_scale),
        )

    def frame(self, config: Config) -> None:
        """Prepare an image as the configuration says."""
        image = config.image
        frame_image(
            self.folder / "picture.png", border=image.border, matting=image.matting, size=image.size
        ).png()

    def _context(self, config: Config, *, model: bool) -> RunContext:
        task = Task("a red chair", mesh=self._canvas(config), image=self._picture() if model else None)
        models = self._load(config) if model else None
        return RunContext.of(config, task, self.rasterizer, CPU, models)

    def _canvas(self, config: Config) -> Path | None:
        chosen = config.last.representation
        if chosen.kind != "textured_mesh":
            return None
        key = (chosen.up, chosen.front, chosen.crease_degrees, chosen.image_size, chosen.texture)
        if key not in self._canvases:
            small = load_config(
                overrides=[
                    PAINTED, "export.texture_size=64", "run.rasterizer=cpu",
                    f"{STAGE}.representation.crease_degrees={chosen.crease_degrees}",
                ]
            )  # fmt: skip
            path = self.folder / f"canvas-{len(self._canvases)}.safetensors"
            save_prepared(path, prepare_mesh(small, self.folder / "mesh.glb", CPU))
            self._canvases[key] = path
        return self._canvases[key]

    def _picture(self) -> Path:
        path = self.folder / "prepared.png"
        if not path.is_file():
            path.write_bytes(frame_image(self.folder / "picture.png", size=64).png())
        return path

    def _load(self, config: Config) -> LoadedModels:
        key = (repr(config.models), repr(config.requires().models))
        if key not in self._models:
            self._models[key] = LoadedModels(locate_models(config, CPU), CPU)
        return self._models[key]


VALUES = (
    ".nan",
    ".inf",
    "-.inf",
    "0",
    "-1",
    "-1e9",
    "1e9",
    "1e12",
    "1e30",
    "text",
    "true",
    "null",
    "[]",
    "{}",
)
WHOLE = {f"{sign}1e{power}": f"{sign}1{'0' * power}" for sign in ("", "-") for power in (9, 12, 30)}


def written(setting: Setting, value: str) -> str:
    """A value in YAML as the setting would hold it: whole where it is whole, in each entry of a tuple."""
    if value in {"null", "[]", "{}"}:
        return value
    return setting.written(WHOLE.get(value, value) if setting.whole else value)


def nested(path: str, value: object) -> dict[str, object]:
    """One value as the mapping of a file."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


@cache
def base_of(setting: Setting) -> dict[str, object]:
    """What makes the setting's place, small and quick, as the mapping of a file."""
    kinds = (kind for kind in SETTINGS if f"{STAGE}.representation.kind={kind}" in setting.base)
    kind = next(kinds, "dmtet")
    base: dict[str, object] = {}
    for item in [*SMALL, *SETTINGS[kind], *setting.base]:
        path, _, text = item.partition("=")
        _update(base, nested(path, yaml.safe_load(text)))
    return base


def _update(base: dict, layer: dict) -> None:
    for key, value in layer.items():
        if isinstance(value, dict):
            _update(base.setdefault(key, {}), value)
        else:
            base[key] = value


def load(setting: Setting, value: str, folder: Path, *, by_file: bool) -> Config:
    """The configuration with a value, by `--set` or by a file."""
    if not by_file:
        return load_config([base_of(setting)], overrides=[f"{setting.path}={value}"])
    names, path = setting.path.split("."), folder / "value.yaml"
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(names)]
    path.write_text("\n".join(lines) + f" {value}\n")
    return load_config([base_of(setting), path])
