"""The models of a run as far as they are known without their weights, and the work that an image is."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from pgc3d.build.models import NOVEL_VIEW, is_fast, locate_model
from pgc3d.config import Config, ModelConfig, ObjectiveConfig, StageConfig
from pgc3d.diffusion.aliases import ALIASES, BUNDLED
from pgc3d.diffusion.files import WEIGHTS, ModelFolder, weight_files
from pgc3d.diffusion.models import find_part, local_model
from pgc3d.errors import WeightsNotFoundError
from pgc3d.planning.model_size import ModelSize, count_parameters, read_size
from pgc3d.planning.plan import FROZEN
from pgc3d.planning.plan_times import CONTROL_SIZES, SIZES, Work
from pgc3d.requirements import ModelUse

SAME_SIZE = 0.001  # fraction that the numbers of parameters of one architecture may differ


@dataclass(frozen=True)
class KnownModel:
    """An entry of `models`, as far as it is known without its weights."""

    kind: str  # as in `Work`
    size: ModelSize | None  # None where it is unknown


def known_model(config: ModelConfig, use: ModelUse) -> KnownModel:
    """The kind and the size of a model, from its files on this disk, else from those of published models."""
    kind, size = _alone(config, use)
    counts = {name: control_parameters(name) for name in use.controls}
    controls = {name: count for name, count in counts.items() if count is not None}
    if size is None or len(controls) < len(counts):
        return KnownModel(kind, None)
    return KnownModel(kind, replace(size, controls=controls))


def _alone(config: ModelConfig, use: ModelUse) -> tuple[str, ModelSize | None]:
    """The kind and the size of a model without its ControlNets."""
    if config.name == BUNDLED:
        plain = replace(config, loras=(), vae=None)
        folder = locate_model(plain, replace(use, controls=()), torch.device("cpu")).folder
        return "mini image" if folder.layout == NOVEL_VIEW else "mini", read_size(folder, {})
    found = local_model(config.name)
    if found is not None:
        size = read_size(found, {})
        return _kind_of(found, size), size
    by_id = {ALIASES[name]: name for name in SIZES}
    kind = by_id.get(ALIASES.get(config.name, config.name), config.name)
    return kind, SIZES.get(kind)


def _kind_of(folder: ModelFolder, size: ModelSize) -> str:
    """The published model of a folder's architecture, else the folder's own name."""
    published = SIZES.get(folder.layout)
    if published is None:
        return folder.name
    near = abs(size.unet_parameters / published.unet_parameters - 1) < SAME_SIZE
    same = (size.resolution, size.vae_channels) == (published.resolution, published.vae_channels)
    return folder.layout if near and same else folder.name


def control_parameters(name: str) -> int | None:
    """Number of parameters of a ControlNet; None for one that is neither on this disk nor published."""
    try:
        folder = find_part(name, "controlnet", network=False)
    except WeightsNotFoundError:
        return CONTROL_SIZES.get(name)
    return count_parameters(weight_files(folder, WEIGHTS["unet"], prefer_half=True))


def evaluations(stage: StageConfig) -> Iterator[tuple[ObjectiveConfig, str, ModelUse]]:
    """The objectives of a stage, each with its models."""
    for objective in stage.objectives.values():
        for name, use in objective.guidance.requires().models.items():
            yield objective, name, use


def work_of(
    config: Config, objective: ObjectiveConfig, name: str, use: ModelUse, side: int, model: KnownModel
) -> Work | None:
    """What the time of an image depends on; None where the model's size is unknown.

    Args:
        config: of the run.
        objective: that evaluates the images.
        name: of the model's entry in `models`.
        use: of the model, by the objective.
        side: of the renders, in pixels.
        model: the entry.
    """
    if model.size is None:
        return None
    settings = config.models[name]
    return Work(
        model.kind,
        objective.guidance.input_resolution(side, model.size.resolution),
        evaluations=use.evaluations,
        controls=tuple(sorted(use.controls)),
        trains=use.trains,
        low_memory=config.run.low_memory,
        is_fast=is_fast(settings, FROZEN),
        precision=settings.dtype,
    )
