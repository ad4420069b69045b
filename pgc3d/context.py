"""The contexts that the members of a family are built from.

The configuration of each guidance, representation or camera sampler has two methods, `requires() ->
Requirements` and `build(context)`. No other code depends on which member of the family it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.choices import MapName
from pgc3d.diffusion.files import ModelFolder
from pgc3d.diffusion.latent import LatentDiffusion
from pgc3d.diffusion.style import StyleTokens
from pgc3d.diffusion.zero123 import Zero123
from pgc3d.interfaces import Guidance, Rasterizer, Representation
from pgc3d.requirements import ModelUse, Requirements
from pgc3d.types import Cameras, Handover, PreparedMesh, SourceTexture, TextEmbedding
from pgc3d.view_prompts import ViewPromptConfig

LightLoader: TypeAlias = Callable[[Path], Float[Tensor, "H W 3"]]  # linear radiance, see `environment`


def no_lights(path: Path) -> Float[Tensor, "H W 3"]:
    """Raise ValueError: where nothing loads the images of lights."""
    raise ValueError(f"a light's image must have something that loads it, got none for {path}")


def no_sources() -> tuple[SourceTexture, ...]:
    """Raise ValueError: where there is no texture to start from."""
    raise ValueError("a representation that uses the mesh's texture must have one, got none")


@dataclass(frozen=True)
class LoadedModel:
    """A model on the device: frozen and accelerated, or diffusers' own modules where its use trains."""

    folder: ModelFolder
    diffusion: LatentDiffusion
    controls: Mapping[str, Any]  # diffusers' ControlNetModels, by their names in the use


@runtime_checkable
class ModelStore(Protocol):
    """The models of a run, each loaded once per use."""

    def get(self, name: str, use: ModelUse) -> LoadedModel:
        """The model of an entry of `models`, with the ControlNets of the use."""
        ...

    def embed(self, name: str, texts: tuple[str, ...]) -> TextEmbedding:
        """The texts encoded for the model's UNet; the text encoders are loaded for the call only."""
        ...

    def style(self, name: str) -> StyleTokens | None:
        """The tokens of the run's style image for the model's UNet; None where it has none."""
        ...

    def view_prompts(self, name: str) -> ViewPromptConfig:
        """The words for cameras and backgrounds in the model's prompts."""
        ...

    def novel_view(self, name: str, use: ModelUse, image: Float[Tensor, "S S 4"]) -> Zero123:
        """A novel-view model conditioned on an image: RGBA in [0, 1] with premultiplied colours."""
        ...


@dataclass(frozen=True)
class GuidanceContext:
    """What guidances are built from."""

    models: ModelStore
    prompt: str
    image: Callable[[], Float[Tensor, "S S 4"]]  # the prepared input image, premultiplied RGBA, on the device
    # Of the input image, on the device: 1 channel of depth or 3 of normals; None where it was not given.
    map: Callable[[MapName], Float[Tensor, "S S _"] | None]
    reference: Cameras  # the camera of the input image, on the device
    generator: torch.Generator  # on the CPU; for initial weights, where a guidance trains some


@dataclass(frozen=True)
class RepresentationContext:
    """What representations are built from."""

    rasterizer: Rasterizer
    device: torch.device
    generator: torch.Generator  # on the CPU; for initial weights
    mesh: Callable[[], PreparedMesh]  # the prepared mesh of the task
    start: Handover | None = None  # the result of an earlier stage
    low_memory: bool = False
    light: LightLoader = no_lights
    sources: Callable[[], tuple[SourceTexture, ...]] = no_sources  # of the mesh's texture sets
    fill: float = 1.0  # largest fraction of the image's half height that the unit ball covers in a view


@runtime_checkable
class GuidanceMember(Protocol):
    """A configuration of the guidance family."""

    @property
    def kind(self) -> str: ...

    def requires(self) -> Requirements: ...

    def input_resolution(self, rendered: int, model: int) -> int:
        """Side in pixels of the images that are evaluated.

        Args:
            rendered: side of the renders.
            model: side that the model was trained at.
        """
        ...

    def build(self, context: GuidanceContext) -> Guidance: ...


@runtime_checkable
class RepresentationMember(Protocol):
    """A configuration of the representation family."""

    @property
    def kind(self) -> str: ...

    @property
    def fixed_shape(self) -> bool:
        """Whether only colours are optimised."""
        ...

    @property
    def memory_settings(self) -> tuple[str, ...]:
        """Settings of the representation, beside those of all, with which a step's memory grows."""
        ...

    def requires(self) -> Requirements: ...

    def render_bytes(self, *, low_memory: bool) -> int:
        """Bytes kept for each rendered pixel until the backward pass."""
        ...

    def again_bytes(self, *, low_memory: bool) -> int:
        """Bytes for each pixel of one view that is rendered again in the backward pass; 0 where none is."""
        ...

    def render_work(self) -> float:
        """How long a pixel's render and its backward pass take, in look-ups of one level of a hash grid."""
        ...

    def build(self, context: RepresentationContext) -> Representation: ...
